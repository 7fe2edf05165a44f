//! *What is written over the module, so that control comes to the copies?*

use pointee_model::addr::LinkAddr;
use pointee_patch::placement::{PAD_MAX, PadBytes};

use super::{Builder, CALL, FILLER, JUMP, SHORT_JUMP, TRAP};
use crate::place::Pad;

impl Builder<'_, '_> {
    /// The pads that lead to the copies.
    pub(super) fn pads(&self) -> Vec<PadBytes> {
        let mut pads = Vec::new();
        for (at, displaced) in self.placement.displaced.iter().enumerate() {
            let (Some(displaced), Some(start)) = (displaced, self.starts[at]) else {
                continue;
            };
            let copy = self.base + u64::from(start);
            match displaced.pad {
                Pad::None => {}
                Pad::Callers => self.redirect(self.blocks.all[at].start, copy, &mut pads),
                Pad::Near { at, prefix: None } => pads.extend(self.pad(at, &[JUMP], Some(copy))),
                Pad::Near {
                    at,
                    prefix: Some(prefix),
                } => pads.extend(self.pad(at, &[prefix, JUMP], Some(copy))),
                Pad::Call { at } => {
                    let len = usize::from(self.code.places[displaced.first as usize].len);
                    let mut head = [FILLER; PAD_MAX];
                    head[len - 5] = CALL;
                    pads.extend(self.pad(at, &head[..len - 4], Some(copy)));
                }
                Pad::Trap { at } => pads.extend(self.pad(at, &[TRAP], None).map(|pad| PadBytes {
                    trap: Some(start),
                    ..pad
                })),
                Pad::Short { at, relay, prefix } => {
                    let mut head: Vec<u8> = prefix.into_iter().chain([SHORT_JUMP, 0]).collect();
                    let distance = relay.wrapping_sub(at + head.len() as u64) as u8;
                    if let Some(last) = head.last_mut() {
                        *last = distance;
                    }
                    pads.extend(self.pad(at, &head, None));
                    pads.extend(self.pad(relay, &[JUMP], Some(copy)));
                }
                Pad::Overlap { at, relay } => {
                    pads.extend(self.pad(at, &[SHORT_JUMP], None));
                    pads.extend(self.pad(relay, &[JUMP], Some(copy)));
                }
            }
        }
        pads.sort_by_key(|pad| pad.at);
        pads
    }

    /// Sends what leads to `address`, and stays where it is, to `copy` instead.
    fn redirect(&self, address: u64, copy: u64, pads: &mut Vec<PadBytes>) {
        let from = self
            .callers
            .partition_point(|(target, _)| *target < address);
        for (_, source) in self.callers[from..]
            .iter()
            .take_while(|(target, _)| *target == address)
        {
            let place = &self.code.places[*source as usize];
            let block = self.blocks.of_place(*source as usize);
            let moved = self.placement.displaced[block].is_some_and(|displaced| {
                (displaced.first..displaced.last).contains(source)
                    && !(displaced.last_stays && *source + 1 == displaced.last)
            });
            let bytes = self.code.bytes(place);
            if let Some(head) = bytes
                .len()
                .checked_sub(4)
                .and_then(|len| bytes.get(..len))
                .filter(|_| !moved)
            {
                pads.extend(self.pad(place.at, head, Some(copy)));
            }
        }
    }

    /// Whether calls of `address` go to its copy.
    pub(super) fn is_redirected(&self, address: u64) -> bool {
        let block = self.blocks.at(self.code, address);
        let displaced = block.and_then(|block| self.placement.displaced[block]);
        displaced.is_some_and(|displaced| displaced.pad == Pad::Callers)
    }

    /// `head`, and the distance to `target`.
    fn pad(&self, at: u64, head: &[u8], target: Option<u64>) -> Option<PadBytes> {
        let len = head.len() + if target.is_some() { 4 } else { 0 };
        let mut bytes = [0; PAD_MAX];
        bytes.get_mut(..head.len())?.copy_from_slice(head);
        if let Some(target) = target {
            let distance = target.wrapping_sub(at + len as u64) as u32;
            bytes
                .get_mut(head.len()..len)?
                .copy_from_slice(&distance.to_le_bytes());
        }
        let mut original = [0; PAD_MAX];
        original
            .get_mut(..len)?
            .copy_from_slice(self.code.elf.mapped_code_from(at)?.get(..len)?);
        Some(PadBytes {
            at: LinkAddr(at),
            len: len as u8,
            is_relative: target.is_some(),
            trap: None,
            bytes,
            original,
        })
    }
}
