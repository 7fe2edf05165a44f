//! *What is memory that nothing deeper lies in?* — by section where a file was loaded, else by the mapping.

use super::chunks::{HEADER, is_mapped_alone};
use super::leaf::{Kind, Leaf, What};
use super::leaves::{AROUND, Space, overlaps};
use super::{Object, Span};
use crate::running::Mapping;
use crate::value::Contents;
use pointee_model::addr::{Alleged, LinkAddr, RunAddr};
use pointee_model::image::{section_flags, variable_flags};

/// Longest literal.
const LONGEST: u64 = AROUND;
/// A gap between variables that alignment explains (gcc aligns large arrays to 32 bytes, cache lines have 64).
const PADDING: u64 = 64;

impl<'a> Space<'a> {
    /// What is in no layer.
    pub(super) fn rest(&self, number: usize, gap: Span) -> Vec<(Span, Leaf<'a>)> {
        let Some(mapping) = self.layout.mappings.get(number) else {
            return Vec::new();
        };
        let whole = |kind, what| {
            let leaf = Leaf::new(gap.start.0, gap.end.0, kind, what);
            vec![(gap, leaf)]
        };
        let mut objects = self.layout.objects.iter().enumerate();
        if let Some((at, object)) = objects.find(|(_, object)| is_part_of(object, gap.start)) {
            if object.path == "[vdso]" {
                return whole(Kind::Vdso, What::Mapping);
            }
            return self.in_sections(at, object, mapping, gap);
        }
        let threads = self.layout.threads.iter().enumerate();
        let stack = threads
            .filter_map(|(thread, record)| Some((thread, record.stack?)))
            .find(|(_, stack)| overlaps(*stack, gap));
        if !mapping.permissions.starts_with('r') && !mapping.permissions.contains('x') {
            return whole(Kind::Reserved, What::Mapping);
        }
        if let Some((thread, _)) = stack {
            return whole(Kind::Stack, What::Stack { thread });
        }
        match mapping.path.as_str() {
            "[stack]" => whole(Kind::Stack, What::Mapping),
            "[vdso]" => whole(Kind::Vdso, What::Mapping),
            path if path.starts_with("[vvar") || path == "[vsyscall]" => {
                whole(Kind::Vvar, What::Mapping)
            }
            _ if mapping.inode != 0 => whole(Kind::File, What::Mapping),
            _ if self.glibc_arena(number).is_some() => whole(Kind::Arena, What::Mapping),
            _ => self.in_areas(number, gap),
        }
    }

    /// In no chain of chunks: holes of arenas, and what nothing is known of than who mapped it.
    fn in_areas(&self, number: usize, gap: Span) -> Vec<(Span, Leaf<'a>)> {
        let pieces = self.areas_in(number, gap).into_iter().map(|area| {
            let kind = match self.arena_of(&area) {
                Some(_) => Kind::Hole,
                None => Kind::Anonymous,
            };
            let start = gap.start.max(area.span.start);
            let end = gap.end.min(area.span.end);
            self.between_blocks(Span { start, end }, kind)
        });
        pieces.flatten().collect()
    }

    /// Between blocks where no chain of chunks is: the header of one that was mapped on its own, what fills its last
    /// page, or `other`. (The kernel makes one mapping of neighbours, whoever asked for them.)
    fn between_blocks(&self, gap: Span, other: Kind) -> Vec<(Span, Leaf<'a>)> {
        let leaf = |span: Span, kind| {
            (
                span,
                Leaf::new(span.start.0, span.end.0, kind, What::Mapping),
            )
        };
        let Some(contents) = self.contents else {
            return vec![leaf(gap, other)];
        };
        let header = RunAddr(gap.end.0.wrapping_sub(HEADER));
        let mut leaves = Vec::new();
        let mut end = gap.end;
        if header >= gap.start && is_mapped_alone(contents, gap.end) {
            end = header;
        }
        if gap.start < end {
            let before = RunAddr(gap.start.0.wrapping_sub(1));
            let block = self.index.and_then(|index| index.block_at(before.0));
            let alone = block.is_some_and(|block| is_mapped_alone(contents, RunAddr(block.base)));
            let fills_page = alone && end.0 - gap.start.0 < AROUND;
            let kind = if fills_page { Kind::Slack } else { other };
            leaves.push(leaf(
                Span {
                    start: gap.start,
                    end,
                },
                kind,
            ));
        }
        if end < gap.end {
            leaves.push(leaf(
                Span {
                    start: end,
                    end: gap.end,
                },
                Kind::Header,
            ));
        }
        leaves
    }

    /// What of an object has no name, by section.
    fn in_sections(
        &self,
        at: usize,
        object: &Object,
        mapping: &Mapping,
        gap: Span,
    ) -> Vec<(Span, Leaf<'a>)> {
        let sections = self.image(at).map_or(&[][..], |image| image.sections);
        let mut cut = Vec::new();
        let mut from = gap.start;
        let segment = |start: RunAddr, end: RunAddr| {
            let span = Span { start, end };
            (
                span,
                Leaf::new(start.0, end.0, Kind::Segment, What::Mapping),
            )
        };
        for (number, section) in sections.iter().enumerate() {
            // The initial contents of thread-local blocks take up file, `.tbss` no memory at all.
            let nowhere = section_flags::THREAD_LOCAL | section_flags::ZEROED;
            if section.flags & nowhere == nowhere {
                continue;
            }
            let start = object.bias.to_run(LinkAddr(section.address)).max(from);
            let end = object
                .bias
                .to_run(LinkAddr(section.address.saturating_add(section.size)))
                .min(gap.end);
            if start >= end {
                continue;
            }
            if from < start {
                cut.push(segment(from, start));
            }
            self.in_section(at, number, Span { start, end }, mapping, &mut cut);
            from = end;
        }
        if from < gap.end {
            cut.push(segment(from, gap.end));
        }
        cut
    }

