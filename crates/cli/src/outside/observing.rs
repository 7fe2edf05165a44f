//! *What are the functions of a program called with, and what do they return?* — for a program that has no names for them.
//!
//! A breakpoint at every function's first byte, and one where each call that was seen returns to; a task that meets one is stopped, looked
//! at, and stepped over the instruction. That is slow, so it is bounded: a function that has nothing to do with memory that was handed out is
//! left alone when that is known. Those that have are all watched to the end: what one gives, another takes back. At the
//! end all bytes are what they were, and nobody traces the program.
//!
//! Threads are followed. A forked child gets its bytes back and goes on unseen; one that still has its parent's memory (`vfork`) is followed until
//! it executes a program.

use super::kernel::{self, Event};
use super::loading::Held;
use super::space::{self, Mapping, Memory};
use anyhow::{Context, Result};
use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

const INT3: u8 = 0xcc;
/// Calls of a function that are looked at before it is known whether it has to do with memory.
const TRIAL: u32 = 48;
/// As many times more if they have no first argument: of what is freed, much is null.
const NULLS: u32 = 8;
/// Calls that are kept, at most: 64 bytes each.
const MOST_CALLS: usize = 4_000_000;

/// A call that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// Number of the function.
    pub(crate) function: usize,
    /// When it began and when it returned, in steps of one for all calls; `None`: it was not seen to return.
    pub(crate) began: u64,
    pub(crate) ended: Option<u64>,
    pub(crate) arguments: [u64; 3],
    /// What it returned; 0 if that was not seen.
    pub(crate) result: u64,
    /// Whether that lies in memory that the kernel gave the program when it ran: not in its file, not on a stack.
    pub(crate) is_in_heap: bool,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) pid: Pid,
    /// In order of their beginnings.
    pub(crate) calls: Vec<Call>,
    /// Whether the program went on unwatched, as the time was over or no more calls could be kept.
    pub(crate) is_part: bool,
    /// How the program ended (wait(2)), if it did meanwhile.
    pub(crate) ended: Option<i32>,
}

/// Runs the program on while its functions are watched, which start at the link-time addresses `starts` of an image that is entered at
/// `entry`; for no longer than `patience`.
pub(crate) fn observe(
    held: Held,
    starts: &[u64],
    entry: u64,
    patience: Duration,
) -> Result<Observed> {
    let pid = held.pid();
    let bias = entry_of(pid)?.wrapping_sub(entry);
    let options = ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_TRACEFORK
        | ptrace::Options::PTRACE_O_TRACEVFORK
        | ptrace::Options::PTRACE_O_TRACEEXEC
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options).context("ptrace")?;
    let mut observer = Observer {
        pid,
        memory: Memory::open(pid)?,
        points: BTreeMap::new(),
        tasks: HashMap::from([(pid, Task::default())]),
        interest: vec![Interest::default(); starts.len()],
        bases: HashSet::new(),
        from_start: ranges(pid, |_| true)?,
        heap: Vec::new(),
        elsewhere: HashSet::new(),
        calls: Vec::new(),
        clock: 0,
        ended: None,
    };
    for (number, start) in starts.iter().enumerate() {
        if let Some(point) = observer.plant(start.wrapping_add(bias))? {
            point.function = Some(number);
        }
    }
    go_on(libc::PTRACE_CONT, pid, 0)?;
    let outcome = observer.watch(Instant::now() + patience);
    let is_part = !observer.tasks.is_empty();
    let outcome = observer.leave().and(outcome);
    let Observer { calls, ended, .. } = observer;
    outcome.map(|()| Observed {
        pid,
        calls,
        is_part,
        ended,
    })
}

fn entry_of(pid: Pid) -> Result<u64> {
    const AT_ENTRY: u64 = 9;
    let vector = std::fs::read(format!("/proc/{pid}/auxv")).context("its auxiliary vector")?;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    vector
        .chunks_exact(16)
        .find(|entry| word(&entry[..8]) == AT_ENTRY)
        .map(|entry| word(&entry[8..]))
        .context("the kernel does not say where it begins")
}

/// An address with a breakpoint.
#[derive(Debug)]
struct Point {
    original: u8,
    /// The function that begins here, while it is watched.
    function: Option<usize>,
    /// Calls that will return here.
    returns: u32,
}

