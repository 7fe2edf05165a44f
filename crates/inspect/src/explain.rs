//! *What did we change in this process, and is that all?*
//!
//! Every hook is on record with the bytes before and after. To see that nothing else was changed, the code in
//! memory is compared with the files it was loaded from, byte by byte, and every resolved binding
//! (GOT slot) is looked at: one that leads into the runtime or into a trampoline would be ours.
//!
//! ```text
//!   differing byte ─ inside a hook, and equal to what the hook wrote ─▶ explained
//!                  └ else ─▶ unexplained: somebody else's, or a defect
//! ```

use crate::memory::ProcessMemory;
use crate::process::{HookInfo, ProcessData};
use crate::running::{self, Mapping};
use object::elf::{R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE, R_X86_64_JUMP_SLOT};
use object::{Object, ObjectSymbol, RelocationFlags};
use pointee_index::records::{Role, module_flags};
use pointee_model::addr::RunAddr;
use pointee_patch::Refusal;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// One hook, in words.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct HookRow {
    pub function: String,
    pub module: Option<String>,
    /// In the process.
    pub address: String,
    /// In the file.
    pub offset: Option<String>,
    /// What the function does for its callers: `malloc`, `free`, `fork`, …
    pub role: &'static str,
    /// `jump` (a five-byte launch pad) or `refused`.
    pub placement: &'static str,
    /// Hexadecimal.
    pub before: String,
    pub after: String,
    pub trampoline: Option<String>,
    /// Why it is there, or why it is not.
    pub why: String,
}

/// A run of bytes that differ from the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Difference {
    pub address: String,
    pub module: String,
    pub in_file: String,
    pub in_memory: String,
    /// Name of the hooked function; `null`: unexplained.
    pub hook: Option<String>,
}

/// A binding that leads into our code.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Binding {
    pub slot: String,
    pub module: String,
    pub symbol: Option<String>,
    pub target: String,
}

/// Memory that a plain process would not have.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct AddedMapping {
    pub start: String,
    pub bytes: u64,
    pub permissions: String,
    pub what: &'static str,
}

/// All of it.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Explanation {
    pub schema: u32,
    pub hooks: Vec<HookRow>,
    /// Bytes of code that were compared; 0 for a snapshot, which has no code.
    pub compared_bytes: u64,
    pub compared_bindings: u64,
    pub differences: Vec<Difference>,
    pub bindings: Vec<Binding>,
    pub added: Vec<AddedMapping>,
    /// What could not be compared, and why.
    pub not_compared: Vec<String>,
}

impl Explanation {
    /// The hooks on record, without a comparison.
    #[must_use]
    pub fn of_record(process: &ProcessData) -> Self {
        Self {
            schema: crate::report::SCHEMA,
            hooks: process
                .hooks
                .iter()
                .map(|hook| hook_row(process, hook))
                .collect(),
            ..Self::default()
        }
    }

    /// The hooks on record, and the comparison with the running process `pid`.
    ///
    /// # Errors
    /// When the process cannot be read.
    pub fn of_process(process: &ProcessData, pid: u32) -> io::Result<Self> {
        let mut explanation = Self::of_record(process);
        let memory = ProcessMemory::open(pid)?;
        let mappings = running::mappings(pid)?;
        for mapping in &mappings {
            let is_code = mapping.permissions.starts_with("r-x");
            if is_code && mapping.path.starts_with('/') && mapping.inode != 0 {
                explanation.compare_code(process, pid, &memory, mapping);
            }
            explanation.added.extend(added(process, mapping));
        }
        for (at, module) in process.modules.iter().enumerate() {
            let ours = module_flags::RUNTIME | module_flags::VDSO;
            if module.loaded && module.flags & ours == 0 && module.path.starts_with('/') {
                explanation.compare_bindings(process, pid, &memory, at);
            }
        }
        Ok(explanation)
    }

