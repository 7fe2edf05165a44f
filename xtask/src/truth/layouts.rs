//! *Does every member lie where another reader of debug info says?* — pahole is the second reader.
//!
//! pahole writes each record once, without the namespaces around its name; so a record of it counts as the same as
//! any of ours that has the name's last component, the size, and all its members at their places.

use super::Options;
use crate::shell;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;

/// Differences shown of one file.
const SHOWN: usize = 20;

/// Name, first bit, and bytes; a bit-field's storage is not compared.
type Member = (String, u64, Option<u64>);

#[derive(Debug, PartialEq, Eq)]
struct Record {
    name: String,
    size: u64,
    members: BTreeSet<Member>,
}

/// Prints of each file how many records are the same, and those that are not.
pub(super) fn run(options: &Options) -> Result<()> {
    let pointee = match &options.pointee {
        Some(pointee) => pointee.clone(),
        None => Workspace::open()?.build_pointee()?,
    };
    for file in &options.files {
        let mut command = Command::new(&pointee);
        command.arg("types").arg(file).args(["--format", "json"]);
        let said: Value = serde_json::from_str(&shell::output(&mut command)?)?;
        let ours = ours(&said)?;
        let theirs = parse(&shell::output(Command::new("pahole").arg(file))?);
        compare(file, &ours, &theirs);
    }
    Ok(())
}

fn compare(file: &Path, ours: &HashMap<String, Vec<Record>>, theirs: &[Record]) {
    let mut members = 0;
    let mut different: Vec<&Record> = Vec::new();
    for record in theirs {
        let known = ours.get(last_component(&record.name));
        let same = |own: &Record| {
            // pahole does not state the size of a union.
            (own.size == record.size || record.size == 0)
                && record.members.iter().all(|member| has(own, member))
        };
        if known.is_some_and(|known| known.iter().any(same)) {
            members += record.members.len();
        } else {
            different.push(record);
        }
    }
    println!(
        "{}: pahole has {} records; {} are the same, with {members} members",
        file.display(),
        theirs.len(),
        theirs.len() - different.len(),
    );
    for record in different.iter().take(SHOWN) {
        println!(
            "  {} of {} bytes: {:?}",
            record.name, record.size, record.members
        );
        for own in ours.get(last_component(&record.name)).into_iter().flatten() {
            let missing: Vec<_> = record.members.iter().filter(|one| !has(own, one)).collect();
            println!("    here {} bytes; not here: {missing:?}", own.size);
        }
    }
}

fn has(own: &Record, (name, bit, size): &Member) -> bool {
    own.members.iter().any(|(own_name, own_bit, own_size)| {
        own_name == name
            && own_bit == bit
            && (size.is_none() || own_size.is_none() || own_size == size)
    })
}

fn ours(said: &Value) -> Result<HashMap<String, Vec<Record>>> {
    let mut records: HashMap<String, Vec<Record>> = HashMap::new();
    for row in said.as_array().context("`types` prints an array")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Some(size) = row["size"].as_u64() else {
            continue;
        };
        let members = row["members"].as_array().context("members")?.iter();
        let members = members
            .map(|member| {
                let number = |field: &str| member[field].as_u64();
                let bit = number("offset").unwrap_or(0) * 8 + number("bit_offset").unwrap_or(0);
                let size = match number("bit_size") {
                    Some(_) => None,
                    None => number("size"),
                };
                (text(&member["name"]), bit, size)
            })
            .collect();
        let name = text(&row["name"]);
        let plain = ["struct ", "union ", "class "]
            .iter()
            .find_map(|keyword| name.strip_prefix(keyword))
            .unwrap_or(&name);
        records
            .entry(last_component(plain).to_owned())
            .or_default()
            .push(Record {
                name: plain.to_owned(),
                size,
                members,
            });
    }
    Ok(records)
}

/// The records that pahole writes, nested ones left out.
fn parse(text: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let head = ["struct ", "union ", "class "]
            .iter()
            .find_map(|keyword| line.strip_prefix(keyword));
        let Some(head) = head.and_then(|head| head.strip_suffix('{')) else {
            continue;
        };
        let name = head.split(" : ").next().unwrap_or(head).trim();
        let mut record = Record {
            name: name.to_owned(),
            size: 0,
            members: BTreeSet::new(),
        };
        let mut depth = 1;
        for line in lines.by_ref() {
            if line.starts_with('}') {
                break;
            }
            let line = line.trim();
            if let Some(rest) = line.strip_prefix("/* size: ") {
                let digits = rest.split(',').next().unwrap_or("");
                if depth == 1 {
                    record.size = digits.parse().unwrap_or(0);
                }
            }
            let closes = line.starts_with('}');
            depth -= i32::from(closes);
            if depth == 1
                && let Some(member) = member(line)
            {
                record.members.insert(member);
            }
            depth += i32::from(line.ends_with('{'));
        }
        if !name.is_empty() {
            records.push(record);
        }
    }
    records
}

