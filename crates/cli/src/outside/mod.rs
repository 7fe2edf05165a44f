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
//! loaded later.
//!
//! **Who may be killed when.** The process: at any time; what was counted is reported. The command: at any time, see [`keeper`]. The
//! keeper, by a `SIGKILL` of its own: while probes are in, the process goes on counting, unharmed. While it stands for the
//! attachment or the end of it, a few milliseconds, it may be lost: the kernel lets its threads go as they are, one of them
//! perhaps amid a call that was made for us, or with pads of which not all are written.

mod calls;
pub(crate) mod keeper;
mod kernel;
mod loading;
mod mapped;
mod object;
mod observing;
mod pauses;
mod space;
mod tasks;

pub(crate) use pauses::Pauses;

use crate::placements::Wish;
use anyhow::{Context, Result, bail};
use calls::Calls;
use libc::user_regs_struct;
pub(crate) use loading::{Held, Mapped};
use mapped::give_memory;
use nix::sys::ptrace;
use nix::unistd::{Pid, getppid};
use object::Object;
pub(crate) use observing::{Call, Observed, observe};
use pointee_probe::Plan;
use space::{Mapping, Memory};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};
use tasks::{Stopped, is_in_call};

/// How often threads are let run on, because one stands where it cannot go on.
const ATTEMPTS: u32 = 200;
/// How long each time.
const A_WHILE: Duration = Duration::from_millis(5);
/// Of what a thread has on its stack, this much is looked at.
const STACK: u64 = 8 << 20;
/// Instructions between two copies, at most: a counter with flags and registers saved, a value taken down.
const STEPS: u32 = 256;

/// How long a process that was killed may take until it is seen to have ended.
const DEATH: Duration = Duration::from_millis(500);

/// A process with probes.
#[derive(Debug)]
pub(crate) struct Attached {
    pid: Pid,
    objects: Vec<Object>,
    refused: Vec<Refused>,
    /// Until the probes were in.
    pub(crate) attaching: Pauses,
    /// Until they were out again; also of what the process forked.
    pub(crate) detaching: Pauses,
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

/// Lets threads in displaced code go on in its copy, and writes the pads. In this order: a copy can be run without pads, but no
/// code amid them.
fn enter(objects: &[Object], threads: &[(Pid, user_regs_struct)], memory: &Memory) -> Result<()> {
    for (task, registers) in threads {
        let mut entered = objects
            .iter()
            .filter_map(|object| object.enter(registers, memory).ok());
        if let Some(rip) = entered.find(|at| *at != registers.rip) {
            let moved = user_regs_struct { rip, ..*registers };
            ptrace::setregs(*task, moved).context("registers")?;
        }
    }
    for object in objects {
        object.write_pads(memory, false)?;
    }
    Ok(())
}

impl Attached {
    /// Puts probes into `pid`, unless `is_over` before.
    pub(crate) fn attach(pid: Pid, wish: &Wish, is_over: &dyn Fn() -> bool) -> Result<Self> {
        refuse_kind(pid)?;
        let begun = Self::begin(pid, wish, is_over);
        begun.or_else(|error| {
            if is_dying(pid) {
                bail!("process {pid} has ended before all probes were in");
            }
            Err(error)
        })
    }

    fn begin(pid: Pid, wish: &Wish, is_over: &dyn Fn() -> bool) -> Result<Self> {
        let mut objects = planned(pid, wish)?;
        let mut refused = Vec::new();
        let mut attaching = Pauses::default();
        for attempt in 1.. {
            if is_over() {
                bail!("ended by a signal before any probe was put in");
            }
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
                attaching.add(stopped.release());
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
            attaching.add(stopped.release());
            break;
        }
        Ok(Self {
            pid,
            objects,
            refused,
            attaching,
            detaching: Pauses::default(),
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
            return !has_ended(self.pid);
        }
        self.holds(self.pid)
    }

    /// Takes the probes away, from the process and from what it forked. The answer: where something had to stay.
    pub(crate) fn detach(&mut self) -> Result<Vec<Left>> {
        let mut left = Vec::new();
        let mut detaching = Pauses::default();
        for attempt in 1..=ATTEMPTS {
            left = self.leave(&mut detaching)?;
            if left.is_empty() || attempt == ATTEMPTS {
                break;
            }
            std::thread::sleep(A_WHILE);
        }
        self.detaching = detaching;
        Ok(left)
    }

    /// Whether `pid` has counters mapped.
    fn holds(&self, pid: Pid) -> bool {
        let counters = self
            .objects
            .iter()
            .filter_map(|object| object.counters.as_ref());
        let numbers: Vec<u64> = counters
            .filter_map(|counters| Some(counters.file.metadata().ok()?.ino()))
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
    fn leave(&self, pauses: &mut Pauses) -> Result<Vec<Left>> {
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
                    Err(_) if is_dying(pid) || !self.holds(pid) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut left = Vec::new();
        for process in stopped.values() {
            match self.leave_process(process) {
                Ok(None) => {}
                Ok(Some(why)) => left.push(Left {
                    pid: process.pid,
                    why,
                }),
                Err(_) if is_dying(process.pid) => {}
                Err(error) => return Err(error),
            }
        }
        for process in stopped.into_values() {
            pauses.add(process.release());
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

fn has_ended(pid: Pid) -> bool {
    let state = tasks::status(pid, pid, "State").unwrap_or_default();
    state.is_empty() || state.starts_with(['Z', 'X'])
}

/// Whether `pid` has ended, or does so now: what failed may have failed for that.
fn is_dying(pid: Pid) -> bool {
    let deadline = Instant::now() + DEATH;
    while !has_ended(pid) && Instant::now() < deadline {
        std::thread::sleep(A_WHILE);
    }
    has_ended(pid)
}

/// Refuses what is no program of 64 bits, or ourselves.
fn refuse_kind(pid: Pid) -> Result<()> {
    if pid == Pid::this() || pid == getppid() {
        bail!("that is this command");
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
