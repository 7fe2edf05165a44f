//! *Where does each counter stand, and what is saved around it?*
//!
//! A counter is moved up over instructions that can neither fault nor go elsewhere, if the flags are
//! dead there: nobody can tell. Where they are live nowhere near, they are kept by `lahf` and
//! `seto`: in a register that is overwritten before it is read, else below the red zone (128 bytes,
//! psABI 3.2.2), with the stack pointer moved, so that a signal's frame does not hit it.

use iced_x86::Register;
use pointee_patch::placement::UNLOCKED;

use super::Builder;
use crate::flags::{Liveness, dead_register, is_plain};

/// How far a counter is moved up.
const HOIST: usize = 8;
/// How far ahead a dead register is looked for.
const LOOK_AHEAD: usize = 12;

impl Builder<'_, '_> {
    /// For each point among `first..last`, the instruction before which it is counted; sorted.
    pub(super) fn slots(
        &self,
        first: usize,
        last: usize,
        liveness: &Liveness,
    ) -> Vec<(usize, usize)> {
        let mut slots: Vec<(usize, usize)> = (first..last)
            .filter(|point| self.wishes.points[*point])
            .map(|point| {
                let lowest = first.max(point.saturating_sub(HOIST));
                let mut slot = point;
                while !liveness.are_dead(slot) {
                    if slot == lowest || !is_plain(self.code.bytes(&self.code.places[slot - 1])) {
                        return (point, point);
                    }
                    slot -= 1;
                }
                (slot, point)
            })
            .collect();
        slots.sort_unstable();
        slots
    }

    /// Counts `due` before instruction `index`.
    pub(super) fn count(&mut self, index: usize, last: usize, due: &[usize], liveness: &Liveness) {
        if due.is_empty() {
            return;
        }
        if liveness.are_dead(index) {
            due.iter().for_each(|point| self.increment(*point));
            return;
        }
        let ahead = &self.code.places[index..last.min(index + LOOK_AHEAD)];
        let dead = dead_register(ahead.iter().map(|place| self.code.bytes(place)));
        match dead {
            Some(Register::RAX) => {}
            Some(register) => self.move_rax(register, true),
            None => {
                self.island
                    .extend([0x48, 0x8d, 0xa4, 0x24, 0x78, 0xff, 0xff, 0xff]); // lea rsp, [rsp-136]
                self.island.extend([0x48, 0x89, 0x04, 0x24]); // mov [rsp], rax
            }
        }
        self.island.extend([0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        due.iter().for_each(|point| self.increment(*point));
        self.island.extend([0x04, 0x7f, 0x9e]); // add al, 127: OF as it was; sahf
        match dead {
            Some(Register::RAX) => {}
            Some(register) => self.move_rax(register, false),
            None => {
                self.island.extend([0x48, 0x8b, 0x04, 0x24]); // mov rax, [rsp]
                self.island.extend([0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0]); // lea rsp, [rsp+136]
            }
        }
    }

    /// `mov register, rax`, or back.
    fn move_rax(&mut self, register: Register, save: bool) {
        let number = register.number() as u8;
        let extended = u8::from(number >= 8);
        let code = if save {
            [0x48 | extended, 0x89, 0xc0 | number & 7]
        } else {
            [0x48 | extended, 0x8b, 0xc0 | number & 7]
        };
        // `mov r/m, rax` and `mov rax, r/m`: the register is in `rm` both times.
        self.island.extend(code);
    }

    /// `ds inc qword ptr [counter]`; the distance is filled in at the end.
    fn increment(&mut self, point: usize) {
        self.counters.push(self.island.len() as u32);
        self.counted.push(point as u32);
        self.island.extend([UNLOCKED, 0x48, 0xff, 0x05, 0, 0, 0, 0]);
    }
}
