//! *What did somebody say about allocators that analysis cannot see?* — one configuration, of several layers.
//!
//! ```text
//!   built-in  <  found by analysis  <  user's file  <  project's file  <  --config FILE  <  LIBALLOCS_… environment
//! ```
//!
//! A *rule* names functions (a pattern with `*`), perhaps of some modules only, and says what they are. Of several rules for
//! one function the one of the highest layer holds, in one layer the last. A *correction* gives one site its type. All layers but the
//! found one are [`Config`]; [`Config::selected_for`] is what of it concerns one file, and goes into its image's
//! provenance, so that a change of the configuration makes that image anew.

mod apply;
mod declared;
mod environment;
mod file;
mod signature;
mod type_text;

pub use declared::Declared;
pub use environment::from_environment;
pub use file::{ConfigError, parse};
pub use signature::{Signature, SignatureError};

pub(crate) use apply::{apply, name_functions};
pub(crate) use declared::ByName;

use crate::elf::Elf;
use crate::facts::Facts;
use crate::sites::Size;
use pointee_model::entries::{self, FAMILIES, Role, matches};
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What a rule says its functions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Hands out memory of its own: its calls are recorded, what it calls is not.
    Allocator,
    /// Passes on, for its callers, what an allocator handed out: their calls are the sites.
    Wrapper,
    /// Hands out parts of blocks, or takes them back: its calls are sites, the parts are recorded, and so is what it asks for itself.
    /// Without a signature whose calls can be recorded: as a wrapper.
    Pool,
    /// Takes back what an allocator of its family handed out.
    Free,
    /// Whatever analysis found: none of these.
    Ignore,
    /// Only says what frees what these hand out.
    Pair,
}

impl Kind {
    /// The word of the file, which is also the table's name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Allocator => "allocator",
            Self::Wrapper => "wrapper",
            Self::Pool => "pool",
            Self::Free => "free",
            Self::Ignore => "ignore",
            Self::Pair => "pair",
        }
    }
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// An environment variable.
    Environment(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => f.write_str(name),
        }
    }
}

/// What is said of some functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What they are.
    pub kind: Kind,
    /// Their linker name; `*` stands for any characters.
    pub name: String,
    /// File name of the modules it holds for; any if there is none.
    pub module: Option<String>,
    /// Build ID of the one file that it holds for, or what stands in for it ([`Elf::identity`]), in hexadecimal digits; any if there is none.
    pub build_id: Option<String>,
    /// Link-time address of the one function that it names, where the file has no symbol for it.
    pub address: Option<u64>,
    /// Where the file has no symbol for it: the exported function that calls it through a pointer.
    pub behind: Option<String>,
    /// Which argument is what.
    pub signature: Option<Signature>,
    /// What it does, where the signature does not tell.
    pub role: Option<Role>,
    /// The function that frees what these hand out.
    pub free: Option<String>,
    /// Where that is said.
    pub origin: Origin,
}

impl Rule {
    /// Whether it speaks of function `name` in file `module`.
    #[must_use]
    pub fn is_about(&self, name: &str, module: &str) -> bool {
        matches(&self.name, name) && self.is_in(module)
    }

    /// Whether it speaks of functions of that name, in whatever module.
    pub(crate) fn names(&self, name: &str) -> bool {
        matches(&self.name, name)
    }

    fn is_built_in(&self) -> bool {
        matches!(&self.origin, Origin::File(path, _) if path == Path::new(BUILT_IN_PATH))
    }

    fn is_in(&self, module: &str) -> bool {
        let base = module.rsplit('/').next().unwrap_or(module);
        self.module
            .as_ref()
            .is_none_or(|pattern| matches(pattern, base) || matches(pattern, module))
    }

    /// What the hook of these functions has to do; `None`: they are not hooked.
    #[must_use]
    pub fn hooked_as(&self) -> Option<entries::Declared> {
        let signature = self.signature.as_ref();
        match self.kind {
            Kind::Allocator | Kind::Free => {
                let role = self.role.or_else(|| signature.and_then(Signature::role))?;
                Some(entries::Declared::of(role))
            }
            Kind::Pool => signature.and_then(Signature::of_pool),
            Kind::Wrapper | Kind::Ignore | Kind::Pair => None,
        }
    }

    /// Whether it speaks of functions that take blocks back.
    #[must_use]
    pub fn takes_back(&self) -> bool {
        let returns = self.signature.as_ref().is_none_or(|it| it.returns);
        self.kind == Kind::Free || (self.kind == Kind::Pool && !returns)
    }

    /// All but where it stands.
    fn meaning(&self) -> impl fmt::Debug + '_ {
        (
            self.kind,
            &self.name,
            &self.module,
            (&self.build_id, self.address, &self.behind),
            &self.signature,
            self.role,
            &self.free,
        )
    }

    /// Whether it may hold for this build of a file.
    fn is_of_build(&self, elf: &Elf) -> bool {
        self.build_id.as_ref().is_none_or(|wanted| {
            let bytes = elf.identity().iter();
            let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
            wanted.eq_ignore_ascii_case(&hex)
        })
    }
}

