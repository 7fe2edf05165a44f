//! *How does a jump fit in one byte?* Its distance is the byte behind it, whatever that means to those who come there.
//!
//! ```text
//!   at      EB      written: a short jump
//!   at + 1  xx      what others execute, and the distance of the jump:
//!                     code that stays         one distance
//!                     the first byte of a     E9 rel32, EB rel8, E8 rel32, CC as they are: one distance;
//!                     pad                     of a jump, behind one of PREFIXES too: one more each
//!   at + 2 + xx     E9 rel32, if five bytes are free there
//! ```

use std::collections::{BTreeMap, BTreeSet};

use pointee_patch::arch::x86_64::PAD_LEN;

use crate::code::Code;
use crate::island::{CALL, FILLER, JUMP, SHORT_JUMP, TRAP};
use crate::place::{Displaced, Pad};
use crate::room::{Bytes, KEPT, START};

/// Prefixes with which compilers, linkers and kernels begin near jumps and calls, to no effect: `rex` (psABI, calls of
/// `__tls_get_addr`; its low four bits are about operands that such a jump does not have), `cs`, `addr32`.
const PREFIXES: [u8; 18] = [
    0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f,
    0x2e, 0x67,
];

/// First bytes of pads and relays, by their addresses.
pub(crate) struct Overlaps<'o, 'e> {
    code: &'o Code<'e>,
    /// The block that a pad is of.
    pads: BTreeMap<u64, usize>,
    /// Jumps that short ones lead to.
    relays: BTreeSet<u64>,
    /// Pads of one byte.
    single: BTreeSet<u64>,
}

impl<'o, 'e> Overlaps<'o, 'e> {
    /// All pads are decided but those at `single`.
    pub(crate) fn new(
        code: &'o Code<'e>,
        displaced: &[Option<Displaced>],
        single: &[(usize, u64)],
    ) -> Self {
        let mut overlaps = Self {
            code,
            pads: BTreeMap::new(),
            relays: BTreeSet::new(),
            single: single.iter().map(|(_, at)| *at).collect(),
        };
        for (number, displaced) in displaced.iter().enumerate() {
            match displaced.map(|displaced| displaced.pad) {
                Some(Pad::Near { at, .. } | Pad::Call { at } | Pad::Trap { at }) => {
                    overlaps.pads.insert(at, number);
                }
                Some(Pad::Short { at, relay, .. } | Pad::Overlap { at, relay }) => {
                    overlaps.pads.insert(at, number);
                    overlaps.relays.insert(relay);
                }
                Some(Pad::None | Pad::Callers) | None => {}
            }
        }
        for (_, at) in single {
            overlaps.pads.remove(at);
        }
        overlaps
    }

    /// Where the one-byte pad of block `number` at `at` leads, and what bytes that takes; `None` where there is no room. Those
    /// behind it are decided already.
    pub(crate) fn find(
        &mut self,
        number: usize,
        at: u64,
        bytes: &mut Bytes,
        displaced: &mut [Option<Displaced>],
    ) -> Option<u64> {
        if bytes.get(at) != START {
            return None; // What stays must stay.
        }
        let behind = at + 1;
        let reached = |first: u8| (at + 2).wrapping_add_signed(i64::from(first.cast_signed()));
        let mut pad = match self.pads.get(&behind) {
            Some(number) => displaced.get_mut(*number)?.as_mut().map(|pad| &mut pad.pad),
            None => None,
        };
        let first = match pad.as_deref() {
            Some(pad) => self.first_byte(pad)?,
            None if self.relays.contains(&behind) => JUMP,
            None if bytes.get(behind) == KEPT => *self.code.elf.code_at(behind, 1)?.first()?,
            None => return None,
        };
        // One in front has no choice: its distance will be the first byte of this.
        let before = at.wrapping_sub(1);
        let wanted = (at + 1).wrapping_add_signed(i64::from(SHORT_JUMP.cast_signed()));
        let is_wanted =
            |relay: u64| self.single.contains(&before) && relay.abs_diff(wanted) < PAD_LEN as u64;
        let can = |byte: u8, considerate: bool, bytes: &Bytes| {
            let relay = reached(byte);
            bytes.is_free(relay, PAD_LEN) && !(considerate && is_wanted(relay))
        };
        let mut relay = None;
        for considerate in [true, false] {
            if relay.is_none() && can(first, considerate, bytes) {
                relay = Some(reached(first));
            }
            if relay.is_none()
                && let Some(pad) = &mut pad
            {
                let prefix = PREFIXES.into_iter().find(|prefix| {
                    can(*prefix, considerate, bytes) && prepend(pad, *prefix, bytes)
                });
                relay = prefix.map(reached);
            }
        }
        let relay = relay.filter(|relay| bytes.take_relay(*relay))?;
        bytes.set(at, behind, KEPT);
        self.pads.insert(at, number);
        self.relays.insert(relay);
        Some(relay)
    }

    fn first_byte(&self, pad: &Pad) -> Option<u8> {
        Some(match *pad {
            Pad::Near { prefix, .. } => prefix.unwrap_or(JUMP),
            Pad::Short { prefix, .. } => prefix.unwrap_or(SHORT_JUMP),
            Pad::Overlap { .. } => SHORT_JUMP,
            Pad::Trap { .. } => TRAP,
            Pad::Call { at } => {
                let place = self.code.places.get(self.code.find(at)?)?;
                if usize::from(place.len) > PAD_LEN {
                    FILLER
                } else {
                    CALL
                }
            }
            Pad::None | Pad::Callers => return None,
        })
    }
}

/// Has a jump begin with `prefix`, if there is a byte for it.
fn prepend(pad: &mut Pad, prefix: u8, bytes: &mut Bytes) -> bool {
    match pad {
        Pad::Near {
            at,
            prefix: before @ None,
        } if bytes.lengthen(*at + PAD_LEN as u64) => *before = Some(prefix),
        Pad::Short {
            at,
            relay,
            prefix: before @ None,
        } if i8::try_from(relay.wrapping_sub(*at + 3).cast_signed()).is_ok()
            && bytes.lengthen(*at + 2) =>
        {
            *before = Some(prefix);
        }
        _ => return false,
    }
    true
}
