//! *What does a usual malloc or free cost?* — the fewest instructions we know how to record it in.
//!
//! Hooks in assembly for what nearly every call is: the thread outside, its path of calls met before, a block below 64 KiB on a
//! granule in a chunk that has its table, no fork under way, nothing due in the counters. All else goes to the hook in Rust
//! of the same role, in [`crate::hooks`], either before anything was done or, after the original malloc, by [`hooks::finish`].
//!
//! ```text
//!   r11   the entry's record (Planted), from the relay         rdi rsi rdx   the program's arguments, untouched
//!   r10   the stack slot of a return address                   r8            the frame pointer in that frame
//!   rcx   the origin node there                                rax r9        in between
//! ```
//!
//! Compilers do not align the stack for a callee that they see not to need it (gcc's `-fipa-stack-alignment`), so a malloc may be called with
//! any; hooks in Rust are called rather than jumped to then, which aligns it for them.
//!
//! The walk is that of [`crate::walk`], the words those of `pointee_index::words`, the counters those of
//! `pointee_index::counters`, step for step. What the call of the original needs after it is kept in the thread's
//! [`State`], not on the stack: a signal handler that allocates meanwhile finds the gate taken, and leaves it alone.

#![allow(unsafe_code)] // Assembly.

use crate::hooks;
use crate::process::GATE;
use crate::region::{Region, region};
use crate::threads::{PLACE, State, WRITING};
use crate::walk;
use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use pointee_index::counters::{Counts, Thread};
use pointee_index::layout::{CHUNK_SHIFT, DIRECTORY, FIRST_LEVEL, LARGE, TABLE_WORDS};
use pointee_index::origins::{FRAME_MAX, HASH, Node, PARENT_SHIFT, Rule};
use pointee_index::table::EVEN;
use pointee_index::words::{
    CLASS_MASK, GRANULE, GRANULE_SHIFT, LARGE_MARK, SINGLE, SINGLE_SIZE_MASK, SINGLE_SIZE_SHIFT,
    START,
};

/// What the hooks need of the region.
#[repr(C)]
pub(crate) struct Places {
    /// The directory of tables.
    directory: AtomicU64,
    /// The same of blocks that were cut out of others.
    pub(crate) nested: AtomicU64,
    /// The first level of the origins' hash.
    pub(crate) origins: AtomicU64,
    /// Cuts an origin to those there is room for.
    pub(crate) origin_mask: AtomicU64,
}

pub(crate) static PLACES: Places = Places {
    directory: AtomicU64::new(0),
    nested: AtomicU64::new(0),
    origins: AtomicU64::new(0),
    origin_mask: AtomicU64::new(0),
};

/// Tells the hooks where the region lies.
pub(crate) fn set_up(region: &Region) {
    let base = region.base as u64;
    PLACES
        .directory
        .store(base + region.layout.directory, Relaxed);
    PLACES
        .nested
        .store(base + region.layout.directory + DIRECTORY * 8, Relaxed);
    PLACES
        .origins
        .store(base + region.layout.origins[0], Relaxed);
    PLACES
        .origin_mask
        .store(u64::from(region.geometry.origins - 1), Relaxed);
}

