//! *What is true, as a reader wrote it down?*
//!
//! A row has six columns, tab-separated: file (the end of its path), line, function, callee, type,
//! proof. The type column says the role too: `T` one object, `T[]` an array, `H + T[]` a header and
//! what follows it (`H + …` where that is no array of one type), `opaque` where every destination is
//! a `void *`. What an inlined allocator hands out is its callers' to say: there the function is written
//! `allocator < caller`. Several readings that the source bears out equally are separated by ` | `.

use anyhow::{Context, Result, bail};
use std::path::Path;

/// What is true of one place.
pub(super) struct Row {
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) function: String,
    pub(super) callee: String,
    pub(super) r#type: String,
}

pub(super) fn read(path: &Path) -> Result<Vec<Row>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| shown.to_string())?;
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let [file, number, function, callee, r#type, _proof] =
            line.split('\t').collect::<Vec<_>>()[..]
        else {
            bail!("{shown}:{}: six columns", at + 1);
        };
        rows.push(Row {
            file: file.to_owned(),
            line: number
                .parse()
                .with_context(|| format!("{shown}:{}: a line number", at + 1))?,
            function: function.to_owned(),
            callee: callee.to_owned(),
            r#type: r#type.to_owned(),
        });
    }
    Ok(rows)
}

impl Row {
    /// The function that the call must be inlined into for the row to hold.
    pub(super) fn caller(&self) -> Option<&str> {
        self.function.split_once(" < ").map(|(_, caller)| caller)
    }

    /// The function that the call is written in.
    pub(super) fn own_function(&self) -> &str {
        self.function
            .split_once(" < ")
            .map_or(&self.function, |(own, _)| own)
    }

    /// Whether a site's type, as printed, is one of the true readings.
    pub(super) fn admits(&self, said: &str) -> bool {
        let said = plain(said);
        self.r#type.split(" | ").any(|reading| {
            let reading = plain(reading);
            let open = |header: &str, other: &str| {
                header
                    .strip_suffix("+…")
                    .is_some_and(|head| other.starts_with(&format!("{head}+")))
            };
            reading == said || open(&said, &reading) || open(&reading, &said)
        })
    }
}

/// A type as printed, without keywords, qualifiers, blanks, and with one name for each base type.
pub(super) fn plain(name: &str) -> String {
    const PASSED_OVER: [&str; 7] = [
        "struct", "union", "enum", "class", "const", "volatile", "restrict",
    ];
    let mut words = String::new();
    let mut word = String::new();
    let flush = |word: &mut String, words: &mut String| {
        if !PASSED_OVER.contains(&word.as_str()) && !word.is_empty() {
            if words.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                words.push(' ');
            }
            words.push_str(word);
        }
        word.clear();
    };
    for letter in name.chars() {
        if letter.is_alphanumeric() || letter == '_' {
            word.push(letter);
        } else {
            flush(&mut word, &mut words);
            if !letter.is_whitespace() {
                words.push(letter);
            }
        }
    }
    flush(&mut word, &mut words);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings() {
        let rows = [
            ("struct node", "node", true),
            ("struct node", "node[]", false),
            ("const char *[]", "char *[]", true),
            ("struct node + …", "struct node + char[]", true),
            ("struct node + int[]", "struct node + char[]", false),
            ("opaque", "char[]", false),
            ("a::b<c, d>", "struct a::b<c, d>", true),
            ("unsigned long[]", "long unsigned int[]", false),
            ("char[] | unsigned char[]", "unsigned char[]", true),
        ];
        for (truth, said, expect) in rows {
            let row = Row {
                file: String::new(),
                line: 0,
                function: String::new(),
                callee: String::new(),
                r#type: truth.to_owned(),
            };
            assert_eq!(row.admits(said), expect, "{truth}: {said}");
        }
    }
}
