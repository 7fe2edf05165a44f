//! *What are the words of a C or C++ source file?*
//!
//! Comments, literals' contents, and preprocessor lines are passed over; anything that is not an
//! identifier or number is a token of its own, with `->`, `::` and `++`-like pairs kept together
//! where that matters here. Never fails: what is no token is skipped.

/// A source file, with the start of each line.
pub(super) struct Text {
    bytes: Vec<u8>,
    lines: Vec<usize>,
}

/// A macro as it is written.
pub(super) struct Definition {
    pub(super) name: String,
    /// `None` for one that takes no arguments.
    pub(super) parameters: Option<Vec<String>>,
    pub(super) body: String,
    pub(super) line: u32,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token<'t> {
    text: &'t str,
    /// Line, counted from 1.
    pub(super) line: u32,
}

impl Text {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let lines = std::iter::once(0)
            .chain(ends.map(|(at, _)| at + 1))
            .collect();
        Self { bytes, lines }
    }

    /// The tokens of the lines `first..=last`, counted from 1.
    pub(super) fn tokens(&self, first: u32, last: u32) -> Vec<Token<'_>> {
        let first = first.max(1);
        let start = |line: u32| self.lines.get(line as usize - 1).copied();
        let Some(from) = start(first) else {
            return Vec::new();
        };
        let to = start(last.saturating_add(1)).unwrap_or(self.bytes.len());
        let window = self.bytes.get(from..to).unwrap_or(&[]);
        let find = |mark: &[u8; 2]| window.windows(2).position(|pair| pair == mark);
        // A window that starts inside a comment goes on after its end.
        let skip = match (find(b"*/"), find(b"/*")) {
            (Some(end), None) => end + 2,
            (Some(end), Some(begin)) if end < begin => end + 2,
            _ => 0,
        };
        let skipped = window[..skip].iter().filter(|byte| **byte == b'\n').count();
        let line = first.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
        tokens(&window[skip..], line)
    }

    /// The macros that the file defines. Those in comments are taken for definitions too.
    pub(super) fn definitions(&self) -> impl Iterator<Item = Definition> {
        (1..).zip(&self.lines).filter_map(|(line, start)| {
            let text = self.bytes.get(*start..)?;
            let end = (0..text.len())
                .find(|at| text[*at] == b'\n' && !text[..*at].ends_with(b"\\"))
                .unwrap_or(text.len());
            let text = text[..end].trim_ascii_start().strip_prefix(b"#")?;
            let text = text.trim_ascii_start().strip_prefix(b"define")?;
            Definition::parse(std::str::from_utf8(text).ok()?, line)
        })
    }
}

impl Definition {
    /// What stands in the body for all arguments from the last parameter on.
    pub(super) const REST: &'static str = "__VA_ARGS__";

    /// What follows `#define`.
    fn parse(text: &str, line: u32) -> Option<Self> {
        let text = text
            .strip_prefix([' ', '\t'])?
            .trim_start()
            .replace("\\\n", " ");
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let (name, rest) = text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()));
        let listed = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let parameters = listed.map(|(list, _)| {
            let words = list.split(',').map(str::trim);
            let word = |word: &str| match word.strip_suffix("...") {
                Some("") => Self::REST.to_owned(),
                Some(named) => named.trim_end().to_owned(),
                None => word.to_owned(),
            };
            words.map(word).collect()
        });
        (!name.is_empty()).then(|| Self {
            name: name.to_owned(),
            parameters,
            body: listed.map_or(rest, |(_, body)| body).to_owned(),
            line,
        })
    }
}

impl<'t> Token<'t> {
    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// The same word, taken to stand on another line.
    pub(super) fn on(self, line: u32) -> Self {
        Self { line, ..self }
    }

    /// Another word in its place.
    pub(super) fn named(self, text: &'t str) -> Self {
        Self { text, ..self }
    }

    pub(super) fn comma(line: u32) -> Self {
        Self { text: ",", line }
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    /// Whether an operand may end here, so that a following `*` multiplies.
    pub(super) fn ends_operand(&self) -> bool {
        matches!(self.text(), ")" | "]")
            || self
                .text
                .starts_with(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// The tokens of `text`, whose first line is `line`.
pub(super) fn tokens(text: &[u8], mut line: u32) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let (mut at, mut fresh_line) = (0, true);
    let word = |from: usize, to: usize| {
        text.get(from..to)
            .and_then(|word| std::str::from_utf8(word).ok())
            .unwrap_or("")
    };
    let byte = |at: usize| text.get(at).copied().unwrap_or(0);
    while at < text.len() {
        let start = at;
        match byte(at) {
            b'\n' => {
                line += 1;
                fresh_line = true;
                at += 1;
                continue;
            }
            b'#' if fresh_line => {
                // A directive, with its continuation lines.
                while at < text.len() && !(byte(at) == b'\n' && byte(at.wrapping_sub(1)) != b'\\') {
                    line += u32::from(byte(at) == b'\n');
                    at += 1;
                }
                continue;
            }
            b'/' if byte(at + 1) == b'/' => {
                while at < text.len() && byte(at) != b'\n' {
                    at += 1;
                }
                continue;
            }
            b'/' if byte(at + 1) == b'*' => {
                at += 2;
                while at < text.len() && !(byte(at) == b'*' && byte(at + 1) == b'/') {
                    line += u32::from(byte(at) == b'\n');
                    at += 1;
                }
                at += 2;
                continue;
            }
            b'"' | b'\'' => {
                let quote = byte(at);
                at += 1;
                while at < text.len() && byte(at) != quote && byte(at) != b'\n' {
                    at += if byte(at) == b'\\' { 2 } else { 1 };
                }
                at += 1;
                out.push(Token { text: "\"\"", line });
            }
            c if c.is_ascii_alphanumeric() || c == b'_' => {
                while byte(at).is_ascii_alphanumeric() || byte(at) == b'_' {
                    at += 1;
                }
                out.push(Token {
                    text: word(start, at),
                    line,
                });
            }
            b'-' if byte(at + 1) == b'>' => {
                at += 2;
                out.push(Token { text: "->", line });
            }
            c if c.is_ascii_punctuation() => {
                at += 1;
                out.push(Token {
                    text: word(start, at),
                    line,
                });
            }
            _ => {
                at += 1;
                continue;
            }
        }
        fresh_line = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_lines() {
        let rows: [(&str, &[(&str, u32)]); 5] = [
            (
                "a->b\n*c",
                &[("a", 1), ("->", 1), ("b", 1), ("*", 2), ("c", 2)],
            ),
            ("/* x\n y */ z", &[("z", 2)]),
            ("#define A \\\n 1\nb // c\n", &[("b", 3)]),
            ("\"a\\\"b\" 'c'", &[("\"\"", 1), ("\"\"", 1)]),
            ("\"open\n/* open", &[("\"\"", 1)]),
        ];
        for (text, expect) in rows {
            let found = tokens(text.as_bytes(), 1);
            let found: Vec<(&str, u32)> = found.iter().map(|t| (t.text(), t.line)).collect();
            assert_eq!(found, expect, "{text:?}");
        }
    }
}
