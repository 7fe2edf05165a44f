//! *What does the source text of a call say about its type?*
//!
//! Source is read as tokens, not parsed: it is unpreprocessed and may be of any dialect. The call is
//! found by the line of its instruction and the name of its callee; where a line has two calls of
//! one name, nothing is said. Two things count: `sizeof` in the arguments, and a cast of the result.
//! `sizeof` of an expression is resolved through the variables that debug info names. Where the text as
//! written says nothing, it is read again with its macros expanded, and then the text of the calls around
//! an inlined function to which these hand the size.

mod clues;
mod definitions;
mod macros;
mod names;
mod shape;
mod tokens;

use super::Options;
use super::request::Request;
use super::typing::{Pointee, Types};
use super::verdict::Clue;
use crate::facts::{Facts, Function};
use clues::Scope;
use macros::{Macros, Wanted};
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;
use shape::{find_call, handed_on, of_size, statement_around};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokens::{Text, Token};

/// Longer files are not source text that a person wrote or a compiler was given.
const LARGEST: u64 = 64 << 20;
/// Lines read before and after the line of a call: calls may span some.
const BEFORE: u32 = 12;
const AFTER: u32 = 24;
/// Bytes of source text read for macros at most.
const MOST: u64 = 256 << 20;

/// The source files that can be found, each read at most once.
pub(super) struct Sources<'f> {
    facts: &'f Facts,
    options: Options,
    read: Mutex<HashMap<u32, Option<Arc<Text>>>>,
    any: AtomicBool,
    /// Of all files, collected when first asked for.
    macros: OnceLock<Macros>,
}

impl<'f> Sources<'f> {
    pub(super) fn new(facts: &'f Facts, options: &Options) -> Self {
        Self {
            facts,
            options: options.clone(),
            read: Mutex::new(HashMap::new()),
            any: AtomicBool::new(false),
            macros: OnceLock::new(),
        }
    }