    /// Whether some byte differs without a reason.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.differences
            .iter()
            .all(|difference| difference.hook.is_some())
            && self.bindings.is_empty()
    }

    fn compare_code(
        &mut self,
        process: &ProcessData,
        pid: u32,
        memory: &ProcessMemory,
        mapping: &Mapping,
    ) {
        let Some(file) = file_of(pid, mapping) else {
            self.not_compared.push(format!(
                "{}: the file that was loaded is gone",
                mapping.path
            ));
            return;
        };
        const STEP: usize = 64 << 10;
        let mut at = mapping.start;
        let (mut in_memory, mut in_file) = (vec![0; STEP], vec![0; STEP]);
        while at < mapping.end {
            let left = mapping.end.0 - at.0;
            let len = STEP.min(usize::try_from(left).unwrap_or(STEP));
            let offset = mapping.offset + (at.0 - mapping.start.0);
            // Behind the end of the file a page reads as zeros.
            in_file[..len].fill(0);
            read_up_to(&file, &mut in_file[..len], offset);
            if memory.read_at(at, &mut in_memory[..len]) {
                self.compared_bytes += len as u64;
                self.note(process, mapping, at, &in_file[..len], &in_memory[..len]);
            } else {
                let text = format!("{} at {at}: not readable", mapping.path);
                self.not_compared.push(text);
            }
            at = at.plus(len as u64);
        }
    }

    /// Notes runs of differing bytes; a run ends where the hook it lies in does.
    fn note(
        &mut self,
        process: &ProcessData,
        mapping: &Mapping,
        start: RunAddr,
        in_file: &[u8],
        in_memory: &[u8],
    ) {
        let mut at = 0;
        while at < in_file.len() {
            if in_file[at] == in_memory[at] {
                at += 1;
                continue;
            }
            let hook = hook_writing(process, start.plus(at as u64), in_memory[at]);
            let mut end = at + 1;
            while end < in_file.len()
                && in_file[end] != in_memory[end]
                && hook_writing(process, start.plus(end as u64), in_memory[end])
                    .map(|hook| hook.address)
                    == hook.map(|hook| hook.address)
            {
                end += 1;
            }
            self.differences.push(Difference {
                address: start.plus(at as u64).to_string(),
                module: mapping.path.clone(),
                in_file: hex(&in_file[at..end]),
                in_memory: hex(&in_memory[at..end]),
                hook: hook.map(|hook| hook.name.clone()),
            });
            at = end;
        }
    }

    /// Looks where the resolved slots of one module lead.
    fn compare_bindings(
        &mut self,
        process: &ProcessData,
        pid: u32,
        memory: &ProcessMemory,
        number: usize,
    ) {
        let module = &process.modules[number];
        let path = format!("/proc/{pid}/root{}", module.path);
        let bytes = std::fs::metadata(&path)
            .ok()
            .filter(std::fs::Metadata::is_file)
            .and_then(|_| std::fs::read(&path).ok());
        let Some(bytes) = bytes else {
            self.not_compared
                .push(format!("{}: bindings: the file is gone", module.path));
            return;
        };
        let Ok(file) = object::File::parse(&*bytes) else {
            return;
        };
        let symbols = file.dynamic_symbol_table();
        for (address, relocation) in file.dynamic_relocations().into_iter().flatten() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            if ![R_X86_64_JUMP_SLOT, R_X86_64_GLOB_DAT, R_X86_64_IRELATIVE].contains(&r_type) {
                continue;
            }
            let slot = module.bias.to_run(pointee_model::addr::LinkAddr(address));
            let mut word = [0; 8];
            if !memory.read_at(slot, &mut word) {
                continue;
            }
            self.compared_bindings += 1;
            let target = RunAddr(u64::from_le_bytes(word));
            if !is_ours(process, target) {
                continue;
            }
            let symbol = match relocation.target() {
                object::RelocationTarget::Symbol(index) => symbols
                    .as_ref()
                    .and_then(|table| object::ObjectSymbolTable::symbol_by_index(table, index).ok())
                    .and_then(|symbol| symbol.name().ok().map(str::to_owned)),
                _ => None,
            };
            self.bindings.push(Binding {
                slot: slot.to_string(),
                module: module.path.clone(),
                symbol,
                target: target.to_string(),
            });
        }
    }
}

/// Whether code of ours lies at `address`.
fn is_ours(process: &ProcessData, address: RunAddr) -> bool {
    let runtime = process.modules.iter().any(|module| {
        module.flags & module_flags::RUNTIME != 0 && (module.start..module.end).contains(&address)
    });
    let near = |hook: &HookInfo| hook.placement != 0 && hook.trampoline == address;
    runtime || process.hooks.iter().any(near)
}

/// The hook that wrote `byte` at `address`.
fn hook_writing(process: &ProcessData, address: RunAddr, byte: u8) -> Option<&HookInfo> {
    process.hooks.iter().find(|hook| {
        let wrote = address
            .offset_from(hook.address)
            .and_then(|at| hook.after.get(usize::try_from(at).ok()?));
        hook.placement != 0 && wrote == Some(&byte)
    })
}

fn added(process: &ProcessData, mapping: &Mapping) -> Option<AddedMapping> {
    let holds = |address: RunAddr| (mapping.start..mapping.end).contains(&address);
    let is_runtime = process.modules.iter().any(|module| {
        module.flags & module_flags::RUNTIME != 0
            && module.start < mapping.end
            && mapping.start < module.end
    });
    let what = if mapping.path.starts_with("/memfd:pointee") {
        "the index"
    } else if process
        .hooks
        .iter()
        .any(|hook| hook.placement != 0 && holds(hook.trampoline))
    {
        "trampolines"
    } else if is_runtime {
        "the runtime"
    } else {
        return None;
    };
    Some(AddedMapping {
        start: mapping.start.to_string(),
        bytes: mapping.end.0 - mapping.start.0,
        permissions: mapping.permissions.clone(),
        what,
    })
}

/// The very file that is mapped, if it can still be had.
fn file_of(pid: u32, mapping: &Mapping) -> Option<File> {
    let range = format!("{:x}-{:x}", mapping.start.0, mapping.end.0);
    let mapped = File::open(format!("/proc/{pid}/map_files/{range}")).ok();
    mapped.or_else(|| {
        let path = format!("/proc/{pid}/root{}", mapping.path);
        let metadata = std::fs::metadata(&path).ok()?;
        let same = metadata.is_file() && metadata.ino() == mapping.inode;
        same.then(|| File::open(path).ok()).flatten()
    })
}

fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) {
    let mut done = 0;
    while let Ok(read @ 1..) = file.read_at(&mut buffer[done..], offset + done as u64) {
        done += read;
    }
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

fn hook_row(process: &ProcessData, hook: &HookInfo) -> HookRow {
    let module = process.modules.get(hook.module as usize);
    let is_placed = hook.placement != 0;
    let does = purpose(hook.role);
    HookRow {
        function: hook.name.clone(),
        module: module.map(|module| module.path.clone()),
        address: hook.address.to_string(),
        offset: module.map(|module| module.bias.to_link(hook.address).to_string()),
        role: word(hook.role),
        placement: if is_placed { "jump" } else { "refused" },
        before: hex(&hook.before),
        after: hex(&hook.after),
        trampoline: is_placed.then(|| hook.trampoline.to_string()),
        why: if is_placed {
            format!("{does}; five bytes at its entry became a jump")
        } else {
            format!("{does}; not placed: {}", refusal(hook.reason))
        },
    }
}

/// The engine's reason, from the byte on record.
fn refusal(reason: u8) -> &'static str {
    const ALL: [Refusal; 9] = [
        Refusal::TooShort,
        Refusal::InwardBranch,
        Refusal::Undecodable,
        Refusal::RelayOutOfReach,
        Refusal::OperandOutOfReach,
        Refusal::ReturnIntoPad,
        Refusal::CallThroughStack,
        Refusal::NotRelocatable,
        Refusal::Breakpoint,
    ];
    let found = ALL.into_iter().find(|refusal| *refusal as u8 == reason);
    found.map_or("the engine's reason is not known", Refusal::reason)
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Other => "other",
        Role::Malloc => "malloc",
        Role::Calloc => "calloc",
        Role::Realloc => "realloc",
        Role::Reallocarray => "reallocarray",
        Role::Free => "free",
        Role::Memalign => "memalign",
        Role::PosixMemalign => "posix_memalign",
        Role::AlignedAlloc => "aligned_alloc",
        Role::Valloc => "valloc",
        Role::Pvalloc => "pvalloc",
        Role::New => "operator new",
        Role::Delete => "operator delete",
        Role::Fork => "fork",
        Role::Exec | Role::ExecFd | Role::ExecAt => "exec",
        Role::Exit => "exit",
        Role::LinkMap => "link map",
        Role::Prctl => "prctl",
        Role::Syscall => "syscall",
        Role::Brk => "brk",
        Role::Mmap => "mmap",
        Role::Munmap => "munmap",
        Role::Mprotect => "mprotect",
        Role::Mremap => "mremap",
        Role::Shmat => "shmat",
        Role::SigAltStack => "sigaltstack",
        Role::SystemCall => "system call",
        Role::Dlsym => "dlsym",
        Role::PoolAlloc => "pool",
        Role::PoolRealloc => "pool's realloc",
        Role::PoolFree => "pool's free",
        Role::PoolReset => "pool's end",
        Role::PoolTrim => "pool's rewind",
    }
}

fn purpose(role: Role) -> &'static str {
    match role {
        Role::Malloc
        | Role::Calloc
        | Role::Memalign
        | Role::PosixMemalign
        | Role::AlignedAlloc
        | Role::Valloc
        | Role::Pvalloc
        | Role::New => "allocates: blocks are recorded",
        Role::Realloc | Role::Reallocarray => {
            "reallocates: recorded as one free and one allocation"
        }
        Role::Free | Role::Delete => "frees: blocks are taken out",
        Role::PoolAlloc => "cuts blocks out of others: they are recorded too",
        Role::PoolRealloc => "takes a pool's block back and cuts out another",
        Role::PoolFree => "takes a pool's block back: it is taken out",
        Role::PoolReset => "takes all of a pool's blocks back",
        Role::PoolTrim => "takes back what a pool cut out since",
        Role::Fork => "makes a child, which gets an index of its own",
        Role::Exec | Role::ExecFd | Role::ExecAt => {
            "starts another program, which the runtime is to be loaded into"
        }
        Role::Exit => "ends the process: the status is noted",
        Role::LinkMap => "is called when libraries are loaded or unloaded",
        Role::Mmap | Role::Mremap | Role::Shmat => "maps memory: who asked for it is noted",
        Role::Munmap | Role::Mprotect => "changes what is mapped: that is noted",
        Role::SigAltStack => "sets a stack for signal handlers: whose it is, is noted",
        Role::SystemCall => "an instruction that may change what is mapped: that is noted",
        Role::Dlsym => "finds symbols: those of types are made up",
        Role::Brk => "the heap grows: the index is made present for it",
        Role::Prctl => "may set a system call filter, after which we make no calls",
        Role::Syscall => {
            "may set a system call filter, after which we make no calls, or start another program"
        }
        Role::Other => "is watched",
    }
}
