//! *How does a system call instruction come to its hook?* — drawn in [`crate::hooks`], `system_calls.rs`.
//!
//! Where the bytes lie that may be replaced, the image says; they are compared with what is in memory before anything is written. Functions of libc that are
//! hooked by name are left alone. What cannot be hooked may change mappings unseen, and is noted as that.

#![allow(unsafe_code)] // Reads code of loaded objects.

use super::{LEDGER, Ledger, Planter, SLOT, append};
use crate::hooks::{self, Pad, Planted};
use crate::mappings::list;
use crate::modules::Module;
use crate::region::add_string;
use crate::{api, locate};
use core::ptr;
use pointee_index::class::{Class, Kind};
use pointee_index::records::{Hook, Placement, Role};
use pointee_model::addr::RunAddr;
use pointee_model::entries::{Declared, PROCESS};
use pointee_model::image::SystemCallRecord;
use pointee_patch::arch::x86_64::emit::{near_jump, relay};
use pointee_patch::arch::x86_64::relocate::relocate;

const SIGALTSTACK: u32 = 131;
/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

impl Planter {
    /// Hooks the system calls of `module` that may change what is mapped.
    pub(crate) fn plant_system_calls(&self, module: &'static Module) {
        let own = hooks::destination as fn(Declared) -> u64 as usize as u64;
        // The kernel's own object maps nothing.
        if module.holds(own) || module.file_name().starts_with(b"linux-vdso") {
            return;
        }
        let Some(image) = api::image_of(module) else {
            list::is_incomplete();
            return;
        };
        let named = Named::of(module);
        let is_own_of_libc = locate::is_libc(module) || module.file_name().starts_with(b"ld-linux");
        let mut common = None;
        for call in image.system_calls {
            let window = call.window.wrapping_add(module.bias);
            // What the C library does with a number from a register maps nothing: that is `syscall`, which is hooked, and waiting.
            let is_other = call.number == SystemCallRecord::UNKNOWN && is_own_of_libc;
            if is_other || named.holds(window) {
                continue;
            }
            // SAFETY: one thread at a time, see `Ledger`.
            let ledger = unsafe { &mut *LEDGER.0.get() };
            let (root, name) =
                *common.get_or_insert_with(|| (ledger.new_root(), add_string(b"syscall")));
            match self.plant_system_call(ledger, module, call, root) {
                Some(Done::Before) => {}
                Some(Done::Now(record)) => append(Hook { name, ..record }),
                // `sigaltstack` maps nothing.
                None if call.number == SIGALTSTACK => {}
                None => list::is_incomplete(),
            }
        }
    }

    /// `None` if that cannot be.
    fn plant_system_call(
        &self,
        ledger: &mut Ledger,
        module: &Module,
        call: &SystemCallRecord,
        root: u32,
    ) -> Option<Done> {
        let window = call.window.wrapping_add(module.bias);
        let (len, offset) = (usize::from(call.len), usize::from(call.offset));
        let code = call.original.get(..len)?;
        let (before, rest) = code.split_at_checked(offset)?;
        let behind = rest.strip_prefix(&INSTRUCTION)?;
        let (start, end) = module.text;
        if !(start..end).contains(&window) || end - window < len as u64 {
            return None;
        }
        let home = window + (offset + INSTRUCTION.len()) as u64;
        if let Some(known) = hooks::planted_at(home)
            && self.plant_again(known)
        {
            return Some(Done::Before);
        }
        // SAFETY: inside the module's executable segment, which is readable.
        let now = unsafe { core::slice::from_raw_parts(window as *const u8, len) };
        if now != code {
            return None;
        }
        let at = ledger.room_near(window)?;
        let stub = RunAddr(hooks::destination(Declared::of(Role::SystemCall)));
        let mut slot = Slot::at(at);
        slot.relocated(before, window)?;
        let way = slot.here();
        // As long as the one that is written, whatever the record's address.
        let relay_len = relay(way, 0, stub).len();
        let pad = near_jump(RunAddr(window), RunAddr(at))?;
        let bytes = Pad {
            at: window,
            planted: pad,
            original: *code.first_chunk()?,
        };
        let says = Declared::of(Role::SystemCall);
        let class = Class::new(0, Kind::C);
        let original = way.0 + relay_len as u64;
        let planted = Planted::new(home, original, root, class, says, bytes)?;
        slot.bytes(&relay(way, ptr::from_ref(planted) as u64, stub))?;
        slot.bytes(&INSTRUCTION)?;
        slot.relocated(behind, home)?;
        slot.bytes(&near_jump(slot.here(), RunAddr(window + len as u64))?)?;
        if !(self.write(at, slot.as_slice()) && self.write(window, &pad)) {
            return None;
        }
        let mut record = Hook {
            address: window,
            trampoline: at,
            name: 0,
            module: module.number,
            before: [0; 16],
            after: [0; 16],
            len: pad.len() as u8,
            role: Role::SystemCall as u8,
            placement: Placement::Jump as u8,
            reason: 0,
            root,
        };
        record.before[..pad.len()].copy_from_slice(&bytes.original);
        record.after[..pad.len()].copy_from_slice(&pad);
        Some(Done::Now(record))
    }
}

enum Done {
    /// It is hooked since the same code was loaded there before.
    Before,
    Now(Hook),
}

/// Functions of libc that are hooked by name.
struct Named([(u64, u64); PROCESS.len()]);

impl Named {
    fn of(module: &Module) -> Self {
        let mut ranges = [(0, 0); PROCESS.len()];
        if locate::is_libc(module) {
            for (range, (name, _)) in ranges.iter_mut().zip(&PROCESS) {
                *range = locate::exported(module, name).unwrap_or_default();
            }
        }
        Self(ranges)
    }

    fn holds(&self, address: u64) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|(start, len)| address.wrapping_sub(*start) < *len)
    }
}

/// Code under construction.
struct Slot {
    at: u64,
    bytes: [u8; SLOT],
    len: usize,
}

impl Slot {
    fn at(at: u64) -> Self {
        Self {
            at,
            bytes: [0; SLOT],
            len: 0,
        }
    }

    fn here(&self) -> RunAddr {
        RunAddr(self.at + self.len as u64)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        let room = self.bytes.get_mut(self.len..self.len + bytes.len())?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Some(())
    }

    /// What `code` does at `from`, which is no branch.
    fn relocated(&mut self, code: &[u8], from: u64) -> Option<()> {
        let here = self.here();
        let room = self.bytes.get_mut(self.len..)?;
        if !code.is_empty() {
            self.len += relocate(code, RunAddr(from), here, room).ok()?.len;
        }
        Some(())
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
