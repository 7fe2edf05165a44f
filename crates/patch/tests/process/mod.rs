//! *How does a test hook functions of its own process?* Memory near a library, stubs in it that
//! count, and pads written through `/proc/self/mem`, which needs no change of page protection.
#![allow(unreachable_pub)] // a module of one test

use std::ffi::{CString, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::emit::{EmitError, Emitter, relay};
use pointee_patch::{Entry, EntryPlan, Refusal, find_inward_branches, plan_entry};

use crate::binaries::{self, Binary};

/// Which kind of code counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stub {
    /// A relay that hands over the counter's address in `r11`.
    Register,
    /// One that changes no register, flag or byte of the red zone: fit for code that is entered
    /// otherwise than by a call that follows the psABI.
    Transparent,
}

pub struct Library {
    handle: *mut c_void,
    bias: u64,
    binary: Binary,
}

impl Library {
    pub fn open(path: &Path) -> Self {
        let name = CString::new(path.to_str().expect("a path in UTF-8")).expect("no zero bytes");
        // SAFETY: a system library or a fixture, whose initializers are harmless.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!handle.is_null(), "{}", path.display());
        // SAFETY: a handle of dlopen is a `link_map`, whose first word is the bias (link.h).
        let bias = unsafe { *handle.cast::<u64>() };
        let binary = binaries::read(path);
        Self {
            handle,
            bias,
            binary,
        }
    }

    pub fn symbol(&self, name: &str) -> RunAddr {
        let name = CString::new(name).expect("no zero bytes");
        // SAFETY: `handle` is open.
        let at = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!at.is_null(), "{name:?}");
        RunAddr(at as u64)
    }

    /// The library's code as it is now.
    pub fn text(&self) -> Vec<u8> {
        let text = self.text_range();
        self.bytes(text.0, text.1).to_vec()
    }

    fn text_range(&self) -> (u64, u64) {
        let text = self
            .binary
            .texts
            .iter()
            .find(|t| t.name == ".text")
            .expect(".text");
        (text.at, text.at + text.bytes.len() as u64)
    }

    fn bytes(&self, from: u64, to: u64) -> &[u8] {
        let at = self.bias.wrapping_add(from) as *const u8;
        // SAFETY: part of the library's text, which stays mapped; nobody writes while it is read.
        unsafe { std::slice::from_raw_parts(at, (to - from) as usize) }
    }

    /// Entries of functions with their lengths, each once.
    fn functions(&self) -> Vec<(u64, u64)> {
        let (start, end) = self.text_range();
        let mut functions: Vec<_> = self.binary.functions.clone();
        functions.retain(|f| (start..end).contains(&f.0));
        functions.sort_by_key(|f| (f.0, u64::MAX - f.1));
        functions.dedup_by_key(|f| f.0);
        functions
    }

    fn plan(
        &self,
        at: u64,
        len: u64,
        stop: u64,
        area: &mut Area,
        stub: Stub,
    ) -> Result<Hook, Refusal> {
        let body_end = at + len;
        let entry = Entry {
            code: self.bytes(at, stop.max(body_end)),
            at: RunAddr(self.bias.wrapping_add(at)),
            body_len: Some(len as usize),
        };
        area.hook(&entry, stub)
    }

    pub fn hook(&self, at: RunAddr, stub: Stub) -> Result<Hooked, Refusal> {
        let at = at.0.wrapping_sub(self.bias);
        let functions = self.functions();
        let i = functions
            .iter()
            .position(|f| f.0 == at)
            .expect("a function's entry");
        let stop = functions.get(i + 1).map_or(self.text_range().1, |f| f.0);
        let mut area = Area::near(self.bias.wrapping_add(at), 1);
        let hook = self.plan(at, functions[i].1, stop, &mut area, stub)?;
        Ok(area.install(vec![hook]))
    }
}

/// Patches every function of `library`'s text; also how many were refused.
pub fn hook_all(library: &Library) -> (Hooked, usize) {
    let functions = library.functions();
    let (start, end) = library.text_range();
    let mut area = Area::near(library.bias.wrapping_add(start), functions.len());
    let mut hooks = Vec::new();
    let mut refused = 0;
    for (i, &(at, len)) in functions.iter().enumerate() {
        let stop = functions.get(i + 1).map_or(end, |f| f.0);
        match library.plan(at, len, stop, &mut area, Stub::Transparent) {
            Ok(hook) => hooks.push(hook),
            Err(_) => refused += 1,
        }
    }
    let pads: Vec<_> = hooks.iter().map(|hook| hook.plan.span()).collect();
    let text_at = RunAddr(library.bias.wrapping_add(start));
    let entered: Vec<_> = find_inward_branches(library.bytes(start, end), text_at, &pads)
        .map(|branch| pads[branch.pad])
        .collect();
    hooks.retain(|hook| !entered.contains(&hook.plan.span()));
    refused += pads.len() - hooks.len();
    (area.install(hooks), refused)
}

struct Hook {
    plan: EntryPlan,
    counter: usize,
}

