//! *How do probes get into a process that runs already, and out of it again?* By `ptrace`, twice for a moment: between, nobody traces
//! it, and it runs at its own speed.
//!
//! ```text
//!   attach    plan for the files that are mapped
//!             all tasks stand                                   tasks
//!             code compared with the files; every thread can go on, or later      object
//!             memory made for island and counters by one of them      calls
//!             islands, then pads written; threads in displaced code go on in its copy
//!   (run)     counters are a memory file, also open here: what was counted stays, whatever ends the process
//!   detach    the process, and what it forked: whoever has the counters mapped
//!             pads taken away, byte for byte; threads in the island go on in the code
//!             island and counters unmapped, unless somebody may come back to them
//! ```
//!
//! Nothing of Pointee runs in the process but the copies: no handler of traps (so none are placed), nobody who hears of objects
//! loaded later. A command that is killed leaves a process that goes on counting, unharmed.

mod calls;
mod kernel;
mod loading;
mod object;
mod observing;
mod space;
mod tasks;

use crate::placements::Wish;
use anyhow::{Context, Result, bail};
use calls::Calls;
use libc::user_regs_struct;
pub(crate) use loading::{Held, Mapped};
use nix::sys::ptrace;
use nix::unistd::Pid;
use object::Object;
pub(crate) use observing::{Call, Observed, observe};
use pointee_probe::Plan;
use space::{Mapping, Memory};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tasks::{Stopped, is_in_call};

/// How often threads are let run on, because one stands where it cannot go on.
const ATTEMPTS: u32 = 200;
/// How long each time.
const A_WHILE: Duration = Duration::from_millis(5);
/// Of what a thread has on its stack, this much is looked at.
const STACK: u64 = 8 << 20;
/// Instructions between two copies, at most: a counter with flags and registers saved, a value taken down.
const STEPS: u32 = 256;
/// How counters are called in `/proc/PID/maps`.
const NAME: &[u8] = b"pointee-counters\0";

/// A process with probes.
#[derive(Debug)]
pub(crate) struct Attached {
    pid: Pid,
    objects: Vec<Object>,
    refused: Vec<Refused>,
}

/// An object without probes.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) path: String,
    pub(crate) plan: Plan,
    pub(crate) why: &'static str,
}

/// What is left in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) pid: Pid,
    pub(crate) why: &'static str,
}

/// Writes the pads, and lets threads in displaced code go on in its copy.
fn enter(objects: &[Object], threads: &[(Pid, user_regs_struct)], memory: &Memory) -> Result<()> {
    for object in objects {
        object.write_pads(memory, false)?;
    }
    for (task, registers) in threads {
        let mut entered = objects
            .iter()
            .filter_map(|object| object.enter(registers, memory).ok());
        if let Some(rip) = entered.find(|at| *at != registers.rip) {
            let moved = user_regs_struct { rip, ..*registers };
            ptrace::setregs(*task, moved).context("registers")?;
        }
    }
    Ok(())
}

impl Attached {
    /// Puts probes into `pid`.
    pub(crate) fn attach(pid: Pid, wish: &Wish) -> Result<Self> {
        refuse_kind(pid)?;
        let mut objects = planned(pid, wish)?;
        let mut refused = Vec::new();
        for attempt in 1.. {
            let stopped = Stopped::stop(pid)?;
            let memory = Memory::open(pid)?;
            let mappings = space::mappings(pid)?;
            take(&mut objects, &mut refused, |object| {
                let same = object.is_as_in_file(&memory);
                (!same).then_some("its code in memory is not the file's")
            });
            let threads = stopped.registers()?;
            refuse_mode(&threads)?;
            let stacks = stacks(&threads, &mappings, &memory);
            let obstacle = |object: &Object| obstacle(object, &threads, &stacks, &memory);
            if attempt < ATTEMPTS && objects.iter().any(|object| obstacle(object).is_some()) {
                drop(stopped);
                std::thread::sleep(A_WHILE);
                continue;
            }
            take(&mut objects, &mut refused, obstacle);
            give_memory(pid, &mut objects, &mut refused, &threads, &memory)?;
            if let Err(error) = enter(&objects, &threads, &memory) {
                // Back to what was, as far as that goes.
                for object in &objects {
                    let _ = object.write_pads(&memory, true);
                }
                for (task, registers) in threads {
                    let _ = ptrace::setregs(task, registers);
                }
                return Err(error.context("no probes were put in; memory made for them stays"));
            }
            break;
        }
        Ok(Self {
            pid,
            objects,
            refused,
        })
    }

