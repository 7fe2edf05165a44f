//! *Which library functions hand out memory, and what is in it?* — data only.
//!
//! A function with [`Makes::Whatever`] is a root: what it returns is typed by its callers. The
//! others are answers by themselves; among them are functions of libc's own that do the work of several. Argument numbers count integer arguments from 0. Sources: the
//! manual pages of glibc 2.36; the Itanium C++ ABI §5.1.5 for the mangled forms of `operator new`;
//! `library/alloc/src/alloc.rs` of rustc 1.95.

/// How many bytes a call asks for, by its arguments.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Size {
    /// Not told by the arguments.
    Unknown,
    /// `scale · argument + add`.
    Argument {
        /// Which argument.
        index: u8,
        /// Factor.
        scale: u32,
        /// Bytes added.
        add: i64,
    },
    /// One argument times another, as in `calloc`: count and unit.
    Product(u8, u8),
    /// Computed in some way from the arguments in this bit mask.
    Derived(u8),
}

impl Size {
    /// The arguments that it comes from, as a bit mask; 0 if that is not known.
    pub(super) fn arguments(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Argument { index, .. } => 1 << (index % 8),
            Self::Product(a, b) => 1 << (a % 8) | 1 << (b % 8),
            Self::Derived(mask) => mask,
        }
    }
}

/// What the memory holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Makes {
    /// Whatever the caller wants.
    Whatever,
    /// Text.
    Characters,
    /// One object of a type of the library, by its tag or typedef name.
    Object(&'static str),
    /// An array of a type of the library.
    Array(&'static str),
}

/// One row of the model.
pub(super) struct Row {
    pub(super) names: &'static [&'static str],
    pub(super) size: Size,
    /// The argument that is the old block, for a reallocation.
    pub(super) old: Option<u8>,
    /// The argument through which the result is stored, where it is not returned.
    pub(super) out: Option<u8>,
    pub(super) makes: Makes,
}

const fn bytes(index: u8) -> Size {
    Size::Argument {
        index,
        scale: 1,
        add: 0,
    }
}

const fn root(names: &'static [&'static str], size: Size) -> Row {
    Row {
        names,
        size,
        old: None,
        out: None,
        makes: Makes::Whatever,
    }
}

const fn made(names: &'static [&'static str], makes: Makes, out: Option<u8>) -> Row {
    Row {
        names,
        size: Size::Unknown,
        old: None,
        out,
        makes,
    }
}

/// The model.
pub(super) const ROWS: &[Row] = &[
    root(
        &[
            "malloc",
            "valloc",
            "pvalloc",
            "__libc_malloc",
            "je_malloc",
            "mi_malloc",
            "tc_malloc",
        ],
        bytes(0),
    ),
    root(&["calloc", "__libc_calloc"], Size::Product(0, 1)),
    Row {
        names: &["realloc", "__libc_realloc"],
        size: bytes(1),
        old: Some(0),
        out: None,
        makes: Makes::Whatever,
    },
    Row {
        names: &["reallocarray", "__libc_reallocarray"],
        size: Size::Product(1, 2),
        old: Some(0),
        out: None,
        makes: Makes::Whatever,
    },
    // OpenBSD's, of which many programs bring a copy: the old number too.
    Row {
        names: &["recallocarray"],
        size: Size::Product(2, 3),
        old: Some(0),
        out: None,
        makes: Makes::Whatever,
    },
    root(&["memalign", "aligned_alloc", "__libc_memalign"], bytes(1)),
    Row {
        names: &["posix_memalign"],
        size: bytes(2),
        old: None,
        out: Some(0),
        makes: Makes::Whatever,
    },
    root(
        &[
            "_Znwm",
            "_Znam",
            "_ZnwmRKSt9nothrow_t",
            "_ZnamRKSt9nothrow_t",
            "_ZnwmSt11align_val_t",
            "_ZnamSt11align_val_t",
            "_ZnwmSt11align_val_tRKSt9nothrow_t",
            "_ZnamSt11align_val_tRKSt9nothrow_t",
        ],
        bytes(0),
    ),
    root(
        &[
            "__rust_alloc",
            "__rust_alloc_zeroed",
            "__rdl_alloc",
            "__rdl_alloc_zeroed",
        ],
        bytes(0),
    ),
    Row {
        names: &["__rust_realloc", "__rdl_realloc"],
        size: bytes(3),
        old: Some(0),
        out: None,
        makes: Makes::Whatever,
    },
    // Text.
    made(
        &[
            "strdup",
            "__strdup",
            "strndup",
            "__strndup",
            "realpath",
            "__realpath_chk",
            "canonicalize_file_name",
            "getcwd",
            "get_current_dir_name",
            "tempnam",
            "readline",
        ],
        Makes::Characters,
        None,
    ),
    made(
        &[
            "asprintf",
            "vasprintf",
            "__asprintf_chk",
            "__vasprintf_chk",
            "__vasprintf_internal",
            "getline",
            "getdelim",
            "__getdelim",
        ],
        Makes::Characters,
        Some(0),
    ),
    // Objects of libc.
    made(
        &[
            "fopen",
            "fopen64",
            "fdopen",
            "freopen",
            "popen",
            "tmpfile",
            "tmpfile64",
            "fmemopen",
            "open_memstream",
            "fopencookie",
            "__fopen_internal",
        ],
        Makes::Object("_IO_FILE"),
        None,
    ),
    made(
        &["opendir", "fdopendir", "__alloc_dir"],
        Makes::Object("__dirstream"),
        None,
    ),
    made(&["setmntent"], Makes::Object("_IO_FILE"), None),
    made(&["if_nameindex"], Makes::Array("if_nameindex"), None),
    made(&["getaddrinfo"], Makes::Object("addrinfo"), Some(3)),
    made(&["getifaddrs"], Makes::Object("ifaddrs"), Some(0)),
];