/// Bytes of code for one function: trampoline, relay, stub.
const SLOT: usize = 192;
const STUB_AT: u64 = 96;
const RELAY_AT: u64 = 144;

/// Memory within reach of a library: counters, then code.
struct Area {
    at: u64,
    counters: usize,
    code_at: u64,
    slots: usize,
    used: usize,
}

impl Area {
    fn near(target: u64, slots: usize) -> Self {
        const PAGE: usize = 4096;
        let counters = (slots * 8).next_multiple_of(PAGE);
        let len = counters + (slots * SLOT).next_multiple_of(PAGE);
        for step in 1..1000_u64 {
            let hint = (target & !0xfffff) - step * 0x10_0000;
            // SAFETY: a new mapping that replaces none.
            let at = unsafe {
                libc::mmap(
                    hint as *mut c_void,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            if at as u64 == hint {
                let code_at = hint + counters as u64;
                return Self {
                    at: hint,
                    counters,
                    code_at,
                    slots,
                    used: 0,
                };
            }
        }
        panic!("no memory within reach of {target:#x}");
    }

    fn hook(&mut self, entry: &Entry<'_>, stub: Stub) -> Result<Hook, Refusal> {
        assert!(self.used < self.slots);
        let slot = RunAddr(self.code_at + (self.used * SLOT) as u64);
        let counter = self.at + (self.used * 8) as u64;
        let (stub_at, relay_at) = (slot.plus(STUB_AT), slot.plus(RELAY_AT));
        let target = if stub == Stub::Register {
            relay_at
        } else {
            stub_at
        };
        let plan = plan_entry(entry, slot, target)?;
        self.write(slot, &plan.trampoline);
        self.write(relay_at, &relay(relay_at, counter, stub_at));
        let mut code = [0; (RELAY_AT - STUB_AT) as usize];
        let mut emitter = Emitter::new(&mut code, stub_at);
        let written = match stub {
            Stub::Register => count_by_register(&mut emitter, slot),
            Stub::Transparent => count_unseen(&mut emitter, RunAddr(counter), slot),
        };
        written.expect("room for a stub");
        self.write(stub_at, &code);
        let counter = self.used;
        self.used += 1;
        Ok(Hook { plan, counter })
    }

    fn write(&self, at: RunAddr, bytes: &[u8]) {
        // SAFETY: inside this area, which is writable until `install`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.0 as *mut u8, bytes.len()) }
    }

    fn install(self, hooks: Vec<Hook>) -> Hooked {
        let len = (self.slots * SLOT).next_multiple_of(4096);
        // SAFETY: the code half of this area.
        let status = unsafe {
            libc::mprotect(
                self.code_at as *mut c_void,
                len,
                libc::PROT_READ | libc::PROT_EXEC,
            )
        };
        assert_eq!(status, 0);
        let memory = File::options()
            .write(true)
            .open(PathBuf::from("/proc/self/mem"));
        let hooked = Hooked {
            memory: memory.expect("own memory"),
            area: self,
            hooks,
        };
        for hook in &hooked.hooks {
            let write = hook.plan.installation();
            hooked
                .memory
                .write_all_at(&write.bytes, write.at.0)
                .expect("a pad written");
        }
        hooked
    }
}

/// `lock inc qword [r11]`, and on.
fn count_by_register(emitter: &mut Emitter<'_>, next: RunAddr) -> Result<(), EmitError> {
    emitter.bytes(&[0xf0, 0x49, 0xff, 0x03])?;
    emitter.jump(next)
}

/// `lock inc qword [counter]` below the red zone and with flags kept, and on.
fn count_unseen(
    emitter: &mut Emitter<'_>,
    counter: RunAddr,
    next: RunAddr,
) -> Result<(), EmitError> {
    emitter.bytes(&[0x48, 0x8d, 0x64, 0x24, 0x80])?; // lea rsp, [rsp - 128]
    emitter.bytes(&[0x9c])?; // pushfq
    emitter.relative(&[0xf0, 0x48, 0xff, 0x05], counter, 0)?;
    emitter.bytes(&[0x9d])?; // popfq
    emitter.bytes(&[0x48, 0x8d, 0xa4, 0x24, 0x80, 0, 0, 0])?; // lea rsp, [rsp + 128]
    emitter.jump(next)
}

/// Functions that are hooked, until [`Self::remove`]. The memory stays: a thread may be in it.
pub struct Hooked {
    memory: File,
    area: Area,
    hooks: Vec<Hook>,
}

impl Hooked {
    pub fn counts(&self) -> Vec<u64> {
        assert!(self.area.used * 8 <= self.area.counters);
        let counter = |hook: &Hook| {
            let at = (self.area.at + (hook.counter * 8) as u64) as *const AtomicU64;
            // SAFETY: a counter of this area, which is never unmapped.
            unsafe { (*at).load(Ordering::SeqCst) }
        };
        self.hooks.iter().map(counter).collect()
    }

    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    pub fn remove(&self) {
        for hook in &self.hooks {
            let write = hook.plan.removal();
            self.memory
                .write_all_at(&write.bytes, write.at.0)
                .expect("a pad taken away");
        }
    }
}
