//! *Where does a call begin and end in a row of tokens?*

use super::tokens::Token;

/// Tokens of one call; longer argument lists are given up.
pub(super) const LONGEST_CALL: usize = 600;

/// The index of the callee's name in the one call of it that covers `line`.
pub(super) fn find_call(text: &[Token<'_>], line: u32, name: &str) -> Option<usize> {
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
pub(super) fn closing(text: &[Token<'_>], open: usize) -> Option<usize> {
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
pub(super) fn unclosed(text: &[Token<'_>]) -> Option<usize> {
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

/// Whether the arguments of the call at `call` use any of these parameters, and no `sizeof`.
pub(super) fn handed_on(text: &[Token<'_>], call: usize, parameters: &[&str]) -> bool {
    let arguments = closing(text, call + 1).and_then(|end| text.get(call + 2..end));
    let words = || arguments.unwrap_or(&[]).iter();
    words().any(|word| parameters.contains(&word.text())) && !words().any(|word| word.is("sizeof"))
}

/// The statement that covers `line`.
pub(super) fn statement_around<'a, 't>(text: &'a [Token<'t>], line: u32) -> &'a [Token<'t>] {
    let ends = |at: &usize| matches!(text[*at].text(), ";" | "{" | "}");
    let first = text.partition_point(|token| token.line < line);
    let after = text.partition_point(|token| token.line <= line);
    let start = (0..first).rev().find(ends).map_or(0, |at| at + 1);
    let end = (after..text.len()).take(LONGEST_CALL).find(ends);
    &text[start..end.unwrap_or(after)]
}
