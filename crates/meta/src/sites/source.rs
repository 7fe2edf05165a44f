//! *What does the source text of a call say about its type?*
//!
//! Source is read as tokens, not parsed: it is unpreprocessed and may be of any dialect. The call is
//! found by the line of its instruction and the name of its callee; where a line has two calls of
//! one name, nothing is said. Two things count: `sizeof` in the arguments, and a cast of the result.
//! `sizeof` of an expression is resolved through the variables that debug info names.

use super::Options;
use super::tokens::{Text, Token};
use super::typing::{Pointee, Types};
use super::verdict::{Clue, Request};
use crate::facts::{Facts, Function};
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::{TypeIndex, TypeKind};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Longer files are not source text that a person wrote or a compiler was given.
const LARGEST: u64 = 64 << 20;
/// Lines read before and after the line of a call: calls may span some.
const BEFORE: u32 = 12;
const AFTER: u32 = 24;
/// Tokens of one call; longer argument lists are given up.
const LONGEST_CALL: usize = 600;

/// The source files that can be found, each read at most once.
pub(super) struct Sources<'f> {
    facts: &'f Facts,
    options: Options,
    read: Mutex<HashMap<u32, Option<Arc<Text>>>>,
    any: AtomicBool,
}

impl<'f> Sources<'f> {
    pub(super) fn new(facts: &'f Facts, options: &Options) -> Self {
        Self {
            facts,
            options: options.clone(),
            read: Mutex::new(HashMap::new()),
            any: AtomicBool::new(false),
        }
    }