    /// Objects that have probes: path, plan, counters.
    pub(crate) fn counted(&self) -> impl Iterator<Item = (&str, &Plan, Vec<u64>)> {
        let counted = self.objects.iter();
        counted.map(|object| (object.path.as_str(), &object.plan, object.counts()))
    }

    /// Objects that have none.
    pub(crate) fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Whether the process runs, and is still the program that was attached to.
    pub(crate) fn is_there(&self) -> bool {
        if self.objects.is_empty() {
            let state = tasks::status(self.pid, self.pid, "State").unwrap_or_default();
            return !state.is_empty() && !state.starts_with(['Z', 'X']);
        }
        self.holds(self.pid)
    }

    /// Takes the probes away, from the process and from what it forked. The answer: where something had to stay.
    pub(crate) fn detach(&self) -> Result<Vec<Left>> {
        let mut left = Vec::new();
        for attempt in 1..=ATTEMPTS {
            left = self.leave()?;
            if left.is_empty() || attempt == ATTEMPTS {
                break;
            }
            std::thread::sleep(A_WHILE);
        }
        Ok(left)
    }

    /// Whether `pid` has counters mapped.
    fn holds(&self, pid: Pid) -> bool {
        let counters = self
            .objects
            .iter()
            .filter_map(|object| object.counters.as_ref());
        let numbers: Vec<u64> = counters
            .filter_map(|file| Some(file.metadata().ok()?.ino()))
            .collect();
        let ours = |mapping: &Mapping| {
            mapping.path.starts_with("/memfd:pointee-counters") && numbers.contains(&mapping.file.1)
        };
        space::mappings(pid).is_ok_and(|all| all.iter().any(ours))
    }

    /// Processes that have counters mapped.
    fn holders(&self) -> BTreeSet<Pid> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten();
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.map(Pid::from_raw)
            .filter(|pid| self.holds(*pid))
            .collect()
    }

    /// One attempt to leave.
    fn leave(&self) -> Result<Vec<Left>> {
        let mut stopped: BTreeMap<Pid, Stopped> = BTreeMap::new();
        // What still runs may fork meanwhile.
        loop {
            let new: Vec<Pid> = self
                .holders()
                .into_iter()
                .filter(|pid| !stopped.contains_key(pid))
                .collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                match Stopped::stop(pid) {
                    Ok(process) => drop(stopped.insert(pid, process)),
                    // Ended meanwhile, or about to.
                    Err(_) if !self.holds(pid) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut left = Vec::new();
        for process in stopped.values() {
            if let Some(why) = self.leave_process(process)? {
                left.push(Left {
                    pid: process.pid,
                    why,
                });
            }
        }
        Ok(left)
    }

    /// Takes the probes out of a process that stands; or why the island has to stay.
    fn leave_process(&self, process: &Stopped) -> Result<Option<&'static str>> {
        let memory = Memory::open(process.pid)?;
        for object in &self.objects {
            object.write_pads(&memory, true)?;
        }
        for (task, registers) in process.registers()? {
            if !is_in_call(&registers) {
                self.bring_home(process.pid, task, registers)?;
            }
        }
        let threads = process.registers()?;
        let inside = |address: u64| {
            self.objects
                .iter()
                .any(|object| object.is_in_island(address))
        };
        if threads.iter().any(|(_, registers)| inside(registers.rip)) {
            return Ok(Some("a thread waits in it"));
        }
        let mappings = space::mappings(process.pid)?;
        let stacks = stacks(&threads, &mappings, &memory);
        if stacks.iter().any(|stack| object::words(stack).any(inside)) {
            return Ok(Some("a signal's handler may return to it"));
        }
        let (Some((task, _)), Some(syscall)) = (threads.first(), memory.find_syscall(&mappings))
        else {
            return Ok(None); // Killed meanwhile.
        };
        let mut calls = Calls::begin(*task, syscall)?;
        for object in &self.objects {
            calls.call(libc::SYS_munmap, [object.island, object.len(), 0, 0, 0, 0])?;
        }
        Ok(None)
    }

    /// Moves a thread from a pad or from the island into the code, as far as that can be done now.
    fn bring_home(&self, pid: Pid, task: Pid, mut registers: user_regs_struct) -> Result<()> {
        let jumped = self
            .objects
            .iter()
            .find_map(|object| object.jump_target(registers.rip));
        let before = registers.rip;
        registers.rip = jumped.unwrap_or(before);
        let holder = |pc: u64| self.objects.iter().find(|object| object.is_in_island(pc));
        if holder(registers.rip).is_none() {
            return Ok(());
        }
        let mask = kernel::blocked(task).context("its signals")?;
        let mut steps = 0;
        while let Some(object) = holder(registers.rip) {
            if let Some(home) = object.home_of(registers.rip) {
                registers.rip = home;
                break;
            }
            // A step ends with SIGTRAP, which a process that ignores it would never ignore again.
            if steps == STEPS || ignores_traps(pid, task) {
                break;
            }
            steps += 1;
            kernel::block(task, !(1 << (libc::SIGTRAP - 1))).context("its signals")?;
            ptrace::setregs(task, registers).context("registers")?;
            let stepped = step(task)?;
            kernel::block(task, mask).context("its signals")?;
            if !stepped {
                return Ok(());
            }
            registers = ptrace::getregs(task).context("registers")?;
        }
        ptrace::setregs(task, registers).context("registers")
    }
}

