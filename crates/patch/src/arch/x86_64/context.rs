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
//! **Flags** are kept by `lahf` and `seto`, 0.8 ns here, rather than by `pushfq` and `popfq`, 4.8 ns; those keep the direction
//! flag too, and are used where that is not known to be clear.
//!
//! **Upper halves.** With AVX a handler may change the upper halves even of registers whose lower ones it preserves, so all
//! of a live register is saved. Loading a zero into an upper half would make the processor take it for used, and slow
//! down all SSE code behind it: whether they are all zero is seen from what was saved, and then `vzeroupper` is what restores them.
//! (`xgetbv` would tell too, at 13 ns here; all sixteen registers take 9 to save and restore.)
//!
//! **MXCSR** is written back only if a handler has changed it: `ldmxcsr` takes 5 ns.

use pointee_model::addr::RunAddr;

use super::emit::{EmitError, Emitter};
use super::liveness::{Flags, Live, Vectors};

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
/// The vector register in which the upper halves of all are added up.
const SUM: u16 = 1;
const RCX: u8 = 1;
/// Offsets below the vectors' 16 × 64 bytes: MXCSR before and after, and whether an upper half is in use.
const MXCSR_AT: i32 = 1024;
const MXCSR_AFTER: i32 = 1028;
const DIRTY_AT: i32 = 1032;
const FEW_LEN: i32 = 1088;
/// Where the header of an area of `xsave` must be zero (Intel SDM 1, 13.4.2).
const XSAVE_ZERO: core::ops::Range<i32> = 528..576;

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

/// `lahf; seto al`: in `rax`, without changing what it keeps.
fn save_flags(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x9f, 0x0f, 0x90, 0xc0])
}

/// `add al, 127; sahf`: the sum overflows if the flag was set.
fn restore_flags(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x04, 0x7f, 0x9e])
}

/// `lea rsp, [rsp + by]`, which changes no flag.
fn move_stack(emitter: &mut Emitter<'_>, by: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x8d])?;
    stack_operand(emitter, 4, by)
}

/// ModRM, SIB and displacement of `[rsp + offset]` with `reg`.
fn stack_operand(emitter: &mut Emitter<'_>, reg: u8, offset: i32) -> Result<(), EmitError> {
    let reg = (reg & 7) << 3 | 4;
    match i8::try_from(offset) {
        Ok(short) => emitter.bytes(&[0x40 | reg, 0x24, short as u8]),
        Err(_) => long_operand(emitter, reg, offset),
    }
}

/// The same, always with four bytes: a shorter one is scaled under EVEX.
fn long_operand(emitter: &mut Emitter<'_>, reg: u8, offset: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x80 | reg, 0x24])?;
    emitter.bytes(&offset.to_le_bytes())
}

/// `mov [rsp + offset], register`.
fn store(emitter: &mut Emitter<'_>, register: u8, offset: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48 | (register >> 3) << 2, 0x89])?;
    stack_operand(emitter, register, offset)
}

/// `mov register, [rsp + offset]`.
fn load(emitter: &mut Emitter<'_>, register: u8, offset: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48 | (register >> 3) << 2, 0x8b])?;
    stack_operand(emitter, register, offset)
}

/// `mov register, value`, in the shortest form.
fn constant(emitter: &mut Emitter<'_>, register: u8, value: u64) -> Result<(), EmitError> {
    match u32::try_from(value) {
        Ok(short) => {
            emitter.bytes(&[0xb8 | register])?;
            emitter.bytes(&short.to_le_bytes())
        }
        Err(_) => {
            emitter.bytes(&[0x48, 0xb8 | register])?;
            emitter.bytes(&value.to_le_bytes())
        }
    }
}

/// `mov eax, components; xor edx, edx`.
fn components(emitter: &mut Emitter<'_>, processor: &Processor) -> Result<(), EmitError> {
    constant(emitter, RAX, u64::from(processor.xsave_components))?;
    emitter.bytes(&[0x31, 0xd2])
}

/// Sets [`Registers::vectors`] to the stack pointer, and which they are to `rax`.
fn tell_vectors(emitter: &mut Emitter<'_>) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x89, 0xa3])?; // mov [rbx + …], rsp
    emitter.bytes(&VECTORS_AT.to_le_bytes())?;
    emitter.bytes(&[0x48, 0x89, 0x83])?; // mov [rbx + …], rax
    emitter.bytes(&SAVED_VECTORS_AT.to_le_bytes())
}

/// Makes room of `len` bytes, a multiple of 64, below `rsp`.
fn make_room(emitter: &mut Emitter<'_>, len: i32) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x83, 0xe4, 0xc0])?; // and rsp, -64
    emitter.bytes(&[0x48, 0x81, 0xec])?; // sub rsp, len
    emitter.bytes(&len.to_le_bytes())
}

/// `rax` is 0.
fn save_all(emitter: &mut Emitter<'_>, processor: &Processor) -> Result<(), EmitError> {
    make_room(emitter, processor.xsave_len.next_multiple_of(64) as i32)?;
    for at in XSAVE_ZERO.step_by(8) {
        store(emitter, RAX, at)?;
    }
    emitter.bytes(&[0x48, 0xff, 0xc8])?; // dec rax
    tell_vectors(emitter)?;
    components(emitter, processor)?;
    emitter.bytes(&[0x0f, 0xc7, 0x24, 0x24]) // xsavec [rsp]
}

