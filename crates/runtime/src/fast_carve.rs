//! *What does a block cost that inlined code cuts out of a pool?* — the fewest instructions we know how to record it in.
//!
//! In assembly for what nearly every one is: the cursor goes up, by less than 256 bytes, from a granule on, within a page whose container
//! is known ([`crate::pools`]); nothing is recorded there, nor at odd addresses anywhere near; the write is a site that was met before; the thread is outside, and of pools'
//! functions too. Of a cursor that is a number the addresses are computed first. All else goes to [`hooks::carve`], for which vector registers are saved: code that is in the middle of a function may have anything there.
//!
//! ```text
//!   rdi   the cursor, which says where the block starts        r8    the thread's state
//!   rsi   the Carving                                          r9    the block's size
//!   rdx   what the cursor will be                              r10   its first word
//!   rax   the block                                            rcx r11   in between
//! ```

#![allow(unsafe_code)] // Assembly.

use crate::fast::{HASH_FACTOR, PLACES, Places, WORD_MASK, WORD_SHIFT};
use crate::hooks;
use crate::pools::{GRANULES, KNOWN, Known, PAGE_SHIFT, PAGES, STEPS};
use crate::process::GATE;
use crate::threads::{PLACE, State, WRITING};
use core::arch::naked_asm;
use core::mem::offset_of;
use pointee_index::counters::Counts;
use pointee_index::layout::{CHUNK_SHIFT, FIRST_LEVEL};
use pointee_index::origins::{Node, PARENT_SHIFT};
use pointee_index::table::EVEN;
use pointee_index::words::{GRANULE, GRANULE_SHIFT, LARGE_MARK, SINGLE, SINGLE_SIZE_SHIFT, START};
use pointee_model::image::cursor_flags;
use pointee_patch::placement::Carving;

/// Bytes that the stub has pushed.
const SAVED: usize = 8 * 8;

