//! *How do hooks get into the code?*
//!
//! `pointee-patch` plans; this file finds room for relays and trampolines within reach of the code, and
//! writes. Everything is written through `/proc/self/mem`: no page becomes writable and executable, and no
//! page that may be running becomes unexecutable. Where that file cannot be had, nothing is hooked.
//!
//! Hooks are planted in code that no thread is running: at start there is one thread, and an object that
//! is being loaded has not been entered yet.

#![allow(unsafe_code)] // Writes code.

mod system_calls;

use crate::announce::{ISLANDS, announce};
use crate::hooks::{self, Pad, Planted};
use crate::locate::Function;
use crate::modules::Module;
use crate::region::{add_string, region};
use crate::sys::{self, map};
use core::ptr;
use core::sync::atomic::Ordering::{Relaxed, Release};
use pointee_index::class::{Class, Kind};
use pointee_index::layout::unseen;
use pointee_index::origins::ROOTS;
use pointee_index::records::{Hook, Placement, Role};
use pointee_model::addr::RunAddr;
use pointee_model::entries::Declared;
use pointee_patch::arch::x86_64::emit::{RELAY_MAX, relay};
use pointee_patch::{Entry, Refusal, TRAMPOLINE_MAX, plan_entry};

/// Room for trampolines in one place.
const ISLAND: usize = 16 << 10;
/// Bytes one hook takes: relay, then trampoline.
const SLOT: usize = (RELAY + TRAMPOLINE_MAX).next_multiple_of(16);
/// Bytes a relay takes at most.
const RELAY: usize = 32;
const _: () = assert!(RELAY >= RELAY_MAX);
/// Reach of a `jmp rel32`, with room to spare for operands of displaced instructions.
const REACH: u64 = 1 << 30;

/// Executable memory near some code. Never given back: threads may be in it.
#[derive(Clone, Copy)]
struct Island {
    at: u64,
    used: usize,
    /// Bytes of it that debuggers know of.
    told: usize,
}

/// A writer of code: the process's memory as a file.
pub(crate) struct Planter {
    memory: usize,
}

impl Drop for Planter {
    fn drop(&mut self) {
        sys::close(self.memory);
        // SAFETY: one thread at a time, see `Ledger`.
        unsafe { (*LEDGER.0.get()).announce() };
    }
}

/// Places, names and numbers of what was planted. Used by one thread at a time: the first, or the one that holds the
/// dynamic linker's lock.
struct Ledger {
    islands: [Island; ISLANDS],
    next_root: u32,
    /// Allocators in order of number: the module, and whether it is a declared one.
    allocators: [(u32, bool); Class::ALLOCATORS as usize],
    allocators_len: usize,
}

struct LedgerCell(core::cell::UnsafeCell<Ledger>);
// SAFETY: see `Ledger`.
unsafe impl Sync for LedgerCell {}

static LEDGER: LedgerCell = LedgerCell(core::cell::UnsafeCell::new(Ledger {
    islands: [Island {
        at: 0,
        used: 0,
        told: 0,
    }; ISLANDS],
    next_root: 1,
    allocators: [(0, false); Class::ALLOCATORS as usize],
    allocators_len: 0,
}));

impl Planter {
    /// `None` where the process may not write its own text this way.
    pub(crate) fn new() -> Option<Self> {
        let memory = usize::try_from(sys::open(c"/proc/self/mem", true)).ok()?;
        Some(Self { memory })
    }

    /// Hooks `function` of `module`, unless its code is hooked already under another name.
    pub(crate) fn plant(&self, module: &Module, function: &Function) {
        if let Some(before) = hooks::planted_at(function.address)
            && self.plant_again(before)
        {
            return;
        }
        // SAFETY: one thread at a time, see `Ledger`.
        let ledger = unsafe { &mut *LEDGER.0.get() };
        let class = ledger.class_of(module, function);
        let placed = self.place(ledger, module, function, class, None);
        self.conclude(module, function, placed);
    }

    /// Hooks `function`, which does nothing but jump, in the end, to the code before which `end` was planted: its original
    /// is that one's. `false` if that cannot be.
    pub(crate) fn plant_shortcut(
        &self,
        module: &Module,
        function: &Function,
        end: &'static Planted,
    ) -> bool {
        if let Some(before) = hooks::planted_at(function.address)
            && self.plant_again(before)
        {
            return true;
        }
        // SAFETY: one thread at a time, see `Ledger`.
        let ledger = unsafe { &mut *LEDGER.0.get() };
        let class = end.class().with_kind(Kind::of_operator(function.name));
        let placed = self.place(ledger, module, function, class, Some(end.original()));
        let is_placed = placed.is_ok();
        if is_placed {
            self.conclude(module, function, placed);
        }
        is_placed
    }

