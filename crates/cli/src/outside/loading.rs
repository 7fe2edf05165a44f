//! *How does the runtime come into a program that has no dynamic linker?*
//!
//! The program is held between its `execve` and its first instruction. There the segments of `libpointee.so` are mapped by system
//! calls that its only task makes for us, its relocations applied (by its own address and symbols: it imports nothing), and its start is called, with
//! the hand-off that others find in their environment. Then the task gets its registers back, and nobody traces it any more.
//!
//! ```text
//!   stack of a fresh process        argc argv… envp… auxv…
//!   16 bytes below, downwards       path of the runtime, hand-off, address to return to, frames of the start
//! ```
//!
//! What the program finds is what it finds without us: registers, stack from the stack pointer up, signals, descriptors. There are
//! mappings more, and the code of its allocation functions begins with jumps.

use super::calls::Calls;
use super::kernel::{self, Event};
use super::space::{self, Memory};
use ::object::elf::{PT_GNU_RELRO, PT_LOAD, ProgramHeader64, R_X86_64_GLOB_DAT, R_X86_64_RELATIVE};
use ::object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use ::object::{
    Endianness, Object, ObjectSymbol, ObjectSymbolTable, RelocationFlags, RelocationTarget,
};
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// Between two looks whether a program could not be executed.
const A_MOMENT: Duration = Duration::from_millis(20);

/// What is mapped into a program.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// The runtime's file.
    pub(crate) runtime: PathBuf,
    /// What it is told.
    pub(crate) handoff: Vec<u8>,
}

/// A child of ours that is traced; killed if this process ends before it is let go.
#[derive(Debug)]
pub(crate) struct Held(Pid);

impl Held {
    /// Seizes `child`.
    pub(crate) fn seize(child: Pid) -> Result<Self> {
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
            | ptrace::Options::PTRACE_O_TRACEEXEC
            | ptrace::Options::PTRACE_O_EXITKILL;
        ptrace::seize(child, options).context("it may not be traced")?;
        Ok(Self(child))
    }

    /// The process.
    pub(super) fn pid(&self) -> Pid {
        self.0
    }

    /// Waits until it stands before the first instruction of a program.
    pub(crate) fn until_program(self) -> Result<Self> {
        loop {
            match kernel::wait(self.0)? {
                Event::Exec => break,
                Event::Gone => bail!("it was not executed"),
                Event::Signal(signal) => kernel::go_on(libc::PTRACE_CONT, self.0, signal)?,
                Event::Call | Event::Interrupted => kernel::go_on(libc::PTRACE_CONT, self.0, 0)?,
            }
        }
        self.leave_call()?;
        Ok(self)
    }