/// `int x:3;  /* 4: 0  4 */`
fn member(line: &str) -> Option<Member> {
    let (declared, place) = line.split_once("; ").or_else(|| line.split_once(";\t"))?;
    let place = place
        .trim_start_matches(' ')
        .trim_start_matches("*/")
        .trim();
    let place = place.strip_prefix("/*")?.split("*/").next()?;
    let (offset, rest) = match place.split_once(':') {
        Some((offset, rest)) => (offset, Some(rest)),
        None => (place, None),
    };
    let mut words = offset.split_whitespace();
    let offset: u64 = words.next()?.parse().ok()?;
    let (bit, size) = match rest {
        Some(rest) => (rest.split_whitespace().next()?.parse().ok()?, None),
        None => (0, words.next()?.parse().ok()),
    };
    // Of what a unit only declares it says 0.
    let size = size.filter(|size| *size > 0);
    let name = if declared.contains("<ancestor>") {
        String::new()
    } else if declared.starts_with("static ") || declared.starts_with("/*") {
        return None;
    } else {
        declared_name(declared).to_owned()
    };
    Some((name, offset * 8 + bit, size))
}

/// The name that a declaration declares.
fn declared_name(declared: &str) -> &str {
    let declared = declared.split("__attribute__").next().unwrap_or(declared);
    let is_name = |text: &str| {
        text.chars()
            .all(|letter| letter.is_alphanumeric() || letter == '_')
    };
    if let Some((_, inner)) = declared.split_once("(*") {
        let inner = inner.trim_start_matches('*');
        let name = inner.split([')', '[', '(']).next().unwrap_or("").trim();
        // Rust's tuples begin like pointers to functions.
        if is_name(name) {
            return name;
        }
    }
    let plain = declared.rsplit_once(':').filter(|(rest, bits)| {
        !rest.ends_with(':') && bits.chars().all(|letter| letter.is_ascii_digit())
    });
    let plain = plain.map_or(declared, |(rest, _)| rest);
    let mut cut = plain.trim_end();
    while let Some(array) = cut.strip_suffix(']')
        && let Some((element, _)) = array.rsplit_once('[')
    {
        cut = element.trim_end();
    }
    let word = cut.rsplit([' ', '\t', '*']).next().unwrap_or("");
    word.trim_start_matches('}')
}

/// `a::b<c::d>::e<f::g>` → `e<f::g>`.
fn last_component(name: &str) -> &str {
    let (mut depth, mut start) = (0_u32, 0);
    let bytes = name.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'<' | b'(' | b'{' => depth += 1,
            b'>' | b')' | b'}' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && bytes.get(at + 1) == Some(&b':') => start = at + 2,
            _ => {}
        }
    }
    name.get(start..).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        type Member = (&'static str, u64, Option<u64>);
        let rows: [(&str, Option<Member>); 10] = [
            (
                "int                        a;      /*     4     4 */",
                Some(("a", 32, Some(4))),
            ),
            (
                "unsigned int               b:3;    /*     4: 2  4 */",
                Some(("b", 34, None)),
            ),
            (
                "char *                     c[2];   /*     8    16 */",
                Some(("c", 64, Some(16))),
            ),
            (
                "int                        (*d)(void *); /*    24     8 */",
                Some(("d", 192, Some(8))),
            ),
            (
                "} e;                               /*    32     8 */",
                Some(("e", 256, Some(8))),
            ),
            (
                "/* class Base              <ancestor>; */ /*     0    16 */",
                Some(("", 0, Some(16))),
            ),
            (
                "struct ArcInner<[u8]> *    g __attribute__((__aligned__(8))); /*     0     8 */",
                Some(("g", 0, Some(8))),
            ),
            (
                "struct (*const u8, usize)  h[2][3]; /*     0    96 */",
                Some(("h", 0, Some(96))),
            ),
            ("static const int           f;      /*     0     0 */", None),
            ("void g(class Base *);", None),
        ];
        for (line, expect) in rows {
            let expect = expect.map(|(name, bit, size)| (name.to_owned(), bit, size));
            assert_eq!(member(line), expect, "{line}");
        }
    }

    #[test]
    fn records() {
        let text = "struct list {\n\tint n; /*     0     4 */\n\tunion {\n\t\tint x; /*     8     4 */\n\t\tchar y; /*     8     1 */\n\t};                      /*     8     8 */\n\n\t/* size: 16, cachelines: 1 */\n};\n";
        let found = parse(text);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].size), ("list", 16));
        let names: Vec<&str> = found[0].members.iter().map(|one| one.0.as_str()).collect();
        assert_eq!(names, ["", "n"], "the union's own members belong to it");
    }
}