    /// Writes the record of what was placed, or why not.
    fn conclude(&self, module: &Module, function: &Function, placed: Result<Hook, Refusal>) {
        let record = match placed {
            Ok(record) => record,
            Err(refusal) => {
                region()
                    .header()
                    .unseen
                    .fetch_or(unseen::HOOK_REFUSED, Relaxed);
                Hook {
                    address: function.address,
                    trampoline: 0,
                    name: 0,
                    module: module.number,
                    before: [0; 16],
                    after: [0; 16],
                    len: 0,
                    role: function.role as u8,
                    placement: Placement::Refused as u8,
                    reason: refusal as u8,
                    root: 0,
                }
            }
        };
        append(Hook {
            name: add_string(function.name.as_bytes()),
            ..record
        });
    }

    /// Plants a pad again where the same code is loaded at the same place as before; its trampoline still serves. `true` if
    /// the pad is there now.
    fn plant_again(&self, before: &hooks::Planted) -> bool {
        let pad = before.pad();
        // SAFETY: the entry lies in a loaded module's code.
        let now = unsafe { ptr::read_unaligned(pad.at as *const [u8; 5]) };
        now == pad.planted || (now == pad.original && self.write(pad.at, &pad.planted))
    }

    fn place(
        &self,
        ledger: &mut Ledger,
        module: &Module,
        function: &Function,
        class: Class,
        original: Option<u64>,
    ) -> Result<Hook, Refusal> {
        let root = if is_of_allocator(function.role) {
            ledger.new_root()
        } else {
            0
        };
        let slot = ledger
            .room_near(function.address)
            .ok_or(Refusal::RelayOutOfReach)?;
        let text_left = module.text.1.saturating_sub(function.address);
        // Padding behind the function may be needed for the pad; a body of unknown length is searched for branches generously.
        let body = if function.len == 0 { 512 } else { function.len };
        let len = (body + 16).min(text_left) as usize;
        // SAFETY: inside the module's executable segment, which is readable.
        let code = unsafe { core::slice::from_raw_parts(function.address as *const u8, len) };
        let entry = Entry {
            code,
            at: RunAddr(function.address),
            body_len: (function.len != 0).then_some((function.len as usize).min(len)),
        };
        let relay_at = RunAddr(slot);
        let trampoline_at = RunAddr(slot + RELAY as u64);
        let plan = plan_entry(&entry, trampoline_at, relay_at)?;
        let pad = plan.installation();
        let bytes = Pad {
            at: pad.at.0,
            planted: pad.bytes,
            original: plan.original,
        };
        let planted = Planted::new(
            function.address,
            original.unwrap_or(trampoline_at.0),
            root,
            class,
            function.says(),
            bytes,
        )
        .ok_or(Refusal::RelayOutOfReach)?;
        let record = ptr::from_ref(planted) as u64;
        let relay = relay(
            relay_at,
            record,
            RunAddr(hooks::destination(function.says())),
        );
        let written = self.write(trampoline_at.0, plan.trampoline.as_slice())
            && self.write(relay_at.0, relay.as_slice())
            && self.write(pad.at.0, &pad.bytes);
        if !written {
            return Err(Refusal::NotRelocatable);
        }
        let mut record = Hook {
            address: pad.at.0,
            trampoline: trampoline_at.0,
            name: 0,
            module: module.number,
            before: [0; 16],
            after: [0; 16],
            len: pad.bytes.len() as u8,
            role: function.role as u8,
            placement: Placement::Jump as u8,
            reason: 0,
            root,
        };
        record.before[..plan.original.len()].copy_from_slice(&plan.original);
        record.after[..pad.bytes.len()].copy_from_slice(&pad.bytes);
        Ok(record)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> bool {
        // SAFETY: the bytes were planned for that place, and no thread runs there.
        unsafe { sys::pwrite(self.memory, bytes.as_ptr(), bytes.len(), at as usize) }
    }
}

impl Planter {
    /// Leads branches of `module` past its copies of functions that are hooked.
    pub(crate) fn open_guards(&self, module: &Module) {
        let Some(image) = &module.image else {
            return;
        };
        for guard in image.guards {
            let at = guard.address.wrapping_add(module.bias);
            let len = usize::from(guard.len);
            let (Some(original), Some(always)) =
                (guard.original.get(..len), guard.always.get(..len))
            else {
                continue;
            };
            let (start, end) = module.text;
            let is_code = (start..end).contains(&at) && end - at >= len as u64;
            let function = guard.function.wrapping_add(module.bias);
            if !is_code || hooks::planted_at(function).is_none() {
                continue;
            }
            // SAFETY: inside the module's executable segment, which is readable.
            let now = unsafe { core::slice::from_raw_parts(at as *const u8, len) };
            if now == original && self.write(at, always) {
                let (mut before, mut after) = ([0; 16], [0; 16]);
                before[..len].copy_from_slice(original);
                after[..len].copy_from_slice(always);
                note_pad(module, b"guard", at, guard.len, before, after);
            }
        }
    }
}

/// A root for the blocks that inlined code of `module` cuts out by moving the cursor `name`, first at `address`.
pub(crate) fn root_of_cursor(module: &Module, name: &'static str, address: u64) -> u32 {
    // SAFETY: one thread at a time, see `Ledger`.
    let ledger = unsafe { &mut *LEDGER.0.get() };
    let function = Function {
        name,
        role: Role::PoolAlloc,
        address,
        len: 0,
        declared: Some(Declared::of(Role::PoolAlloc)),
    };
    let class = ledger.class_of(module, &function);
    let root = ledger.new_root();
    append(Hook {
        address,
        trampoline: 0,
        name: add_string(name.as_bytes()),
        module: module.number,
        before: [0; 16],
        after: [0; 16],
        len: 0,
        role: Role::PoolAlloc as u8,
        placement: Placement::Jump as u8,
        reason: 0,
        root,
    });
    root | class.bits()
}

/// Records bytes of `module` that were changed for what `name` says, unless functions that are hooked need the room.
pub(crate) fn note_pad(
    module: &Module,
    name: &[u8],
    at: u64,
    len: u8,
    before: [u8; 16],
    after: [u8; 16],
) {
    if region().header().hooks.load(Relaxed) >= region().geometry.hooks / 2 {
        return;
    }
    append(Hook {
        address: at,
        trampoline: 0,
        name: add_string(name),
        module: module.number,
        before,
        after,
        len,
        role: Role::PoolAlloc as u8,
        placement: Placement::Jump as u8,
        reason: 0,
        root: 0,
    });
}

/// Whether a function of this role hands out blocks or takes them back.
const fn is_of_allocator(role: Role) -> bool {
    !matches!(
        role,
        Role::Fork
            | Role::Exec
            | Role::ExecFd
            | Role::ExecAt
            | Role::Exit
            | Role::LinkMap
            | Role::Prctl
            | Role::Brk
            | Role::Munmap
            | Role::Mprotect
            | Role::SigAltStack
            | Role::Dlsym
            | Role::Other
    )
}

fn append(record: Hook) {
    let region = region();
    let header = region.header();
    let number = header.hooks.load(Relaxed);
    if number >= region.geometry.hooks {
        return;
    }
    // SAFETY: within the hook section, above the used records.
    unsafe {
        region
            .base
            .add(region.layout.hooks as usize)
            .cast::<Hook>()
            .add(number as usize)
            .write(record);
    }
    header.hooks.store(number + 1, Release);
}

impl Ledger {
    /// The class of the blocks that `function` hands out or takes back.
    fn class_of(&mut self, module: &Module, function: &Function) -> Class {
        if !is_of_allocator(function.role) {
            return Class::new(0, Kind::C);
        }
        let allocator = (module.number, function.declared.is_some());
        let known = &self.allocators[..self.allocators_len];
        let number = known.iter().position(|known| *known == allocator);
        let number = number.unwrap_or_else(|| {
            let new = self.allocators_len.min(self.allocators.len() - 1);
            self.allocators[new] = allocator;
            self.allocators_len = new + 1;
            new
        });
        let kind = match function.role {
            Role::New | Role::Delete => Kind::of_operator(function.name),
            _ => Kind::C,
        };
        Class::new(number as u32, kind)
    }

