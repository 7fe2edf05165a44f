//! *Does a displaced instruction do what the original does?* Both are executed, on random registers, flags, vector registers and memory:
//! instructions of the system's programs, at one place and, relocated, at another. What they leave must be the same, to the flag and the byte, and so
//! must be the address at which they end, also when that is a fault.
//!
//! ```text
//!   a place far from all else: | traps … home … traps | copy near by |     memory, to which registers point     | traps
//!                                                                      another copy, more than 2 GiB away
//! ```
//!
//! One test only, for it takes over the signals of its thread.
#![allow(unsafe_code)] // executes code by address, in signal handlers' frames: there is no other way
#![allow(missing_docs)]

mod binaries;

use std::cell::UnsafeCell;
use std::collections::BTreeMap;

use pointee_model::addr::{LinkAddr, RunAddr};
use pointee_patch::arch::x86_64::decode::{Flow, Instruction, Map, decode};
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::relocate::{Relocated, relocate};
use pointee_patch::arch::x86_64::sweep::sweep;

/// Nothing else lies within 4 GiB of these.
const REGION: u64 = 0x10_0000_0000;
const FAR_COPY: u64 = 0x14_0000_0000;
const HOME: u64 = REGION + 0x8000;
const NEAR_COPY: u64 = REGION + 0x1_0000;
const CODE_LEN: usize = 0x2_0000;
const MEMORY: u64 = REGION + CODE_LEN as u64;
const MEMORY_LEN: usize = 0x4000;
const STACK: u64 = MEMORY + MEMORY_LEN as u64 / 2;
const TRAP: u8 = 0xcc;
/// Windows of each shape, and states for each of them.
const OF_A_SHAPE: usize = 6;
const STATES: u64 = 3;
const MOST: usize = 12_000;

/// What an execution leaves.
#[derive(Clone, PartialEq, Debug)]
struct Left {
    signal: i32,
    at: u64,
    fault: u64,
    general: Vec<i64>,
    vectors: Vec<u32>,
    memory: Vec<u8>,
}

/// What the handler is to load or has found. One thread only.
struct Bench {
    /// The registers to start with; afterwards those left.
    general: [i64; 23],
    vectors: [u32; 64],
    signal: i32,
    fault: u64,
    /// Where the handler was when the execution began.
    controller: Option<[i64; 23]>,
    controller_vectors: [u32; 64],
}

struct Shared(UnsafeCell<Bench>);
// SAFETY: one test, one thread.
unsafe impl Sync for Shared {}
static BENCH: Shared = Shared(UnsafeCell::new(Bench {
    general: [0; 23],
    vectors: [0; 64],
    signal: 0,
    fault: 0,
    controller: None,
    controller_vectors: [0; 64],
}));

/// The first signal of an execution loads the state, the second takes it back.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's frame; nothing else uses the bench meanwhile.
    unsafe {
        let bench = &mut *BENCH.0.get();
        let machine = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext;
        let vectors = (&raw mut (*machine.fpregs)._xmm).cast::<[u32; 64]>();
        match bench.controller.take() {
            None => {
                bench.controller = Some(machine.gregs);
                bench.controller_vectors = *vectors;
                let kept = machine.gregs;
                machine.gregs = bench.general;
                for kernel in [
                    libc::REG_CSGSFS,
                    libc::REG_ERR,
                    libc::REG_TRAPNO,
                    libc::REG_OLDMASK,
                    libc::REG_CR2,
                ] {
                    machine.gregs[kernel as usize] = kept[kernel as usize];
                }
                *vectors = bench.vectors;
            }
            Some(controller) => {
                bench.general = machine.gregs;
                bench.vectors = *vectors;
                bench.signal = signal;
                bench.fault = match signal {
                    libc::SIGSEGV | libc::SIGBUS => (*info).si_addr() as u64,
                    _ => 0,
                };
                machine.gregs = controller;
                *vectors = bench.controller_vectors;
            }
        }
    }
}

fn take_signals() {
    // SAFETY: a stack and handlers of our own.
    unsafe {
        let len = 1 << 16;
        let stack = libc::stack_t {
            ss_sp: map(0, len).cast(),
            ss_flags: 0,
            ss_size: len,
        };
        assert_eq!(libc::sigaltstack(&raw const stack, std::ptr::null_mut()), 0);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGALRM,
        ] {
            assert_eq!(
                libc::sigaction(signal, &raw const action, std::ptr::null_mut()),
                0
            );
        }
    }
}

fn map(at: u64, len: usize) -> *mut u8 {
    let fixed = if at == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    // SAFETY: takes no place that is in use.
    let mapped = unsafe {
        libc::mmap(
            at as *mut _,
            len,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed,
            -1,
            0,
        )
    };
    assert!(mapped != libc::MAP_FAILED, "no memory at {at:#x}");
    mapped.cast()
}