/// An allocation function: `$size` computes the requested size into the register `$register`, without changing an argument
/// or `r11`; or goes to `9f`, the hook `$otherwise`.
macro_rules! allocating {
    ($(#[$meta:meta])* $name:ident, [$($size:literal),*], $register:literal, $otherwise:path) => {
        $(#[$meta])*
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "mov rax, fs:[{place}]",
                "test rax, rax",
                "jz 9f",
                "mov rcx, fs:[0]",
                "cmp [rax + {gate}], rcx",
                "jne 9f",
                $($size,)*
                // The first frame, in the first slot of the hash.
                "mov r10, [rsp]",
                "mov rcx, [r11 + {root_key}]",
                "xor rcx, r10",
                "imul rcx, [rip + {hash}]",
                "shr rcx, {hash_shift}",
                "shl rcx, {node_shift}",
                "add rcx, [rip + {places} + {origins}]",
                "cmp [rcx + {return_address}], r10",
                "jne 5f",
                "mov r9d, [r11 + {root}]",
                "cmp [rcx + {parent}], r9d",
                "jne 5f",
                "mov r9, [rcx + {rule}]",
                "test r9, r9",
                "jnz 3f",
                "mov ecx, [rcx + {id}]",

                // The gate first: from here on a handler's calls take the other way.
                "2: mov [rax + {gate}], rsp",
                concat!("mov [rax + {size}], ", $register),
                "mov [rax + {origin}], ecx",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "call [r11 + {original}]",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "jmp {record}",

                // More frames: `r9` is the rule by which to leave the one of node `rcx`.
                "3: mov r10, rsp",
                "mov r8, rbp",
                "31: test r9b, {of_rbp}",
                "jnz 35f",
                "sar r9, 32",
                "add r10, r9",
                "32: mov r9d, [rcx + {id}]",
                "mov rax, [r10]",
                "mov ecx, [rcx + {child}]",
                "add rcx, [rip + {places} + {origins}]",
                "cmp [rcx + {return_address}], rax",
                "jne 38f",
                "cmp [rcx + {parent}], r9d",
                "jne 38f",
                "33: mov r9, [rcx + {rule}]",
                "test r9, r9",
                "jnz 31b",
                "4: mov ecx, [rcx + {id}]",
                "mov rax, fs:[{place}]",
                "jmp 2b",

                // A frame that is measured from rbp, or saved it.
                "35: mov rax, r9",
                "sar rax, 32",
                "test r9b, {from_rbp}",
                "jz 36f",
                "lea rax, [r8 + rax - 8]",
                "test al, 7",
                "jnz 4b",
                "sub rax, r10",
                "sub rax, 8",
                "cmp rax, {frame_max}",
                "jae 4b",
                "add rax, 8",
                "36: add r10, rax",
                "shl r9, 32",
                "sar r9, 48",
                "jz 37f",
                "mov r8, [r10 + r9 + 8]",
                "37: jmp 32b",

                // Not the first child.
                "38: mov rcx, r9",
                "shl rcx, {parent_shift}",
                "xor rcx, rax",
                "imul rcx, [rip + {hash}]",
                "shr rcx, {hash_shift}",
                "shl rcx, {node_shift}",
                "add rcx, [rip + {places} + {origins}]",
                "cmp [rcx + {return_address}], rax",
                "jne 5f",
                "cmp [rcx + {parent}], r9d",
                "je 33b",

                // A node that is not in the first slot, or not there at all.
                "5: test spl, 8",
                "jz 9f",
                "push rdi",
                ".cfi_adjust_cfa_offset 8",
                "push rsi",
                ".cfi_adjust_cfa_offset 8",
                "push rdx",
                ".cfi_adjust_cfa_offset 8",
                "push r11",
                ".cfi_adjust_cfa_offset 8",
                "sub rsp, 8",
                ".cfi_adjust_cfa_offset 8",
                "mov edi, [r11 + {root}]",
                "lea rsi, [rsp + 40]",
                "mov rdx, rbp",
                "call {known_origin}",
                "mov ecx, eax",
                "add rsp, 8",
                ".cfi_adjust_cfa_offset -8",
                "pop r11",
                ".cfi_adjust_cfa_offset -8",
                "pop rdx",
                ".cfi_adjust_cfa_offset -8",
                "pop rsi",
                ".cfi_adjust_cfa_offset -8",
                "pop rdi",
                ".cfi_adjust_cfa_offset -8",
                "test ecx, ecx",
                "jz 9f",
                "mov rax, fs:[{place}]",
                "jmp 2b",

                "9: mov rcx, rsp",
                "mov r8, rbp",
                "mov r9, r11",
                "test spl, 8",
                "jz 91f",
                "jmp {otherwise}",
                "91: call {otherwise}",
                "ret",
                ".cfi_endproc",
                place = const PLACE,
                gate = const offset_of!(State, gate),
                size = const offset_of!(State, size),
                origin = const offset_of!(State, origin),
                root = const hooks::ROOT,
                root_key = const hooks::ROOT_KEY,
                original = const hooks::ORIGINAL,
                hash = sym HASH_FACTOR,
                hash_shift = const 64 - FIRST_LEVEL,
                node_shift = const size_of::<Node>().ilog2(),
                parent_shift = const PARENT_SHIFT,
                places = sym PLACES,
                origins = const offset_of!(Places, origins),
                return_address = const offset_of!(Node, return_address),
                child = const offset_of!(Node, child),
                parent = const offset_of!(Node, parent),
                rule = const offset_of!(Node, rule),
                id = const offset_of!(Node, id),
                of_rbp = const Rule::FROM_RBP | Rule::SAVES_RBP,
                from_rbp = const Rule::FROM_RBP,
                frame_max = const FRAME_MAX,
                known_origin = sym known_origin,
                record = sym record,
                otherwise = sym $otherwise,
            );
        }
    };
}