    /// Tells debuggers of what was planted since it was done last.
    fn announce(&mut self) {
        for (number, island) in self.islands.iter_mut().enumerate() {
            if island.told != island.used {
                island.told = island.used;
                // SAFETY: one thread at a time, see `Ledger`.
                unsafe { announce(number, island.at, island.used, SLOT) };
            }
        }
    }

    /// A root for one more entry; the last is shared when they run out.
    fn new_root(&mut self) -> u32 {
        let root = self.next_root;
        self.next_root = (root + 1).min(ROOTS - 1);
        root
    }

    /// A slot within reach of `address`.
    fn room_near(&mut self, address: u64) -> Option<u64> {
        for island in &mut self.islands {
            if island.at == 0 {
                island.at = map_near(address)?;
                island.used = 0;
            }
            if island.at.abs_diff(address) < REACH && island.used + SLOT <= ISLAND {
                let slot = island.at + island.used as u64;
                island.used += SLOT;
                return Some(slot);
            }
        }
        None
    }
}

/// Maps an island as near to `address` as can be.
fn map_near(address: u64) -> Option<u64> {
    let page = address & !(ISLAND as u64 - 1);
    // Below first: above an executable lies its heap. Steps grow, so that a few dozen tries span the reach.
    let mut distance = 1u64 << 16;
    while distance < REACH {
        for hint in [page.checked_sub(distance), page.checked_add(distance)] {
            let Some(hint) = hint.filter(|hint| *hint >= 1 << 16) else {
                continue;
            };
            let flags = map::PRIVATE | map::ANONYMOUS | map::FIXED_NOREPLACE;
            let at = sys::mmap(hint as usize, ISLAND, map::READ | map::EXEC, flags, -1);
            if at.is_null() {
                continue;
            }
            if (at as u64).abs_diff(address) < REACH {
                return Some(at as u64);
            }
            // SAFETY: just mapped by a kernel that takes the address for a hint only.
            unsafe { sys::munmap(at, ISLAND) };
        }
        distance += (distance / 4).next_multiple_of(ISLAND as u64);
    }
    None
}