/// The type of one site, as somebody knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    /// File name of the modules it holds for.
    pub module: Option<String>,
    /// The function that the call stands in.
    pub function: Option<String>,
    /// End of the source file's path.
    pub file: Option<String>,
    /// Line of the call.
    pub line: Option<u32>,
    /// `struct H + struct T[]`, `struct T[]`, `T`.
    pub r#type: String,
    /// Where that is said.
    pub origin: Origin,
}

/// All that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// In order of layers, the lowest first.
    pub rules: Vec<Rule>,
    /// In order of layers.
    pub corrections: Vec<Correction>,
}

impl Config {
    /// Puts the layer `above` on top.
    pub fn add(&mut self, above: Self) {
        self.rules.extend(above.rules);
        self.corrections.extend(above.corrections);
    }

    /// The rule that holds for function `name` in `module`, and those it outdoes.
    #[must_use]
    pub fn rules_for(&self, name: &str, module: &str) -> Vec<&Rule> {
        let mut rules: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|rule| rule.is_about(name, module))
            .collect();
        rules.reverse();
        rules
    }

    /// The function that frees what `name` hands out: as declared, else as built in, else by the family of its name.
    #[must_use]
    pub fn freed_by(&self, name: &str) -> Option<String> {
        let declared = |config: &Self| {
            let mut rules = config.rules.iter().rev();
            rules.find_map(|rule| rule.free.clone().filter(|_| rule.names(name)))
        };
        declared(self)
            .or_else(|| declared(built_in()))
            .or_else(|| Some(family_free(name)?.to_owned()))
    }

    /// What of it concerns `elf`: rules for functions that its symbols name, corrections for its name.
    #[must_use]
    pub fn selected_for(&self, elf: &Elf) -> Self {
        if self.rules.is_empty() && self.corrections.is_empty() {
            return Self::default();
        }
        let module = elf
            .path()
            .map_or_else(String::new, |path| path.to_string_lossy().into_owned());
        let names: HashSet<&str> = elf.symbols().map(|symbol| symbol.name).collect();
        // A pool's cursor, which may be ignored too, is a member and no symbol.
        let is_member = |rule: &Rule| rule.kind == Kind::Ignore && rule.name.contains('.');
        let is_symbol = |pattern: &str| {
            names.contains(pattern)
                || pattern.contains('*') && names.iter().any(|name| matches(pattern, name))
        };
        let named = |rule: &Rule| {
            is_member(rule)
                || is_symbol(&rule.name)
                || rule
                    .behind
                    .as_deref()
                    .is_some_and(|name| names.contains(name))
        };
        // Of a stripped file only debug info knows the names.
        let is_stripped = elf.section(".symtab").is_none();
        let about = |rule: &&Rule| {
            let is_there = is_stripped || rule.address.is_some() || named(rule);
            rule.kind != Kind::Pair && rule.is_in(&module) && rule.is_of_build(elf) && is_there
        };
        let in_module = |correction: &&Correction| {
            let base = module.rsplit('/').next().unwrap_or("");
            let pattern = correction.module.as_ref();
            pattern.is_none_or(|pattern| matches(pattern, base) || matches(pattern, &module))
        };
        Self {
            rules: self.rules.iter().filter(about).cloned().collect(),
            corrections: self.corrections.iter().filter(in_module).cloned().collect(),
        }
    }

    /// Whether it has functions to hook in files of this very name: not all may be among the symbols.
    #[must_use]
    pub fn names_hidden_functions_of(&self, file: &Path) -> bool {
        let file = file.to_string_lossy();
        let hooked = |rule: &Rule| rule.module.is_some() && rule.hooked_as().is_some();
        self.rules
            .iter()
            .any(|rule| rule.is_in(&file) && hooked(rule))
    }

    /// Whether it tells of a function of `elf` by what is exported ([`Rule::behind`]).
    #[must_use]
    pub fn names_behind_exports_of(&self, elf: &Elf) -> bool {
        let wanted: HashSet<&str> = self
            .rules
            .iter()
            .filter_map(|rule| rule.behind.as_deref())
            .collect();
        !wanted.is_empty() && elf.symbols().any(|symbol| wanted.contains(symbol.name))
    }

    /// First byte of each of a pool's functions that are hooked, and one past the last, in order.
    pub(crate) fn pools_of(&self, facts: &Facts) -> Vec<(u64, u64)> {
        let is_pool = |name: &str| {
            let said = self.rules.iter().rev().find(|rule| rule.names(name));
            said.is_some_and(|rule| rule.kind == Kind::Pool && rule.hooked_as().is_some())
        };
        let pools = facts
            .functions
            .iter()
            .filter(|function| is_pool(&function.linkage_name));
        let mut ranges: Vec<_> = pools
            .filter_map(|function| function.ranges.first().copied())
            .collect();
        ranges.sort_unstable();
        ranges
    }

    /// What the analysis of sites is to take for allocation functions.
    #[must_use]
    pub fn declared(&self) -> Vec<Declared> {
        let allocates =
            |rule: &&Rule| !matches!(rule.kind, Kind::Ignore | Kind::Pair) && !rule.takes_back();
        let declared = |rule: &Rule| {
            let signature = rule.signature.as_ref();
            // A pool's first argument is the pool.
            let grows = signature.filter(|_| rule.kind != Kind::Pool);
            Declared {
                name: rule.name.clone(),
                size: signature.map_or(Size::Unknown, Signature::amount),
                old: grows.and_then(Signature::old),
                // Of its own functions analysis knows more.
                is_elsewhere: rule.kind == Kind::Wrapper && rule.is_built_in(),
            }
        };
        self.rules.iter().filter(allocates).map(declared).collect()
    }

    /// What it declares to be hooked under a whole name: what the function does, the pattern of its module, its name. Each rule that
    /// holds for such a name in its own module; a name that is ignored above is left out.
    #[must_use]
    pub fn hooked_by_name(&self) -> Vec<(entries::Declared, &str, &str)> {
        let mut hooked = Vec::new();
        for (at, rule) in self.rules.iter().enumerate() {
            let Some(declared) = rule.hooked_as() else {
                continue;
            };
            let pattern = rule.module.as_deref().unwrap_or("*");
            let above = self.rules.get(at + 1..).unwrap_or_default();
            let is_outdone = above.iter().any(|other| {
                let says = other.kind == Kind::Ignore || other.hooked_as().is_some();
                let is_there = other.module.is_none() || other.module == rule.module;
                says && is_there && other.names(&rule.name)
            });
            // Patterns would have to be tried on every symbol: an image tells of those.
            let is_whole = !rule.name.contains(['*', ' ', '\n']) && !pattern.contains([' ', '/']);
            let is_named = rule.address.is_none() && rule.build_id.is_none();
            if is_whole && is_named && !is_outdone {
                hooked.push((declared, pattern, rule.name.as_str()));
            }
        }
        hooked
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.corrections.is_empty()
    }

    /// What it says, without where: for the provenance of images.
    #[must_use]
    pub fn meaning(&self) -> String {
        let rules: Vec<_> = self.rules.iter().map(Rule::meaning).collect();
        let corrections: Vec<_> = self
            .corrections
            .iter()
            .map(|c| (&c.module, &c.function, &c.file, c.line, &c.r#type))
            .collect();
        format!("{rules:?} {corrections:?}")
    }
}

/// What ships inside, in the form of anyone's file.
#[must_use]
pub fn built_in() -> &'static Config {
    static BUILT_IN: OnceLock<Config> = OnceLock::new();
    // A test reads it: here a mistake would only lose the names of frees.
    BUILT_IN.get_or_init(|| parse(BUILT_IN_TEXT, Path::new(BUILT_IN_PATH)).unwrap_or_default())
}