    /// The same; `false` when `has_failed` says that it goes on as the program that it is.
    pub(crate) fn until_program_unless(&self, has_failed: impl Fn() -> bool) -> Result<bool> {
        let deadline = Instant::now() + kernel::PATIENCE;
        loop {
            match kernel::wait_within(self.0, A_MOMENT) {
                Ok(Event::Exec) => break,
                Ok(Event::Gone) => bail!("it has ended"),
                Ok(Event::Signal(signal)) => kernel::go_on(libc::PTRACE_CONT, self.0, signal)?,
                Ok(Event::Call | Event::Interrupted) => {
                    kernel::go_on(libc::PTRACE_CONT, self.0, 0)?;
                }
                Err(Errno::ETIMEDOUT) if Instant::now() > deadline || has_failed() => {
                    return Ok(false);
                }
                Err(Errno::ETIMEDOUT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.leave_call()?;
        Ok(true)
    }

    /// Out of the `execve` that it stands in.
    fn leave_call(&self) -> Result<()> {
        ptrace::interrupt(self.0)?;
        kernel::go_on(libc::PTRACE_CONT, self.0, 0)?;
        ensure!(kernel::settle(self.0)?, "it has ended");
        Ok(())
    }

    /// Lets it run on as it is.
    pub(crate) fn let_go(&self) -> Result<()> {
        // It stands already, or does so soon.
        let _ = ptrace::interrupt(self.0);
        if ptrace::detach(self.0, None).is_ok() {
            return Ok(());
        }
        if kernel::settle(self.0)? {
            ptrace::detach(self.0, None).context("ptrace")?;
        }
        Ok(())
    }

    /// Maps the runtime into the program, starts it there, and lets the program go.
    pub(crate) fn load(&self, what: &Mapped) -> Result<()> {
        ensure!(
            !has_linker_or_privilege(self.0)?,
            "it is another program now"
        );
        let file = std::fs::read(&what.runtime).context("the runtime")?;
        let memory = Memory::open(self.0)?;
        let syscall_at = memory
            .find_syscall(&space::mappings(self.0)?)
            .context("no system call instruction in it")?;
        let stack = ptrace::getregs(self.0).context("registers")?.rsp;
        let mut below = Below(stack - 16);
        let mut calls = Calls::begin(self.0, syscall_at)?;
        let library = map(&mut calls, &memory, &mut below, &what.runtime, &file)?;
        let handoff = below.put(&memory, &what.handoff)?;
        let returns = below.put(&memory, &[0; 16])? + 8;
        memory.write(returns, &syscall_at.to_le_bytes())?;
        let arguments = [handoff, what.handoff.len() as u64, stack, library.at];
        calls.run(library.start, arguments, returns)?;
        drop(calls);
        ptrace::detach(self.0, None).context("ptrace")
    }
}

/// Whether the kernel says of `pid`'s program that a dynamic linker was loaded with it, or that it has privileges that its caller had not.
fn has_linker_or_privilege(pid: Pid) -> Result<bool> {
    const AT_BASE: u64 = 7;
    const AT_SECURE: u64 = 23;
    let vector = std::fs::read(format!("/proc/{pid}/auxv")).context("its auxiliary vector")?;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    let mut entries = vector
        .chunks_exact(16)
        .map(|entry| (word(&entry[..8]), word(&entry[8..])));
    Ok(entries.any(|(key, value)| matches!(key, AT_BASE | AT_SECURE) && value != 0))
}

/// The free part of a stack, from its upper end.
struct Below(u64);

impl Below {
    /// Puts `bytes` there; gives their address, a multiple of 16.
    fn put(&mut self, memory: &Memory, bytes: &[u8]) -> Result<u64> {
        self.0 = (self.0 - bytes.len() as u64) & !15;
        memory.write(self.0, bytes)?;
        Ok(self.0)
    }
}

/// A library in a process.
struct Library {
    at: u64,
    /// Address of `pointee_start`.
    start: u64,
}

fn map(
    calls: &mut Calls,
    memory: &Memory,
    below: &mut Below,
    path: &Path,
    file: &[u8],
) -> Result<Library> {
    use std::os::unix::ffi::OsStrExt;
    let elf = ElfFile64::<Endianness>::parse(file).context("the runtime")?;
    let endian = elf.endian();
    let headers = elf.elf_header().program_headers(endian, file)?;
    let of_kind = |kind| {
        headers
            .iter()
            .filter(move |header| header.p_type(endian) == kind)
    };
    let end =
        |header: &ProgramHeader64<Endianness>| header.p_vaddr(endian) + header.p_memsz(endian);
    let len = of_kind(PT_LOAD)
        .map(end)
        .max()
        .context("the runtime has no segments")?;

    let mut name = path.as_os_str().as_bytes().to_vec();
    name.push(0);
    let name = below.put(memory, &name)?;
    let descriptor = calls
        .call(
            libc::SYS_open,
            [
                name,
                libc::O_RDONLY as u64 | libc::O_CLOEXEC as u64,
                0,
                0,
                0,
                0,
            ],
        )
        .context("the runtime cannot be opened")?;
    let mut mmap =
        |at: u64, len: u64, protection: i32, flags: i32, descriptor: u64, offset: u64| {
            let arguments = [at, len, protection as u64, flags as u64, descriptor, offset];
            calls
                .call(libc::SYS_mmap, arguments)
                .context("the runtime cannot be mapped")
        };
    let none = u64::MAX;
    let anywhere = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let base = mmap(
        0,
        len.next_multiple_of(PAGE),
        libc::PROT_NONE,
        anywhere,
        none,
        0,
    )?;
    for header in of_kind(PT_LOAD) {
        let start = header.p_vaddr(endian);
        let file_end = start + header.p_filesz(endian);
        let first_page = start & !(PAGE - 1);
        let offset = header.p_offset(endian) & !(PAGE - 1);
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let protection = protection(header.p_flags(endian).0);
        mmap(
            base + first_page,
            file_end - first_page,
            protection,
            flags,
            descriptor,
            offset,
        )?;
        let zeros = file_end.next_multiple_of(PAGE);
        if end(header) > file_end {
            memory.write(base + file_end, &vec![0; (zeros - file_end) as usize])?;
        }
        if end(header) > zeros {
            let flags = flags | libc::MAP_ANONYMOUS;
            mmap(
                base + zeros,
                end(header) - zeros,
                protection,
                flags,
                none,
                0,
            )?;
        }
    }
    calls.call(libc::SYS_close, [descriptor, 0, 0, 0, 0, 0])?;
    for (at, relocation) in elf.dynamic_relocations().into_iter().flatten() {
        let value = match (relocation.flags(), relocation.target()) {
            (
                RelocationFlags::Elf {
                    r_type: R_X86_64_RELATIVE,
                },
                _,
            ) => relocation.addend() as u64,
            (
                RelocationFlags::Elf {
                    r_type: R_X86_64_GLOB_DAT,
                },
                RelocationTarget::Symbol(at),
            ) => elf
                .dynamic_symbol_table()
                .context("the runtime has no symbols")?
                .symbol_by_index(at)?
                .address(),
            _ => bail!("the runtime has a relocation that is not understood"),
        };
        let value = base.wrapping_add(value);
        memory.write(base + at, &value.to_le_bytes())?;
    }
    for header in of_kind(PT_GNU_RELRO) {
        let start = header.p_vaddr(endian) & !(PAGE - 1);
        let len = (end(header) & !(PAGE - 1)).saturating_sub(start);
        let arguments = [base + start, len, libc::PROT_READ as u64, 0, 0, 0];
        calls.call(libc::SYS_mprotect, arguments)?;
    }
    let is_start = |symbol: &::object::read::elf::ElfSymbol64<'_, '_, Endianness>| {
        symbol.name() == Ok("pointee_start")
    };
    let start = elf
        .dynamic_symbols()
        .find(is_start)
        .context("the runtime has no start")?;
    Ok(Library {
        at: base,
        start: base + start.address(),
    })
}

/// `PROT_*` of a segment's `PF_*`.
fn protection(flags: u32) -> i32 {
    use ::object::elf::{PF_R, PF_W, PF_X};
    [
        (PF_R, libc::PROT_READ),
        (PF_W, libc::PROT_WRITE),
        (PF_X, libc::PROT_EXEC),
    ]
    .into_iter()
    .filter(|(flag, _)| flags & flag.0 != 0)
    .fold(0, |all, (_, protection)| all | protection)
}