    fn in_section(
        &self,
        at: usize,
        number: usize,
        gap: Span,
        mapping: &Mapping,
        cut: &mut Vec<(Span, Leaf<'a>)>,
    ) {
        let Some((image, section)) = self
            .image(at)
            .and_then(|image| Some((image, image.sections.get(number)?)))
        else {
            return;
        };
        let what = What::Section {
            object: at,
            section: number,
        };
        let name = image.string(section.name);
        let whole = |kind| (gap, Leaf::new(gap.start.0, gap.end.0, kind, what));
        if is_linkage(name) {
            return cut.push(whole(Kind::Linkage));
        }
        if section.flags & section_flags::CODE != 0 {
            let kind = if gap.end.0 - gap.start.0 < PADDING {
                Kind::Padding
            } else {
                Kind::Code
            };
            return cut.push(whole(kind));
        }
        let has_names = image
            .variables
            .iter()
            .any(|variable| variable.flags & variable_flags::THREAD_LOCAL == 0);
        let is_writable = mapping.permissions.starts_with("rw");
        if has_names && gap.end.0 - gap.start.0 < PADDING {
            let is_padding = self.is_zero(gap);
            if is_padding.unwrap_or(is_writable && aligns(gap)) {
                return cut.push(whole(Kind::Padding));
            }
        }
        // Relocated constants are writable in the file, and not any more in the process.
        if is_writable {
            return cut.push(whole(Kind::Data));
        }
        match self.contents {
            Some(contents) => literals(gap, contents, at, what, cut),
            None => cut.push(whole(Kind::Constants)),
        }
    }

    /// Whether all bytes of a short `span` are zero; `None` where they cannot be read.
    fn is_zero(&self, span: Span) -> Option<bool> {
        let mut bytes = [0; PADDING as usize];
        let bytes = bytes.get_mut(..(span.end.0 - span.start.0) as usize)?;
        let is_there = self.contents?.read(Alleged(span.start.0), bytes);
        is_there.then(|| bytes.iter().all(|byte| *byte == 0))
    }
}

/// Whether what begins behind `gap` needs it for its alignment.
fn aligns(gap: Span) -> bool {
    let alignment = 1 << gap.end.0.trailing_zeros().min(PADDING.ilog2());
    gap.end.0 - gap.start.0 < alignment
}

/// Whether `address` lies in a segment of `object`, or on a page that one starts or ends on.
fn is_part_of(object: &Object, address: RunAddr) -> bool {
    const PAGE: u64 = 0xfff;
    object.segments.iter().any(|(span, _)| {
        let start = RunAddr(span.start.0 & !PAGE);
        let end = RunAddr(span.end.0.wrapping_add(PAGE) & !PAGE);
        (start..end).contains(&address)
    })
}

/// Sections that no variable of the program lies in.
fn is_linkage(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        ".got",
        ".dynamic",
        ".interp",
        ".hash",
        ".dynsym",
        ".dynstr",
        ".gnu.",
        ".eh_frame",
        ".gcc_except_table",
        ".rel",
        ".note",
        ".plt",
        ".init",
        ".fini",
    ];
    NAMES.iter().any(|known| name.starts_with(known))
        || name == ".preinit_array"
        || name == ".relr.dyn"
}

/// Cuts read-only data into strings and other constants. A string is text that ends with a NUL and starts behind one.
fn literals<'a>(
    gap: Span,
    contents: &dyn Contents,
    object: usize,
    rest: What<'a>,
    cut: &mut Vec<(Span, Leaf<'a>)>,
) {
    let constants = |start: u64, end: u64| {
        let leaf = Leaf::new(start, end, Kind::Constants, rest);
        (leaf.span, leaf)
    };
    let mut at = gap.start.0;
    // Where the constants that were passed over start.
    let mut from = at;
    let mut bytes = vec![0; 2 * LONGEST as usize];
    while at < gap.end.0 {
        let len = (gap.end.0 - at).min(bytes.len() as u64) as usize;
        if !contents.read(Alleged(at), &mut bytes[..len]) {
            break;
        }
        let is_last = at + len as u64 == gap.end.0;
        let mut done = 0;
        while done < len {
            let Some(end) = bytes[done..len].iter().position(|byte| *byte == 0) else {
                break;
            };
            let text = &bytes[done..done + end];
            if text.len() > 1 && std::str::from_utf8(text).is_ok_and(is_text) {
                let start = at + done as u64;
                if from < start {
                    cut.push(constants(from, start));
                }
                from = start + end as u64 + 1;
                let leaf = Leaf::new(start, from, Kind::Literal, What::Literal { object });
                cut.push((leaf.span, leaf));
            }
            done += end + 1;
        }
        // What had no NUL is read again with what follows, unless that is all there is.
        at += if done == 0 || is_last { len } else { done } as u64;
    }
    if from < gap.end.0 {
        cut.push(constants(from, gap.end.0));
    }
}

fn is_text(text: &str) -> bool {
    text.chars()
        .all(|character| !character.is_control() || "\t\n\r\x1b".contains(character))
}