    /// Whether any file was found.
    pub(super) fn any_read(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// What the text of a call says. What its result is assigned to counts where nothing
    /// else tells a type (`untyped`): the compiler's own word for it is better.
    pub(super) fn clues(
        &self,
        types: &Types<'_>,
        function: &Function,
        call: &Call<'_>,
        untyped: bool,
    ) -> Vec<Clue> {
        if !self.options.sources {
            return Vec::new();
        }
        let mut handed_on = false;
        for position in self.positions(types, function, call) {
            // Of what does not come back as the block, only the size that is handed in tells.
            if !(position.is_block || handed_on) {
                break;
            }
            let Some(whole) = self.text(position.file) else {
                continue;
            };
            let scope = Scope {
                types,
                function,
                facts: self.facts,
                file: position.file,
                within: position.within,
            };
            let line = position.line;
            let text = whole.tokens(line.saturating_sub(BEFORE), line.saturating_add(AFTER));
            let read = self.read(&position, &scope, &whole, &text, untyped);
            handed_on = read.as_ref().is_some_and(|read| read.handed_on);
            match read {
                Some(read) if !read.clues.is_empty() => return read.clues,
                Some(_) if !handed_on => return Vec::new(),
                Some(_) => continue,
                None if !position.is_block => return Vec::new(),
                None => {}
            }
            // What carves is named by the member that is the cursor.
            let is_carved = position.name.contains('.');
            let clues = scope.statement_clues(&text, line, call.request, is_carved);
            if !clues.is_empty() {
                return clues;
            }
        }
        Vec::new()
    }

    /// What the text of a call says: as it is written, then with its macros expanded, then by the definitions of the
    /// variables in it.
    fn read(
        &self,
        position: &Position,
        scope: &Scope<'_, '_>,
        file: &Text,
        text: &[Token<'_>],
        untyped: bool,
    ) -> Option<Read> {
        let written = position.read(scope, text, untyped);
        if !is_c(scope.function.language) || written.as_ref().is_some_and(Read::tells_size) {
            return written;
        }
        let wanted = Wanted {
            file: position.file,
            callee: &position.name,
        };
        let names = |name: &str| scope.types.name(name);
        let statement = statement_around(text, position.line);
        let expanded = self.macros().expand(statement, wanted, &names);
        let text = expanded.as_deref().unwrap_or(text);
        let again = position.read(scope, text, untyped);
        let is_empty = written.as_ref().is_none_or(|read| read.clues.is_empty());
        let mut read = match is_empty || again.as_ref().is_some_and(Read::tells_size) {
            true => again.or(written),
            false => written,
        }?;
        if !read.tells_size() {
            for size in position.definitions(scope, file, text) {
                let expanded = self.macros().expand(&size, wanted, &names);
                read.clues
                    .extend(scope.sizes(expanded.as_deref().unwrap_or(&size)));
            }
        }
        Some(read)
    }

    /// Where the call is written, innermost first: the line of the instruction, then the lines of
    /// the inlined calls around it. Each with the name of what is called there.
    fn positions(&self, types: &Types<'_>, function: &Function, call: &Call<'_>) -> Vec<Position> {
        let address = call.address;
        let lines = &self.facts.lines;
        let after = lines.partition_point(|row| row.address <= address);
        let row = after.checked_sub(1).and_then(|at| lines.get(at));
        let mut around: Vec<_> = (0..)
            .zip(&function.inlines)
            .filter(|(_, inline)| {
                inline
                    .ranges
                    .iter()
                    .any(|(start, end)| (*start..*end).contains(&address))
            })
            .collect();
        around.sort_by_key(|(_, inline)| std::cmp::Reverse(inline.depth));
        let within = around.iter().map(|(at, inline)| (Some(*at), inline.result));
        let mut within = within.chain([(None, function.result)]);
        let mut positions = Vec::new();
        let innermost = within.next();
        if let Some(row) = row
            && let Some(file) = row.file
        {
            positions.push(Position {
                file,
                line: row.line,
                name: call.name.to_owned(),
                sized: call.sized,
                result: innermost.and_then(|(_, result)| result),
                within: innermost.and_then(|(within, _)| within),
                inlined: None,
                is_block: true,
            });
        }
        let mut is_block = true;
        for ((at, inline), (within, result)) in around.iter().zip(within) {
            is_block &= match inline.result.and_then(|result| types.pointee(result)) {
                Some(Pointee::Void) => true,
                Some(Pointee::Type(target)) => types.is_character(target),
                None => false,
            };
            if let Some(file) = inline.call_file {
                positions.push(Position {
                    file,
                    line: inline.call_line,
                    name: super::cpp::last_component(&inline.name).to_owned(),
                    sized: 0,
                    result,
                    within,
                    inlined: Some(*at),
                    is_block,
                });
            }
        }
        positions
    }

    fn macros(&self) -> &Macros {
        self.macros.get_or_init(|| {
            let mut macros = Macros::default();
            let mut left = MOST;
            for (at, stated) in (0..).zip(&self.facts.files) {
                let extension = stated.rsplit('.').next().unwrap_or("");
                if !SOURCE.contains(&extension) && !HEADER.contains(&extension) {
                    continue;
                }
                let Some(bytes) = self.find(Path::new(stated)) else {
                    continue;
                };
                let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                    break;
                };
                left = rest;
                macros.add(at, HEADER.contains(&extension), &Text::new(bytes));
            }
            macros
        })
    }

    fn text(&self, file: u32) -> Option<Arc<Text>> {
        let stated = Path::new(self.facts.files.get(file as usize)?);
        // Held while reading: whoever else asks for a file asks for this one most likely.
        let mut read = self.read.lock().ok()?;
        let text = read
            .entry(file)
            .or_insert_with(|| self.find(stated).map(|bytes| Arc::new(Text::new(bytes))));
        if text.is_some() {
            self.any.store(true, Ordering::Relaxed);
        }
        text.clone()
    }

    /// The file at its stated path, or under a source root by the longest tail of it that exists.
    fn find(&self, stated: &Path) -> Option<Vec<u8>> {
        let parts: Vec<_> = stated
            .components()
            .filter(|part| matches!(part, std::path::Component::Normal(_)))
            .collect();
        let tails = (0..parts.len()).map(|at| parts[at..].iter().collect::<PathBuf>());
        let rooted = tails.flat_map(|tail| {
            let roots = self.options.source_roots.iter();
            roots.map(move |root| root.join(&tail)).collect::<Vec<_>>()
        });
        std::iter::once(stated.to_owned())
            .filter(|path| path.is_absolute())
            .chain(rooted)
            .find_map(|path| {
                let known = std::fs::metadata(&path).ok()?;
                (known.is_file() && known.len() <= LARGEST)
                    .then(|| std::fs::read(&path).ok())
                    .flatten()
            })
    }
}

/// A call, as the code tells of it.
pub(super) struct Call<'c> {
    pub(super) address: u64,
    /// What it is written as a call of.
    pub(super) name: &'c str,
    pub(super) request: Request,
    /// The arguments that make the size, as a bit mask; 0 if that is not known.
    pub(super) sized: u8,
}

