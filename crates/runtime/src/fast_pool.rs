//! *What does a block cost that a function cuts out of a pool, or takes back?* — the fewest instructions we know how to record it in.
//!
//! As [`crate::fast`] for malloc: hooks in assembly for what nearly every call is. The thread is outside, and in no function of a pool; the block
//! lies in a page whose container is known ([`crate::pools`]), at a multiple of 8, is shorter than [`LONGEST`], and nothing is recorded on
//! its bytes; the path of calls was met before. All else goes to [`hooks::allocated_from_pool`] or [`hooks::taken_back`], in Rust.
//!
//! A pool's functions may have more than three arguments (`ggc_internal_alloc` has four): all registers that may hold one are as the program left them
//! when the original begins.
//!
//! ```text
//!   after the original:   rax   the block                  rcx   the origin node     rsi   the stack slot of a return address
//!                         r8    the thread's state         r9    the block's size    rdi   the frame pointer in that frame
//!                         r10   its first word             r11   the entry's record, then the node's rule      rdx   in between
//! ```

#![allow(unsafe_code)] // Assembly.

use crate::fast::{HASH_FACTOR, PLACES, Places, WORD_MASK, WORD_SHIFT};
use crate::hooks;
use crate::pools::{GRANULES, KNOWN, Known, PAGE_SHIFT, PAGES, STEPS};
use crate::process::GATE;
use crate::threads::{ALONE, PLACE, State, WRITING};
use core::arch::naked_asm;
use core::mem::offset_of;
use pointee_index::counters::Counts;
use pointee_index::layout::{CHUNK_SHIFT, FIRST_LEVEL, TABLE_WORDS};
use pointee_index::origins::{FRAME_MAX, Node, PARENT_SHIFT, Rule};
use pointee_index::table::EVEN;
use pointee_index::words::{
    GRANULE, GRANULE_SHIFT, LARGE_MARK, SINGLE, SINGLE_SIZE_MASK, SINGLE_SIZE_SHIFT, START,
};

/// Bytes of a block whose words are looked at one by one.
const LONGEST: u64 = 1 << 10;
/// Bytes that are kept on the stack over the original: three arguments, a one that sizes are multiplied with where there is no count, the record.
const KEPT: usize = 5 * 8;

