//! *How is something done at an instruction without a trace?* The code in front of the displaced instructions that counts, or calls
//! handlers with the processor's state around them saved.
//!
//! ```text
//!   context        what the handler may change           what is written
//!   Nothing        nothing at all                        lea rsp over the red zone; call; lea back
//!   General        what the psABI lets a call change,    Registers, at a distance from the stack pointer
//!                  but no vector register
//!   Everything     what the psABI lets a call change     and below it: the vectors that are read (see `liveness`),
//!                                                        64 bytes each, or all by xsavec
//!
//!   rsp at the instruction ──►┌──────────────────────┐
//!                             │ red zone, 128 bytes  │
//!                             ├──────────────────────┤
//!                       rbx ──►  Registers           │
//!                             ├──────────────────────┤ a multiple of 64
//!                             │ vectors              │
//!                       rsp ──►──────────────────────┘ call
//! ```
//!
//! Several actions at one instruction share what is saved, and come one after the other.
//!
//! How flags are kept, and what it costs, is told in `moves.rs`; of vector registers, in `vectors.rs`.

mod moves;
mod vectors;

use pointee_model::addr::RunAddr;

use super::emit::{EmitError, Emitter};
use super::liveness::{Flags, Live, Vectors};
use moves::{constant, load, move_stack, restore_flags, save_flags, stack_operand, store};
use vectors::{SUM, components, restore_few, save_all, save_few};

/// What a handler of context [`Context::General`] or more is given, and may change.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// As named, in the order of the processor's numbers.
    pub rax: u64,
    /// As named.
    pub rcx: u64,
    /// As named.
    pub rdx: u64,
    /// As named.
    pub rbx: u64,
    /// The stack pointer; a change has no effect.
    pub rsp: u64,
    /// As named.
    pub rbp: u64,
    /// As named.
    pub rsi: u64,
    /// As named.
    pub rdi: u64,
    /// `r8` to `r15`.
    pub high: [u64; 8],
    /// The instruction; a change has no effect.
    pub rip: u64,
    /// As `lahf` and `seto al` have left `rax`: overflow in bit 0, in bits 8 to 15 sign, zero, adjust, parity and carry; or as `pushfq`
    /// pushes them. Not set when nobody reads them.
    pub flags: u64,
    /// Where the vector registers lie: each 64 bytes from the one before; or what `xsavec` has written. 0: not saved.
    pub vectors: u64,
    /// Those of them that are there, a bit each; all of them, as `xsavec` writes them, when it is [`XSAVED`].
    pub saved_vectors: u64,
}

/// See [`Registers::saved_vectors`].
pub const XSAVED: u64 = u64::MAX;

/// How much around a handler is saved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Context {
    /// Nothing: the handler is a leaf of assembly that changes no register and no flag. It is given nothing.
    Nothing,
    /// General registers and flags. The handler uses no vector register (`-mgeneral-regs-only`).
    General,
    /// Vector registers too: any function of C.
    Everything,
}

/// What is done at an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The 64-bit word at `cell` grows by one.
    Count {
        /// The word; cheaper within 2 GiB.
        cell: RunAddr,
        /// With other threads that count there too.
        shared: bool,
    },
    /// `handler(&mut Registers, data)`, as the psABI has it.
    Call {
        /// The handler; it returns.
        handler: RunAddr,
        /// Given to it.
        data: u64,
        /// How much of the state is around it.
        context: Context,
    },
}

/// The vector registers of a processor, and how it saves them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Processor {
    /// Their width.
    pub width: Width,
    /// State components that `xsavec` is to save: all of user space that functions may change.
    pub xsave_components: u32,
    /// Bytes that it writes at most.
    pub xsave_len: u32,
}

/// Of vector registers, as the kernel has them switched on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Width {
    /// 16 bytes.
    Sse,
    /// 32 bytes.
    Avx,
    /// 64 bytes, and masks.
    Avx512,
}

/// Where in the code the stack pointer has moved, for unwind rules.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Frame {
    /// From this byte on, counted from the start of what was emitted, the stack pointer is `moved` bytes lower.
    pub begins: u16,
    /// From here on `rbx` is the address of [`Registers`]; 0: it never is.
    pub based: u16,
    /// From here on the stack pointer is `moved` bytes lower again, and `rbx` the program's.
    pub unbased: u16,
    /// Here all is as it was.
    pub ends: u16,
    /// In bytes.
    pub moved: u16,
}

