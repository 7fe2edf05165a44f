//! *Which names do allocation functions go by?*
//!
//! The one list of names that are looked for in symbol tables: by the runtime in what is loaded, and by the
//! image's maker in debug files that the runtime cannot read. What each does is its [`Role`].

/// What a hooked function does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Role {
    Other = 0,
    Malloc = 1,
    Calloc = 2,
    Realloc = 3,
    Reallocarray = 4,
    Free = 5,
    Memalign = 6,
    PosixMemalign = 7,
    AlignedAlloc = 8,
    Valloc = 9,
    Pvalloc = 10,
    New = 11,
    Delete = 12,
    Fork = 13,
    Exec = 14,
    Exit = 15,
    LinkMap = 16,
    Prctl = 17,
    Syscall = 18,
    Brk = 19,
    ExecFd = 20,
    ExecAt = 21,
    /// Cuts a block out of a recorded one.
    PoolAlloc = 22,
    /// Takes such a block back.
    PoolFree = 23,
    /// Takes such a block back and cuts out another.
    PoolRealloc = 24,
    /// Takes back all that one pool cut out.
    PoolReset = 25,
    /// Takes back what was cut out of a chunk from an address on.
    PoolTrim = 26,
    Mmap = 27,
    Munmap = 28,
    Mprotect = 29,
    Mremap = 30,
    Shmat = 31,
    SigAltStack = 32,
    /// A system call instruction, no function.
    SystemCall = 33,
    Dlsym = 34,
}

impl Role {
    /// Whether it cuts blocks out of recorded ones.
    #[must_use]
    pub const fn cuts_out(self) -> bool {
        matches!(self, Self::PoolAlloc | Self::PoolRealloc)
    }

    /// Reads the stored byte.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        const ALL: [Role; 35] = [
            Role::Other,
            Role::Malloc,
            Role::Calloc,
            Role::Realloc,
            Role::Reallocarray,
            Role::Free,
            Role::Memalign,
            Role::PosixMemalign,
            Role::AlignedAlloc,
            Role::Valloc,
            Role::Pvalloc,
            Role::New,
            Role::Delete,
            Role::Fork,
            Role::Exec,
            Role::Exit,
            Role::LinkMap,
            Role::Prctl,
            Role::Syscall,
            Role::Brk,
            Role::ExecFd,
            Role::ExecAt,
            Role::PoolAlloc,
            Role::PoolFree,
            Role::PoolRealloc,
            Role::PoolReset,
            Role::PoolTrim,
            Role::Mmap,
            Role::Munmap,
            Role::Mprotect,
            Role::Mremap,
            Role::Shmat,
            Role::SigAltStack,
            Role::SystemCall,
            Role::Dlsym,
        ];
        if (byte as usize) < ALL.len() {
            ALL[byte as usize]
        } else {
            Role::Other
        }
    }
}

/// What a declared function does, and which of its arguments count: a role as metadata images hold it. Arguments are numbered from 0;
/// [`Declared::SEEN`] of them are seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declared {
    /// What it does.
    pub role: Role,
    /// Of pools: the argument that is the size; of those that hand out nothing: what is taken back.
    pub argument: u8,
    /// Of pools: the argument that the size is to be multiplied with.
    pub count: Option<u8>,
    /// Of pools that hand out a block for another: the argument that is the other.
    pub old: Option<u8>,
    /// Of pools: the argument that says which pool.
    pub pool: Option<u8>,
    /// Nobody said so: analysis found it. Of what it returns counts only what lies in a recorded block, and is not all of it.
    pub is_found: bool,
}

impl Declared {
    /// Arguments that a hook sees.
    pub const SEEN: u8 = 3;

    /// A function that does what its role says, in the usual way.
    #[must_use]
    pub const fn of(role: Role) -> Self {
        Self {
            role,
            argument: 0,
            count: None,
            old: None,
            pool: None,
            is_found: false,
        }
    }

    /// As one word: the role, four bits an argument, and whether it was found.
    #[must_use]
    pub const fn to_word(self) -> u32 {
        const fn place(argument: Option<u8>) -> u32 {
            match argument {
                Some(argument) => (argument as u32 & 7) + 1,
                None => 0,
            }
        }
        let [count, old, pool] = [place(self.count), place(self.old), place(self.pool)];
        let found = (self.is_found as u32) << 24;
        let arguments = (self.argument as u32 & 7) << 8 | count << 12 | old << 16 | pool << 20;
        self.role as u32 | arguments | found
    }

    /// From the stored word.
    #[must_use]
    pub const fn from_word(word: u32) -> Self {
        Self {
            role: Role::from_byte(word as u8),
            argument: (word >> 8) as u8 & 7,
            count: ((word >> 12) as u8 & 0xf).checked_sub(1),
            old: ((word >> 16) as u8 & 0xf).checked_sub(1),
            pool: ((word >> 20) as u8 & 0xf).checked_sub(1),
            is_found: word >> 24 & 1 != 0,
        }
    }
}

