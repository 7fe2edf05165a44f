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

/// Those arguments of the call at `call` that make its size, as a bit mask; all if that is 0, or there are not so many.
pub(super) fn of_size<'t>(text: &[Token<'t>], call: usize, sized: u8) -> Vec<Token<'t>> {
    let all = closing(text, call + 1)
        .and_then(|end| text.get(call + 2..end))
        .unwrap_or(&[]);
    let mut depth = 0_i32;
    let mut arguments: Vec<Vec<Token<'t>>> = vec![Vec::new()];
    for token in all {
        match token.text() {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "," if depth == 0 => {
                arguments.push(Vec::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = arguments.last_mut() {
            last.push(*token);
        }
    }
    if sized == 0 || arguments.len() < 8 - sized.leading_zeros() as usize {
        return all.to_vec();
    }
    let chosen = (0..).zip(arguments).filter(|(at, _)| sized >> at & 1 == 1);
    let chosen: Vec<Vec<Token<'t>>> = chosen.map(|(_, argument)| argument).collect();
    chosen.join(&[Token::comma(text[call].line)][..])
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
    all_unclosed(text).first().copied()
}

/// The last parenthesis that is open at `at`.
pub(super) fn innermost(text: &[Token<'_>], at: usize) -> Option<usize> {
    all_unclosed(text.get(..at)?).last().copied()
}

fn all_unclosed(text: &[Token<'_>]) -> Vec<usize> {
    let mut open = Vec::new();
    for (at, token) in text.iter().enumerate() {
        match token.text() {
            "(" | "[" => open.push(at),
            ")" | "]" => drop(open.pop()),
            _ => {}
        }
    }
    open
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
