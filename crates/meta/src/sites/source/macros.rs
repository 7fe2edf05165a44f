//! *What does a statement say once its macros are expanded?*
//!
//! Debug info names the files of a program but not which of them a unit included, nor what was defined
//! when. So a definition counts in the file that it stands in and, from a header, everywhere; of several
//! for one name the one counts that names the function looked for, then the nearest before the use in its own
//! file, then the first. Words are pasted where that makes the name of a type; nothing is quoted, and no condition is evaluated. Expansion is
//! bounded: what grows beyond [`LONGEST`] stays as it is.

use super::tokens::{Definition, Text, Token, tokens};
use std::collections::HashMap;

/// Tokens of one expanded statement.
const LONGEST: usize = 20_000;
/// How deep macros that use macros are followed.
const DEPTH: usize = 24;

/// All macros of a program's source files.
#[derive(Default)]
pub(super) struct Macros {
    by_name: HashMap<String, Vec<Macro>>,
}

struct Macro {
    file: u32,
    /// Whether other files may include the one it stands in.
    shared: bool,
    definition: Definition,
}

/// What an expansion is for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'w> {
    /// The file in which the statement stands.
    pub(super) file: u32,
    pub(super) callee: &'w str,
}

/// The names that words may be pasted to.
pub(super) type Names<'n, 't> = dyn Fn(&str) -> Option<&'t str> + 'n;

impl Macros {
    pub(super) fn add(&mut self, file: u32, shared: bool, text: &Text) {
        for definition in text.definitions() {
            self.by_name
                .entry(definition.name.clone())
                .or_default()
                .push(Macro {
                    file,
                    shared,
                    definition,
                });
        }
    }

    /// The tokens with every macro expanded, each with the line of the use it comes from; `None` if there is
    /// nothing to expand, or too much.
    pub(super) fn expand<'t>(
        &'t self,
        text: &[Token<'t>],
        wanted: Wanted<'_>,
        names: &Names<'_, 't>,
    ) -> Option<Vec<Token<'t>>> {
        let mut out = Vec::new();
        self.expand_into(text, wanted, names, &mut Vec::new(), &mut out)?;
        (out != text).then_some(out)
    }

    /// `None` if there are too many.
    fn expand_into<'t>(
        &'t self,
        text: &[Token<'t>],
        wanted: Wanted<'_>,
        names: &Names<'_, 't>,
        inside: &mut Vec<&'t str>,
        out: &mut Vec<Token<'t>>,
    ) -> Option<()> {
        let mut at = 0;
        while let Some(token) = text.get(at).copied() {
            at += 1;
            let known = self
                .chosen(token, wanted)
                .filter(|known| inside.len() < DEPTH && !inside.contains(&known.name.as_str()));
            let replacement = known.and_then(|known| {
                let Some(parameters) = &known.parameters else {
                    return Some((known, known.body_at(token.line), at));
                };
                let (arguments, end) = arguments(text, at)?;
                let mut body = Vec::new();
                for word in known.body_at(token.line) {
                    match parameters.iter().position(|parameter| word.is(parameter)) {
                        Some(last) if parameters[last] == Definition::REST => {
                            let rest = arguments.get(last..).unwrap_or(&[]);
                            body.extend(rest.join(&[Token::comma(token.line)][..]));
                        }
                        Some(number) => body.extend(
                            arguments
                                .get(number)
                                .into_iter()
                                .flatten()
                                .map(|argument| argument.on(token.line)),
                        ),
                        None => body.push(word),
                    }
                    if body.len() > LONGEST {
                        return None;
                    }
                }
                paste(&mut body, names);
                Some((known, body, end))
            });
            match replacement {
                Some((known, body, end)) => {
                    inside.push(&known.name);
                    self.expand_into(&body, wanted, names, inside, out)?;
                    inside.pop();
                    at = end;
                }
                None => out.push(token),
            }
            if out.len() > LONGEST {
                return None;
            }
        }
        Some(())
    }

    fn chosen(&self, token: Token<'_>, wanted: Wanted<'_>) -> Option<&Definition> {
        let all = self.by_name.get(token.text())?;
        let visible = || {
            all.iter()
                .filter(|known| known.shared || known.file == wanted.file)
        };
        let naming = visible().find(|known| {
            let mut words = known.definition.body_at(0).into_iter();
            words.any(|word| word.is(wanted.callee))
        });
        let before = visible()
            .filter(|known| known.file == wanted.file && known.definition.line <= token.line)
            .max_by_key(|known| known.definition.line);
        let found = naming.or(before).or_else(|| visible().next())?;
        Some(&found.definition)
    }
}