/// What the slot of [`pointee_patch::placement::Event::Carve`] leads to: keeps all registers and flags.
#[unsafe(naked)]
#[rustfmt::skip]
pub(crate) unsafe extern "C" fn carve_stub() {
    naked_asm!(
        "push rax", "push rcx", "push rdx", "push r8", "push r9", "push r10", "push r11",
        "lahf", "seto al", "push rax",
        "mov rdx, [rsp + {value}]",
        "mov rax, [rdi]",
        "test dword ptr [rsi + {flags}], {down} | {counts}", "jnz 5f",
        "6: mov r9, rdx",
        "sub r9, rax",
        "lea rcx, [r9 - 1]",
        "cmp rcx, 255", "jae 9f",
        "test al, {granule} - 1", "jnz 9f",
        "mov r8, fs:[{place}]",
        "test r8, r8", "jz 9f",
        "mov rcx, fs:[0]",
        "cmp [r8 + {gate}], rcx", "jne 9f",
        "cmp dword ptr [r8 + {pool}], 0", "jne 9f",

        // The page, and the granules of it that lie in one container ([`Known`]); it counts as cut up.
        "mov rcx, rax",
        "shr rcx, {page_shift}",
        "mov r11d, ecx",
        "and r11d, {pages} - 1",
        "shl r11d, {known_shift}",
        "lea r10, [rip + {known}]",
        "add r10, r11",
        "mov dword ptr [r10 + {fresh}], {steps}",
        "mov r10, [r10 + {part}]",
        "mov r11, r10",
        "shr r11, 18",
        "cmp r11, rcx", "jne 9f",
        "lea r11, [rdx - 1]",
        "shr r11, {page_shift}",
        "cmp r11, rcx", "jne 9f",
        "mov ecx, eax",
        "shr ecx, {granule_shift}",
        "and ecx, {granules} - 1",
        "mov r11d, r10d",
        "shr r11d, 9",
        "and r11d, 0x1ff",
        "cmp ecx, r11d", "jb 9f",
        "lea ecx, [edx - 1]",
        "shr ecx, {granule_shift}",
        "and ecx, {granules} - 1",
        "and r10d, 0x1ff",
        "cmp ecx, r10d", "jae 9f",

        // Its words. What is to be written, and two in front.
        "mov r10, [rip + {places} + {nested}]",
        "mov rcx, rax",
        "shr rcx, {directory_shift}",
        "and ecx, {even}",
        "cmp qword ptr [r10 + rcx * 8 + 8], 0", "jne 9f",
        "mov r10, [r10 + rcx * 8]",
        "test r10, r10", "jz 9f",
        "mov ecx, eax",
        "shr ecx, {word_shift}",
        "and ecx, {word_mask}",
        "cmp ecx, 8", "jb 9f",
        "add r10, rcx",
        "mov ecx, [r10 - 4]",
        "and ecx, {start} | {single}",
        "cmp ecx, {start}", "je 9f",
        "mov ecx, [r10 - 8]",
        "and ecx, {start} | {large_mark}",
        "cmp ecx, {start} | {large_mark}", "je 9f",
        "lea ecx, [r9 + {granule} - 1]",
        "shr ecx, {granule_shift}",
        "xor r11d, r11d",
        "2: or r11d, [r10 + rcx * 4 - 4]",
        "dec ecx", "jnz 2b",
        "test r11d, r11d", "js 9f",

        // The site, in the first slot of the hash.
        "mov ecx, [rsi + {root}]",
        "shl rcx, {parent_shift}",
        "mov r11, [rsi + {next}]",
        "xor rcx, r11",
        "imul rcx, [rip + {hash}]",
        "shr rcx, {hash_shift}",
        "shl rcx, {node_shift}",
        "add rcx, [rip + {places} + {origins}]",
        "cmp [rcx + {return_address}], r11", "jne 9f",
        "mov r11d, [rsi + {root}]",
        "cmp [rcx + {parent}], r11d", "jne 9f",
        "cmp qword ptr [rcx + {rule}], 0", "jne 9f",
        "mov ecx, [rcx + {id}]",

        "mov qword ptr [r8 + {gate}], {writing}",
        "cmp dword ptr [rip + {closed}], 0", "jne 8f",
        "mov r11d, ecx",
        "or r11d, {start}",
        "cmp r9d, {granule}", "ja 3f",
        "or r11d, {single}",
        "shl r9d, {single_size_shift}",
        "or r11d, r9d",
        "shr r9d, {single_size_shift}",
        "jmp 4f",
        "3: mov [r10 + 4], r9d",
        "4: mov [r10], r11d",
        "and ecx, [rip + {places} + {origin_mask}]",
        "shl rcx, {counts_shift}",
        "add rcx, [r8 + {counters}]",
        "inc qword ptr [rcx + {allocations}]",
        "add [rcx + {bytes}], r9",
        "mov rcx, fs:[0]",
        "mov [r8 + {gate}], rcx",

        "7: pop rax",
        "add al, 127", "sahf", // OF as it was
        "pop r11", "pop r10", "pop r9", "pop r8", "pop rdx", "pop rcx", "pop rax",
        "ret",

        // Of a number, rax and rdx become addresses: what it was and will be, times its scale, from its base on.
        "5: mov ecx, [rsi + {flags}]",
        "test ecx, {counts}", "jz 9f",
        "test ecx, {narrow}", "jz 2f",
        "mov eax, eax",
        "mov edx, edx",
        "2: mov r9d, [rsi + {step}]",
        "test r9d, r9d", "jz 3f",
        "mov rax, rdx",
        "sub rax, r9",
        "jmp 4f",
        "3: mov r9, [rsi + {rounding}]",
        "add rax, r9",
        "not r9",
        "and rax, r9",
        "4: mov r9d, [rsi + {scale}]",
        "imul rax, r9",
        "imul rdx, r9",
        "mov r9, [rsi + {base}]",
        "test ecx, {fixed}", "jnz 2f",
        "add r9, rdi",
        "2: test ecx, {held}", "jz 3f",
        "mov r9, [r9]",
        // Beyond its room it cannot be meant.
        "3: mov r11, [rsi + {room}]",
        "test r11, r11", "jz 4f",
        "cmp rdx, r11", "ja 7b",
        "4: add rax, r9",
        "add rdx, r9",
        "test ecx, {only_back}", "jz 6b",
        "jmp 9f",

        "8: mov rcx, fs:[0]",
        "mov [r8 + {gate}], rcx",
        "9: mov rdi, rax",
        "lea rcx, [rsp + {stack}]",
        "mov r8, rbp",
        "push rbp", "mov rbp, rsp",
        "and rsp, -16", "sub rsp, 256",
        "movaps [rsp], xmm0", "movaps [rsp + 16], xmm1", "movaps [rsp + 32], xmm2", "movaps [rsp + 48], xmm3",
        "movaps [rsp + 64], xmm4", "movaps [rsp + 80], xmm5", "movaps [rsp + 96], xmm6", "movaps [rsp + 112], xmm7",
        "movaps [rsp + 128], xmm8", "movaps [rsp + 144], xmm9", "movaps [rsp + 160], xmm10", "movaps [rsp + 176], xmm11",
        "movaps [rsp + 192], xmm12", "movaps [rsp + 208], xmm13", "movaps [rsp + 224], xmm14", "movaps [rsp + 240], xmm15",
        "call {carve}",
        "movaps xmm0, [rsp]", "movaps xmm1, [rsp + 16]", "movaps xmm2, [rsp + 32]", "movaps xmm3, [rsp + 48]",
        "movaps xmm4, [rsp + 64]", "movaps xmm5, [rsp + 80]", "movaps xmm6, [rsp + 96]", "movaps xmm7, [rsp + 112]",
        "movaps xmm8, [rsp + 128]", "movaps xmm9, [rsp + 144]", "movaps xmm10, [rsp + 160]", "movaps xmm11, [rsp + 176]",
        "movaps xmm12, [rsp + 192]", "movaps xmm13, [rsp + 208]", "movaps xmm14, [rsp + 224]", "movaps xmm15, [rsp + 240]",
        "mov rsp, rbp", "pop rbp",
        "jmp 7b",
        value = const SAVED + Carving::VALUE,
        stack = const SAVED + Carving::MOVED,
        flags = const offset_of!(Carving, flags),
        root = const offset_of!(Carving, number),
        next = const offset_of!(Carving, next),
        step = const offset_of!(Carving, step),
        scale = const offset_of!(Carving, scale),
        rounding = const offset_of!(Carving, rounding),
        base = const offset_of!(Carving, base),
        room = const offset_of!(Carving, room),
        down = const cursor_flags::DOWN,
        counts = const cursor_flags::COUNTS,
        narrow = const cursor_flags::NARROW,
        fixed = const cursor_flags::FIXED,
        held = const cursor_flags::HELD,
        only_back = const cursor_flags::ONLY_BACK,
        place = const PLACE,
        gate = const offset_of!(State, gate),
        pool = const offset_of!(State, pool),
        counters = const offset_of!(State, counters),
        writing = const WRITING,
        closed = sym GATE,
        known = sym KNOWN,
        known_shift = const size_of::<Known>().ilog2(),
        part = const offset_of!(Known, part),
        fresh = const offset_of!(Known, fresh),
        steps = const STEPS,
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
        start = const START as i32,
        single = const SINGLE,
        large_mark = const LARGE_MARK,
        single_size_shift = const SINGLE_SIZE_SHIFT,
        hash = sym HASH_FACTOR,
        hash_shift = const 64 - FIRST_LEVEL,
        parent_shift = const PARENT_SHIFT,
        node_shift = const size_of::<Node>().ilog2(),
        return_address = const offset_of!(Node, return_address),
        parent = const offset_of!(Node, parent),
        rule = const offset_of!(Node, rule),
        id = const offset_of!(Node, id),
        counts_shift = const size_of::<Counts>().ilog2(),
        allocations = const offset_of!(Counts, allocations),
        bytes = const offset_of!(Counts, bytes),
        carve = sym hooks::carve,
    )
}