/// Whether `text` is what `pattern` says; `*` stands for any characters, also none.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// A name and what goes by it.
pub type Named = (&'static str, Role);

macro_rules! family {
    ($prefix:literal) => {
        [
            (concat!($prefix, "malloc"), Role::Malloc),
            (concat!($prefix, "free"), Role::Free),
            (concat!($prefix, "calloc"), Role::Calloc),
            (concat!($prefix, "realloc"), Role::Realloc),
            (concat!($prefix, "memalign"), Role::Memalign),
            (concat!($prefix, "aligned_alloc"), Role::AlignedAlloc),
            (concat!($prefix, "posix_memalign"), Role::PosixMemalign),
            (concat!($prefix, "valloc"), Role::Valloc),
            (concat!($prefix, "pvalloc"), Role::Pvalloc),
            (concat!($prefix, "cfree"), Role::Free),
            (concat!($prefix, "mallocx"), Role::Malloc),
            (concat!($prefix, "rallocx"), Role::Realloc),
            (concat!($prefix, "dallocx"), Role::Free),
            (concat!($prefix, "sdallocx"), Role::Free),
        ]
    };
}

/// How many names a family has.
pub const FAMILY: usize = 14;

/// Allocators by family: C's own names, jemalloc's (also as Rust's crate prefixes them), mimalloc's, tcmalloc's, dlmalloc's, glibc's inner
/// ones. The first name of a family allocates, the second frees: an object has the family if it has both. A lone
/// private `free` is somebody's list code.
pub const FAMILIES: [[Named; FAMILY]; 7] = [
    family!(""),
    family!("je_"),
    family!("_rjem_"),
    family!("mi_"),
    family!("tc_"),
    family!("dl"),
    family!("__libc_"),
];

/// C++'s operators. Hooked only in objects that have a malloc of their own: elsewhere they call
/// malloc, which is hooked, and the walk goes through them.
pub const OPERATORS: [Named; 16] = [
    ("_Znwm", Role::New),
    ("_Znam", Role::New),
    ("_ZnwmRKSt9nothrow_t", Role::New),
    ("_ZnamRKSt9nothrow_t", Role::New),
    ("_ZnwmSt11align_val_t", Role::New),
    ("_ZnamSt11align_val_t", Role::New),
    ("_ZnwmSt11align_val_tRKSt9nothrow_t", Role::New),
    ("_ZnamSt11align_val_tRKSt9nothrow_t", Role::New),
    ("_ZdlPv", Role::Delete),
    ("_ZdaPv", Role::Delete),
    ("_ZdlPvm", Role::Delete),
    ("_ZdaPvm", Role::Delete),
    ("_ZdlPvSt11align_val_t", Role::Delete),
    ("_ZdaPvSt11align_val_t", Role::Delete),
    ("_ZdlPvmSt11align_val_t", Role::Delete),
    ("_ZdaPvmSt11align_val_t", Role::Delete),
];

/// Functions of libc where one process's recording ends and another's begins, where what is mapped or used as a stack changes, or where symbols are found. `_Fork` is what `fork` calls since glibc 2.34.
pub const PROCESS: [Named; 17] = [
    ("_Fork", Role::Fork),
    ("fork", Role::Fork),
    ("execve", Role::Exec),
    ("fexecve", Role::ExecFd),
    ("execveat", Role::ExecAt),
    ("_exit", Role::Exit),
    ("prctl", Role::Prctl),
    ("syscall", Role::Syscall),
    ("brk", Role::Brk),
    ("mmap", Role::Mmap),
    ("munmap", Role::Munmap),
    ("mprotect", Role::Mprotect),
    ("pkey_mprotect", Role::Mprotect),
    ("mremap", Role::Mremap),
    ("shmat", Role::Shmat),
    ("sigaltstack", Role::SigAltStack),
    ("dlsym", Role::Dlsym),
];

/// Whether a file of this name holds code of the language, through which the program's own asks for memory.
#[must_use]
pub fn is_language_library(file_name: &[u8]) -> bool {
    const NAMES: [&str; 6] = [
        "ld-linux",
        "libstdc++.so",
        "libc++.so",
        "libc++abi.so",
        "libgcc_s.so",
        "libpthread.so",
    ];
    NAMES
        .iter()
        .any(|name| file_name.starts_with(name.as_bytes()))
}

/// Whether a file of this name, as others need it, is a library of the language or of C, whose functions that hand out memory analysis knows
/// by name.
#[must_use]
pub fn is_modelled_library(name: &str) -> bool {
    const NAMES: [&str; 6] = [
        "libc.so",
        "libc.musl-",
        "libm.so",
        "libdl.so",
        "librt.so",
        "ld-musl-",
    ];
    is_language_library(name.as_bytes()) || NAMES.iter().any(|known| name.starts_with(known))
}

/// The role of a name, among the families.
#[must_use]
pub fn role_of(name: &str) -> Option<Named> {
    FAMILIES
        .iter()
        .flatten()
        .find(|(known, _)| *known == name)
        .copied()
}