fn bytes_at(at: u64, len: usize) -> &'static mut [u8] {
    // SAFETY: within what `map` has mapped.
    unsafe { std::slice::from_raw_parts_mut(at as *mut u8, len) }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Executes what lies at `at` from the state that `seed` makes.
fn execute(at: u64, seed: u64) -> Left {
    let mut random = Random(seed * 2 + 1);
    let memory = bytes_at(MEMORY, MEMORY_LEN);
    for word in memory.chunks_exact_mut(8) {
        // Pointers into memory among them.
        let value = random.next();
        let value = if value % 3 == 0 {
            MEMORY + value % MEMORY_LEN as u64
        } else {
            value
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    // SAFETY: the state is loaded and taken back by the handler; the code at `at` can reach nothing but the region, which is not
    // Rust's.
    unsafe {
        let bench = BENCH.0.get();
        for register in 0..16 {
            let value = random.next();
            // Mostly addresses in the middle of memory, or small numbers.
            (*bench).general[register] = match value % 4 {
                0 => (value >> 8) as i64 & 0x3f,
                1 => value as i64,
                _ => (MEMORY + MEMORY_LEN as u64 / 4 + value % (MEMORY_LEN as u64 / 2)) as i64,
            };
        }
        (*bench).general[libc::REG_RCX as usize] &= 0x3f;
        (*bench).general[libc::REG_RSP as usize] = STACK as i64;
        (*bench).general[libc::REG_RIP as usize] = at as i64;
        // Carry, parity, adjust, zero, sign, overflow.
        (*bench).general[libc::REG_EFL as usize] = (random.next() & 0x8d5 | 0x202) as i64;
        (*bench).vectors = std::array::from_fn(|_| random.next() as u32);
        std::arch::asm!("int3", clobber_abi("C"));
        let left = &*bench;
        let mut general = left.general[..17].to_vec();
        let at = general[libc::REG_RIP as usize] as u64;
        general[libc::REG_RIP as usize] = 0;
        // Not the flag by which the processor marks that an instruction is to go on after its fault.
        general.push(left.general[libc::REG_EFL as usize] & !0x1_0000);
        Left {
            signal: left.signal,
            at,
            fault: left.fault,
            general,
            vectors: left.vectors.to_vec(),
            memory: memory.to_vec(),
        }
    }
}

/// Whether two executions of it can be compared: nothing that asks the world, changes what the handler needs, or loops.
fn can_be_compared(instruction: &Instruction, bytes: &[u8]) -> bool {
    let primary =
        |opcodes: &[u8]| instruction.map == Map::Primary && opcodes.contains(&instruction.opcode);
    let second =
        |opcodes: &[u8]| instruction.map == Map::Map0F && opcodes.contains(&instruction.opcode);
    let system = matches!(
        instruction.flow,
        Flow::Syscall | Flow::Trap | Flow::TransactionBegin(_)
    );
    // popf, iret, pop and moves of segments, far calls, jumps and returns, enter, std
    let awkward = primary(&[0x8e, 0x8c, 0x9d, 0xca, 0xcb, 0xcf, 0xc8, 0xfd])
        || primary(&[0xff]) && matches!(instruction.modrm.map(|m| m.reg()), Some(3 | 5));
    // rdtsc, rdtscp and kin, fences and saved states, cpuid, rdrand, pop fs, gs
    let asks = second(&[
        0x01, 0x31, 0x32, 0x33, 0xa2, 0xae, 0xc7, 0xa1, 0xa9, 0xb2, 0xb4, 0xb5,
    ]);
    // The x87 unit's state holds the address of its last instruction.
    let x87 = primary(&[0x9b, 0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf]);
    !(system
        || awkward
        || asks
        || x87
        || instruction.prefixes.segment.is_some()
        || bytes.is_empty())
}

/// The instructions at the start of `code` that cover five bytes, as they are to be executed at `HOME`: branches go to traps, and operands
/// relative to the instruction lie in memory.
fn window(code: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut window = Vec::new();
    while window.len() < 5 {
        let rest = code.get(window.len()..)?;
        let instruction = decode(rest).ok()?;
        let mut bytes = rest.get(..usize::from(instruction.len))?.to_vec();
        if !can_be_compared(&instruction, &bytes) {
            return None;
        }
        let end = HOME + (window.len() + bytes.len()) as u64;
        if let Some(relative) = instruction.flow.relative() {
            let at = usize::from(relative.at);
            match relative.width {
                // Beyond the window, whatever comes behind.
                1 => bytes[at] = 0x20 + (random.next() & 0x3f) as u8,
                4 => bytes[at..at + 4]
                    .copy_from_slice(&(0x40 + (random.next() & 0x3fff) as u32).to_le_bytes()),
                _ => return None,
            }
        }
        if let Some(at) = instruction.rip_relative {
            let target = MEMORY + 0x100 + (random.next() & 0x1ff8);
            let at = usize::from(at);
            bytes[at..at + 4].copy_from_slice(&((target - end) as u32).to_le_bytes());
        }
        let last = instruction.flow != Flow::Next;
        window.extend(bytes);
        if last && window.len() < 5 && instruction.flow.ends_block() {
            break;
        }
    }
    Some(window)
}

/// Two windows of the same shape differ in numbers only.
fn shape(window: &[u8]) -> Option<Vec<(u8, u8, bool)>> {
    sweep(window, LinkAddr(0))
        .map(|(_, i)| {
            let form = i.modrm.map_or(0, |modrm| modrm.0 & 0xc7);
            Some((i.opcode, form, i.rip_relative.is_some()))
        })
        .collect()
}

/// What differs when the copy is executed instead.
fn difference(window: &[u8], copy: u64, copied: &Relocated, seed: u64) -> Option<String> {
    let original = execute(HOME, seed);
    // A call that faults for its target has not pushed; its copy has, before it jumps.
    let into = original.at.wrapping_sub(HOME) as usize;
    if let Some(Ok(instruction)) = window.get(into..).map(decode)
        && instruction.flow == Flow::IndirectCall
    {
        return None;
    }
    let mut moved = execute(copy, seed);
    // A fault in the copy of an instruction is one of the instruction.
    let into = moved.at.wrapping_sub(copy);
    if into < copied.len as u64 {
        let mut landings = copied.landings().iter().rev();
        let landing = landings.find(|landing| u64::from(landing.copy) <= into)?;
        moved.at = HOME + u64::from(landing.original);
    }
    (original != moved).then(|| {
        let memory = original.memory.iter().zip(&moved.memory).position(|(a, b)| a != b);
        format!(
            "{window:02x?} seed {seed}: signal {} at {:#x} for {:#x}, copy {} at {:#x} for {:#x}\n{:x?}\n{:x?}\nmemory differs at {memory:?}",
            original.signal, original.at, original.fault, moved.signal, moved.at, moved.fault, original.general, moved.general
        )
    })
}

#[test]
fn displaced_instructions_do_what_they_did() {
    map(REGION, CODE_LEN + MEMORY_LEN);
    // A jump there is to fault, not to execute what happens to lie there.
    // SAFETY: just mapped.
    let done = unsafe {
        libc::mprotect(
            MEMORY as *mut _,
            MEMORY_LEN,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    };
    assert_eq!(done, 0);
    map(FAR_COPY, 0x1000);
    take_signals();
    let mut random = Random(20_261_121);
    let mut shapes: BTreeMap<_, usize> = BTreeMap::new();
    let (mut executed, mut faults, mut branches, mut refused) = (0, 0, 0, 0);
    let texts: Vec<_> = binaries::paths()
        .iter()
        .flat_map(|path| binaries::read(path).texts)
        .collect();
    let share = MOST / texts.len().max(1);
    for text in &texts {
        let mut taken = 0;
        let starts: Vec<u64> = sweep(&text.bytes, LinkAddr(text.at))
            .map(|(at, _)| at.0 - text.at)
            .collect();
        for _ in 0..share * 8 {
            if taken == share || starts.is_empty() {
                break;
            }
            let start = starts[random.next() as usize % starts.len()] as usize;
            let Some(window) = window(&text.bytes[start..], &mut random) else {
                continue;
            };
            let times = shapes.entry(shape(&window)).or_default();
            if *times == OF_A_SHAPE {
                continue;
            }
            *times += 1;
            taken += 1;
            bytes_at(REGION, CODE_LEN).fill(TRAP);
            bytes_at(HOME, window.len()).copy_from_slice(&window);
            for copy in [NEAR_COPY, FAR_COPY] {
                let room = bytes_at(copy, 0x200);
                room.fill(TRAP);
                let Ok(copied) = relocate(&window, RunAddr(HOME), RunAddr(copy), room) else {
                    refused += 1;
                    continue;
                };
                if copied.falls_through {
                    let mut emitter =
                        Emitter::new(&mut room[copied.len..], RunAddr(copy + copied.len as u64));
                    emitter
                        .jump(RunAddr(HOME + window.len() as u64))
                        .expect("room");
                }
                for state in 0..STATES {
                    let seed = random.next() >> 8 | state;
                    if let Some(difference) = difference(&window, copy, &copied, seed) {
                        panic!("copy at {copy:#x}: {difference}");
                    }
                    executed += 1;
                    // SAFETY: as the handler left it.
                    let bench = unsafe { &*BENCH.0.get() };
                    faults += u32::from(bench.signal != libc::SIGTRAP);
                }
            }
            branches += usize::from(sweep(&window, LinkAddr(0)).any(|(_, i)| i.flow != Flow::Next));
        }
    }
    println!(
        "{executed} executions of {} shapes: {faults} end with a fault; {branches} windows with branches; {refused} not relocated",
        shapes.len()
    );
    assert!(
        executed > 10_000 && branches > 500 && faults * 2 < executed,
        "too little was executed"
    );
}