/// One instruction; `false` if the task is no more.
fn step(task: Pid) -> Result<bool> {
    loop {
        kernel::go_on(libc::PTRACE_SINGLESTEP, task, 0).context("a step")?;
        match kernel::wait(task).context("a step")? {
            kernel::Event::Signal(libc::SIGTRAP) => return Ok(true),
            kernel::Event::Gone => return Ok(false),
            _ => {}
        }
    }
}

fn ignores_traps(pid: Pid, task: Pid) -> bool {
    let ignored = tasks::status(pid, task, "SigIgn");
    let ignored = ignored.and_then(|mask| u64::from_str_radix(&mask, 16).ok());
    ignored.is_none_or(|mask| mask & 1 << (libc::SIGTRAP - 1) != 0)
}

/// Refuses what is no program of 64 bits, or ourselves.
fn refuse_kind(pid: Pid) -> Result<()> {
    if pid == Pid::this() {
        bail!("that is this process");
    }
    let mut kind = [0; 5];
    let exe = format!("/proc/{pid}/exe");
    let read =
        File::open(&exe).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut kind));
    match read {
        Ok(()) if &kind == b"\x7fELF\x02" => Ok(()),
        Ok(()) => bail!("process {pid} is no program of 64 bits"),
        Err(error) => {
            Err(error).with_context(|| format!("process {pid} may not be looked at, or is none"))
        }
    }
}

/// Refuses threads in the mode of 32 bits.
fn refuse_mode(threads: &[(Pid, user_regs_struct)]) -> Result<()> {
    /// The kernel's selector of 64-bit code (arch/x86/include/asm/segment.h, `__USER_CS`).
    const LONG_MODE: u64 = 0x33;
    match threads
        .iter()
        .find(|(_, registers)| registers.cs != LONG_MODE)
    {
        Some((task, _)) => bail!("task {task} executes code of 32 bits"),
        None => Ok(()),
    }
}

/// What is planned for the objects in `pid`.
fn planned(pid: Pid, wish: &Wish) -> Result<Vec<Object>> {
    let mut objects: Vec<Object> = Vec::new();
    for mapping in space::mappings(pid)? {
        let known = |object: &Object| object.range.contains(&mapping.range.start);
        if !mapping.executable || !mapping.path.starts_with('/') || objects.iter().any(known) {
            continue;
        }
        match Object::plan(pid, &mapping, wish) {
            Ok(object) => objects.extend(object),
            Err(error) => eprintln!("pointee: {}: left alone: {error:#}", mapping.path),
        }
    }
    Ok(objects)
}

