//! *Which call is "the" allocation site of this path, and what did it make?*
//!
//! A path is return addresses, innermost first. The site is the innermost call that an image
//! classifies and that is not made inside a wrapper:
//!
//! ```text
//!   malloc  ◀─ xmalloc   site record says WRAPPER   → into the wrapper chain, walk on
//!           ◀─ new_node  site record with a type    → the site
//!           ◀─ parse     not looked at
//! ```
//!
//! What each call tells is said by [`pointee_model::call`]. Where no frame is classified, the site is the innermost frame outside the language's own
//! libraries. Its type is not known, unless it calls a library's function that hands out text, as that library's image says. How far
//! beyond such a frame is looked is said there too: recording goes no further.

use crate::describe::{Shape, type_name};
use crate::images::Images;
use crate::process::{Frame, ModuleInfo, Path, ProcessData};
use pointee_index::records::Role as HookRole;
use pointee_model::addr::LinkAddr;
use pointee_model::call::{Call, classify};
use pointee_model::entries::role_of;
use pointee_model::evidence::{Role, Verdict, Witness};
use pointee_model::image::{
    Image, NO_TYPE, SiteRecord, TypeKind, TypeRecord, function_flags, summary_flags,
};
use pointee_model::source::is_library_source;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// A place in the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Name of the function, inlined or not.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line.
    pub line: Option<u32>,
}

/// A code address in words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// Innermost place outside the language's own library.
    pub place: Place,
    /// The other places of the inline chain, innermost first.
    pub inlined: Vec<Place>,
}

/// One allocation site.
#[derive(Debug, Clone)]
pub struct Site {
    /// Module number; `None` if the path says nothing.
    pub module: Option<u32>,
    /// Link-time address of the call, of its return where the call itself is not known.
    pub offset: LinkAddr,
    /// Where that is.
    pub position: Position,
    /// What it makes; `None` if not known.
    pub shape: Option<Shape>,
    /// How the witnesses agree.
    pub verdict: Verdict,
    /// The witnesses, in words.
    pub evidence: Vec<String>,
    /// Functions walked through on the way, innermost first.
    pub wrappers: Vec<String>,
    /// The allocator that gave the memory.
    pub allocator: String,
    /// The hooked function that was called.
    pub entry: String,
    /// The function that the site calls, by its linker name: the hooked one, or a wrapper.
    pub callee: Option<String>,
}

/// Resolves the paths of one process.
pub struct Resolver<'a> {
    process: &'a ProcessData,
    images: Vec<Option<Image<'a>>>,
    /// By module: the functions that allocate for their callers. Modules may share an image.
    wrapper_names: Vec<Rc<HashSet<&'a str>>>,
}

impl std::fmt::Debug for Resolver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resolver({} modules)", self.images.len())
    }
}

impl<'a> Resolver<'a> {
    /// For `process` with the images of its modules.
    #[must_use]
    pub fn new(process: &'a ProcessData, images: &'a Images) -> Self {
        let images = images.views();
        let mut known = HashMap::new();
        let names = images.iter().map(|image| {
            let which = image
                .as_ref()
                .map(|image| std::ptr::from_ref(image.header()));
            let names = known
                .entry(which)
                .or_insert_with(|| Rc::new(wrapper_names(image)));
            Rc::clone(names)
        });
        Self {
            process,
            wrapper_names: names.collect(),
            images,
        }
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &'a ProcessData {
        self.process
    }