/// What is known of one function.
#[derive(Debug, Clone, Copy, Default)]
struct Interest {
    calls: u32,
    /// Those whose first argument is 0.
    nulls: u32,
    /// Results in memory that was handed out, and not among its own arguments.
    gives: u32,
    /// First arguments that some function gave, and those that lie in the heap and none gave.
    takes: u32,
    takes_others: u32,
}

impl Interest {
    fn is_over(self) -> bool {
        let others = self.calls - self.nulls;
        let is_trial_over = others >= TRIAL || self.calls >= TRIAL * NULLS;
        let gives = self.gives * 8 >= self.calls;
        let takes = self.takes * 2 >= others && self.takes > self.takes_others * 8;
        is_trial_over && !gives && !takes
    }
}

#[derive(Debug, Default)]
struct Task {
    /// It is stepping over the breakpoint at this address.
    stepping: Option<u64>,
    /// The calls that it is in.
    frames: Vec<Frame>,
}

/// Number of a call, the stack pointer at its entry, where it returns to.
type Frame = (usize, u64, u64);

struct Observer {
    pid: Pid,
    memory: Memory,
    points: BTreeMap<u64, Point>,
    tasks: HashMap<Pid, Task>,
    interest: Vec<Interest>,
    /// What functions gave.
    bases: HashSet<u64>,
    /// What was mapped before the program began.
    from_start: Vec<Range<u64>>,
    /// What the kernel has given it since.
    heap: Vec<Range<u64>>,
    /// Pages that were in neither when they were looked for.
    elsewhere: HashSet<u64>,
    calls: Vec<Call>,
    clock: u64,
    ended: Option<i32>,
}

fn ranges(pid: Pid, is_wanted: impl Fn(&Mapping) -> bool) -> Result<Vec<Range<u64>>> {
    let mappings = space::mappings(pid)?.into_iter();
    Ok(mappings
        .filter(|mapping| is_wanted(mapping))
        .map(|mapping| mapping.range)
        .collect())
}

impl Observer {
    /// A breakpoint at `at`, new or not; `None` where nothing can be read.
    fn plant(&mut self, at: u64) -> Result<Option<&mut Point>> {
        if !self.points.contains_key(&at) {
            let Some(original) = self.memory.read(at, 1) else {
                return Ok(None);
            };
            self.memory.write(at, &[INT3])?;
            let point = Point {
                original: original[0],
                function: None,
                returns: 0,
            };
            self.points.insert(at, point);
        }
        Ok(self.points.get_mut(&at))
    }