allocating!(
    /// `malloc(size)` and others whose first argument is the size.
    malloc, [], "rdi", hooks::on_malloc
);
allocating!(
    /// `calloc(number, size)`.
    calloc,
    ["mov rax, rdi", "mul rsi", "jo 9f", "mov rdx, rax", "mov rax, fs:[{place}]"],
    "rdx",
    hooks::on_calloc
);
allocating!(
    /// `memalign(alignment, size)` and others whose second argument is the size.
    memalign, [], "rsi", hooks::on_memalign
);

/// The origin of a call, if all of its path was met before; else 0.
unsafe extern "C" fn known_origin(root: u32, slot: *const u64, rbp: u64) -> u32 {
    // SAFETY: `slot` is the stack pointer at the hooked entry.
    unsafe { walk::known_origin(root, slot, rbp) }.unwrap_or(0)
}

/// Records the block in `rax`, whose size and origin are in the thread's state, and returns it.
#[unsafe(naked)]
unsafe extern "C" fn record() {
    naked_asm!(
        ".cfi_startproc",
        "mov r8, fs:[{place}]",
        "mov qword ptr [r8 + {gate}], {writing}",
        "cmp dword ptr [rip + {closed}], 0",
        "jne 9f",
        "mov rdi, [r8 + {size}]",
        "mov r9d, [r8 + {origin}]",
        "test al, {granule} - 1",
        "jnz 9f",
        "mov rdx, [rip + {places} + {directory}]",
        "mov rcx, rax",
        "shr rcx, {directory_shift}",
        "and ecx, {even}",
        "mov rdx, [rdx + rcx * 8]",
        "test rdx, rdx",
        "jz 9f",
        "mov ecx, eax",
        "shr ecx, {word_shift}",
        "and ecx, {word_mask}",
        "add rdx, rcx",
        // Written too, though with what is there: see `pointee_index::table::open`.
        "or dword ptr [rdx], 0",
        "js 9f", // a block that was not seen freed
        "cmp rdi, {large}",
        "jae 9f",
        // Sizes come in no order that a branch could be predicted by: a block of one granule has its size stored aside.
        "mov r10d, edi",
        "shl r10d, {single_size_shift}",
        "or r10d, {single}",
        "mov esi, {start}",
        "lea rcx, [rdx + 4]",
        "lea r11, [r8 + {aside}]",
        "cmp rdi, {granule}",
        "cmovbe esi, r10d",
        "cmovbe rcx, r11",
        "or esi, r9d",
        "mov [rcx], edi",
        "mov [rdx], esi",

        "and r9d, [rip + {places} + {origin_mask}]",
        "shl r9, {counts_shift}",
        "add r9, [r8 + {counters}]",
        "inc qword ptr [r9 + {allocations}]",
        "add [r9 + {bytes}], rdi",
        "mov rcx, [r8 + {thread}]",
        "sub [rcx + {room}], rdi",
        "js 4f",
        "2: mov rcx, fs:[0]",
        "mov [r8 + {gate}], rcx",
        "ret",

        // Higher than before.
        "4: mov rdx, [rcx + {room}]",
        "sub [rcx + {highest}], rdx",
        "mov qword ptr [rcx + {room}], 0",
        "mov rdx, [rcx + {highest}]",
        "cmp rdx, [rcx + {stop}]",
        "jle 2b",
        "mov rdi, rax",
        "mov rsi, r8",
        "test spl, 8",
        "jz 41f",
        "jmp {reach}",
        "41: call {reach}",
        "ret",

        "9: mov rdi, rax",
        "mov rsi, r8",
        "test spl, 8",
        "jz 91f",
        "jmp {finish}",
        "91: call {finish}",
        "ret",
        ".cfi_endproc",
        place = const PLACE,
        gate = const offset_of!(State, gate),
        size = const offset_of!(State, size),
        origin = const offset_of!(State, origin),
        aside = const offset_of!(State, aside),
        thread = const offset_of!(State, thread),
        counters = const offset_of!(State, counters),
        writing = const WRITING,
        closed = sym GATE,
        places = sym PLACES,
        directory = const offset_of!(Places, directory),
        origin_mask = const offset_of!(Places, origin_mask),
        granule = const GRANULE,
        directory_shift = const CHUNK_SHIFT - 1,
        even = const EVEN,
        word_shift = const WORD_SHIFT,
        word_mask = const WORD_MASK,
        large = const LARGE,
        start = const START,
        single = const START | SINGLE,
        single_size_shift = const SINGLE_SIZE_SHIFT,
        counts_shift = const size_of::<Counts>().ilog2(),
        allocations = const offset_of!(Counts, allocations),
        bytes = const offset_of!(Counts, bytes),
        room = const offset_of!(Thread, room),
        highest = const offset_of!(Thread, highest),
        stop = const offset_of!(Thread, stop),
        reach = sym reach,
        finish = sym hooks::finish,
    );
}

