//! *What is seen of leaves that lie above each other?* — a window is divided by the first layer, and what that leaves out by
//! the layers below.

use super::Span;
use super::leaf::Leaf;

/// Leaves before a window's start that may reach into it.
const REACHING: usize = 8;

/// Divides `window` by the first layer, each gap by the layers below; `rest` divides what is in none. Gives what is seen
/// of each leaf, with the leaf. Layers are in order of start.
pub(super) fn fold<'a>(
    window: Span,
    layers: &[Vec<Leaf<'a>>],
    rest: &mut dyn FnMut(Span) -> Vec<(Span, Leaf<'a>)>,
) -> Vec<(Span, Leaf<'a>)> {
    let mut cut = Vec::new();
    divide(window, layers, rest, &mut cut);
    cut
}

fn divide<'a>(
    window: Span,
    layers: &[Vec<Leaf<'a>>],
    rest: &mut dyn FnMut(Span) -> Vec<(Span, Leaf<'a>)>,
    cut: &mut Vec<(Span, Leaf<'a>)>,
) {
    let Some((layer, below)) = layers.split_first() else {
        cut.extend(rest(window));
        return;
    };
    let mut from = window.start;
    // Of leaves that start before the window only the last few can reach in: leaves of a layer hardly overlap.
    let first = layer.partition_point(|leaf| leaf.span.start < window.start);
    for leaf in &layer[first.saturating_sub(REACHING)..] {
        if leaf.span.start >= window.end {
            break;
        }
        let start = leaf.span.start.max(from);
        let end = leaf.span.end.min(window.end);
        if start >= end {
            continue;
        }
        if from < start {
            divide(
                Span {
                    start: from,
                    end: start,
                },
                below,
                rest,
                cut,
            );
        }
        cut.push((Span { start, end }, *leaf));
        from = end;
    }
    if from < window.end {
        divide(
            Span {
                start: from,
                end: window.end,
            },
            below,
            rest,
            cut,
        );
    }
}
