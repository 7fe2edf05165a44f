//! *How was a size computed that a variable brings to the call?*
//!
//! `size_t size = n * sizeof(struct item); …; items = malloc(size);` — where a local variable alone is an argument and
//! has one definition between its declaration and the call, that definition counts as if it stood in the call. What
//! is changed in any other way, or has its address taken, tells nothing; that it starts as a number is passed over.

use super::clues::Scope;
use super::shape::closing;
use super::tokens::{Text, Token};

/// Lines between a declaration and a call.
const FARTHEST: u32 = 300;

/// The definitions of the variables that are one of these arguments each, of a call on `line` in the code inlined as `within`.
pub(super) fn of_arguments<'t>(
    scope: &Scope<'_, '_>,
    file: &'t Text,
    arguments: &[Token<'_>],
    line: u32,
    within: Option<u32>,
) -> Vec<Vec<Token<'t>>> {
    let names = arguments.split(|token| token.is(",")).filter_map(lone_name);
    names
        .filter_map(|name| {
            let mut variables = scope.function.variables.iter().filter(|variable| {
                variable.name == name && variable.inline == within && variable.parameter.is_none()
            });
            let (variable, None) = (variables.next()?, variables.next()) else {
                return None;
            };
            let r#type = scope.types.strip(variable.r#type?);
            let near = (line.saturating_sub(FARTHEST).max(1)..=line).contains(&variable.line);
            (near && scope.types.is_integer(r#type)).then_some(())?;
            only_definition(&file.tokens(variable.line, line), name)
        })
        .collect()
}

/// The name that an argument consists of, but for a cast.
fn lone_name<'t>(argument: &[Token<'t>]) -> Option<&'t str> {
    let (last, before) = argument.split_last()?;
    let is_cast = before.first().is_some_and(|token| token.is("("))
        && closing(before, 0) == Some(before.len() - 1);
    let is_word = last
        .text()
        .starts_with(|c: char| c.is_alphabetic() || c == '_');
    (is_word && (before.is_empty() || is_cast)).then(|| last.text())
}

/// What `name` is set to, if that is said just once.
fn only_definition<'t>(text: &[Token<'t>], name: &str) -> Option<Vec<Token<'t>>> {
    let at = |index: Option<usize>| index.and_then(|at| text.get(at)).map_or("", Token::text);
    let mut found = None;
    for here in (0..text.len()).filter(|here| text[*here].is(name)) {
        let (before, after) = (at(here.checked_sub(1)), at(Some(here + 1)));
        let (farther, second) = (at(here.checked_sub(2)), at(Some(here + 2)));
        if matches!(before, "." | "->") {
            continue;
        }
        let steps = matches!(after, "+" | "-") && second == after
            || matches!(before, "+" | "-") && farther == before;
        let changes = second == "=" && !matches!(after, "=" | "!" | "<" | ">" | ")" | ",");
        let is_operand =
            farther.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ')' | ']'));
        if steps || changes || (before == "&" && !is_operand) {
            return None;
        }
        if after != "=" || second == "=" {
            continue;
        }
        let value = &text[here + 2..];
        let end = end_of_value(value)?;
        let is_number = end == 1 && value[0].text().starts_with(|c: char| c.is_ascii_digit());
        if !is_number && found.replace(value[..end].to_vec()).is_some() {
            return None;
        }
    }
    found
}

/// Where the expression ends that a row of tokens starts with.
fn end_of_value(text: &[Token<'_>]) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, token) in text.iter().enumerate() {
        match token.text() {
            "(" | "[" => depth += 1,
            ")" | "]" if depth == 0 => return Some(at),
            ")" | "]" => depth -= 1,
            "," if depth == 0 => return Some(at),
            ";" | "{" | "}" => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::tokens::tokens;
    use super::*;

    #[test]
    fn definitions() {
        let rows = [
            (
                "size_t n = k * sizeof(T); p = f(n);",
                Some("k * sizeof ( T )"),
            ),
            ("n = 0; if (k) n = sizeof(T), m = 2;", Some("sizeof ( T )")),
            ("if ((n = g(1, 2)) == 3) p = f(n);", Some("g ( 1 , 2 )")),
            ("n = sizeof(T); n += 4;", None),
            ("n = sizeof(T); n++;", None),
            ("n = sizeof(T); --n;", None),
            ("n = sizeof(T); get(&n);", None),
            (
                "n = sizeof(T); s.n = 4; if (n == 3 && a & n);",
                Some("sizeof ( T )"),
            ),
            ("n = sizeof(T); n = sizeof(U);", None),
            ("int n; f(n);", None),
        ];
        for (text, expect) in rows {
            let found = only_definition(&tokens(text.as_bytes(), 1), "n");
            let words = found.map(|found| {
                let words: Vec<&str> = found.iter().map(Token::text).collect();
                words.join(" ")
            });
            assert_eq!(words.as_deref(), expect, "{text}");
        }
    }
}
