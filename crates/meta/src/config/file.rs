//! *What does a `pointee.toml` say, and where is it wrong?*
//!
//! ```toml
//! [[allocator]]                     # also [[wrapper]], [[pool]], [[free]], [[ignore]], [[pair]]
//! signature = "arena_alloc(Z)p"     # or: name = "arena_*", signature = "(Z)p"
//! module = "libarena.so*"
//! free = "arena_free"
//!
//! [[allocator]]                     # a function without a symbol is named by its place in one file
//! name = "malloc"
//! address = 0x45f210                # link-time, as objdump shows it
//! build_id = "0daa1a3855d8…"        # as `pointee meta` says; without one in the file, what stands in for it
//! role = "malloc"
//!
//! [[pool]]                          # or by an exported function, which calls it through a pointer
//! signature = "_inner_alloc(pZ)p"
//! behind = "exported_alloc"
//!
//! [[site]]
//! function = "make_table"           # and/or file = "table.c", line = 42
//! type = "struct table + struct row[]"
//! ```

use super::{Config, Correction, Kind, Origin, Rule, Signature};
use pointee_model::entries::Role;
use serde::Deserialize;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{path}:{line}:{column}: {what}")]
pub struct ConfigError {
    path: String,
    line: usize,
    column: usize,
    what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    allocator: Vec<Spanned<RawRule>>,
    #[serde(default)]
    wrapper: Vec<Spanned<RawRule>>,
    #[serde(default)]
    pool: Vec<Spanned<RawRule>>,
    #[serde(default)]
    free: Vec<Spanned<RawRule>>,
    #[serde(default)]
    ignore: Vec<Spanned<RawRule>>,
    #[serde(default)]
    pair: Vec<Spanned<RawRule>>,
    #[serde(default)]
    site: Vec<Spanned<RawSite>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    name: Option<Spanned<String>>,
    module: Option<String>,
    build_id: Option<String>,
    address: Option<u64>,
    behind: Option<String>,
    signature: Option<Spanned<String>>,
    role: Option<Spanned<String>>,
    free: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSite {
    module: Option<String>,
    function: Option<String>,
    file: Option<String>,
    line: Option<u32>,
    r#type: Spanned<String>,
}

/// Reads the text of the file at `path`.
///
/// # Errors
/// [`ConfigError`]: the first mistake, with its line, column and what was expected.
pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let reader = Reader { text, path };
    let raw: Raw = toml::from_str(text)
        .map_err(|error| reader.error(error.span().unwrap_or(0..0), error.message()))?;
    let tables = [
        (Kind::Allocator, raw.allocator),
        (Kind::Wrapper, raw.wrapper),
        (Kind::Pool, raw.pool),
        (Kind::Free, raw.free),
        (Kind::Ignore, raw.ignore),
        (Kind::Pair, raw.pair),
    ];
    let mut config = Config::default();
    for (kind, rules) in tables {
        for rule in rules {
            config.rules.push(reader.rule(kind, rule)?);
        }
    }
    for site in raw.site {
        config.corrections.push(reader.correction(site)?);
    }
    Ok(config)
}

struct Reader<'t> {
    text: &'t str,
    path: &'t Path,
}

