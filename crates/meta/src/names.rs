//! *What does a person call this function?*
//!
//! Rust's linker names say more than its debug info (the type an `impl` is for), so they are
//! demangled; for C++ the qualified name of the debug info is the better one, short of parameters.

use cpp_demangle::{DemangleOptions, Symbol};
use gimli::{DW_LANG_Rust, DwLang};

/// Longer names are hostile or useless; demanglers may take long over them.
const MAX_MANGLED: usize = 8 << 10;

/// The readable name of a function: `dwarf_name` is qualified, either may be empty.
#[must_use]
pub fn readable(dwarf_name: &str, linkage_name: &str, language: u16) -> String {
    let rust = DwLang(language) == DW_LANG_Rust;
    if (rust || dwarf_name.is_empty()) && !linkage_name.is_empty() {
        return demangle(linkage_name);
    }
    dwarf_name.to_owned()
}

/// The readable form of a linker name; the name itself where it is not a mangled one.
#[must_use]
pub fn demangle(linkage_name: &str) -> String {
    if linkage_name.len() > MAX_MANGLED {
        return linkage_name.to_owned();
    }
    if let Ok(name) = rustc_demangle::try_demangle(linkage_name) {
        return format!("{name:#}");
    }
    // `.cold`, `.part.0`, `.constprop.0`: the clone's suffix is no part of the mangled name.
    let (stem, suffix) = match linkage_name.find('.') {
        Some(dot) if dot > 0 => linkage_name.split_at(dot),
        _ => (linkage_name, ""),
    };
    if !stem.starts_with("_Z") {
        return linkage_name.to_owned();
    }
    let options = DemangleOptions::new();
    Symbol::new(stem)
        .ok()
        .and_then(|symbol| symbol.demangle_with_options(&options).ok())
        .map_or_else(|| linkage_name.to_owned(), |name| name + suffix)
}