    /// Whether any file was found.
    pub(super) fn any_read(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// What the text of the call at `address` says. What its result is assigned to counts where nothing
    /// else tells a type (`untyped`): the compiler's own word for it is better.
    pub(super) fn clues(
        &self,
        types: &Types<'_>,
        function: &Function,
        address: u64,
        callee: &str,
        request: Request,
        untyped: bool,
    ) -> Vec<Clue> {
        if !self.options.sources {
            return Vec::new();
        }
        let scope = Scope {
            types,
            function,
            facts: self.facts,
        };
        for Position {
            file,
            line,
            name,
            result,
        } in self.positions(types, function, address, callee)
        {
            let Some(text) = self.text(file) else {
                continue;
            };
            let text = text.tokens(line.saturating_sub(BEFORE), line.saturating_add(AFTER));
            if let Some(call) = find_call(&text, line, &name) {
                let mut clues = scope.clues(&text, call);
                if untyped && clues.is_empty() {
                    clues.extend(scope.assigned(&text, call, result));
                }
                return clues;
            }
            let clues = scope.statement_clues(&text, line, request);
            if !clues.is_empty() {
                return clues;
            }
        }
        Vec::new()
    }

    /// Where the call is written, innermost first: the line of the instruction, then the lines of
    /// the inlined calls around it. Each with the name of what is called there.
    /// It ends at an inlined function whose own result is typed: what its caller makes of that is
    /// another matter.
    fn positions(
        &self,
        types: &Types<'_>,
        function: &Function,
        address: u64,
        callee: &str,
    ) -> Vec<Position> {
        let lines = &self.facts.lines;
        let after = lines.partition_point(|row| row.address <= address);
        let row = after.checked_sub(1).and_then(|at| lines.get(at));
        let mut around: Vec<_> = function
            .inlines
            .iter()
            .filter(|inline| {
                inline
                    .ranges
                    .iter()
                    .any(|(start, end)| (*start..*end).contains(&address))
            })
            .collect();
        around.sort_by_key(|inline| std::cmp::Reverse(inline.depth));
        let results = around.iter().map(|inline| inline.result);
        let mut results = results.chain([function.result]);
        let mut positions = Vec::new();
        let innermost = results.next().flatten();
        if let Some(row) = row
            && let Some(file) = row.file
        {
            positions.push(Position {
                file,
                line: row.line,
                name: callee.to_owned(),
                result: innermost,
            });
        }
        for (inline, result) in around.iter().zip(results) {
            let own = inline.result.and_then(|result| types.pointee(result));
            if matches!(own, Some(Pointee::Type(target)) if !types.is_character(target)) {
                break;
            }
            if let Some(file) = inline.call_file {
                positions.push(Position {
                    file,
                    line: inline.call_line,
                    name: super::cpp::last_component(&inline.name).to_owned(),
                    result,
                });
            }
        }
        positions
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

/// Where a call is written.
struct Position {
    file: u32,
    line: u32,
    /// What is called there.
    name: String,
    /// The type of the result of the function that it is written in.
    result: Option<TypeIndex>,
}

/// The index of the callee's name in the one call of it that covers `line`.
fn find_call(text: &[Token<'_>], line: u32, name: &str) -> Option<usize> {
    let covers = |at: &usize| {
        let called = text[*at].is(name) && text.get(at + 1).is_some_and(|next| next.is("("));
        called
            && text[*at].line <= line
            && closing(text, at + 1).is_some_and(|end| line <= text[end].line)
    };
    let last = text.partition_point(|token| token.line <= line);
    let mut found: Vec<usize> = (0..last).filter(covers).collect();
    if found.len() > 1 {
        found.retain(|at| text[*at].line == line);
    }
    match found[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// The parenthesis that closes the one at `open`.
fn closing(text: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, token) in text.iter().enumerate().skip(open).take(LONGEST_CALL) {
        match token.text() {
            "(" | "[" => depth += 1,
            ")" | "]" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            // Arguments hold no statements, but a GNU statement expression is too much here.
            ";" | "{" | "}" => return None,
            _ => {}
        }
    }
    None
}

/// The first parenthesis that is not closed in `text`.
fn unclosed(text: &[Token<'_>]) -> Option<usize> {
    let mut open = Vec::new();
    for (at, token) in text.iter().enumerate() {
        match token.text() {
            "(" | "[" => open.push(at),
            ")" | "]" => drop(open.pop()),
            _ => {}
        }
    }
    open.first().copied()
}

/// What names mean at a call.
struct Scope<'a, 'f> {
    types: &'a Types<'f>,
    function: &'a Function,
    facts: &'a Facts,
}

impl Scope<'_, '_> {
    fn clues(&self, text: &[Token<'_>], call: usize) -> Vec<Clue> {
        let mut clues = Vec::new();
        if let Some(target) = self.cast_before(text, call) {
            clues.push(clue(Witness::CastInSource, target, "cast"));
        }
        let Some(end) = closing(text, call + 1) else {
            return clues;
        };
        let arguments = &text[call + 2..end];
        let mut sizes: Vec<(usize, TypeIndex, String)> = Vec::new();
        for (at, token) in arguments.iter().enumerate() {
            if token.is("sizeof")
                && let Some((index, words)) = self.sizeof(&arguments[at + 1..])
            {
                sizes.push((at, index, words));
            } else if token.is("sizeof") {
                // One that is not understood could be the one that counts.
                return clues;
            }
        }
        sizes.dedup_by_key(|(_, index, _)| *index);
        let between = |a: usize, b: usize| arguments[a..b].iter().any(|token| token.is("+"));
        let first = match &sizes[..] {
            [one] => Some(one),
            // sizeof(H) + n * sizeof(T): the block starts with H.
            [head, next] if between(head.0, next.0) => Some(head),
            _ => None,
        };
        if let Some((at, index, words)) = first {
            // `sizeof(T) + n * sizeof(T)` is an array all the same.
            let count = arguments.iter().filter(|token| token.is("sizeof")).count();
            let part = part(arguments, *at).filter(|_| count == sizes.len());
            clues.push(Clue {
                role: part,
                ..clue(Witness::SizeofInSource, *index, words)
            });
        }
        clues
    }

    /// What the result of a call is assigned to, or returned as.
    fn assigned(&self, text: &[Token<'_>], call: usize, result: Option<TypeIndex>) -> Option<Clue> {
        let mut before = call;
        if let Some(open) = self.opening_of_cast(text, call) {
            before = open;
        }
        let sign = before.checked_sub(1)?;
        let pointer = match text[sign].text() {
            "return" => result?,
            "=" => {
                let ends = |token: &Token<'_>| {
                    matches!(
                        token.text(),
                        ";" | "{" | "}" | "," | "=" | "&" | "|" | "?" | ":"
                    )
                };
                let start = (0..sign).rev().find(|at| ends(&text[*at]))? + 1;
                let mut target = &text[start..sign];
                // `if ((p = f(…)))`: parentheses that do not close before the sign.
                while let Some(open) = unclosed(target) {
                    target = &target[open + 1..];
                }
                let declared = || self.variable(target.last()?.text());
                self.expression(target).or_else(declared)?
            }
            _ => return None,
        };
        match self.types.pointee(pointer)? {
            Pointee::Type(target) => Some(clue(Witness::AssignedInSource, target, "")),
            Pointee::Void => None,
        }
    }

    /// What a statement says in which the call is hidden in a macro: the one `sizeof` in it, if the
    /// size asked for bears it out.
    fn statement_clues(&self, text: &[Token<'_>], line: u32, request: Request) -> Vec<Clue> {
        let start = text.partition_point(|token| token.line < line);
        let end = (start..text.len())
            .take(LONGEST_CALL)
            .find(|at| matches!(text[*at].text(), ";" | "{" | "}"))
            .unwrap_or(start);
        let statement = &text[start..end];
        let mut sizes: Vec<(TypeIndex, String)> = statement
            .iter()
            .enumerate()
            .filter(|(_, token)| token.is("sizeof"))
            .filter_map(|(at, _)| self.sizeof(&statement[at + 1..]))
            .collect();
        sizes.dedup_by_key(|(index, _)| *index);
        match &sizes[..] {
            [(index, words)]
                if self.types.size(*index).is_some_and(|size| {
                    size > 8 && (request.total == Some(size) || request.unit == Some(size))
                }) =>
            {
                vec![clue(Witness::SizeofInSource, *index, words)]
            }
            _ => Vec::new(),
        }
    }

    /// The type whose size `sizeof` takes, and the words that say it.
    fn sizeof(&self, rest: &[Token<'_>]) -> Option<(TypeIndex, String)> {
        let inner = if rest.first()?.is("(") {
            &rest[1..closing(rest, 0)?]
        } else {
            let end = rest
                .iter()
                .position(|token| matches!(token.text(), "," | "+" | "/" | ")" | ";"))
                .unwrap_or(rest.len());
            // `sizeof *p * n`: a star after an operand multiplies.
            let multiplied = (1..end).find(|at| rest[*at].is("*") && rest[at - 1].ends_operand());
            &rest[..multiplied.unwrap_or(end)]
        };
        let words: Vec<&str> = inner.iter().map(Token::text).collect();
        let index = self.type_name(inner).or_else(|| self.expression(inner))?;
        Some((
            self.types.strip(index),
            format!("sizeof({})", words.join(" ")),
        ))
    }

    /// A type name such as `const struct node *`.
    fn type_name(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
        let stars = text.iter().rev().take_while(|token| token.is("*")).count();
        let words: Vec<&str> = text[..text.len() - stars]
            .iter()
            .map(Token::text)
            .filter(|word| !matches!(*word, "const" | "volatile" | "restrict" | "signed"))
            .collect();
        let base = match words[..] {
            ["struct", tag] => self.tagged(tag, &[TypeKind::Struct, TypeKind::Class]),
            ["union", tag] => self.tagged(tag, &[TypeKind::Union]),
            ["enum", tag] => self.tagged(tag, &[TypeKind::Enum]),
            ["void"] if stars > 0 => return self.pointer_to_void(stars),
            _ => {
                let name = base_name(&words).unwrap_or_else(|| words.join(" "));
                self.types.named(&name).iter().copied().find(|at| {
                    self.types.get(*at).is_some_and(|entry| {
                        !matches!(entry.kind, TypeKind::Function | TypeKind::Unknown)
                    })
                })
            }
        };
        (0..stars).try_fold(base?, |target, _| self.types.pointer_to(target))
    }

    fn tagged(&self, tag: &str, kinds: &[TypeKind]) -> Option<TypeIndex> {
        self.types.named(tag).iter().copied().find(|at| {
            self.types
                .get(*at)
                .is_some_and(|entry| kinds.contains(&entry.kind))
        })
    }

    fn pointer_to_void(&self, stars: usize) -> Option<TypeIndex> {
        let first = self.types.void_pointer()?;
        (1..stars).try_fold(first, |target, _| self.types.pointer_to(target))
    }

    /// The type of a chain such as `*p`, `s->items[0]`, `(*table).rows`.
    fn expression(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
        let (first, rest) = text.split_first()?;
        match first.text() {
            "*" => self.pointed(self.expression(rest)?),
            "(" if closing(text, 0) == Some(text.len() - 1) => {
                self.expression(&text[1..text.len() - 1])
            }
            _ => self.postfix(text),
        }
    }

    fn postfix(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
        let first = text.first()?;
        let (mut index, mut at) = if first.is("(") {
            let end = closing(text, 0)?;
            (self.expression(&text[1..end])?, end + 1)
        } else {
            (self.variable(first.text())?, 1)
        };
        while let Some(token) = text.get(at) {
            match token.text() {
                "[" => {
                    index = self.pointed(index)?;
                    at = closing(text, at)? + 1;
                }
                "->" => {
                    index = self.member(self.pointed(index)?, text.get(at + 1)?.text(), 8)?;
                    at += 2;
                }
                "." => {
                    index = self.member(index, text.get(at + 1)?.text(), 8)?;
                    at += 2;
                }
                _ => return None,
            }
        }
        Some(index)
    }

    /// The type of a variable, if all variables of that name in the function have one type.
    fn variable(&self, name: &str) -> Option<TypeIndex> {
        let mut local = self
            .function
            .variables
            .iter()
            .filter(|variable| variable.name == name)
            .filter_map(|variable| variable.r#type)
            .map(|at| self.types.strip(at));
        if let Some(first) = local.next() {
            return local.all(|other| other == first).then_some(first);
        }
        let mut globals = self
            .facts
            .globals
            .iter()
            .filter(|global| global.name == name)
            .filter_map(|global| global.r#type)
            .map(|at| self.types.strip(at));
        let first = globals.next()?;
        globals.all(|other| other == first).then_some(first)
    }

    fn pointed(&self, index: TypeIndex) -> Option<TypeIndex> {
        let entry = self.types.get(self.types.strip(index))?;
        match (entry.kind, self.types.pointee(index)) {
            (TypeKind::Array, _) => entry.target.map(|at| self.types.strip(at)),
            (_, Some(Pointee::Type(target))) => Some(target),
            _ => None,
        }
    }

    fn member(&self, index: TypeIndex, name: &str, depth: u32) -> Option<TypeIndex> {
        let depth = depth.checked_sub(1)?;
        let entry = self.types.get(self.types.strip(index))?;
        let named = entry.members.iter().find(|member| member.name == name);
        named
            .map(|member| self.types.strip(member.r#type))
            .or_else(|| {
                let unnamed = entry.members.iter().filter(|member| member.name.is_empty());
                unnamed
                    .filter_map(|member| self.member(member.r#type, name, depth))
                    .next()
            })
    }

    /// Where a cast in front of a call starts.
    fn opening_of_cast(&self, text: &[Token<'_>], call: usize) -> Option<usize> {
        let end = call.checked_sub(1).filter(|at| text[*at].is(")"))?;
        (end.saturating_sub(8)..end)
            .rev()
            .find(|at| text[*at].is("("))
    }

    /// What the cast in front of a call points to.
    fn cast_before(&self, text: &[Token<'_>], call: usize) -> Option<TypeIndex> {
        let open = self.opening_of_cast(text, call)?;
        let words = &text[open + 1..call - 1];
        let (star, target) = words.split_last()?;
        // `if (x) f(…)` and `sizeof(x)` end in a parenthesis too.
        (star.is("*") && !target.is_empty())
            .then(|| self.type_name(target))
            .flatten()
            .map(|at| self.types.strip(at))
    }
}

/// What the `sizeof` at `at` says of its type's part in the argument: a factor of the one product that it
/// is, or a term of a sum. What stands in parentheses of its own does not count.
fn part(arguments: &[Token<'_>], at: usize) -> Option<Role> {
    let mut depth = 0_i32;
    let depths: Vec<i32> = arguments
        .iter()
        .map(|token| {
            let before = depth;
            match token.text() {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                _ => {}
            }
            before.min(depth)
        })
        .collect();
    let own = depths[at];
    let outside = |other: &usize| {
        depths[*other] < own || (depths[*other] == own && arguments[*other].is(","))
    };
    let start = (0..at).rev().find(outside).map_or(0, |before| before + 1);
    let end = (at..arguments.len())
        .find(outside)
        .unwrap_or(arguments.len());
    let is = |other: usize, texts: &[&str]| {
        depths[other] == own && texts.contains(&arguments[other].text())
    };
    let summed = (start..end).find(|other| is(*other, &["+", "-", "?"]));
    // What follows a `sizeof` without parentheses is not told from its operand.
    let after = (at + 1..end)
        .find(|next| arguments[at + 1].is("(") && is(*next, &[")"]))
        .map_or(end, |close| close + 1);
    let factor = (at > start && is(at - 1, &["*"])) || (after < end && is(after, &["*"]));
    match (factor, summed) {
        (true, None) => Some(Role::Element),
        (false, Some(_)) => {
            let term = (at == start || is(at - 1, &["+"])) && (after == end || is(after, &["+"]));
            term.then_some(Role::Header)
        }
        _ => None,
    }
}

fn clue(witness: Witness, target: TypeIndex, what: &str) -> Clue {
    Clue {
        witness,
        types: vec![target],
        role: None,
        what: what.to_owned(),
        address: 0,
    }
}

/// How gcc and clang name the base type that these words declare.
fn base_name(words: &[&str]) -> Option<String> {
    let count = |word: &str| words.iter().filter(|one| **one == word).count();
    let known = ["unsigned", "long", "short", "int", "char", "double"];
    if words.is_empty() || !words.iter().all(|word| known.contains(word)) {
        return None;
    }
    let unsigned = count("unsigned") > 0;
    Some(
        match (
            count("char"),
            count("short"),
            count("long"),
            count("double"),
        ) {
            (1, ..) if unsigned => "unsigned char".to_owned(),
            (1, ..) => "char".to_owned(),
            (_, _, _, 1) if count("long") > 0 => "long double".to_owned(),
            (_, _, _, 1) => "double".to_owned(),
            (_, 1, ..) if unsigned => "short unsigned int".to_owned(),
            (_, 1, ..) => "short int".to_owned(),
            (_, _, 0, _) if unsigned => "unsigned int".to_owned(),
            (_, _, 0, _) => "int".to_owned(),
            (_, _, longs, _) => {
                let sign = if unsigned { "unsigned " } else { "" };
                format!("{}{sign}int", "long ".repeat(longs))
            }
        },
    )
}
