//! *Whose source is this?* — of the program, or of the language it is written in.

/// Whether the file belongs to the language: libstdc++'s headers, Rust's std.
#[must_use]
pub fn is_library_source(file: &str) -> bool {
    const PARTS: [&str; 7] = [
        "/include/c++/",
        "/libstdc++-v3/",
        "/rustc/",
        "/library/alloc/",
        "/library/std/",
        "/library/core/",
        "/hashbrown-",
    ];
    PARTS.iter().any(|part| file.contains(part))
}