    /// The image of module `number`.
    #[must_use]
    pub fn image(&self, number: u32) -> Option<&Image<'a>> {
        self.images.get(number as usize)?.as_ref()
    }

    /// The site of a path.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> Site {
        let (allocator, entry) = self.allocator(path.root);
        let mut wrappers = Vec::new();
        let mut outside = None;
        let mut frames_left = u32::MAX;
        let mut below = None;
        let mut wrapper = None;
        let mut inside = None;
        for frame in &path.frames {
            if frames_left == 0 {
                break;
            }
            let (call, record) = self.call(frame);
            frames_left = (frames_left - 1).min(call.frames_beyond(|| below).unwrap_or(u32::MAX));
            below = Some(call);
            match call {
                Call::InWrapper => {
                    wrappers.extend(self.function(frame));
                    wrapper = Some(frame);
                    continue;
                }
                Call::InLibrary => {
                    let typed = record.filter(|record| record.r#type != NO_TYPE);
                    inside = inside.or(typed.map(|record| (frame, record)));
                    wrapper = None;
                    continue;
                }
                // What lies between is not known to be the function that jumps.
                _ if outside.is_some() && record.is_some_and(SiteRecord::stands_in) => break,
                Call::Site => return self.site(frame, record, wrappers, allocator, entry),
                Call::Untyped | Call::Unnoted | Call::Unknown => {}
            }
            // The first one counts; what was walked through on the way to it stays its wrapper chain.
            outside.get_or_insert_with(|| (frame, record, wrappers.clone(), wrapper));
        }
        if let Some((frame, record, wrappers, wrapper)) = outside {
            let mut site = self.site(frame, record, wrappers, allocator, entry);
            let other = wrapper.filter(|wrapper| wrapper.module != frame.module);
            if let Some((shape, name)) = other
                .filter(|_| record.is_none())
                .and_then(|wrapper| self.text_of(wrapper))
            {
                site.shape = Some(shape);
                site.verdict = Verdict::Single;
                site.evidence = vec![format!("{} {name}", Witness::Model.word())];
                site.callee = Some(name.to_owned());
            }
            // What the language's own code makes for it.
            if let Some((frame, record)) = inside.filter(|_| site.shape.is_none()) {
                site.shape = shape_of(record, frame.module);
                site.verdict = Verdict::from_byte(record.verdict);
                site.evidence = self
                    .image(frame.module)
                    .map_or_else(Vec::new, |image| evidence_in_words(image, record));
            }
            return site;
        }
        // Nothing but wrappers and library frames: the outermost of them is as far as the walk came.
        match path.frames.last() {
            Some(frame) => {
                let (call, record) = self.call(frame);
                if call == Call::InWrapper {
                    wrappers.pop();
                }
                self.site(frame, record, wrappers, allocator, entry)
            }
            None => Site {
                module: None,
                offset: LinkAddr(0),
                position: Position::default(),
                shape: None,
                verdict: Verdict::Unknown,
                evidence: Vec::new(),
                wrappers,
                allocator,
                entry,
                callee: None,
            },
        }
    }

    /// The text that is handed out by the function in which a frame stands, if its file exports it as one that does, and its name. That tells
    /// the type where the caller's own image was made without: it has no debug info, and learns of no other file.
    fn text_of(&self, frame: &Frame) -> Option<(Shape, &'a str)> {
        const HANDS_OUT: u32 = summary_flags::RETURNS | summary_flags::TEXT;
        const NOT_SAID: [u8; 16] = [0; 16];
        let image = self.image(frame.module)?;
        let call = LinkAddr(frame.return_address.0.wrapping_sub(1));
        let name = image.string(image.function_at(call)?.linkage_name);
        let exports = image.exports;
        let at = exports.binary_search_by(|it| image.string(it.name).cmp(name));
        let summary = at.ok().map(|at| &exports[at]);
        let summary = summary.filter(|it| it.flags & HANDS_OUT == HANDS_OUT && it.offset == 0)?;
        let is_it = |known: &TypeRecord| match summary.base {
            NOT_SAID => known.kind == TypeKind::Base as u8 && image.string(known.name) == "char",
            base => known.identity == base,
        };
        let r#type = u32::try_from(image.types.iter().position(is_it)?).ok()?;
        let shape = Shape {
            module: frame.module,
            role: Role::Characters,
            r#type,
            tail: NO_TYPE,
            front: 0,
        };
        Some((shape, name))
    }

    /// What the call that a frame stands for tells.
    pub(crate) fn call(&self, frame: &Frame) -> (Call, Option<&'a SiteRecord>) {
        let is_library = self
            .module(frame)
            .is_some_and(ModuleInfo::is_library_of_language);
        classify(self.image(frame.module), is_library, frame.return_address)
    }

    fn module(&self, frame: &Frame) -> Option<&'a ModuleInfo> {
        self.process.modules.get(frame.module as usize)
    }

    fn site(
        &self,
        frame: &Frame,
        record: Option<&SiteRecord>,
        mut wrappers: Vec<String>,
        allocator: String,
        entry: String,
    ) -> Site {
        let image = self.image(frame.module);
        let witnessed = record.zip(image);
        let verdict = record.map_or(Verdict::Unknown, |record| {
            Verdict::from_byte(record.verdict)
        });
        let mut position = self.position(frame);
        if let Some(names) = self.wrapper_names.get(frame.module as usize) {
            leave_inlined_wrappers(&mut position, names, &mut wrappers);
        }
        Site {
            module: self.module(frame).map(|_| frame.module),
            offset: record.map_or(frame.return_address, |record| LinkAddr(record.call)),
            position,
            shape: record.and_then(|record| shape_of(record, frame.module)),
            verdict,
            evidence: witnessed
                .map_or_else(Vec::new, |(record, image)| evidence_in_words(image, record)),
            wrappers,
            allocator,
            entry,
            callee: witnessed
                .map(|(record, image)| image.string(record.callee).to_owned())
                .filter(|callee| !callee.is_empty()),
        }
    }

    /// The site of a block that module `number` carved out of its stack, as `record` says.
    #[must_use]
    pub fn site_on_stack(&self, number: u32, record: &SiteRecord) -> Site {
        let frame = Frame {
            module: number,
            return_address: LinkAddr(record.return_address),
        };
        let callee = self
            .image(number)
            .map_or("", |image| image.string(record.callee));
        let (allocator, entry) = ("stack".to_owned(), callee.to_owned());
        self.site(&frame, Some(record), Vec::new(), allocator, entry)
    }

    /// Where a frame is, in words.
    #[must_use]
    pub fn position(&self, frame: &Frame) -> Position {
        // The return address may already belong to the next line or function: look at the call.
        let call = LinkAddr(frame.return_address.0.wrapping_sub(1));
        self.image(frame.module)
            .map_or_else(Position::default, |image| position_at(image, call))
    }

    fn function(&self, frame: &Frame) -> Option<String> {
        let image = self.image(frame.module)?;
        function_at(image, LinkAddr(frame.return_address.0.wrapping_sub(1)))
    }

    /// Names of the allocator and of the entry that `root` stands for.
    fn allocator(&self, root: u32) -> (String, String) {
        let Some(hook) = self.process.hook_of_root(root) else {
            return ("not known".to_owned(), "not known".to_owned());
        };
        let family = match hook.role {
            HookRole::New | HookRole::Delete => "operator new",
            _ if role_of(&hook.name).is_some() => "malloc",
            // Declared by the user's configuration.
            _ => &hook.name,
        };
        let module = self.process.modules.get(hook.module as usize);
        let module = module.map_or("?", ModuleInfo::name);
        (format!("{family} of {module}"), hook.name.clone())
    }
}