/// `free(block)` and others whose first argument is the block.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn free() {
    naked_asm!(
        ".cfi_startproc",
        "mov rax, fs:[{place}]",
        "test rax, rax",
        "jz 9f",
        "mov rcx, fs:[0]",
        "cmp [rax + {gate}], rcx",
        "jne 9f",
        "mov qword ptr [rax + {gate}], {writing}",
        "cmp dword ptr [rip + {closed}], 0",
        "jne 8f",
        "test dil, {granule} - 1",
        "jnz 8f",
        "mov r8, [rip + {places} + {directory}]",
        "mov rcx, rdi",
        "shr rcx, {directory_shift}",
        "and ecx, {even}",
        "mov r8, [r8 + rcx * 8]",
        "test r8, r8",
        "jz 8f",
        "mov ecx, edi",
        "shr ecx, {word_shift}",
        "and ecx, {word_mask}",
        "add r8, rcx",
        "mov r9d, [r8]",
        "test r9d, r9d",
        "jns 8f",
        // What is left of the class where both are the same is none.
        "xor r9d, [r11 + {class}]",
        "test r9d, {large_mark} | {class_mask}",
        "jnz 8f",
        "mov r10d, [r8 + 4]",
        "mov ecx, r9d",
        "shr ecx, {single_size_shift}",
        "and ecx, {single_size_mask}",
        "test r9d, {single}",
        "cmovnz r10d, ecx",

        "and r9d, [rip + {places} + {origin_mask}]",
        "shl r9, {counts_shift}",
        "add r9, [rax + {counters}]",
        "mov rcx, [rax + {thread}]",
        "mov rax, [rcx + {room}]",
        "add rax, r10",
        "cmp rax, [rcx + {limit}]",
        "jae 8f",
        "mov dword ptr [r8], 0",
        "add [rcx + {room}], r10",
        "inc qword ptr [r9 + {frees}]",
        "add [r9 + {freed_bytes}], r10",
        "mov rax, fs:[{place}]",
        "mov rcx, fs:[0]",
        "mov [rax + {gate}], rcx",
        "jmp [r11 + {original}]",

        "8: mov rax, fs:[{place}]",
        "mov rcx, fs:[0]",
        "mov [rax + {gate}], rcx",
        "9: mov rcx, rsp",
        "mov r8, rbp",
        "mov r9, r11",
        "test spl, 8",
        "jz 91f",
        "jmp {otherwise}",
        "91: call {otherwise}",
        "ret",
        ".cfi_endproc",
        place = const PLACE,
        gate = const offset_of!(State, gate),
        thread = const offset_of!(State, thread),
        counters = const offset_of!(State, counters),
        writing = const WRITING,
        closed = sym GATE,
        places = sym PLACES,
        directory = const offset_of!(Places, directory),
        origin_mask = const offset_of!(Places, origin_mask),
        granule = const GRANULE,
        directory_shift = const CHUNK_SHIFT - 1,
        even = const EVEN,
        word_shift = const WORD_SHIFT,
        word_mask = const WORD_MASK,
        single = const SINGLE,
        class = const hooks::CLASS,
        class_mask = const CLASS_MASK,
        large_mark = const LARGE_MARK,
        single_size_shift = const SINGLE_SIZE_SHIFT,
        single_size_mask = const SINGLE_SIZE_MASK,
        counts_shift = const size_of::<Counts>().ilog2(),
        frees = const offset_of!(Counts, frees),
        freed_bytes = const offset_of!(Counts, freed_bytes),
        room = const offset_of!(Thread, room),
        limit = const offset_of!(Thread, limit),
        original = const hooks::ORIGINAL,
        otherwise = sym hooks::on_free,
    );
}

/// A granule's word has four bytes.
pub(crate) const WORD_SHIFT: u32 = GRANULE_SHIFT - 2;
pub(crate) const WORD_MASK: u64 = (TABLE_WORDS - 1) << 2;

pub(crate) static HASH_FACTOR: u64 = HASH;

/// The rest of an allocation after which something is due in the counters.
unsafe extern "C" fn reach(block: usize, state: &State) -> usize {
    region().counters.reach(state.thread());
    state.leave();
    block
}