/// What a stretch of what [`act`] writes is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Part {
    /// To keep the state.
    Save,
    /// The action with this number.
    Action(usize),
    /// To bring the state back.
    Restore,
}

/// psABI x86-64, 3.2.2.
const RED_ZONE: i32 = 128;
const FRAME: i32 = size_of::<Registers>() as i32;
const MOVED: i32 = RED_ZONE + FRAME;
const RSP_AT: i32 = 32;
/// Where [`Registers::rbx`] lies, for unwind rules.
pub const RBX_AT: u8 = 24;
const RIP_AT: i32 = 128;
const FLAGS_AT: i32 = 136;
const VECTORS_AT: i32 = 144;
const SAVED_VECTORS_AT: i32 = 152;
/// Registers in the order of their numbers; the stack pointer is none of them.
const GENERAL: [u8; 15] = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const RAX: u8 = 0;
const RCX: u8 = 1;

/// Writes code that does `actions`, in order, with nothing changed behind it. `at` is the instruction that they are for. `told` is told of
/// each part before it is written, with its offset in the buffer.
///
/// # Errors
/// [`EmitError`].
pub fn act(
    emitter: &mut Emitter<'_>,
    actions: &[Action],
    live: Live,
    at: RunAddr,
    processor: &Processor,
    told: &mut dyn FnMut(Part, usize),
) -> Result<Option<Frame>, EmitError> {
    let deepest = actions.iter().filter_map(|action| match action {
        Action::Call { context, .. } => Some(*context),
        Action::Count { .. } => None,
    });
    match deepest.max() {
        Some(deepest @ (Context::General | Context::Everything)) => {
            framed(emitter, actions, live, at, processor, deepest, told).map(Some)
        }
        nothing => bare(emitter, actions, live, nothing.is_some(), told),
    }
}

/// Without [`Registers`]: counters, and handlers that change nothing.
fn bare(
    emitter: &mut Emitter<'_>,
    actions: &[Action],
    live: Live,
    calls: bool,
    told: &mut dyn FnMut(Part, usize),
) -> Result<Option<Frame>, EmitError> {
    let start = emitter.len();
    let far = actions.iter().any(|action| match action {
        Action::Count { cell, .. } => !emitter.is_near(*cell),
        Action::Call { .. } => false,
    });
    let counts = actions
        .iter()
        .any(|action| matches!(action, Action::Count { .. }));
    let keeps_flags = counts && live.flags != Flags::Dead;
    let saves = far || keeps_flags;
    if !saves && !calls {
        each(emitter, actions, Scratch::None, told)?;
        return Ok(None);
    }
    let moved = RED_ZONE + 16;
    told(Part::Save, start);
    move_stack(emitter, -moved)?;
    let begins = (emitter.len() - start) as u16;
    if saves {
        store(emitter, RAX, 0)?;
        store(emitter, RCX, 8)?;
    }
    if keeps_flags {
        save_flags(emitter)?;
    }
    each(emitter, actions, Scratch::Rcx, told)?;
    told(Part::Restore, emitter.len());
    if keeps_flags {
        restore_flags(emitter)?;
    }
    if saves {
        load(emitter, RAX, 0)?;
        load(emitter, RCX, 8)?;
    }
    move_stack(emitter, moved)?;
    let ends = (emitter.len() - start) as u16;
    Ok(Some(Frame {
        begins,
        based: 0,
        unbased: 0,
        ends,
        moved: moved as u16,
    }))
}

