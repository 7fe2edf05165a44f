//! *What does this lie in?* — from a leaf outwards to its mapping.
//!
//! ```text
//!   pool's block ─▶ block ─▶ arena │ static variable …     variable ─▶ section ─▶ file     local ─▶ frame ─▶ stack     all ─▶ mapping
//! ```

use crate::report::PlaceRow;
use crate::resolve::position_at;
use crate::space::{Kind, Leaf, Mapper, Space, Span, What};
use pointee_model::addr::{LinkAddr, RunAddr};
use serde::Serialize;

/// One thing that the address lies in.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Link {
    /// `block` (a pool's blocks were cut out of), `arena`, `static`, `section`, `file`, `frame`, `stack`, `signal stack`, `thread`, `mapping`.
    pub kind: &'static str,
    pub name: Option<String>,
    pub base: String,
    pub size: u64,
    /// Of a mapping: `rw-p`.
    pub permissions: Option<String>,
    /// Of the mapping of a file: where in the file it starts.
    pub file_offset: Option<u64>,
    /// Of a mapping: who asked for it, if that was seen.
    pub mapped_by: Option<Mapper>,
}

impl Link {
    fn new(kind: &'static str, name: Option<String>, span: Span) -> Self {
        Self {
            kind,
            name,
            base: span.start.to_string(),
            size: span.end.offset_from(span.start).unwrap_or(0),
            ..Self::default()
        }
    }
}

/// What `leaf` lies in, at `address`.
pub(super) fn above(space: &Space<'_>, leaf: &Leaf<'_>, address: RunAddr) -> Vec<Link> {
    let mut links = Vec::new();
    match leaf.what {
        What::Block(_) => {
            if let Some(around) = space.block_around(address) {
                let start = RunAddr(around.base);
                let end = start.plus(around.size.max(1));
                let name = space
                    .type_of(&around)
                    .or_else(|| space.allocator_of(&around));
                links.push(Link::new("block", name, Span { start, end }));
            }
            // A block may have been cut out of a variable, or of a frame.
            if let Some(below) = space.leaf_below_blocks(address) {
                if let Some(link) = as_link(space, &below) {
                    links.push(link);
                }
                enclosing(space, &below, &mut links);
            }
        }
        _ => enclosing(space, leaf, &mut links),
    }
    if let Some((thread, span)) = space.signal_stack_at(address) {
        around_signal_stack(space, leaf, thread, span, address, &mut links);
    }
    arena(space, leaf, address, &mut links);
    links.extend(mapping(space, address));
    links
}

/// The signal stack that frames lie on, and what it was made of: a block, a variable, …
fn around_signal_stack(
    space: &Space<'_>,
    leaf: &Leaf<'_>,
    thread: usize,
    span: Span,
    address: RunAddr,
    links: &mut Vec<Link>,
) {
    if !matches!(leaf.what, What::SignalStack { .. }) {
        links.push(Link::new("signal stack", thread_name(space, thread), span));
    }
    let Some(below) = space.leaf_beside_signal_stacks(address) else {
        return;
    };
    match below.what {
        What::Block(block) => {
            let name = space.type_of(&block).or_else(|| space.allocator_of(&block));
            links.push(Link::new("block", name, below.span));
            arena(space, &below, address, links);
        }
        // Its own frames again.
        What::Local { .. } | What::Carved { .. } | What::Saved { .. } | What::Frame { .. } => {}
        _ => {
            links.extend(as_link(space, &below));
            enclosing(space, &below, links);
        }
    }
}

fn thread_name(space: &Space<'_>, thread: usize) -> Option<String> {
    let thread = space.layout().threads.get(thread)?;
    Some(format!("thread {} {}", thread.id, thread.name))
}

fn as_link(space: &Space<'_>, leaf: &Leaf<'_>) -> Option<Link> {
    let (object, name) = match leaf.what {
        What::Variable { object, record } => (object, record.name),
        What::Local { object, record, .. } => (object, record.name),
        What::ThreadLocal {
            object,
            record: Some(record),
            ..
        } => (object, record.name),
        _ => return None,
    };
    let name = space.image(object)?.string(name).to_owned();
    Some(Link::new(leaf.kind.word(), Some(name), leaf.span))
}