/// A function that cuts out blocks.
#[unsafe(naked)]
#[rustfmt::skip]
pub(crate) unsafe extern "C" fn allocating() {
    naked_asm!(
        ".cfi_startproc",
        "mov rax, fs:[{place}]",
        "test rax, rax", "jz 9f",
        "mov r10, fs:[0]",
        "cmp [rax + {gate}], r10", "jne 9f",
        "mov r10, rsp",
        "shr r10, 3",
        "cmp dword ptr [rax + {pool}], 0", "jne 5f",
        "mov [rax + {pool}], r10d",
        "1: push r11", ".cfi_adjust_cfa_offset 8",
        "push 1", ".cfi_adjust_cfa_offset 8",
        "push rdx", ".cfi_adjust_cfa_offset 8",
        "push rsi", ".cfi_adjust_cfa_offset 8",
        "push rdi", ".cfi_adjust_cfa_offset 8",
        "call [r11 + {original}]",
        "mov r8, fs:[{place}]",
        "mov r11, [rsp + {record_at}]",
        "mov dword ptr [r8 + {pool}], 0",
        "movzx ecx, byte ptr [r11 + {size_at}]",
        "mov r9, [rsp + rcx * 8]",
        "movzx ecx, byte ptr [r11 + {count_at}]",
        "imul r9, [rsp + rcx * 8]", "jo 8f",
        "mov qword ptr [r8 + {gate}], {writing}",
        "cmp dword ptr [rip + {closed}], 0", "jne 8f",
        "test al, 7", "jnz 8f",
        "lea rcx, [r9 - 1]",
        "cmp rcx, {longest} - 1", "jae 8f",

        // The page, and the granules of it that lie in one container ([`Known`]).
        "mov rcx, rax",
        "shr rcx, {page_shift}",
        "mov edi, ecx",
        "and edi, {pages} - 1",
        "shl edi, {known_shift}",
        "lea rsi, [rip + {known}]",
        "add rdi, rsi",
        "mov rsi, [rdi + {part}]",
        "mov rdx, rsi",
        "shr rdx, 18",
        "cmp rdx, rcx", "jne 8f",
        "mov ecx, eax",
        "shr ecx, {granule_shift}",
        "and ecx, {granules} - 1",
        "mov edx, esi",
        "shr edx, 9",
        "and edx, 0x1ff",
        "cmp ecx, edx", "jb 8f",
        "and esi, 0x1ff",
        "cmp ecx, esi", "jae 8f",

        // Its first word.
        "mov rsi, [rip + {places} + {nested}]",
        "mov rcx, rax",
        "shr rcx, {directory_shift}",
        "and ecx, {even}",
        "mov edx, eax",
        "shr edx, 3",
        "and edx, 1",
        "or edx, ecx",
        "mov r10, [rsi + rdx * 8]",
        "test r10, r10", "jz 8f",
        "mov ecx, eax",
        "shr ecx, {word_shift}",
        "and ecx, {word_mask}",
        "cmp ecx, 8", "jb 8f",
        "cmp ecx, {last_word}", "ja 8f",
        "add r10, rcx",

        // Where nothing was cut out yet, nothing is there.
        "cmp dword ptr [rip + {alone}], 0", "je 2f",
        "mov ecx, eax",
        "shr ecx, 3",
        "and ecx, {steps} - 1",
        "lea edx, [r9 + 7]",
        "shr edx, 3",
        "add edx, ecx",
        "cmp edx, {steps}", "ja 7f",
        "mov esi, [rdi + {fresh}]",
        "cmp edx, esi", "jbe 2f",
        "mov [rdi + {fresh}], edx",
        "cmp ecx, esi", "jae 25f",

        // Else its words are looked at, and two in front; then those of the other plane.
        "2: mov rsi, [rip + {places} + {nested}]",
        "mov rcx, rax",
        "shr rcx, {directory_shift}",
        "and ecx, {even}",
        "mov edi, eax",
        "shr edi, 3",
        "and edi, 1",
        "or edi, ecx",
        "mov ecx, [r10 - 4]",
        "and ecx, {start} | {single}",
        "cmp ecx, {start}", "je 8f",
        "mov ecx, [r10 - 8]",
        "and ecx, {start} | {large_mark}",
        "cmp ecx, {start} | {large_mark}", "je 8f",
        "lea ecx, [r9 + {granule} - 1]",
        "shr ecx, {granule_shift}",
        "xor edx, edx",
        "21: or edx, [r10 + rcx * 4 - 4]",
        "dec ecx", "jnz 21b",
        "xor edi, 1",
        "mov rsi, [rsi + rdi * 8]",
        "test rsi, rsi", "jz 23f",
        "lea ecx, [rax + 8]",
        "shr ecx, {word_shift}",
        "and ecx, {word_mask}",
        "add rsi, rcx",
        "lea ecx, [r9 + 8]",
        "shr ecx, {granule_shift}", "jz 23f",
        "22: or edx, [rsi + rcx * 4 - 4]",
        "dec ecx", "jnz 22b",
        "23: test edx, edx", "js 8f",
        "25:",

        // The first frame, in the first slot of the hash.
        "mov rdx, [rsp + {kept}]",
        "mov rcx, [r11 + {root_key}]",
        "xor rcx, rdx",
        "imul rcx, [rip + {hash}]",
        "shr rcx, {hash_shift}",
        "shl rcx, {node_shift}",
        "add rcx, [rip + {places} + {origins}]",
        "cmp [rcx + {return_address}], rdx", "jne 8f",
        "mov edx, [r11 + {root}]",
        "cmp [rcx + {parent}], edx", "jne 8f",
        "mov r11, [rcx + {rule}]",
        "test r11, r11", "jnz 3f",

        "4: mov ecx, [rcx + {id}]",
        "mov edx, ecx",
        "or edx, {start}",
        "cmp r9d, {granule}", "ja 41f",
        "or edx, {single}",
        "mov esi, r9d",
        "shl esi, {single_size_shift}",
        "or edx, esi",
        "jmp 42f",
        "41: mov [r10 + 4], r9d",
        "42: mov [r10], edx",
        "and ecx, [rip + {places} + {origin_mask}]",
        "shl rcx, {counts_shift}",
        "add rcx, [r8 + {counters}]",
        "inc qword ptr [rcx + {allocations}]",
        "add [rcx + {bytes}], r9",
        "mov rcx, fs:[0]",
        "mov [r8 + {gate}], rcx",
        "add rsp, {kept}", ".cfi_remember_state", ".cfi_adjust_cfa_offset -{kept}",
        "ret",
        ".cfi_restore_state",

        // More frames: `r11` is the rule by which to leave the one of node `rcx`.
        "3: lea rsi, [rsp + {kept}]",
        "mov rdi, rbp",
        "31: test r11b, {of_rbp}", "jnz 35f",
        "sar r11, 32",
        "add rsi, r11",
        "32: mov r11d, [rcx + {id}]",
        "mov rdx, [rsi]",
        "mov ecx, [rcx + {child}]",
        "add rcx, [rip + {places} + {origins}]",
        "cmp [rcx + {return_address}], rdx", "jne 38f",
        "cmp [rcx + {parent}], r11d", "jne 38f",
        "33: mov r11, [rcx + {rule}]",
        "test r11, r11", "jnz 31b",
        "jmp 4b",

        // A frame that is measured from rbp, or saved it.
        "35: mov rdx, r11",
        "sar rdx, 32",
        "test r11b, {from_rbp}", "jz 36f",
        "lea rdx, [rdi + rdx - 8]",
        "test dl, 7", "jnz 4b",
        "sub rdx, rsi",
        "sub rdx, 8",
        "cmp rdx, {frame_max}", "jae 4b",
        "add rdx, 8",
        "36: add rsi, rdx",
        "shl r11, 32",
        "sar r11, 48", "jz 32b",
        "mov rdi, [rsi + r11 + 8]",
        "jmp 32b",

        // Not the first child.
        "38: mov rcx, r11",
        "shl rcx, {parent_shift}",
        "xor rcx, rdx",
        "imul rcx, [rip + {hash}]",
        "shr rcx, {hash_shift}",
        "shl rcx, {node_shift}",
        "add rcx, [rip + {places} + {origins}]",
        "cmp [rcx + {return_address}], rdx", "jne 8f",
        "cmp [rcx + {parent}], r11d", "je 33b",

        "8: mov rdi, rax",
        "mov rsi, rsp",
        "lea rdx, [rsp + {kept}]",
        "mov rcx, rbp",
        "mov r8, [rsp + {record_at}]",
        "push rbp", ".cfi_adjust_cfa_offset 8",
        "mov rbp, rsp", ".cfi_def_cfa_register rbp",
        "and rsp, -16", // a caller may have left it otherwise, see `crate::fast`
        "call {allocated}",
        "mov rsp, rbp", ".cfi_def_cfa_register rsp",
        "pop rbp", ".cfi_adjust_cfa_offset -8",
        "add rsp, {kept}", ".cfi_adjust_cfa_offset -{kept}",
        "ret",

        // It reaches into the next page.
        "7: mov dword ptr [rdi + {fresh}], {steps}",
        "mov rcx, rax",
        "shr rcx, {page_shift}",
        "inc ecx",
        "and ecx, {pages} - 1",
        "shl ecx, {known_shift}",
        "lea rdi, [rip + {known}]",
        "mov dword ptr [rdi + rcx + {fresh}], {steps}",
        "jmp 2b",

        // In a function of a pool, or one was left by a `longjmp`, which lies no further out.
        "5: sub r10d, [rax + {pool}]", "js 6f",
        "add r10d, [rax + {pool}]",
        "mov [rax + {pool}], r10d",
        "jmp 1b",
        "6: jmp [r11 + {original}]",

        // The thread is not known, or not outside.
        "9: push r11", ".cfi_adjust_cfa_offset 8",
        "push r9", ".cfi_adjust_cfa_offset 8",
        "push r8", ".cfi_adjust_cfa_offset 8",
        "push rcx", ".cfi_adjust_cfa_offset 8",
        "push rdx", ".cfi_adjust_cfa_offset 8",
        "push rsi", ".cfi_adjust_cfa_offset 8",
        "push rdi", ".cfi_adjust_cfa_offset 8",
        "lea rdi, [rsp + 56]",
        "push rbp", ".cfi_adjust_cfa_offset 8",
        "mov rbp, rsp", ".cfi_def_cfa_register rbp",
        "and rsp, -16",
        "call {enter}",
        "mov rsp, rbp", ".cfi_def_cfa_register rsp",
        "pop rbp", ".cfi_adjust_cfa_offset -8",
        "pop rdi", ".cfi_adjust_cfa_offset -8",
        "pop rsi", ".cfi_adjust_cfa_offset -8",
        "pop rdx", ".cfi_adjust_cfa_offset -8",
        "pop rcx", ".cfi_adjust_cfa_offset -8",
        "pop r8", ".cfi_adjust_cfa_offset -8",
        "pop r9", ".cfi_adjust_cfa_offset -8",
        "pop r11", ".cfi_adjust_cfa_offset -8",
        "test al, al", "jz 6b",
        "push r11", ".cfi_adjust_cfa_offset 8",
        "push 1", ".cfi_adjust_cfa_offset 8",
        "push rdx", ".cfi_adjust_cfa_offset 8",
        "push rsi", ".cfi_adjust_cfa_offset 8",
        "push rdi", ".cfi_adjust_cfa_offset 8",
        "call [r11 + {original}]",
        "jmp 8b",
        ".cfi_endproc",
        place = const PLACE,
        gate = const offset_of!(State, gate),
        pool = const offset_of!(State, pool),
        counters = const offset_of!(State, counters),
        writing = const WRITING,
        closed = sym GATE,
        kept = const KEPT,
        record_at = const KEPT - 8,
        original = const hooks::ORIGINAL,
        size_at = const hooks::SIZE_AT,
        count_at = const hooks::COUNT_AT,
        root = const hooks::ROOT,
        root_key = const hooks::ROOT_KEY,
        longest = const LONGEST,
        known = sym KNOWN,
        known_shift = const size_of::<Known>().ilog2(),
        part = const offset_of!(Known, part),
        fresh = const offset_of!(Known, fresh),
        steps = const STEPS,
        alone = sym ALONE,
        pages = const PAGES,
        page_shift = const PAGE_SHIFT,
        granules = const GRANULES,
        granule = const GRANULE,
        granule_shift = const GRANULE_SHIFT,
        places = sym PLACES,
        nested = const offset_of!(Places, nested),
        origins = const offset_of!(Places, origins),
        origin_mask = const offset_of!(Places, origin_mask),
        directory_shift = const CHUNK_SHIFT - 1,
        even = const EVEN,
        word_shift = const WORD_SHIFT,
        word_mask = const WORD_MASK,
        last_word = const (TABLE_WORDS - LONGEST / GRANULE - 1) * 4,
        start = const START as i32,
        single = const SINGLE,
        large_mark = const LARGE_MARK,
        single_size_shift = const SINGLE_SIZE_SHIFT,
        hash = sym HASH_FACTOR,
        hash_shift = const 64 - FIRST_LEVEL,
        parent_shift = const PARENT_SHIFT,
        node_shift = const size_of::<Node>().ilog2(),
        return_address = const offset_of!(Node, return_address),
        child = const offset_of!(Node, child),
        parent = const offset_of!(Node, parent),
        rule = const offset_of!(Node, rule),
        id = const offset_of!(Node, id),
        of_rbp = const Rule::FROM_RBP | Rule::SAVES_RBP,
        from_rbp = const Rule::FROM_RBP,
        frame_max = const FRAME_MAX,
        counts_shift = const size_of::<Counts>().ilog2(),
        allocations = const offset_of!(Counts, allocations),
        bytes = const offset_of!(Counts, bytes),
        allocated = sym hooks::allocated_from_pool,
        enter = sym hooks::enter_pool,
    )
}