/// The row of a function, by its linker name.
///
/// rustc since 1.88 mangles the allocator shims (`_RNvC…_7___rustc12___rust_alloc`): there the
/// last identifier counts.
pub(super) fn row(name: &str) -> Option<&'static Row> {
    let plain = name.strip_prefix("_R").map_or(name, |mangled| {
        mangled
            .find("7___rustc")
            .and_then(|at| mangled.get(at + 9..))
            .map_or(name, |rest| {
                let identifier = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                // An identifier that starts with `_` is separated from its length by one more.
                identifier.strip_prefix('_').unwrap_or(identifier)
            })
    });
    ROWS.iter()
        .find(|row| row.names.contains(&plain))
        .or_else(|| is_string_member(plain).then_some(&STRING_ROW))
}

/// The argument of a function that is the room for its result; if it is none, the function allocates.
pub(super) fn room(name: &str) -> Option<u8> {
    match name {
        "getcwd" => Some(0),
        "realpath" | "__realpath_chk" => Some(1),
        _ => None,
    }
}

/// Whether a function is a member of `std::string` that may allocate, or reads into one. Its result is no allocation.
pub(super) fn is_string_member(name: &str) -> bool {
    let member = name.strip_prefix(STRING);
    member.is_some_and(|member| STRING_GROWS.iter().any(|known| member.starts_with(known)))
        || STRING_READERS.iter().any(|known| name.starts_with(known))
}

/// The members of `std::string` that libstdc++ keeps out of line (its explicit instantiation, in the
/// library itself or in the program) and whose every allocation is characters.
const STRING: &str = "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE";
/// Of these, the ones that may allocate: constructors, assignment, and what makes it longer.
const STRING_GROWS: &[&str] = &[
    "C1",
    "C2",
    "aS",
    "pL",
    "9_M_create",
    "9_M_mutate",
    "9_M_append",
    "9_M_assign",
    "10_M_replace",
    "14_M_replace_aux",
    "12_M_construct",
    "7reserve",
    "6resize",
    "6append",
    "6assign",
    "6insert",
    "7replace",
    "9push_back",
];
/// `std::getline` and `operator>>` into a `std::string`, instantiated in libstdc++.
const STRING_READERS: &[&str] = &[
    "_ZSt7getlineIcSt11char_traitsIcESaIcEE",
    "_ZStrsIcSt11char_traitsIcESaIcEERSt13basic_istreamIT_T0_ES7_RNSt7__cxx1112basic_string",
];
/// What such a member does.
static STRING_ROW: Row = Row {
    names: &[],
    size: Size::Unknown,
    old: None,
    out: None,
    makes: Makes::Characters,
};

/// Members that point to the block under way in macros of C's libraries, which no function moves: record, member, and how
/// the names of the functions begin, behind underscores, that manage the record. `obstack.h`, `obstack_finish`.
pub(super) const CURSORS: &[(&str, &str, &str)] = &[("obstack", "object_base", "obstack_")];