fn wrapper_names<'a>(image: &Option<Image<'a>>) -> HashSet<&'a str> {
    let Some(image) = image else {
        return HashSet::new();
    };
    let functions = image.functions.iter();
    functions
        .filter(|function| function.flags & function_flags::WRAPPER != 0)
        .map(|function| image.string(function.name))
        .collect()
}

/// A wrapper that was inlined into its caller leaves no frame: walk out of it here.
fn leave_inlined_wrappers(
    position: &mut Position,
    names: &HashSet<&str>,
    wrappers: &mut Vec<String>,
) {
    while !position.inlined.is_empty()
        && let Some(function) = &position.place.function
        && names.contains(function.as_str())
    {
        wrappers.push(function.clone());
        position.place = position.inlined.remove(0);
    }
}

/// What a site record says is made; `None` if it does not know.
#[must_use]
pub fn shape_of(record: &SiteRecord, module: u32) -> Option<Shape> {
    (record.r#type != NO_TYPE).then(|| Shape {
        module,
        role: Role::from_byte(record.role),
        r#type: record.r#type,
        tail: record.tail,
        front: record.array_at(0),
    })
}

/// The witnesses of a site: `field commit.parents → struct commit_list`.
#[must_use]
pub fn evidence_in_words(image: &Image<'_>, record: &SiteRecord) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for witness in image.evidence_of(record).iter().take(32) {
        let mut text = Witness::from_byte(witness.witness).word().to_owned();
        let what = image.string(witness.what);
        if !what.is_empty() {
            text = format!("{text} {what}");
        }
        if witness.r#type != record.r#type && witness.r#type != NO_TYPE {
            text = format!("{text}: {}", type_name(image, witness.r#type));
        }
        if !words.contains(&text) {
            words.push(text);
        }
    }
    words
}

/// The function at `address`.
#[must_use]
pub fn function_at(image: &Image<'_>, address: LinkAddr) -> Option<String> {
    let name = image.string(image.function_at(address)?.name);
    (!name.is_empty()).then(|| name.to_owned())
}

/// The inline chain at `address`, split at the innermost place outside the language's own library.
#[must_use]
pub fn position_at(image: &Image<'_>, address: LinkAddr) -> Position {
    let file_name = |file| Some(image.file_name(file).to_owned()).filter(|name| !name.is_empty());
    let mut inlines: Vec<_> = image.inlines_at(address).take(64).collect();
    inlines.sort_by_key(|inline| inline.depth);
    let (mut file, mut line) = image
        .line_at(address)
        .map_or((None, 0), |row| (file_name(row.file), row.line));
    let mut places = Vec::with_capacity(inlines.len() + 1);
    // From the innermost outwards: each inlined call says where the function around it stands.
    for inline in inlines.iter().rev() {
        places.push(Place {
            function: Some(image.string(inline.name).to_owned()),
            file: file.take(),
            line: (line != 0).then_some(line),
        });
        file = file_name(inline.call_file);
        line = inline.call_line;
    }
    places.push(Place {
        function: function_at(image, address),
        file,
        line: (line != 0).then_some(line),
    });
    let chosen = places
        .iter()
        .position(|place| !place.file.as_deref().is_some_and(is_library_source))
        .unwrap_or(0);
    let place = places.remove(chosen);
    Position {
        place,
        inlined: places,
    }
}
