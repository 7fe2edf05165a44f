//! *Which types do the names in an expression mean?* — variables that debug info names, members, type names.

use super::super::typing::Pointee;
use super::clues::Scope;
use super::shape::closing;
use super::tokens::Token;
use pointee_model::image::{TypeIndex, TypeKind, type_flags};

impl Scope<'_, '_> {
    /// The type whose size `sizeof` takes, and the words that say it; several types where files of the program
    /// each have their own of that name.
    pub(super) fn sizeof(&self, rest: &[Token<'_>]) -> Option<(Vec<TypeIndex>, String)> {
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
        let words = format!("sizeof({})", words.join(" "));
        let Some(named) = self.type_name(inner) else {
            let index = self.expression(inner)?;
            return Some((vec![self.types.strip(index)], words));
        };
        Some((self.each_of_name(named), words))
    }

    /// A type name such as `const struct node *`.
    pub(super) fn type_name(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
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
                self.plainly(&name)
            }
        };
        (0..stars).try_fold(base?, |target, _| self.types.pointer_to(target))
    }

    /// What a name without a keyword means: in C a typedef rather than a tag, of this file rather than another.
    fn plainly(&self, name: &str) -> Option<TypeIndex> {
        let rank = |at: &TypeIndex| {
            let entry = self.types.get(*at)?;
            let is_tag = match entry.kind {
                TypeKind::Function | TypeKind::Unknown => return None,
                TypeKind::Struct | TypeKind::Union | TypeKind::Enum => {
                    entry.flags & type_flags::ANONYMOUS == 0
                }
                _ => false,
            };
            Some((is_tag, entry.file != Some(self.file), *at))
        };
        let found = self.types.named(name).iter().filter_map(rank).min();
        found.map(|(.., at)| at)
    }

    /// What a name may mean that is found to mean this type.
    pub(super) fn each_of_name(&self, named: TypeIndex) -> Vec<TypeIndex> {
        let named = self.types.strip(named);
        let all = self.types.namesakes(named);
        let is_own = |at: &&TypeIndex| {
            self.types
                .get(**at)
                .is_some_and(|entry| entry.file == Some(self.file))
        };
        let own: Vec<TypeIndex> = all.iter().filter(is_own).copied().collect();
        match (own.is_empty(), all.is_empty()) {
            (false, _) => own,
            (true, false) => all.to_vec(),
            (true, true) => vec![named],
        }
    }

    fn tagged(&self, tag: &str, kinds: &[TypeKind]) -> Option<TypeIndex> {
        let rank = |at: &TypeIndex| {
            let entry = self.types.get(*at)?;
            let is_other = entry.file != Some(self.file);
            kinds.contains(&entry.kind).then_some((is_other, *at))
        };
        let found = self.types.named(tag).iter().filter_map(rank).min();
        found.map(|(_, at)| at)
    }

    fn pointer_to_void(&self, stars: usize) -> Option<TypeIndex> {
        let first = self.types.void_pointer()?;
        (1..stars).try_fold(first, |target, _| self.types.pointer_to(target))
    }

    /// The type of a chain such as `*p`, `s->items[0]`, `(*table).rows`.
    pub(super) fn expression(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
        let (first, rest) = text.split_first()?;
        match first.text() {
            "*" => match self.cast_to_pointer(rest) {
                Some(target) => Some(target),
                None => self.pointed(self.expression(rest)?),
            },
            "(" if closing(text, 0) == Some(text.len() - 1) => {
                self.expression(&text[1..text.len() - 1])
            }
            _ => self.postfix(text),
        }
    }

    /// What the cast at the start of an expression makes a pointer to: `T` in `(T *)memory`.
    fn cast_to_pointer(&self, text: &[Token<'_>]) -> Option<TypeIndex> {
        text.first()?.is("(").then_some(())?;
        let end = closing(text, 0)?;
        let (star, target) = text[1..end].split_last()?;
        (star.is("*") && end + 1 < text.len())
            .then(|| self.type_name(target))?
            .map(|at| self.types.strip(at))
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

    /// The type of a variable, if all variables of that name have one type: in the function that the text is in, inlined or not, if
    /// it has any, or else in all that are inlined where it is.
    pub(super) fn variable(&self, name: &str) -> Option<TypeIndex> {
        let of = |is_own: bool| {
            let variables = self.function.variables.iter();
            let named = variables.filter(move |variable| {
                variable.name == name && (!is_own || variable.inline == self.within)
            });
            let types = named.filter_map(|variable| variable.r#type);
            types.map(|at| self.types.strip(at))
        };
        for is_own in [true, false] {
            let mut local = of(is_own);
            if let Some(first) = local.next() {
                return local.all(|other| other == first).then_some(first);
            }
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
            (_, Some(Pointee::Type(target))) => Some(self.types.in_file(target, Some(self.file))),
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
