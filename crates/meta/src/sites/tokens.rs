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
}

impl<'t> Token<'t> {
    pub(super) fn text(&self) -> &'t str {
        self.text
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
fn tokens(text: &[u8], mut line: u32) -> Vec<Token<'_>> {
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