/// `a ## b`, where a type is called `ab`.
fn paste<'t>(body: &mut Vec<Token<'t>>, names: &Names<'_, 't>) {
    let mut at = 1;
    while at + 2 < body.len() {
        let [before, first, second, after] = [body[at - 1], body[at], body[at + 1], body[at + 2]];
        let pasted = (first.is("#") && second.is("#"))
            .then(|| names(&format!("{}{}", before.text(), after.text())))
            .flatten();
        match pasted {
            // It may be pasted to what follows.
            Some(name) => drop(body.splice(at - 1..at + 3, [before.named(name)])),
            None => at += 1,
        }
    }
}

/// The arguments of a call whose opening parenthesis is at `open`, and the index after its end.
fn arguments<'t>(text: &[Token<'t>], open: usize) -> Option<(Vec<Vec<Token<'t>>>, usize)> {
    text.get(open).filter(|token| token.is("("))?;
    let mut arguments = vec![Vec::new()];
    let mut depth = 0_u32;
    for (at, token) in text.iter().enumerate().skip(open + 1).take(LONGEST) {
        match token.text() {
            ")" if depth == 0 => return Some((arguments, at + 1)),
            "," if depth == 0 => {
                arguments.push(Vec::new());
                continue;
            }
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.checked_sub(1)?,
            _ => {}
        }
        arguments.last_mut()?.push(*token);
    }
    None
}

impl Definition {
    fn body_at(&self, line: u32) -> Vec<Token<'_>> {
        let words = tokens(self.body.as_bytes(), line);
        words.into_iter().map(|word| word.on(line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansions() {
        let header = "#define NEW(t) ((t *)get(sizeof(t)))\n\
                      #define put(var, ty, ...) (void)(var = (ty)real(__VA_ARGS__, #var))\n\
                      #define sp sub.val \\\n   .sp\n\
                      # define loop loop + again\n\
                      #define again loop\n\
                      #define ACT(name) (act_##name *)get(sizeof(act_##name), f_##name)\n";
        let names = |name: &str| (name == "act_paren").then_some("act_paren");
        let rows = [
            (
                "p = NEW(node);",
                "p = ( ( node * ) get ( sizeof ( node ) ) ) ;",
            ),
            (
                "put(r->sp, char *, a, f(b, c));",
                "( void ) ( r -> sub . val . sp = ( char * ) real ( a , f ( b , c ) , # r -> sub . val . sp ) ) ;",
            ),
            (
                "ACT(paren)",
                "( act_paren * ) get ( sizeof ( act_paren ) , f_ # # paren )",
            ),
            ("loop", "loop + loop"),
            ("NEW", "NEW"),
            ("NEW(open", "NEW ( open"),
        ];
        let mut macros = Macros::default();
        macros.add(0, true, &Text::new(header.as_bytes().to_vec()));
        let wanted = Wanted {
            file: 1,
            callee: "get",
        };
        for (text, expect) in rows {
            let text_tokens = tokens(text.as_bytes(), 7);
            let found = macros
                .expand(&text_tokens, wanted, &names)
                .unwrap_or(text_tokens);
            assert!(found.iter().all(|token| token.line == 7), "{text}");
            let words: Vec<&str> = found.iter().map(Token::text).collect();
            assert_eq!(words.join(" "), expect, "{text}");
        }
    }

    #[test]
    fn of_several_definitions() {
        let source = "#define make(n) a(n)\n\n#define make(n) b(n)\n";
        let rows = [
            ("a", 9, "a"),
            ("b", 9, "b"),
            ("other", 2, "a"),
            ("other", 9, "b"),
        ];
        let mut macros = Macros::default();
        macros.add(3, false, &Text::new(source.as_bytes().to_vec()));
        for (callee, line, expect) in rows {
            let wanted = Wanted { file: 3, callee };
            let found = macros.expand(&tokens(b"make(1)", line), wanted, &|_| None);
            let first = found.as_ref().map(|found| found[0].text());
            assert_eq!(first, Some(expect), "{callee} at {line}");
            let elsewhere = Wanted { file: 4, callee };
            let found = macros.expand(&tokens(b"make(1)", line), elsewhere, &|_| None);
            assert!(found.is_none(), "of another source file");
        }
    }
}