/// Takes those objects out that there is a reason against.
fn take(
    objects: &mut Vec<Object>,
    refused: &mut Vec<Refused>,
    reason: impl Fn(&Object) -> Option<&'static str>,
) {
    for object in std::mem::take(objects) {
        match reason(&object) {
            None => objects.push(object),
            Some(why) => refused.push(Refused {
                path: object.path,
                plan: object.plan,
                why,
            }),
        }
    }
}

/// Why `object` cannot be given pads now.
fn obstacle(
    object: &Object,
    threads: &[(Pid, user_regs_struct)],
    stacks: &[Vec<u8>],
    memory: &Memory,
) -> Option<&'static str> {
    let stands = threads
        .iter()
        .find_map(|(_, registers)| object.enter(registers, memory).err());
    let interrupted = || {
        stacks
            .iter()
            .any(|stack| object.is_interrupted(stack, memory))
    };
    stands.or_else(|| interrupted().then_some("a signal's handler may return amid displaced code"))
}

/// What threads have on their stacks.
fn stacks(
    threads: &[(Pid, user_regs_struct)],
    mappings: &[Mapping],
    memory: &Memory,
) -> Vec<Vec<u8>> {
    let stack = |(_, registers): &(Pid, user_regs_struct)| {
        let from = registers.rsp & !7;
        let holder = mappings
            .iter()
            .find(|mapping| mapping.range.contains(&from))?;
        let len = (holder.range.end - from).min(STACK);
        memory.read(from, usize::try_from(len).ok()?)
    };
    threads.iter().filter_map(stack).collect()
}

/// Makes islands and counters for `objects`.
fn give_memory(
    pid: Pid,
    objects: &mut Vec<Object>,
    refused: &mut Vec<Refused>,
    threads: &[(Pid, user_regs_struct)],
    memory: &Memory,
) -> Result<()> {
    let (task, _) = threads.first().context("the process has ended")?;
    let syscall = memory
        .find_syscall(&space::mappings(pid)?)
        .context("no code that makes system calls")?;
    let mut calls = Calls::begin(*task, syscall)?;
    let mut made = Vec::new();
    for mut object in std::mem::take(objects) {
        let room = space::room(&space::mappings(pid)?, &object.range, object.len());
        let Some(at) = room else {
            refused.push(Refused {
                path: object.path,
                plan: object.plan,
                why: "no room for the copies near it",
            });
            continue;
        };
        let island_len = object.header.island_len;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let island = calls.call(
            libc::SYS_mmap,
            [
                at,
                island_len,
                (libc::PROT_READ | libc::PROT_EXEC) as u64,
                flags as u64,
                u64::MAX,
                0,
            ],
        )?;
        object.island = island;
        let counters = give_counters(pid, &mut calls, &object, memory);
        let written = counters.and_then(|counters| {
            let bytes = object.island_bytes().context("out of reach")?;
            memory.write(island, &bytes)?;
            Ok(counters)
        });
        match written {
            Ok(counters) => {
                object.counters = Some(counters);
                made.push(object);
            }
            Err(error) => {
                for object in made.iter().chain([&object]) {
                    calls.call(libc::SYS_munmap, [object.island, object.len(), 0, 0, 0, 0])?;
                }
                return Err(error);
            }
        }
    }
    *objects = made;
    Ok(())
}

/// Maps counters behind the island of `object`; the answer is their file.
fn give_counters(pid: Pid, calls: &mut Calls, object: &Object, memory: &Memory) -> Result<File> {
    let len = object.header.counters_len() as u64;
    // The island is not written yet.
    memory.write(object.island, NAME)?;
    let fd = calls.call(
        libc::SYS_memfd_create,
        [object.island, u64::from(libc::MFD_CLOEXEC), 0, 0, 0, 0],
    )?;
    let at = object.island + object.header.island_len;
    let flags = libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE;
    let made = calls
        .call(libc::SYS_ftruncate, [fd, len, 0, 0, 0, 0])
        .and_then(|_| {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            calls.call(
                libc::SYS_mmap,
                [at, len, access as u64, flags as u64, fd, 0],
            )
        });
    let file = made.and_then(|_| {
        let path = format!("/proc/{pid}/fd/{fd}");
        File::options()
            .read(true)
            .write(true)
            .open(&path)
            .context(path)
    });
    calls.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
    file
}