    /// Whether the kernel has given the program the memory at `address` since it began.
    fn is_in_heap(&mut self, address: u64) -> bool {
        let holds = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&address));
        if holds(&self.heap) {
            return true;
        }
        let page = address >> 12;
        if !(1 << 16..1 << 47).contains(&address)
            || holds(&self.from_start)
            || self.elsewhere.contains(&page)
        {
            return false;
        }
        let is_given = |mapping: &Mapping| mapping.file.1 == 0 && !mapping.executable;
        let from_start = &self.from_start;
        if let Ok(mut heap) = ranges(self.pid, is_given) {
            heap.retain(|range| !from_start.iter().any(|old| old.contains(&range.start)));
            self.heap = heap;
        }
        let is_there = self.heap.iter().any(|range| range.contains(&address));
        if !is_there {
            self.elsewhere.insert(page);
        } else {
            self.elsewhere.clear();
        }
        is_there
    }

    /// Until the program ends, or enough was seen.
    fn watch(&mut self, deadline: Instant) -> Result<()> {
        while !self.tasks.is_empty() {
            let mut status = 0;
            match kernel::wait_any(&mut status) {
                Ok(task) => self.event(task, status)?,
                Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for the program"),
            }
            if self.calls.len() >= MOST_CALLS || Instant::now() > deadline {
                return Ok(());
            }
        }
        Ok(())
    }

    fn event(&mut self, task: Pid, status: i32) -> Result<()> {
        if !libc::WIFSTOPPED(status) {
            self.tasks.remove(&task);
            if task == self.pid {
                self.ended = Some(status);
            }
            return Ok(());
        }
        let signal = libc::WSTOPSIG(status);
        let passed = match status >> 16 {
            libc::PTRACE_EVENT_EXEC => {
                // Another program: none of its bytes were changed.
                self.tasks.remove(&task);
                let _ = ptrace::detach(task, None);
                return Ok(());
            }
            libc::PTRACE_EVENT_STOP => {
                if !self.tasks.contains_key(&task) {
                    return self.newcomer(task);
                }
                0
            }
            0 if signal == libc::SIGTRAP => {
                if self.trap(task)? {
                    return Ok(());
                }
                signal
            }
            0 => signal,
            // A task was made: it comes by itself.
            _ => 0,
        };
        // Whatever comes in the middle of a step: the first instruction of a handler ends it.
        let is_stepping = self
            .tasks
            .get(&task)
            .is_some_and(|task| task.stepping.is_some());
        let request = if is_stepping {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        };
        go_on(request, task, passed)
    }

    /// A thread, or a child: with memory of its own it goes on unseen.
    fn newcomer(&mut self, task: Pid) -> Result<()> {
        if kernel::share_memory(self.pid, task) {
            self.tasks.insert(task, Task::default());
            return go_on(libc::PTRACE_CONT, task, 0);
        }
        if let Ok(memory) = Memory::open(task) {
            for (at, point) in &self.points {
                let _ = memory.write(*at, &[point.original]);
            }
        }
        let _ = ptrace::detach(task, None);
        Ok(())
    }

    /// A task met a breakpoint, or has stepped over one. `false`: the trap is the program's own.
    fn trap(&mut self, task: Pid) -> Result<bool> {
        let mut registers = ptrace::getregs(task).context("registers")?;
        let stepped = self.tasks.entry(task).or_default().stepping.take();
        if let Some(at) = stepped {
            if self.points.contains_key(&at) {
                self.memory.write(at, &[INT3])?;
            }
            go_on(libc::PTRACE_CONT, task, 0)?;
            return Ok(true);
        }
        let at = registers.rip.wrapping_sub(1);
        let Some(point) = self.points.get(&at) else {
            return Ok(false);
        };
        let (original, function) = (point.original, point.function);
        registers.rip = at;
        self.returned(task, &registers);
        if let Some(function) = function {
            self.entered(task, function, &registers)?;
        }
        let is_done = |point: &Point| point.function.is_none() && point.returns == 0;
        let is_done = self.points.get(&at).is_some_and(is_done);
        let is_pushed = !is_done && self.push(original, &mut registers)?;
        ptrace::setregs(task, registers).context("registers")?;
        if is_pushed {
            go_on(libc::PTRACE_CONT, task, 0)?;
            return Ok(true);
        }
        self.memory.write(at, &[original])?;
        if is_done {
            self.points.remove(&at);
            go_on(libc::PTRACE_CONT, task, 0)?;
        } else {
            self.tasks.entry(task).or_default().stepping = Some(at);
            go_on(libc::PTRACE_SINGLESTEP, task, 0)?;
        }
        Ok(true)
    }

    /// Does what the instruction that begins with `byte` does, if it is a push of rbp or rbx, as which many functions begin: that
    /// is cheaper than a step.
    fn push(&self, byte: u8, registers: &mut user_regs_struct) -> Result<bool> {
        let value = match byte {
            0x55 => registers.rbp,
            0x53 => registers.rbx,
            _ => return Ok(false),
        };
        registers.rsp -= 8;
        registers.rip += 1;
        self.memory.write(registers.rsp, &value.to_le_bytes())?;
        Ok(true)
    }

    /// `task` is at the first instruction of a function.
    fn entered(&mut self, task: Pid, function: usize, registers: &user_regs_struct) -> Result<()> {
        let slot = registers.rsp;
        let Some(bytes) = self.memory.read(slot, 8) else {
            return Ok(());
        };
        let returns_to = bytes.try_into().map_or(0, u64::from_le_bytes);
        let first = registers.rdi;
        let is_base = self.bases.contains(&first);
        let is_other = !is_base && self.is_in_heap(first);
        let interest = &mut self.interest[function];
        interest.calls += 1;
        interest.nulls += u32::from(first == 0);
        interest.takes += u32::from(is_base);
        interest.takes_others += u32::from(is_other);
        let is_over = interest.is_over();
        if is_over && let Some(point) = self.points.get_mut(&registers.rip) {
            point.function = None;
        }
        // What is left of frames that were jumped out of; a tail call has the stack pointer of its caller.
        self.drop_frames(task, |frame| {
            frame.1 < slot || (frame.1 == slot && frame.2 != returns_to)
        });
        let Some(point) = self.plant(returns_to)? else {
            return Ok(());
        };
        point.returns += 1;
        self.clock += 1;
        let number = self.calls.len();
        self.calls.push(Call {
            function,
            began: self.clock,
            ended: None,
            arguments: [registers.rdi, registers.rsi, registers.rdx],
            result: 0,
            is_in_heap: false,
        });
        let frames = &mut self.tasks.entry(task).or_default().frames;
        frames.push((number, slot, returns_to));
        Ok(())
    }

    /// `task` is where calls return to, perhaps from one.
    fn returned(&mut self, task: Pid, registers: &user_regs_struct) {
        let frames = self.tasks.get(&task).map_or(&[][..], |task| &task.frames);
        let slot = registers.rsp.wrapping_sub(8);
        let ended: Vec<usize> = frames
            .iter()
            .filter(|frame| frame.1 == slot && frame.2 == registers.rip)
            .map(|frame| frame.0)
            .collect();
        let is_in_heap = !ended.is_empty() && self.is_in_heap(registers.rax);
        // The innermost first: those that jumped to another return with it.
        for number in ended.into_iter().rev() {
            self.clock += 1;
            let call = &mut self.calls[number];
            call.ended = Some(self.clock);
            call.result = registers.rax;
            call.is_in_heap = is_in_heap;
            if is_in_heap && !call.arguments.contains(&registers.rax) {
                self.interest[call.function].gives += 1;
                self.bases.insert(registers.rax);
            }
        }
        self.drop_frames(task, |frame| frame.1 < registers.rsp);
    }

    /// Forgets frames of `task`, and that something will return from them.
    fn drop_frames(&mut self, task: Pid, is_gone: impl Fn(&Frame) -> bool) {
        let points = &mut self.points;
        if let Some(task) = self.tasks.get_mut(&task) {
            task.frames.retain(|frame| {
                let is_gone = is_gone(frame);
                if is_gone && let Some(point) = points.get_mut(&frame.2) {
                    point.returns = point.returns.saturating_sub(1);
                }
                !is_gone
            });
        }
    }

    /// Puts all bytes back, and lets all tasks go.
    fn leave(&mut self) -> Result<()> {
        for (at, point) in &self.points {
            // The program may be no more.
            let _ = self.memory.write(*at, &[point.original]);
        }
        let tasks: Vec<(Pid, bool)> = self
            .tasks
            .iter()
            .map(|(task, state)| (*task, state.stepping.is_some()))
            .collect();
        for (task, is_stepping) in tasks {
            // One that stands already is interrupted where it stands.
            let _ = ptrace::interrupt(task);
            loop {
                match kernel::wait(task)? {
                    // It met a breakpoint meanwhile, or has made its step: the signal for that would end it when nobody traces it.
                    Event::Interrupted if kernel::is_pending(task, libc::SIGTRAP) => {
                        go_on(libc::PTRACE_CONT, task, 0)?;
                    }
                    Event::Interrupted | Event::Gone => break,
                    Event::Signal(libc::SIGTRAP) => {
                        if is_stepping {
                            break;
                        }
                        let mut registers = ptrace::getregs(task).context("registers")?;
                        let at = registers.rip.wrapping_sub(1);
                        if self.points.contains_key(&at) {
                            registers.rip = at;
                            ptrace::setregs(task, registers).context("registers")?;
                            break;
                        }
                        // The program's own.
                        go_on(libc::PTRACE_CONT, task, libc::SIGTRAP)?;
                    }
                    Event::Signal(signal) => go_on(libc::PTRACE_CONT, task, signal)?,
                    Event::Call | Event::Exec => go_on(libc::PTRACE_CONT, task, 0)?,
                }
            }
            let _ = ptrace::detach(task, None);
        }
        Ok(())
    }
}

/// As [`kernel::go_on`], of a task that may have been killed meanwhile.
fn go_on(request: libc::c_uint, task: Pid, signal: i32) -> Result<()> {
    match kernel::go_on(request, task, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("ptrace"),
    }
}