/// Where a call is written.
struct Position {
    file: u32,
    line: u32,
    /// What is called there.
    name: String,
    /// The arguments that make the size, as a bit mask; 0 if that is not known.
    sized: u8,
    /// The type of the result of the function that it is written in.
    result: Option<TypeIndex>,
    /// The inlined function that it is written in, if it is one.
    within: Option<u32>,
    /// The inlined function that is called there, if it is one.
    inlined: Option<u32>,
    /// Whether what is called hands out the block itself, untyped.
    is_block: bool,
}

/// What the text of one call says.
struct Read {
    clues: Vec<Clue>,
    /// The size is computed from parameters of the inlined function that the call is written in.
    handed_on: bool,
}

impl Read {
    fn tells_size(&self) -> bool {
        let tells = |clue: &Clue| clue.witness == Witness::SizeofInSource;
        self.clues.iter().any(tells)
    }
}

impl Position {
    /// How the variables were computed that are arguments of the one call on the line.
    fn definitions<'t>(
        &self,
        scope: &Scope<'_, '_>,
        file: &'t Text,
        text: &[Token<'_>],
    ) -> Vec<Vec<Token<'t>>> {
        find_call(text, self.line, &self.name).map_or_else(Vec::new, |call| {
            let arguments = of_size(text, call, self.sized);
            definitions::of_arguments(scope, file, &arguments, self.line, self.within)
        })
    }

    /// What the one call of that name on the line says; `None` if there is not just one.
    fn read(&self, scope: &Scope<'_, '_>, text: &[Token<'_>], untyped: bool) -> Option<Read> {
        let call = find_call(text, self.line, &self.name)?;
        let mut clues = scope.clues(text, call, self.sized);
        if !self.is_block {
            clues.retain(|clue| clue.witness == Witness::SizeofInSource);
        } else if untyped && clues.is_empty() {
            clues.extend(scope.assigned(text, call, self.result));
        }
        if self
            .inlined
            .is_some_and(|inlined| scope.is_counted(text, call, inlined))
        {
            // The size is that of one of them.
            let sizes = |clue: &&mut Clue| clue.witness == Witness::SizeofInSource;
            for clue in clues.iter_mut().filter(sizes) {
                clue.role = clue.role.map(|_| Role::Element);
            }
        }
        let variables = scope.function.variables.iter();
        let is_number = |r#type: TypeIndex| scope.types.is_integer(scope.types.strip(r#type));
        let parameters: Vec<&str> = variables
            .filter(|variable| variable.inline == self.within && variable.parameter.is_some())
            .filter(|variable| variable.r#type.is_none_or(is_number))
            .map(|variable| variable.name.as_str())
            .collect();
        Some(Read {
            clues,
            handed_on: is_c_or_cpp(scope.function.language)
                && self.within.is_some()
                && handed_on(text, call, &parameters),
        })
    }
}

/// File name extensions of C and C++ source files, and of what they include.
const SOURCE: [&str; 9] = ["c", "cc", "cpp", "cxx", "C", "y", "l", "m", "mm"];
const HEADER: [&str; 9] = ["h", "hh", "hpp", "hxx", "H", "inc", "def", "ipp", "tcc"];

/// Whether a unit's language is one of the versions of C or C++.
fn is_c_or_cpp(language: u16) -> bool {
    const CPP: u16 = 0x04;
    const CPP11: u16 = 0x1a;
    const CPP14: u16 = 0x21;
    const CPP17: u16 = 0x2a;
    const CPP20: u16 = 0x2b;
    is_c(language) || matches!(language, CPP | CPP11 | CPP14 | CPP17 | CPP20)
}

/// Whether a unit's language (`DW_LANG_*`, DWARF 5, §7.12) is one of the versions of C.
fn is_c(language: u16) -> bool {
    const C89: u16 = 0x01;
    const C: u16 = 0x02;
    const C99: u16 = 0x0c;
    const C11: u16 = 0x1d;
    const C17: u16 = 0x2c;
    matches!(language, C89 | C | C99 | C11 | C17)
}