/// What [`built_in`] says, as [`Config::meaning`].
#[must_use]
pub fn built_in_meaning() -> &'static str {
    static MEANING: OnceLock<String> = OnceLock::new();
    MEANING.get_or_init(|| built_in().meaning())
}

/// What stands for its path.
const BUILT_IN_PATH: &str = "built-in";

const BUILT_IN_TEXT: &str = include_str!("builtin.toml");

/// The name by which the family of an allocation function frees.
fn family_free(name: &str) -> Option<&'static str> {
    let family = FAMILIES
        .iter()
        .find(|family| family.iter().any(|(known, _)| *known == name))?;
    let (free, _) = family.iter().find(|(_, role)| *role == Role::Free)?;
    Some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frees_are_named() {
        parse(BUILT_IN_TEXT, Path::new("builtin.toml")).expect("what ships inside is sound");
        let own = parse(
            "[[wrapper]]\nname = \"xmalloc\"\nfree = \"xfree\"\n",
            Path::new("p"),
        );
        let config = own.expect("sound");
        for (name, expect) in [
            ("malloc", Some("free")),
            ("je_calloc", Some("je_free")),
            ("_Znwm", Some("operator delete")),
            ("_ZnamRKSt9nothrow_t", Some("operator delete[]")),
            ("fopen64", Some("fclose")),
            ("xmalloc", Some("xfree")),
            ("make_node", None),
        ] {
            assert_eq!(config.freed_by(name).as_deref(), expect, "{name}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, expect) in [
            ("malloc", "malloc", true),
            ("malloc", "mallocx", false),
            ("x*", "xmalloc", true),
            ("*alloc", "xmalloc", true),
            ("*alloc", "allocate", false),
            ("g_*_new*", "g_slice_new0", true),
            ("g_*_new*", "g_new", false),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
        ] {
            assert_eq!(matches(pattern, text), expect, "{pattern} {text}");
        }
    }
}
