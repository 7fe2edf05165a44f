//! *What happens in the target?* — world: hooks and target (`no_std`, no libc, nothing imported).
//!
//! `libpointee.so` has no NEEDED entry and no undefined symbol. It is preloaded, or mapped by
//! other means and entered at `pointee_start` with a hand-off block.
//!
//! ```text
//!   start      reads the hand-off, sets up the region, plants the hooks
//!     environment  the hand-off, and how the program does not see it (environ_end: nor does /proc)
//!     modules    the link map: which objects are loaded, and when that changes
//!     locate     the allocation functions of an object: dynamic symbols, symbol table (elf_file: what only the file says)
//!     operators  C++'s `new` and `delete`, told from malloc and free (callee: what a call reaches)
//!     plant      pads and trampolines: writes what `pointee-patch` has planned
//!   hooks      what runs instead of malloc, free and kin
//!     fast       their usual case, in assembly
//!     threads    which counters are this thread's
//!     walk       from the return address out of the wrappers: the origin
//!       cfi        the frame rule of a return address, from .eh_frame (unwind_table: where that is)
//!     mismatch   blocks freed by the wrong function
//!     pools      blocks cut out of blocks
//!     heap       the index ahead of a growing heap
//!     signal_stacks  what threads run their signal handlers on
//!   api        what the program asks about itself (include/pointee.h)
//!   probes     instead of all that: placements that the command has planned
//!     traps      what an `int3` of theirs does, and the program's own SIGTRAP (signal_calls: its calls about it)
//!   peak       the blocks at the highest point, copied
//!   process    fork and exit: where one region ends and another begins
//!   exec       how the next program comes to be recorded (spare_stack: on which stack that is prepared)
//! ```
//!
//! Invariants: code reached from a hook allocates nothing, blocks on nothing that the program
//! could hold, and changes no errno (it knows none). On the hot path it makes no system call.
#![no_std]

mod announce;
mod api;
mod build_id;
mod callee;
mod carvings;
mod cfi;
mod declared;
mod elf_file;
mod environ_end;
mod environment;
mod exec;
mod fast;
mod fast_carve;
mod fast_pool;
mod following;
mod freestanding;
mod heap;
mod hooks;
mod locate;
mod mappings;
mod mismatch;
mod modules;
mod operators;
mod peak;
mod plant;
mod pools;
mod probes;
mod process;
mod region;
mod signal_calls;
mod signal_stacks;
mod spare_stack;
mod start;
mod sys;
mod threads;
mod traps;
mod unwind_table;
mod walk;