/// Functions that return their first argument.
pub(super) const RETURN_FIRST: &[&str] = &[
    "memset",
    "memcpy",
    "memmove",
    "strcpy",
    "strncpy",
    "strcat",
    "strncat",
    "__memset_chk",
    "__memcpy_chk",
    "__memmove_chk",
    "__strcpy_chk",
    "__strncpy_chk",
    "__strcat_chk",
    "__strncat_chk",
    "wmemcpy",
    "wmemset",
    "wcscpy",
];

/// Functions that copy to their first argument what their second points to.
pub(super) const COPY: &[&str] = &[
    "memcpy",
    "memmove",
    "strcpy",
    "stpcpy",
    "strncpy",
    "__memcpy_chk",
    "__memmove_chk",
    "__strcpy_chk",
    "__stpcpy_chk",
    "__strncpy_chk",
];

/// Functions that write text to their first argument.
pub(super) const WRITE_TEXT: &[&str] = &[
    "strcpy",
    "stpcpy",
    "strncpy",
    "strcat",
    "strncat",
    "sprintf",
    "snprintf",
    "vsprintf",
    "vsnprintf",
    "__strcpy_chk",
    "__stpcpy_chk",
    "__strncpy_chk",
    "__strcat_chk",
    "__strncat_chk",
    "__sprintf_chk",
    "__snprintf_chk",
    "__vsprintf_chk",
    "__vsnprintf_chk",
];

/// Functions whose result is a length computed from their first argument.
pub(super) const LENGTH_OF_FIRST: &[&str] = &["strlen", "strnlen", "wcslen"];

/// Functions that do not come back.
pub(super) const NO_RETURN: &[&str] = &[
    "abort",
    "exit",
    "_exit",
    "_Exit",
    "quick_exit",
    "__assert_fail",
    "__assert",
    "__stack_chk_fail",
    "__fortify_fail",
    "__chk_fail",
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    "err",
    "errx",
    "verr",
    "verrx",
    "pthread_exit",
    "__cxa_throw",
    "__cxa_rethrow",
    "__cxa_bad_cast",
    "__cxa_throw_bad_array_new_length",
    "_Unwind_Resume",
    "_ZSt9terminatev",
    "_ZSt17__throw_bad_allocv",
    "_ZSt20__throw_length_errorPKc",
    "_ZSt19__throw_logic_errorPKc",
    "_ZSt24__throw_out_of_range_fmtPKcz",
    "_ZSt20__throw_out_of_rangePKc",
    "_ZSt28__throw_bad_array_new_lengthv",
    "_ZSt25__throw_bad_function_callv",
    "_ZSt16__throw_bad_castv",
    "rust_begin_unwind",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_roots() {
        let rows = [
            ("malloc", Some(bytes(0))),
            ("calloc", Some(Size::Product(0, 1))),
            ("_Znam", Some(bytes(0))),
            ("_RNvCsdBezzDwma51_7___rustc12___rust_alloc", Some(bytes(0))),
            (
                "_RNvCsdBezzDwma51_7___rustc14___rust_realloc",
                Some(bytes(3)),
            ),
            ("_RNvCs123_7___rustc19___rust_alloc_zeroed", Some(bytes(0))),
            ("_RNvCs123_7___rustc14___rust_dealloc", None),
            ("mallocator", None),
            (
                "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE9_M_createERmm",
                Some(Size::Unknown),
            ),
            (
                "_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEE10_M_disposeEv",
                None,
            ),
            (
                "_ZSt7getlineIcSt11char_traitsIcESaIcEERSt13basic_istreamIT_T0_ES7_RNSt7__cxx1112basic_stringIS4_S5_T1_EES4_",
                Some(Size::Unknown),
            ),
            (
                "_ZNSt7__cxx1112basic_stringIwSt11char_traitsIwESaIwEE9_M_createERmm",
                None,
            ),
        ];
        for (name, expect) in rows {
            assert_eq!(row(name).map(|row| row.size), expect, "{name}");
        }
    }

    #[test]
    fn each_name_once() {
        let mut seen = std::collections::HashSet::new();
        for name in ROWS.iter().flat_map(|row| row.names) {
            assert!(seen.insert(name), "{name} twice");
        }
    }
}
