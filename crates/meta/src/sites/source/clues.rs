//! *What do the words of a call say of what it allocates?*
//!
//! A cast of the result, `sizeof` in the arguments and its part in them, and what the result is
//! assigned to or returned as.

use super::super::model::RETURN_FIRST;
use super::super::outcome::Doubt;
use super::super::request::Request;
use super::super::typing::{Pointee, Types};
use super::super::verdict::Clue;
use super::shape::{LONGEST_CALL, closing, innermost, of_size, unclosed};
use super::tokens::Token;
use crate::facts::{Facts, Function};
use pointee_model::evidence::{Role, Witness};
use pointee_model::image::TypeIndex;

/// What names mean at a call.
pub(super) struct Scope<'a, 'f> {
    pub(super) types: &'a Types<'f>,
    pub(super) function: &'a Function,
    pub(super) facts: &'a Facts,
    /// The file that the call stands in.
    pub(super) file: u32,
    /// The inlined function that it stands in, if it is one.
    pub(super) within: Option<u32>,
}

impl Scope<'_, '_> {
    /// What the call at `call` says; `sized` are the arguments that make its size, 0 if that is not known.
    pub(super) fn clues(&self, text: &[Token<'_>], call: usize, sized: u8) -> Vec<Clue> {
        let mut clues = Vec::new();
        let handed_back = self.handed_back(text, call);
        if let Some(target) = self.cast_before(text, handed_back)
            && !self.is_arithmetic(text, handed_back, &target)
        {
            clues.push(clue(Witness::CastInSource, target, "cast"));
        }
        clues.extend(self.sizes(&of_size(text, call, sized)));
        clues
    }

    /// The call that hands back the result of the one at `call`, which is its first argument: `strcpy(malloc(n), text)`.
    fn handed_back(&self, text: &[Token<'_>], mut call: usize) -> usize {
        loop {
            let start = self.opening_of_cast(text, call).unwrap_or(call);
            match start.checked_sub(2) {
                Some(outer)
                    if text[outer + 1].is("(") && RETURN_FIRST.contains(&text[outer].text()) =>
                {
                    call = outer;
                }
                _ => return call,
            }
        }
    }

    /// What the arguments of a call say of the size.
    pub(super) fn sizes(&self, arguments: &[Token<'_>]) -> Vec<Clue> {
        let mut clues = Vec::new();
        let is_summand = |at: usize| is_offset(&arguments[at]) && !is_argument(arguments, at);
        if (0..arguments.len()).any(is_summand) {
            // What is added to it lies behind what it is the offset in.
            clues.extend(self.head_by_offset(arguments).map(|head| Clue {
                role: Some(Role::Header),
                ..clue(Witness::SizeofInSource, vec![head], "offsetof")
            }));
            return clues;
        }
        let mut sizes: Vec<(usize, Vec<TypeIndex>, String)> = Vec::new();
        for (at, token) in arguments.iter().enumerate() {
            if token.is("sizeof") && is_subtracted(arguments, at) {
                continue;
            }
            if token.is("sizeof")
                && let Some((types, words)) = self.sizeof(&arguments[at + 1..])
            {
                sizes.push((at, types, words));
            } else if token.is("sizeof") {
                // One that is not understood could be the one that counts.
                return clues;
            }
        }
        sizes.dedup_by(|(_, a, _), (_, b, _)| a == b);
        let between = |a: usize, b: usize| arguments[a..b].iter().any(|token| token.is("+"));
        let first = match &sizes[..] {
            [one] => Some(one),
            // sizeof(H) + n * sizeof(T): the block starts with H.
            [head, next] if between(head.0, next.0) => Some(head),
            _ => None,
        };
        if let Some((at, types, words)) = first {
            // `sizeof(T) + n * sizeof(T)` is an array all the same.
            let counts = |at: &usize| arguments[*at].is("sizeof") && !is_subtracted(arguments, *at);
            let count = (0..arguments.len()).filter(counts).count();
            let part = part(arguments, *at).filter(|_| count == sizes.len());
            // `n + sizeof(void *)`: room for one more thing, which the block does not start with.
            let is_structure = types.iter().all(|at| self.types.is_structure(*at));
            if part == Some(Role::Header) && !is_structure {
                return clues;
            }
            clues.push(Clue {
                role: part,
                ..clue(Witness::SizeofInSource, types.clone(), words)
            });
        }
        clues
    }

    /// `offsetof(H, items) + n * sizeof(T)`: the type that the block starts with.
    fn head_by_offset(&self, arguments: &[Token<'_>]) -> Option<TypeIndex> {
        let mut offsets = (0..arguments.len()).filter(|at| is_offset(&arguments[*at]));
        let (at, None) = (offsets.next()?, offsets.next()) else {
            return None;
        };
        let inner = arguments.get(at + 2..closing(arguments, at + 1)?)?;
        let end = inner.iter().position(|token| token.is(","))?;
        let head = self.type_name(&inner[..end])?;
        let summed = arguments.iter().any(|token| token.is("+"));
        summed.then(|| self.types.strip(head))
    }

    /// Whether the call at `call`, of a function that was inlined, gives it a number beside a size: one that is not written out.
    pub(super) fn is_counted(&self, text: &[Token<'_>], call: usize, inlined: u32) -> bool {
        let variables = self.function.variables.iter();
        let is_number = |at: usize| {
            variables.clone().any(|variable| {
                let r#type = variable.r#type.map(|at| self.types.strip(at));
                variable.inline == Some(inlined)
                    && variable.parameter.map(usize::from) == Some(at)
                    && r#type.is_some_and(|at| {
                        self.types.is_integer(at) && self.types.size(at) > Some(1)
                    })
            })
        };
        let arguments = closing(text, call + 1).and_then(|end| text.get(call + 2..end));
        let arguments = arguments.map_or(Vec::new(), split);
        arguments.iter().enumerate().any(|(at, argument)| {
            let literal = |token: &Token<'_>| {
                token.is("__LINE__") || token.text().starts_with(|c: char| c.is_ascii_digit())
            };
            is_number(at)
                && !argument.iter().any(|token| token.is("sizeof"))
                && !argument.iter().all(literal)
        })
    }

    /// What the result of a call is assigned to, or returned as.
    pub(super) fn assigned(
        &self,
        text: &[Token<'_>],
        call: usize,
        result: Option<TypeIndex>,
    ) -> Option<Clue> {
        let call = self.handed_back(text, call);
        let mut before = call;
        if let Some(open) = self.opening_of_cast(text, call) {
            before = open;
        }
        // A macro has parentheses around all that it stands for.
        let mut end = closing(text, call + 1)?;
        let is_around = |open: usize, end: usize| {
            let called = open.checked_sub(1).map(|at| &text[at]);
            let is_call = called.is_some_and(|word| word.ends_operand() && !word.is("return"));
            text[open].is("(") && !is_call && closing(text, open) == Some(end + 1)
        };
        while before
            .checked_sub(1)
            .is_some_and(|open| is_around(open, end))
        {
            (before, end) = (before - 1, end + 1);
            before = self.opening_of_cast(text, before).unwrap_or(before);
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
            Pointee::Type(target) => Some(clue(Witness::AssignedInSource, vec![target], "")),
            Pointee::Void => None,
        }
    }

    /// What a statement says in which the call is hidden in a macro: the one `sizeof` in it, if the
    /// size asked for bears it out, or the block is carved out of a larger one by a size that is not told.
    pub(super) fn statement_clues(
        &self,
        text: &[Token<'_>],
        line: u32,
        request: Request,
        is_carved: bool,
    ) -> Vec<Clue> {
        let start = text.partition_point(|token| token.line < line);
        let end = (start..text.len())
            .take(LONGEST_CALL)
            .find(|at| matches!(text[*at].text(), ";" | "{" | "}"))
            .unwrap_or(start);
        let statement = &text[start..end];
        let mut sizes: Vec<(usize, Vec<TypeIndex>, String)> = statement
            .iter()
            .enumerate()
            .filter(|(_, token)| token.is("sizeof"))
            .filter_map(|(at, _)| {
                let (types, words) = self.sizeof(&statement[at + 1..])?;
                Some((at, types, words))
            })
            .collect();
        sizes.dedup_by(|(_, a, _), (_, b, _)| a == b);
        let [(at, types, words)] = &sizes[..] else {
            return Vec::new();
        };
        let mut types = types.clone();
        let untold = Request {
            is_carved: request.is_carved,
            ..Request::default()
        };
        let is_untold = is_carved && request == untold;
        types.retain(|at| {
            self.types.size(*at).is_some_and(|size| {
                let is_asked = request.total == Some(size) || request.unit == Some(size);
                size > 8 && (is_asked || (is_untold && self.types.is_structure(*at)))
            })
        });
        // A macro that carves is written as a call with the size as its last argument.
        let role = innermost(statement, *at)
            .filter(|_| is_untold)
            .and_then(|open| {
                part(
                    &statement[open + 1..closing(statement, open)?],
                    at - open - 1,
                )
            });
        match types.is_empty() || (is_untold && role.is_none()) {
            true => Vec::new(),
            false => vec![Clue {
                role,
                ..clue(Witness::SizeofInSource, types, words)
            }],
        }
    }

    /// Whether a cast to bytes is there to add to the result.
    fn is_arithmetic(&self, text: &[Token<'_>], call: usize, target: &[TypeIndex]) -> bool {
        let after = closing(text, call + 1).and_then(|end| text.get(end + 1));
        after.is_some_and(|sign| sign.is("+") || sign.is("-"))
            && target.iter().all(|at| self.types.is_character(*at))
    }

    /// Where a cast in front of a call starts.
    fn opening_of_cast(&self, text: &[Token<'_>], call: usize) -> Option<usize> {
        let end = call.checked_sub(1).filter(|at| text[*at].is(")"))?;
        (end.saturating_sub(8)..end)
            .rev()
            .find(|at| text[*at].is("("))
    }

    /// What the cast in front of a call points to.
    fn cast_before(&self, text: &[Token<'_>], call: usize) -> Option<Vec<TypeIndex>> {
        let open = self.opening_of_cast(text, call)?;
        let words = &text[open + 1..call - 1];
        let (star, target) = words.split_last()?;
        // `if (x) f(…)` and `sizeof(x)` end in a parenthesis too.
        (star.is("*") && !target.is_empty())
            .then(|| self.type_name(target))
            .flatten()
            .map(|named| self.each_of_name(named))
    }
}

fn is_offset(token: &Token<'_>) -> bool {
    token.is("offsetof") || token.is("__builtin_offsetof")
}

/// Whether what starts at `at`, perhaps in parentheses, is taken away from something: it is not in the block.
fn is_subtracted(arguments: &[Token<'_>], at: usize) -> bool {
    let before = arguments[..at].iter().rev().find(|token| !token.is("("));
    before.is_some_and(|token| token.is("-"))
}

/// Whether the call at `at` is an argument by itself: an offset that is handed on is no part of a size.
fn is_argument(arguments: &[Token<'_>], at: usize) -> bool {
    let begins = at == 0 || arguments[at - 1].is(",");
    let end = closing(arguments, at + 1).map(|close| arguments.get(close + 1));
    begins && end.is_some_and(|after| after.is_none_or(|token| token.is(",")))
}

/// The arguments of a call, at the commas between them.
fn split<'a, 't>(arguments: &'a [Token<'t>]) -> Vec<&'a [Token<'t>]> {
    let mut depth = 0_i32;
    let between = |token: &Token<'_>| {
        match token.text() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        depth == 0 && token.is(",")
    };
    arguments.split(between).collect()
}

/// What the `sizeof` at `at` says of its type's part in the argument: a factor of the one product that it
/// is, or a term of a sum. What else stands in parentheses of its own does not count, but rounding up changes nothing.
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
    // The `sizeof`, or all that is about it alone; `after` is `None` where its end is not told from what follows.
    let mut at = at;
    let mut after = arguments
        .get(at + 1)
        .filter(|next| next.is("("))
        .and_then(|_| closing(arguments, at + 1));
    loop {
        // What a size is cast to changes nothing.
        while let Some(open) = cast_before(arguments, at) {
            at = open;
        }
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
        let after_it = after.map_or(end, |close| close + 1).min(end);
        let others = || arguments[start..at].iter().chain(&arguments[after_it..end]);
        let group = start.checked_sub(1).filter(|open| {
            let is_call =
                |before: usize| arguments[before].ends_operand() && !arguments[before].is(")");
            arguments[*open].is("(")
                && arguments.get(end).is_some_and(|close| close.is(")"))
                && !open.checked_sub(1).is_some_and(is_call)
        });
        let is_masked = arguments[end.min(arguments.len())..]
            .get(1..3)
            .is_some_and(|next| next[0].is("&") && next[1].is("~"));
        if let Some(open) = group
            && (others().next().is_none() || is_rounding(others(), is_masked))
        {
            (at, after) = (open, Some(end));
            continue;
        }
        let summed = (start..end).find(|other| is(*other, &["+", "-", "?"]));
        let factor = (at > start && is(at - 1, &["*"])) || (after_it < end && is(after_it, &["*"]));
        let count = others().filter(|word| !matches!(word.text(), "*" | "(" | ")"));
        let is_one = factor && count.map(Token::text).eq(["1"]);
        return match (factor, summed) {
            // `NEW(T, 1)`.
            (true, None) if is_one => Some(Role::Whole),
            (true, None) => Some(Role::Element),
            // The whole argument, where there is nothing else in it.
            (false, None) if at == start && after_it == end && own == 0 => Some(Role::Whole),
            (false, Some(_)) => {
                let term = (at == start || is(at - 1, &["+"]))
                    && (after_it == end || is(after_it, &["+"]));
                // A sum may be multiplied.
                let around = [start.checked_sub(2), Some(end + 1)];
                let multiplied = own > 0
                    && around
                        .into_iter()
                        .flatten()
                        .any(|next| arguments.get(next).is_some_and(|sign| sign.is("*")));
                (term && !multiplied).then_some(Role::Header)
            }
            _ => None,
        };
    }
}

/// Where the cast starts that stands right before `at`, if one does: nothing else in parentheses stands before an operand.
fn cast_before(arguments: &[Token<'_>], at: usize) -> Option<usize> {
    let end = at.checked_sub(1).filter(|end| arguments[*end].is(")"))?;
    let open = (0..end).rev().find(|open| arguments[*open].is("("))?;
    let words = arguments.get(open + 1..end)?;
    let is_word = |word: &Token<'_>| {
        word.text()
            .starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
    };
    let is_called = open
        .checked_sub(1)
        .is_some_and(|name| arguments[name].ends_operand());
    (!is_called && !words.is_empty() && words.iter().all(is_word)).then_some(open)
}

/// Whether these words do nothing but round up what stands among them: `+ 4 - 1`, and the mask behind it, `& ~(4 - 1)`.
fn is_rounding<'a, 't: 'a>(
    mut words: impl Iterator<Item = &'a Token<'t>> + Clone,
    is_masked: bool,
) -> bool {
    let mut masks = words.clone();
    let masks = is_masked || (masks.any(|word| word.is("&")) && masks.any(|word| word.is("~")));
    let is_mark = |word: &Token<'_>| matches!(word.text(), "+" | "-" | "&" | "~" | "(" | ")");
    masks
        && words.all(|word| is_mark(word) || word.text().starts_with(|c: char| c.is_ascii_digit()))
}

fn clue(witness: Witness, types: Vec<TypeIndex>, what: &str) -> Clue {
    Clue {
        witness,
        doubt: Doubt::None,
        types,
        role: None,
        what: what.to_owned(),
        address: 0,
        open: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tokens;
    use super::*;

    #[test]
    fn parts() {
        let rows = [
            ("sizeof(T)", Some(Role::Whole)),
            ("n * sizeof(T)", Some(Role::Element)),
            ("(1) * sizeof(T)", Some(Role::Whole)),
            ("(n + 1) * sizeof(T)", Some(Role::Element)),
            ("((sizeof(T)) * n)", Some(Role::Element)),
            ("n, sizeof(T)", Some(Role::Whole)),
            ("sizeof(T) + n", Some(Role::Header)),
            (
                "((((sizeof(T)) + 4 - 1) & ~(4 - 1)) + (n))",
                Some(Role::Header),
            ),
            ("(sizeof(T) + 1) * n", None),
            ("(sizeof(T) + n) & ~7", Some(Role::Header)),
            ("f(sizeof(T)) + n", None),
            ("((ptrdiff_t)sizeof(T)) * n", Some(Role::Element)),
            ("(size_t)(n) * (int)sizeof(T)", Some(Role::Element)),
            ("(int)sizeof(T) + n", Some(Role::Header)),
            ("(unsigned int)sizeof(T)", Some(Role::Whole)),
        ];
        for (text, expect) in rows {
            let words = tokens(text.as_bytes(), 1);
            let at = words.iter().position(|word| word.is("sizeof"));
            assert_eq!(at.and_then(|at| part(&words, at)), expect, "{text}");
        }
    }
}