/// A function that takes back the block in `$register`, whose lower half is `$half`.
macro_rules! freeing {
    ($(#[$meta:meta])* $name:ident, $register:literal, $half:literal) => {
        $(#[$meta])*
        #[unsafe(naked)]
        #[rustfmt::skip]
        pub(crate) unsafe extern "C" fn $name() {
            naked_asm!(
                ".cfi_startproc",
                "mov rax, fs:[{place}]",
                "test rax, rax", "jz 9f",
                "mov r10, fs:[0]",
                "cmp [rax + {gate}], r10", "jne 9f",
                "push rcx", ".cfi_adjust_cfa_offset 8",
                "push r8", ".cfi_adjust_cfa_offset 8",
                "push r9", ".cfi_adjust_cfa_offset 8",
                "mov qword ptr [rax + {gate}], {writing}",
                "cmp dword ptr [rip + {closed}], 0", "jne 8f",
                concat!("test ", $half, ", 7"), "jnz 8f",
                "mov r8, [rip + {places} + {nested}]",
                concat!("mov rcx, ", $register),
                "shr rcx, {directory_shift}",
                "and ecx, {even}",
                concat!("mov r9d, ", $half),
                "shr r9d, 3",
                "and r9d, 1",
                "or ecx, r9d",
                "mov r8, [r8 + rcx * 8]",
                "test r8, r8", "jz 7f",
                concat!("mov ecx, ", $half),
                "shr ecx, {word_shift}",
                "and ecx, {word_mask}",
                "add r8, rcx",
                "mov r9d, [r8]",
                "test r9d, r9d", "jns 7f",
                "test r9d, {large_mark}", "jnz 8f",
                "mov r10d, [r8 + 4]",
                "mov ecx, r9d",
                "shr ecx, {single_size_shift}",
                "and ecx, {single_size_mask}",
                "test r9d, {single}",
                "cmovnz r10d, ecx",
                "mov dword ptr [r8], 0",
                "and r9d, [rip + {places} + {origin_mask}]",
                "shl r9, {counts_shift}",
                "add r9, [rax + {counters}]",
                "inc qword ptr [r9 + {frees}]",
                "add [r9 + {freed_bytes}], r10",
                "7: mov rcx, fs:[0]",
                "mov [rax + {gate}], rcx",
                "pop r9", ".cfi_remember_state", ".cfi_adjust_cfa_offset -8",
                "pop r8", ".cfi_adjust_cfa_offset -8",
                "pop rcx", ".cfi_adjust_cfa_offset -8",
                "jmp [r11 + {original}]",
                ".cfi_restore_state",

                "8: mov rcx, fs:[0]",
                "mov [rax + {gate}], rcx",
                "pop r9", ".cfi_adjust_cfa_offset -8",
                "pop r8", ".cfi_adjust_cfa_offset -8",
                "pop rcx", ".cfi_adjust_cfa_offset -8",
                "9: jmp {otherwise}",
                ".cfi_endproc",
                place = const PLACE,
                gate = const offset_of!(State, gate),
                counters = const offset_of!(State, counters),
                writing = const WRITING,
                closed = sym GATE,
                original = const hooks::ORIGINAL,
                places = sym PLACES,
                nested = const offset_of!(Places, nested),
                origin_mask = const offset_of!(Places, origin_mask),
                directory_shift = const CHUNK_SHIFT - 1,
                even = const EVEN,
                word_shift = const WORD_SHIFT,
                word_mask = const WORD_MASK,
                single = const SINGLE,
                large_mark = const LARGE_MARK,
                single_size_shift = const SINGLE_SIZE_SHIFT,
                single_size_mask = const SINGLE_SIZE_MASK,
                counts_shift = const size_of::<Counts>().ilog2(),
                frees = const offset_of!(Counts, frees),
                freed_bytes = const offset_of!(Counts, freed_bytes),
                otherwise = sym taking_back,
            )
        }
    };
}

freeing!(
    /// `free(block)`.
    freeing_first, "rdi", "edi"
);
freeing!(
    /// `free(pool, block)`.
    freeing_second, "rsi", "esi"
);
freeing!(
    /// `free(pool, kind, block)`.
    freeing_third, "rdx", "edx"
);

/// A function that takes something back, whatever: [`hooks::taken_back`] is told, then it runs.
#[unsafe(naked)]
#[rustfmt::skip]
pub(crate) unsafe extern "C" fn taking_back() {
    naked_asm!(
        ".cfi_startproc",
        "push r11", ".cfi_adjust_cfa_offset 8",
        "push r9", ".cfi_adjust_cfa_offset 8",
        "push r8", ".cfi_adjust_cfa_offset 8",
        "push rcx", ".cfi_adjust_cfa_offset 8",
        "push rdx", ".cfi_adjust_cfa_offset 8",
        "push rsi", ".cfi_adjust_cfa_offset 8",
        "push rdi", ".cfi_adjust_cfa_offset 8",
        "mov rdi, rsp",
        "lea rsi, [rsp + 56]",
        "mov rdx, r11",
        "push rbp", ".cfi_adjust_cfa_offset 8",
        "mov rbp, rsp", ".cfi_def_cfa_register rbp",
        "and rsp, -16", // see `allocating`
        "call {taken_back}",
        "mov rsp, rbp", ".cfi_def_cfa_register rsp",
        "pop rbp", ".cfi_adjust_cfa_offset -8",
        "pop rdi", ".cfi_adjust_cfa_offset -8",
        "pop rsi", ".cfi_adjust_cfa_offset -8",
        "pop rdx", ".cfi_adjust_cfa_offset -8",
        "pop rcx", ".cfi_adjust_cfa_offset -8",
        "pop r8", ".cfi_adjust_cfa_offset -8",
        "pop r9", ".cfi_adjust_cfa_offset -8",
        "pop r11", ".cfi_adjust_cfa_offset -8",
        "jmp [r11 + {original}]",
        ".cfi_endproc",
        taken_back = sym hooks::taken_back,
        original = const hooks::ORIGINAL,
    )
}