fn framed(
    emitter: &mut Emitter<'_>,
    actions: &[Action],
    live: Live,
    at: RunAddr,
    processor: &Processor,
    deepest: Context,
    told: &mut dyn FnMut(Part, usize),
) -> Result<Frame, EmitError> {
    let start = emitter.len();
    told(Part::Save, start);
    let here = |emitter: &Emitter<'_>| (emitter.len() - start) as u16;
    move_stack(emitter, -MOVED)?;
    let begins = here(emitter);
    for register in GENERAL {
        store(emitter, register, i32::from(register) * 8)?;
    }
    match live.flags {
        Flags::Dead => {}
        Flags::Arithmetic => {
            save_flags(emitter)?;
            store(emitter, RAX, FLAGS_AT)?;
        }
        Flags::All => {
            emitter.bytes(&[0x9c, 0x8f])?; // pushfq; pop [rsp + FLAGS_AT]; cld
            stack_operand(emitter, 0, FLAGS_AT)?;
            emitter.bytes(&[0xfc])?;
        }
    }
    emitter.bytes(&[0x48, 0x8d])?; // lea rax, [rsp + MOVED]
    stack_operand(emitter, RAX, MOVED)?;
    store(emitter, RAX, RSP_AT)?;
    constant(emitter, RAX, at.0)?;
    store(emitter, RAX, RIP_AT)?;
    let vectors = match (deepest, live.vectors) {
        (Context::Everything, vectors) => Some(vectors),
        _ => None,
    };
    emitter.bytes(&[0x31, 0xc0])?; // xor eax, eax
    if vectors.is_none() {
        store(emitter, RAX, VECTORS_AT)?;
    }
    emitter.bytes(&[0x48, 0x89, 0xe3])?; // mov rbx, rsp
    let based = here(emitter);
    match vectors {
        None => emitter.bytes(&[0x48, 0x83, 0xe4, 0xc0])?, // and rsp, -64
        Some(Vectors::All) => save_all(emitter, processor)?,
        Some(Vectors::Few(few)) => save_few(emitter, few | SUM, processor.width)?,
    }
    each(emitter, actions, Scratch::All, told)?;
    told(Part::Restore, emitter.len());
    match vectors {
        None => {}
        Some(Vectors::All) => {
            components(emitter, processor)?;
            emitter.bytes(&[0x0f, 0xae, 0x2c, 0x24])?; // xrstor [rsp]
        }
        Some(Vectors::Few(few)) => restore_few(emitter, few | SUM, processor.width)?,
    }
    emitter.bytes(&[0x48, 0x89, 0xdc])?; // mov rsp, rbx
    match live.flags {
        Flags::Dead => {}
        Flags::Arithmetic => {
            load(emitter, RAX, FLAGS_AT)?;
            restore_flags(emitter)?;
        }
        Flags::All => {
            emitter.bytes(&[0xff])?; // push [rsp + FLAGS_AT]; popfq
            stack_operand(emitter, 6, FLAGS_AT)?;
            emitter.bytes(&[0x9d])?;
        }
    }
    let rbx = 3;
    let mut unbased = 0;
    for register in GENERAL {
        load(emitter, register, i32::from(register) * 8)?;
        if register == rbx {
            unbased = here(emitter);
        }
    }
    move_stack(emitter, MOVED)?;
    Ok(Frame {
        begins,
        based,
        unbased,
        ends: here(emitter),
        moved: MOVED as u16,
    })
}

/// Which registers are free between two actions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scratch {
    None,
    Rcx,
    All,
}

fn each(
    emitter: &mut Emitter<'_>,
    actions: &[Action],
    scratch: Scratch,
    told: &mut dyn FnMut(Part, usize),
) -> Result<(), EmitError> {
    for (number, action) in actions.iter().enumerate() {
        told(Part::Action(number), emitter.len());
        one(emitter, action, scratch)?;
    }
    Ok(())
}

fn one(emitter: &mut Emitter<'_>, action: &Action, scratch: Scratch) -> Result<(), EmitError> {
    match *action {
        Action::Count { cell, shared } => {
            let near = emitter.is_near(cell);
            if !near && scratch == Scratch::None {
                return Err(EmitError::OutOfReach);
            }
            if !near {
                constant(emitter, RCX, cell.0)?;
            }
            if shared {
                emitter.bytes(&[0xf0])?;
            }
            if near {
                emitter.relative(&[0x48, 0xff, 0x05], cell, 0) // inc [rip + …]
            } else {
                emitter.bytes(&[0x48, 0xff, 0x01]) // inc [rcx]
            }
        }
        Action::Call {
            handler,
            data,
            context,
        } => {
            if context != Context::Nothing {
                emitter.bytes(&[0x48, 0x89, 0xdf])?; // mov rdi, rbx
                constant(emitter, 6, data)?;
            }
            if emitter.is_near(handler) {
                return emitter.relative(&[0xe8], handler, 0);
            }
            emitter.bytes(&[0xff, 0x15, 2, 0, 0, 0, 0xeb, 8])?; // call [rip + 2]; jmp over
            emitter.bytes(&handler.0.to_le_bytes())
        }
    }
}