fn numbers(few: u16) -> impl Iterator<Item = u8> {
    (0..16).filter(move |number| few >> number & 1 != 0)
}

/// A move of all of a vector register to or from its place.
fn move_vector(
    emitter: &mut Emitter<'_>,
    number: u8,
    width: Width,
    save: bool,
) -> Result<(), EmitError> {
    let opcode = if save { 0x29 } else { 0x28 };
    let extended = number >= 8;
    match width {
        Width::Sse if extended => emitter.bytes(&[0x44, 0x0f, opcode])?,
        Width::Sse => emitter.bytes(&[0x0f, opcode])?,
        Width::Avx => emitter.bytes(&[0xc5, if extended { 0x7c } else { 0xfc }, opcode])?,
        Width::Avx512 => {
            let first = if extended { 0x71 } else { 0xf1 };
            emitter.bytes(&[0x62, first, 0x7c, 0x48, opcode])?;
        }
    }
    long_operand(emitter, (number & 7) << 3 | 4, i32::from(number) * 64)
}

fn save_few(emitter: &mut Emitter<'_>, few: u16, width: Width) -> Result<(), EmitError> {
    make_room(emitter, FEW_LEN)?;
    constant(emitter, RAX, u64::from(few))?;
    tell_vectors(emitter)?;
    for number in numbers(few) {
        move_vector(emitter, number, width, true)?;
    }
    emitter.bytes(&[0x0f, 0xae])?; // stmxcsr
    stack_operand(emitter, 3, MXCSR_AT)?;
    if width == Width::Sse {
        return Ok(());
    }
    // All that are live into register 0, whose lowest 128 bits do not count.
    for number in numbers(few).filter(|number| *number != 0) {
        let rm = 0xc0 | number & 7;
        match width {
            Width::Avx512 => {
                let first = if number >= 8 { 0xd1 } else { 0xf1 };
                emitter.bytes(&[0x62, first, 0xfd, 0x48, 0xeb, rm])?; // vporq zmm0, zmm0, …
            }
            _ if number >= 8 => emitter.bytes(&[0xc4, 0xc1, 0x7c, 0x56, rm])?, // vorps ymm0, ymm0, …
            _ => emitter.bytes(&[0xc5, 0xfc, 0x56, rm])?,
        }
    }
    emitter.bytes(&[0xc4, 0xe3, 0x7d, 0x19, 0xc2, 1])?; // vextractf128 xmm2, ymm0, 1
    if width == Width::Avx512 {
        emitter.bytes(&[0x62, 0xf3, 0xfd, 0x48, 0x1b, 0xc1, 1])?; // vextractf64x4 ymm1, zmm0, 1
        emitter.bytes(&[0xc5, 0xf4, 0x56, 0xd2])?; // vorps ymm2, ymm1, ymm2
    }
    emitter.bytes(&[0xc4, 0xe2, 0x7d, 0x17, 0xd2])?; // vptest ymm2, ymm2
    emitter.bytes(&[0x0f, 0x95])?; // setne [rsp + DIRTY_AT]
    stack_operand(emitter, 0, DIRTY_AT)?;
    emitter.bytes(&VZEROUPPER)
}

const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

fn restore_few(emitter: &mut Emitter<'_>, few: u16, width: Width) -> Result<(), EmitError> {
    if width == Width::Sse {
        for number in numbers(few) {
            move_vector(emitter, number, width, false)?;
        }
    } else {
        let len = |width: Width| -> u32 {
            let each = |number: u8| match width {
                Width::Sse => 8 + u32::from(number >= 8),
                Width::Avx => 9,
                Width::Avx512 => 11,
            };
            numbers(few).map(each).sum()
        };
        emitter.bytes(&VZEROUPPER)?;
        emitter.bytes(&[0x80])?; // cmp [rsp + DIRTY_AT], 0
        stack_operand(emitter, 7, DIRTY_AT)?;
        emitter.bytes(&[0])?;
        emitter.bytes(&[0x0f, 0x85])?; // jne
        emitter.bytes(&(len(Width::Sse) + 5).to_le_bytes())?;
        for number in numbers(few) {
            move_vector(emitter, number, Width::Sse, false)?;
        }
        emitter.bytes(&[0xe9])?;
        emitter.bytes(&len(width).to_le_bytes())?;
        for number in numbers(few) {
            move_vector(emitter, number, width, false)?;
        }
    }
    emitter.bytes(&[0x0f, 0xae])?; // stmxcsr
    stack_operand(emitter, 3, MXCSR_AFTER)?;
    emitter.bytes(&[0x8b])?; // mov eax, [rsp + MXCSR_AFTER]
    stack_operand(emitter, RAX, MXCSR_AFTER)?;
    emitter.bytes(&[0x3b])?; // cmp eax, [rsp + MXCSR_AT]
    stack_operand(emitter, RAX, MXCSR_AT)?;
    emitter.bytes(&[0x74, 8])?; // je over
    emitter.bytes(&[0x0f, 0xae])?; // ldmxcsr
    stack_operand(emitter, 2, MXCSR_AT)
}