fn enclosing(space: &Space<'_>, leaf: &Leaf<'_>, links: &mut Vec<Link>) {
    let layout = space.layout();
    match leaf.what {
        What::Variable { object, .. } | What::Function { object } | What::Literal { object } => {
            links.extend(section(space, object, leaf.span.start));
            links.extend(file(space, object));
        }
        What::Section { object, .. } => links.extend(file(space, object)),
        What::ThreadLocal { thread, object, .. } => {
            let blocks = layout.threads.get(thread).map(|thread| &thread.blocks);
            let block = blocks
                .into_iter()
                .flatten()
                .find(|(number, _)| *number as usize == object);
            if let (Some((_, span)), Some(object)) = (block, layout.objects.get(object)) {
                let name = Some(object.path.clone());
                links.push(Link::new("thread-local block", name, *span));
            }
            links.extend(stack(space, thread, leaf.span.start));
        }
        What::ControlBlock { thread } => links.extend(stack(space, thread, leaf.span.start)),
        What::Local { thread, frame, .. }
        | What::Carved { thread, frame, .. }
        | What::Saved { thread, frame, .. } => {
            links.extend(self::frame(space, thread, frame));
            links.extend(stack(space, thread, leaf.span.start));
        }
        What::Frame { thread, .. } | What::Stack { thread } => {
            links.extend(stack(space, thread, leaf.span.start));
        }
        What::SignalStack { .. }
        | What::Block(_)
        | What::Chunk
        | What::Start { .. }
        | What::Mapping => {}
    }
}

fn section(space: &Space<'_>, object: usize, address: RunAddr) -> Option<Link> {
    let bias = space.layout().objects.get(object)?.bias;
    let image = space.image(object)?;
    let link = bias.to_link(address);
    let section = image
        .sections
        .iter()
        .find(|section| link.0.wrapping_sub(section.address) < section.size)?;
    let start = bias.to_run(LinkAddr(section.address));
    let span = Span {
        start,
        end: start.plus(section.size),
    };
    Some(Link::new(
        "section",
        Some(image.string(section.name).to_owned()),
        span,
    ))
}

fn file(space: &Space<'_>, object: usize) -> Option<Link> {
    let object = space.layout().objects.get(object)?;
    Some(Link::new("file", Some(object.path.clone()), object.span))
}

fn frame(space: &Space<'_>, thread: usize, number: usize) -> Option<Link> {
    let layout = space.layout();
    let frame = layout.threads.get(thread)?.frames.get(number)?;
    let executing = frame.executing();
    let name = layout.object_at(executing).and_then(|(object, record)| {
        let position = position_at(space.image(object)?, record.bias.to_link(executing));
        let place = position.inlined.last().unwrap_or(&position.place);
        PlaceRow::from(place).function
    });
    let name = format!("#{number} {}", name.as_deref().unwrap_or("?"));
    Some(Link::new("frame", Some(name), frame.span))
}

fn stack(space: &Space<'_>, thread: usize, address: RunAddr) -> Option<Link> {
    let name = thread_name(space, thread);
    let stack = space.layout().threads.get(thread)?.stack;
    let stack = stack.filter(|stack| stack.holds(address))?;
    Some(Link::new("stack", name, stack))
}

fn arena(space: &Space<'_>, leaf: &Leaf<'_>, address: RunAddr, links: &mut Vec<Link>) {
    let in_arena = matches!(
        leaf.kind,
        Kind::Heap
            | Kind::Pooled
            | Kind::Slack
            | Kind::Header
            | Kind::Free
            | Kind::Cached
            | Kind::Allocator
            | Kind::Hole
            | Kind::Arena
    );
    let Some((number, mapping)) = space.layout().mapping_at(address).filter(|_| in_arena) else {
        return;
    };
    let allocator = match leaf.what {
        What::Block(block) => {
            let outer = space.block_around(address).unwrap_or(block);
            space.allocator_of(&outer)
        }
        _ => space
            .block_of_arena(address)
            .and_then(|block| space.allocator_of(&block)),
    };
    let which = match space.glibc_arena(number) {
        Some(true) => "main arena",
        Some(false) => "arena",
        None if mapping.path == "[heap]" => "brk area",
        None if allocator.is_some() => "arena",
        None => return,
    };
    let name = match allocator {
        Some(allocator) => format!("{which} of {allocator}"),
        None => which.to_owned(),
    };
    let span = Span {
        start: mapping.start,
        end: mapping.end,
    };
    links.push(Link::new("arena", Some(name), span));
}

fn mapping(space: &Space<'_>, address: RunAddr) -> Option<Link> {
    let (_, mapping) = space.layout().mapping_at(address)?;
    let name = if mapping.path.is_empty() {
        "anonymous".to_owned()
    } else {
        mapping.path.clone()
    };
    let span = Span {
        start: mapping.start,
        end: mapping.end,
    };
    Some(Link {
        permissions: Some(mapping.permissions.clone()),
        file_offset: (mapping.inode != 0).then_some(mapping.offset),
        mapped_by: space.mapper_of(address),
        ..Link::new("mapping", Some(name), span)
    })
}
