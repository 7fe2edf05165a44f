//! *What lies at this address?*
//!
//! ```text
//!   address ─▶ leaf ─▶ name, base, size, offset ─▶ type ─▶ field at the offset ─▶ value
//!               │       a block: origin ─▶ site
//!               └▶ chain: what it lies in, up to the mapping
//! ```

mod chain;

use crate::describe::{Shape, field_at, open_element, size_of_type, type_name, underlying};
use crate::report::PlaceRow;
use crate::resolve::{Position, Resolver, Site, function_at, position_at, shape_of};
use crate::space::{Kind, Leaf, Space, What};
use crate::value::{self, Contents};
pub use chain::Link;
use pointee_index::read::Block;
use pointee_model::addr::{Alleged, LinkAddr, RunAddr};
use pointee_model::evidence::Role;
use pointee_model::image::{Image, LocalRecord, NO_TYPE, SiteRecord, TypeIndex};
use serde::Serialize;

/// The answer for one address.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Answer {
    /// In hexadecimal.
    pub address: String,
    /// A word of [`Kind`], or `null` where nothing is mapped.
    pub kind: Option<&'static str>,
    /// First byte of the block, variable, function, …
    pub base: Option<String>,
    /// Bytes: of a block, those requested.
    pub size: Option<u64>,
    /// How far into it the address lies.
    pub offset: Option<u64>,
    /// Type of the whole.
    pub r#type: Option<String>,
    /// The field at the offset: `struct commit[3].parents.item`.
    pub field: Option<String>,
    pub field_type: Option<String>,
    /// The value of the field.
    pub value: Option<String>,
    /// The value of the whole.
    pub whole: Option<String>,
    /// Name of the variable, function, section, argument.
    pub name: Option<String>,
    /// File that the variable, function or site lies in.
    pub module: Option<String>,
    pub site: Option<SiteAnswer>,
    /// For code and what lies in frames: the place in the source.
    pub code: Option<PlaceRow>,
    /// The calls that were inlined there, innermost first.
    pub inlined: Vec<PlaceRow>,
    pub thread: Option<ThreadRow>,
    /// Number of the frame, 0 for the innermost.
    pub frame: Option<usize>,
    /// Variables of the frame that have no address: `i in rbx`.
    pub in_registers: Vec<String>,
    /// What it lies in, from the inside outwards; the mapping is last.
    pub chain: Vec<Link>,
    /// What could not be told, and why.
    pub note: Option<String>,
}

/// A thread.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct ThreadRow {
    pub id: u32,
    pub name: String,
}

/// Where a block was allocated.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct SiteAnswer {
    /// Build ID and link-time address.
    pub id: String,
    pub offset: String,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: Vec<PlaceRow>,
    pub verdict: &'static str,
    pub evidence: Vec<String>,
    pub wrappers: Vec<String>,
    pub allocator: String,
    /// The hooked function that was called.
    pub entry: String,
    /// The function that the site calls, by its linker name: the hooked one, or a wrapper.
    pub callee: Option<String>,
    /// The function that takes the block back; `null` if nobody said. Filled in by who knows the configuration.
    pub freed_by: Option<String>,
}

/// Answers for `address`.
#[must_use]
pub fn what(space: &Space<'_>, address: Alleged) -> Answer {
    let at = RunAddr(address.0);
    let mut answer = Answer {
        address: format!("{at}"),
        ..Answer::default()
    };
    let Some(leaf) = space.leaf_at(at) else {
        return answer;
    };
    answer.kind = Some(leaf.kind.word());
    answer.place(leaf.span.start, leaf.span.end, at);
    answer.fill(space, &leaf, at);
    answer.chain = chain::above(space, &leaf, at);
    answer
}

impl Answer {
    fn place(&mut self, start: RunAddr, end: RunAddr, at: RunAddr) {
        self.base = Some(start.to_string());
        self.size = end.offset_from(start);
        self.offset = at.offset_from(start);
    }