impl Reader<'_> {
    fn rule(&self, kind: Kind, raw: Spanned<RawRule>) -> Result<Rule, ConfigError> {
        let place = raw.span();
        let raw = raw.into_inner();
        let mut name = raw.name;
        let mut signature = None;
        if let Some(text) = &raw.signature {
            let parsed = Signature::parse(text.as_ref());
            let (named, parsed) =
                parsed.map_err(|error| self.error(text.span(), &error.to_string()))?;
            if name.is_none() && !named.is_empty() {
                name = Some(Spanned::new(text.span(), named));
            }
            signature = Some(parsed);
        }
        let Some(name) = name.filter(|name| !name.as_ref().is_empty()) else {
            let what = format!(
                "expected `name = \"…\"`, or a signature that starts with the name, in [[{}]]",
                kind.word()
            );
            return Err(self.error(place, &what));
        };
        if raw.address.is_some() && name.as_ref().contains('*') {
            return Err(self.error(
                name.span(),
                "expected one name for the function at `address`",
            ));
        }
        let role = match &raw.role {
            None => None,
            Some(word) => Some(role(word.as_ref()).ok_or_else(|| {
                let what = format!(
                    "expected a role ({}), found `{}`",
                    ROLES.map(|(word, _)| word).join(", "),
                    word.as_ref()
                );
                self.error(word.span(), &what)
            })?),
        };
        let rule = Rule {
            kind,
            name: name.as_ref().clone(),
            module: raw.module,
            build_id: raw.build_id,
            address: raw.address,
            behind: raw.behind,
            signature,
            role,
            free: raw.free,
            origin: Origin::File(self.path.to_owned(), self.place(place.start).0),
        };
        let needs_role = matches!(kind, Kind::Allocator | Kind::Free);
        if needs_role && rule.hooked_as().is_none() {
            let what = "expected a role or a signature whose calls can be recorded: (Z)p, (zZ)p, (pZ)p, (P); \
                        for others declare a [[wrapper]] or a [[pool]]";
            return Err(self.error(name.span(), what));
        }
        if kind == Kind::Pair && rule.free.is_none() {
            return Err(self.error(place, "expected `free = \"…\"` in [[pair]]"));
        }
        Ok(rule)
    }

    fn correction(&self, raw: Spanned<RawSite>) -> Result<Correction, ConfigError> {
        let place = raw.span();
        let raw = raw.into_inner();
        if raw.function.is_none() && raw.line.is_none() {
            let what = "expected `function = \"…\"` or `line = …` in [[site]]";
            return Err(self.error(place, what));
        }
        if raw.r#type.as_ref().trim().is_empty() {
            return Err(self.error(
                raw.r#type.span(),
                "expected a type like `struct H + struct T[]`",
            ));
        }
        Ok(Correction {
            module: raw.module,
            function: raw.function,
            file: raw.file,
            line: raw.line,
            r#type: raw.r#type.into_inner(),
            origin: Origin::File(self.path.to_owned(), self.place(place.start).0),
        })
    }

    fn error(&self, at: Range<usize>, what: &str) -> ConfigError {
        let (line, column) = self.place(at.start);
        ConfigError {
            path: self.path.display().to_string(),
            line,
            column,
            what: what.replace('\n', ", "),
        }
    }

    /// Line and column of a byte, from 1.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        (line, before[start..].chars().count() + 1)
    }
}

const ROLES: [(&str, Role); 10] = [
    ("malloc", Role::Malloc),
    ("calloc", Role::Calloc),
    ("realloc", Role::Realloc),
    ("reallocarray", Role::Reallocarray),
    ("memalign", Role::Memalign),
    ("posix_memalign", Role::PosixMemalign),
    ("aligned_alloc", Role::AlignedAlloc),
    ("new", Role::New),
    ("delete", Role::Delete),
    ("free", Role::Free),
];

fn role(word: &str) -> Option<Role> {
    let (_, role) = ROLES.iter().find(|(known, _)| *known == word)?;
    Some(*role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it() {
        let text = "\
[[allocator]]
signature = \"arena_alloc(Z)p\"
module = \"libarena.so*\"
free = \"arena_free\"

[[free]]
name = \"arena_free\"
role = \"free\"

[[site]]
function = \"make\"
type = \"struct h + struct t[]\"
";
        let config = parse(text, Path::new("pointee.toml")).expect("sound");
        assert_eq!(config.rules.len(), 2);
        let hooked = config.rules[0].hooked_as().map(|declared| declared.role);
        assert_eq!(hooked, Some(Role::Malloc));
        assert_eq!(config.rules[0].origin.to_string(), "pointee.toml:1");
        assert!(config.rules[0].is_about("arena_alloc", "/usr/lib/libarena.so.2"));
        assert!(!config.rules[0].is_about("arena_alloc", "/usr/lib/libc.so.6"));
        assert_eq!(config.corrections[0].r#type, "struct h + struct t[]");
    }

    #[test]
    fn mistakes_have_a_place_and_an_expectation() {
        let rows = [
            (
                "[[allocator]]\nsignature = \"f(q)p\"\n",
                "p:2:13: ",
                "expected `z`",
            ),
            (
                "[[allocator]]\nsignatur = \"f(Z)p\"\n",
                "p:2:1: ",
                "expected one of",
            ),
            ("[[wrapper]]\nmodule = \"a\"\n", "p:1:1: ", "expected `name"),
            (
                "[[free]]\nname = \"f*\"\naddress = 0x1000\nrole = \"free\"\n",
                "p:2:8: ",
                "expected one name",
            ),
            (
                "\n[[free]]\nname = \"f\"\nrole = \"fre\"\n",
                "p:4:8: ",
                "expected a role (malloc",
            ),
            (
                "[[allocator]]\nsignature = \"f(iZ)p\"\n",
                "p:2:13: ",
                "calls can be recorded",
            ),
            ("[[site]]\ntype = \"T\"\n", "p:1:1: ", "expected `function"),
            (
                "[[site]]\nfunction = \"f\"\nline = \"x\"\ntype = \"T\"\n",
                "p:3:8: ",
                "expected u32",
            ),
            ("[[allocator\n", "p:1:", "expected"),
        ];
        for (text, place, expect) in rows {
            let error = parse(text, Path::new("p"))
                .err()
                .map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.starts_with(place), "{text}: {error}");
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
