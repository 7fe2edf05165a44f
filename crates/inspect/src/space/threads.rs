//! *Which threads are there, and what are their registers?*
//!
//! ```text
//!   /proc/PID/task/TID/syscall   a thread that waits: stack pointer and program counter    nothing is stopped
//!   PTRACE_SEIZE, INTERRUPT      any thread: all registers                                  if asked for
//! ```

use super::thread_local::{blocks, control_blocks};
use super::unwind::{REGISTERS, Registers, Unwinder, Walked};
use super::{Layout, Span, Stop, Thread};
use crate::memory::ProcessMemory;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use pointee_model::addr::RunAddr;

/// The threads of `pid`, the main thread first. `first` is the main thread's first frame.
pub(super) fn find(
    pid: u32,
    layout: &Layout,
    memory: &ProcessMemory,
    stop: Stop,
    first: Option<RunAddr>,
) -> Vec<Thread> {
    let mut ids: Vec<u32> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_by_key(|id| (*id != pid, *id));
    let mut control = control_blocks(&ids, &layout.mappings, memory);
    let mut unwinder = Unwinder::new(pid, layout, memory);
    let mut threads = Vec::with_capacity(ids.len());
    for id in ids {
        let seen = match stop {
            Stop::Never => waiting(pid, id),
            Stop::Briefly => stopped(id),
        };
        if let Ok(Seen {
            thread_pointer: Some(pointer),
            ..
        }) = &seen
        {
            control.insert(id, *pointer);
        }
        let control_block = control.get(&id).copied();
        let within = match &seen {
            Ok(seen) => Some(seen.stack_pointer()),
            Err(_) if id == pid => first,
            Err(_) => control_block,
        };
        let around = |within| stack(within, layout, id == pid, first);
        let stack = within.and_then(around);
        let walked = match (seen, stack) {
            (Ok(seen), Some(stack)) => unwinder.frames(seen.registers, stack, &around),
            (Ok(_), None) => Walked::nothing("its stack pointer leads into no mapping".to_owned()),
            (Err(reason), _) => Walked::nothing(reason),
        };
        threads.push(Thread {
            id,
            name: std::fs::read_to_string(format!("/proc/{pid}/task/{id}/comm"))
                .map(|name| name.trim_end().to_owned())
                .unwrap_or_default(),
            stack: walked.stack.or(stack),
            signal_stack: walked.signal_stack,
            frames: walked.frames,
            cut: walked.cut,
            control_block,
            blocks: control_block
                .map(|block| blocks(block, &layout.objects, memory))
                .unwrap_or_default(),
        });
    }
    threads
}

/// The stack around `address`: the mapping, but above the main thread's first frame lies what the kernel put there.
fn stack(address: RunAddr, layout: &Layout, is_main: bool, first: Option<RunAddr>) -> Option<Span> {
    let (_, mapping) = layout.mapping_at(address)?;
    let holds = |first: &RunAddr| (mapping.start..mapping.end).contains(first);
    let end = first.filter(|first| is_main && holds(first));
    Some(Span {
        start: mapping.start,
        end: end.unwrap_or(mapping.end),
    })
}

struct Seen {
    registers: Registers,
    thread_pointer: Option<RunAddr>,
}

impl Seen {
    fn stack_pointer(&self) -> RunAddr {
        RunAddr(self.registers[7].unwrap_or(0))
    }
}

/// What the kernel tells of a thread that waits in a system call or is stopped (proc(5), `/proc/pid/syscall`).
fn waiting(pid: u32, id: u32) -> Result<Seen, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{id}/syscall"))
        .map_err(|error| format!("its registers may not be read: {error}"))?;
    if text.starts_with("running") {
        return Err("it is running: its frames are known only when it is stopped".to_owned());
    }
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let mut words = text.split_whitespace().rev();
    let (Some(pc), Some(sp)) = (words.next().and_then(hex), words.next().and_then(hex)) else {
        return Err("its registers cannot be read".to_owned());
    };
    let mut registers = [None; REGISTERS];
    registers[7] = Some(sp);
    registers[16] = Some(pc);
    Ok(Seen {
        registers,
        thread_pointer: None,
    })
}

/// Stops the thread, reads its registers, lets it go on.
fn stopped(id: u32) -> Result<Seen, String> {
    let failed = |error: nix::errno::Errno| format!("it cannot be stopped: {error}");
    let thread = i32::try_from(id)
        .map(Pid::from_raw)
        .map_err(|_| "no thread".to_owned())?;
    ptrace::seize(thread, ptrace::Options::empty()).map_err(failed)?;
    let registers = ptrace::interrupt(thread)
        .and_then(|()| waitpid(thread, Some(WaitPidFlag::__WALL)))
        .and_then(|status| Ok((status, ptrace::getregs(thread)?)));
    // A signal that arrived in between is passed on; a thread that died needs no farewell.
    let signal = match &registers {
        Ok((WaitStatus::Stopped(_, signal), _)) => Some(*signal),
        _ => None,
    };
    let _ = ptrace::detach(thread, signal);
    let (_, r) = registers.map_err(failed)?;
    // DWARF's order (System V ABI for x86-64, figure 3.36).
    let values = [
        r.rax, r.rdx, r.rcx, r.rbx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15, r.rip,
    ];
    Ok(Seen {
        registers: values.map(Some),
        thread_pointer: Some(RunAddr(r.fs_base)),
    })
}