    fn fill(&mut self, space: &Space<'_>, leaf: &Leaf<'_>, at: RunAddr) {
        let layout = space.layout();
        match leaf.what {
            What::Block(block) => self.block(space, &block),
            What::Chunk => {
                let text =
                    "not recorded: known by the allocator's header only, with its usable size";
                self.note = Some(text.to_owned());
            }
            What::Variable { object, record } => {
                self.in_object(space, object);
                if let Some(image) = space.image(object) {
                    self.name = Some(image.string(record.name).to_owned());
                    self.variable(space, object, record.r#type, leaf.span.start);
                }
            }
            What::Function { object } => {
                self.in_object(space, object);
                let link = layout.objects[object].bias.to_link(at);
                if let Some(image) = space.image(object) {
                    self.name = function_at(image, link);
                    self.position(&position_at(image, link));
                }
            }
            What::Literal { object } => {
                self.in_object(space, object);
                let size = self.size.unwrap_or(0);
                self.r#type = Some(format!("char[{size}]"));
                self.text(space, leaf, at);
            }
            What::Section { object, section } => self.section(space, object, section, at),
            What::ThreadLocal {
                thread,
                object,
                record,
            } => {
                self.of_thread(space, thread);
                self.in_object(space, object);
                if let (Some(record), Some(image)) = (record, space.image(object)) {
                    self.name = Some(image.string(record.name).to_owned());
                    self.variable(space, object, record.r#type, leaf.span.start);
                }
            }
            What::ControlBlock { thread } => {
                self.of_thread(space, thread);
                self.name = Some("struct pthread".to_owned());
            }
            What::Local {
                thread,
                frame,
                object,
                record,
            } => {
                self.in_frame(space, thread, frame);
                if let Some(image) = space.image(object) {
                    self.name = Some(image.string(record.name).to_owned());
                    self.variable(space, object, record.r#type, leaf.span.start);
                }
            }
            What::Carved {
                thread,
                frame,
                object,
                pointer,
                site,
            } => {
                self.in_frame(space, thread, frame);
                self.carved(space, object, pointer, site, leaf.span.start);
            }
            What::Saved {
                thread,
                frame,
                register,
            } => {
                self.in_frame(space, thread, frame);
                self.name = Some(match register {
                    16 => "return address".to_owned(),
                    other => format!("saved {}", register_name(other)),
                });
            }
            What::Frame { thread, frame } => self.in_frame(space, thread, frame),
            What::SignalStack { thread } => self.of_thread(space, thread),
            What::Stack { thread } => {
                self.of_thread(space, thread);
                if let Some(cut) = layout
                    .threads
                    .get(thread)
                    .and_then(|thread| thread.cut.as_ref())
                {
                    self.note = Some(format!("frames of this thread are not all known: {cut}"));
                }
            }
            What::Start { piece } => {
                let piece = &layout.start[piece];
                self.name = Some(piece.name.clone());
                let is_text = matches!(
                    piece.kind,
                    crate::space::StartKind::Argument | crate::space::StartKind::Environment
                );
                if is_text {
                    self.r#type = Some(format!("char[{}]", self.size.unwrap_or(0)));
                    self.text(space, leaf, at);
                }
            }
            What::Mapping => self.mapping(space, leaf.kind, at),
        }
    }

    fn block(&mut self, space: &Space<'_>, block: &Block) {
        self.size = Some(block.size);
        let resolver = space.resolver();
        let process = resolver.process();
        let path = process
            .path_of(block.origin)
            .and_then(|at| process.paths.get(at));
        let Some(path) = path else { return };
        let site = resolver.resolve(path);
        if let Some(shape) = site.shape
            && let Some(image) = resolver.image(shape.module)
        {
            self.typed(space, image, &shape, block.size, Alleged(block.base));
        }
        let module = site
            .module
            .and_then(|number| process.modules.get(number as usize));
        self.module = module.map(|module| module.path.clone());
        self.site = Some(site_answer(resolver, site));
    }

    fn in_object(&mut self, space: &Space<'_>, object: usize) {
        self.module = space
            .layout()
            .objects
            .get(object)
            .map(|object| object.path.clone());
    }

    /// A named variable of type `index` that starts at `start`.
    fn variable(&mut self, space: &Space<'_>, object: usize, index: TypeIndex, start: RunAddr) {
        if index == NO_TYPE {
            return;
        }
        let (Some(image), Some(module)) = (space.image(object), space.module(object)) else {
            return;
        };
        // Of an array of variable length the element is known.
        let element = open_element(image, index);
        if element.is_some() && self.frame.is_some() {
            let text =
                "its length is not stated: it is taken to reach up to what lies next in the frame";
            self.note = Some(text.to_owned());
        }
        let shape = Shape {
            module,
            role: element.map_or(Role::Whole, |_| Role::Element),
            r#type: element.unwrap_or(index),
            tail: NO_TYPE,
            front: 0,
        };
        let size = self.size.unwrap_or(0);
        self.typed(space, image, &shape, size, Alleged(start.0));
    }

    /// What `pointer` leads to on the stack, made at `site` if that is clear.
    fn carved(
        &mut self,
        space: &Space<'_>,
        object: usize,
        pointer: &LocalRecord,
        site: Option<&SiteRecord>,
        start: RunAddr,
    ) {
        let (Some(image), Some(module)) = (space.image(object), space.module(object)) else {
            return;
        };
        self.note = Some(format!(
            "what {} points to; it reaches up to what lies next in the frame",
            image.string(pointer.name)
        ));
        let of_pointer = || {
            let (_, pointer) = underlying(image, pointer.r#type)?;
            size_of_type(image, pointer.target)?;
            Some(Shape {
                module,
                role: Role::Element,
                r#type: pointer.target,
                tail: NO_TYPE,
                front: 0,
            })
        };
        let shape = site.and_then(|site| shape_of(site, module));
        if let Some(shape) = shape.or_else(of_pointer) {
            let size = self.size.unwrap_or(0);
            self.typed(space, image, &shape, size, Alleged(start.0));
        }
        if let Some(site) = site {
            let resolver = space.resolver();
            let site = resolver.site_on_stack(module, site);
            self.site = Some(site_answer(resolver, site));
        }
    }

    fn section(&mut self, space: &Space<'_>, object: usize, number: usize, at: RunAddr) {
        self.in_object(space, object);
        let Some(section) = space
            .image(object)
            .and_then(|image| image.sections.get(number))
        else {
            return;
        };
        let bias = space.layout().objects[object].bias;
        let start = bias.to_run(LinkAddr(section.address));
        self.place(start, start.plus(section.size), at);
        self.name = space
            .image(object)
            .map(|image| image.string(section.name).to_owned());
    }

    fn of_thread(&mut self, space: &Space<'_>, number: usize) {
        self.thread = space.layout().threads.get(number).map(|thread| ThreadRow {
            id: thread.id,
            name: thread.name.clone(),
        });
    }

    fn in_frame(&mut self, space: &Space<'_>, thread: usize, number: usize) {
        self.of_thread(space, thread);
        self.frame = Some(number);
        let layout = space.layout();
        let frames = layout.threads.get(thread).map(|thread| &thread.frames);
        let Some(frame) = frames.and_then(|frames| frames.get(number)) else {
            return;
        };
        let executing = frame.executing();
        if let Some((object, record)) = layout.object_at(executing) {
            self.in_object(space, object);
            if let Some(image) = space.image(object) {
                self.position(&position_at(image, record.bias.to_link(executing)));
            }
        }
        self.in_registers = registers_of(space, frame);
    }

    fn position(&mut self, position: &Position) {
        self.code = Some(PlaceRow::from(&position.place));
        self.inlined = position.inlined.iter().map(PlaceRow::from).collect();
    }

    fn text(&mut self, space: &Space<'_>, leaf: &Leaf<'_>, at: RunAddr) {
        let Some(contents) = space.contents() else {
            return;
        };
        let quoted = |start: RunAddr| {
            let len = leaf.span.end.offset_from(start).unwrap_or(0);
            value::text(Alleged(start.0), len, contents)
        };
        self.whole = quoted(leaf.span.start);
        self.value = quoted(at);
    }

    fn mapping(&mut self, space: &Space<'_>, kind: Kind, at: RunAddr) {
        let layout = space.layout();
        let Some((_, mapping)) = layout.mapping_at(at) else {
            return;
        };
        let inside_arena = matches!(
            kind,
            Kind::Header | Kind::Free | Kind::Cached | Kind::Allocator | Kind::Slack
        );
        if !inside_arena {
            self.place(mapping.start, mapping.end, at);
        }
        self.name = Some(mapping.path.clone()).filter(|path| !path.is_empty() && !inside_arena);
        if kind == Kind::Vdso
            && let Some((_, object)) = layout.object_at(at)
        {
            self.name = crate::space::vdso_function(object, at, space.contents());
        }
    }

    /// Fills in type, field and values.
    fn typed(
        &mut self,
        space: &Space<'_>,
        image: &Image<'_>,
        shape: &Shape,
        size: u64,
        base: Alleged,
    ) {
        let offset = self.offset.unwrap_or(0);
        let name = type_name(image, shape.r#type);
        self.r#type = Some(shape.name(image));
        let field = field_at(image, shape, size, offset);
        let mut path = format!("{name}{}", field.path);
        if field.inside != 0 {
            path.push_str(&format!(" + {}", field.inside));
        }
        self.field = Some(path);
        self.field_type = Some(type_name(image, field.r#type));
        let Some(contents) = space.contents() else {
            return;
        };
        let at = Alleged(base.0.wrapping_add(offset).wrapping_sub(field.inside));
        self.value = Some(value::print(image, field.r#type, at, contents));
        self.whole = Some(whole(image, shape, size, base, contents));
    }
}

fn whole(
    image: &Image<'_>,
    shape: &Shape,
    size: u64,
    base: Alleged,
    contents: &dyn Contents,
) -> String {
    let unit = size_of_type(image, shape.r#type).filter(|unit| *unit > 0);
    match (shape.role, unit) {
        (Role::Element | Role::Characters, Some(unit)) => {
            value::print_array(image, shape.r#type, size / unit, base, contents)
        }
        (Role::Header, Some(unit)) if shape.tail != NO_TYPE => {
            let front = shape.front.max(unit);
            let header = value::print(image, shape.r#type, base.plus(front - unit), contents);
            let element = size_of_type(image, shape.tail)
                .filter(|element| *element > 0)
                .unwrap_or(1);
            let count = size.saturating_sub(front) / element;
            let tail = value::print_array(image, shape.tail, count, base.plus(front), contents);
            format!("{header} + {tail}")
        }
        _ => value::print(image, shape.r#type, base, contents),
    }
}

/// `name in register`, for the variables of a frame that lie in one.
fn registers_of(space: &Space<'_>, frame: &crate::space::Frame) -> Vec<String> {
    let in_register = |(object, record, register): (usize, _, u16)| {
        let record: &pointee_model::image::LocalRecord = record;
        let name = space.image(object)?.string(record.name);
        let known = frame
            .registers
            .get(usize::from(register))
            .copied()
            .flatten();
        let register = register_name(register);
        Some(match known {
            Some(value) => format!("{name} in {register} = {value:#x}"),
            None => format!("{name} in {register}"),
        })
    };
    let mut names: Vec<String> = space
        .locals_in_registers(frame)
        .into_iter()
        .filter_map(in_register)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The name of a DWARF register of x86-64.
fn register_name(number: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15", "rip",
    ];
    NAMES
        .get(usize::from(number))
        .copied()
        .unwrap_or("a vector register")
}

fn site_answer(resolver: &Resolver<'_>, site: Site) -> SiteAnswer {
    SiteAnswer {
        id: crate::report::site_id(resolver, &site),
        offset: format!("{:#x}", site.offset.0),
        function: site.position.place.function,
        file: site.position.place.file,
        line: site.position.place.line,
        inlined: site.position.inlined.iter().map(PlaceRow::from).collect(),
        verdict: site.verdict.word(),
        evidence: site.evidence,
        wrappers: site.wrappers,
        allocator: site.allocator,
        entry: site.entry,
        callee: site.callee,
        freed_by: None,
    }
}
