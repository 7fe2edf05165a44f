//! *What is planned for an object of the process, and where may a thread stand when it is applied?*
//!
//! ```text
//!   a thread about to execute …          when pads are written             when they are taken away
//!   a displaced instruction              goes on in its copy               —
//!   a jump to a copy                     —                                 taken to have jumped
//!   the copy of an instruction           —                                 goes on at the instruction
//!   what counts, between two copies      —                                 steps on to the next
//!   anything else                        stays                             stays
//! ```
//!
//! A thread in a system call stays where it is, because the kernel may make the call again at the instruction before it. What calls and
//! the kernel return to is the start of a pad or untouched (crate `pointee_probe`). What only a signal's frame may hold, an address
//! amid displaced code, is looked for on stacks.

use super::mapped::Counters;
use super::space::{Mapping, Memory};
use super::tasks::is_in_call;
use crate::placements::Wish;
use anyhow::{Context, Result, bail};
use libc::user_regs_struct;
use nix::unistd::Pid;
use object::elf::{PF_X, PT_LOAD};
use pointee_meta::elf::Elf;
use pointee_model::addr::LinkAddr;
use pointee_patch::placement::{PadBytes, Placement};
use pointee_probe::Plan;
use std::ops::Range;

const ENDBR64: [u8; 4] = pointee_patch::arch::x86_64::ENDBR64;
const JUMP: u8 = 0xe9;
/// Pads closer than this are written by one call.
const NEAR: u64 = 4096;

/// An object of which something is wanted.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) path: String,
    pub(super) plan: Plan,
    elf: Elf,
    bias: u64,
    /// All of it in memory.
    pub(super) range: Range<u64>,
    pub(super) header: pointee_patch::placement::Header,
    pads: Vec<PadBytes>,
    /// Of the island; 0 until it is there.
    pub(super) island: u64,
    /// The counters, when they are there.
    pub(super) counters: Option<Counters>,
}

impl Object {
    /// What is planned for what `mapping` has of a file; `None` if nothing is wanted of it.
    pub(super) fn plan(pid: Pid, mapping: &Mapping, wish: &Wish) -> Result<Option<Self>> {
        let path = mapping.path.trim_end_matches(" (deleted)").to_owned();
        if !wish.wants(&path) {
            return Ok(None);
        }
        let elf = open(pid, mapping, &path)?;
        let holder = elf.segments().iter().find(|segment| {
            let start = segment.offset & !0xfff;
            segment.kind == PT_LOAD
                && segment.flags.0 & PF_X.0 != 0
                && (start..segment.offset.saturating_add(segment.file_size))
                    .contains(&mapping.offset)
        });
        let segment = holder.context("its mapping is no segment of it")?;
        let at = segment
            .address
            .wrapping_sub(segment.offset)
            .wrapping_add(mapping.offset);
        let bias = mapping.range.start.wrapping_sub(at);
        let loads = || {
            elf.segments()
                .iter()
                .filter(|segment| segment.kind == PT_LOAD)
        };
        let start = loads().map(|s| s.address).min().unwrap_or(0);
        let end = loads()
            .map(|s| s.address.saturating_add(s.memory_size))
            .max()
            .unwrap_or(0);
        let plan = wish.plan(&elf, &path)?;
        let placement = Placement::parse(&plan.placement).context("no placement")?;
        let (header, pads) = (placement.header, placement.pads().collect());
        if plan.points.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            range: start.wrapping_add(bias)..end.wrapping_add(bias),
            path,
            plan,
            elf,
            bias,
            header,
            pads,
            island: 0,
            counters: None,
        }))
    }

    /// Bytes of island and counters.
    pub(super) fn len(&self) -> u64 {
        self.header.island_len + self.header.counters_len() as u64
    }

    /// Whether all of its code in memory is the file's.
    pub(super) fn is_as_in_file(&self, memory: &Memory) -> bool {
        let code = self
            .elf
            .segments()
            .iter()
            .filter(|segment| segment.kind == PT_LOAD && segment.flags.0 & PF_X.0 != 0);
        code.into_iter().all(|segment| {
            let from = usize::try_from(segment.offset).unwrap_or(usize::MAX);
            let len = usize::try_from(segment.file_size).unwrap_or(usize::MAX);
            let file = from
                .checked_add(len)
                .and_then(|end| self.elf.bytes().get(from..end));
            let now = file
                .and_then(|file| memory.read(segment.address.wrapping_add(self.bias), file.len()));
            now.is_some() && now.as_deref() == file
        })
    }

    /// The island's bytes for where it lies, every counter exact with threads.
    pub(super) fn island_bytes(&self) -> Option<Vec<u8>> {
        let placement = Placement::parse(&self.plan.placement)?;
        let mut island = placement.island().to_vec();
        placement.correct(&mut island, self.bias, self.delta())?;
        placement.lock(&mut island);
        Some(island)
    }

    /// How much further the island lies than it was laid out for.
    fn delta(&self) -> i64 {
        self.island
            .wrapping_sub(self.header.base.wrapping_add(self.bias)) as i64
    }

    fn run(&self, at: LinkAddr) -> u64 {
        at.0.wrapping_add(self.bias)
    }

    /// Writes all pads, or if `home` what was there before them. Bytes that are neither are somebody else's, and are left.
    pub(super) fn write_pads(&self, memory: &Memory, home: bool) -> Result<()> {
        // What lies between two that are near is written with them, as it is: nobody else writes, and calls cost more.
        for near in self.pads.chunk_by(|a, b| b.at.0 - a.at.0 < NEAR) {
            let (Some(first), Some(last)) = (near.first(), near.last()) else {
                continue;
            };
            let len = last.at.0 + u64::from(last.len) - first.at.0;
            let Some(mut bytes) = memory.read(self.run(first.at), usize::try_from(len)?) else {
                continue; // Unmapped by its own program.
            };
            for pad in near {
                let from = (pad.at.0 - first.at.0) as usize;
                let written = pad.written(self.delta()).context("out of reach")?;
                let (before, after) = if home {
                    (written, pad.original)
                } else {
                    (pad.original, written)
                };
                let len = usize::from(pad.len);
                if let Some(now) = bytes.get_mut(from..from + len)
                    && *now == before[..len]
                {
                    now.copy_from_slice(&after[..len]);
                }
            }
            memory.write(self.run(first.at), &bytes)?;
        }
        Ok(())
    }

    /// The pad that covers the byte at `at`.
    fn pad_over(&self, at: u64) -> Option<&PadBytes> {
        let link = LinkAddr(at.wrapping_sub(self.bias));
        let behind = self.pads.partition_point(|pad| pad.at <= link);
        let pad = self.pads.get(behind.checked_sub(1)?)?;
        (link.0 - pad.at.0 < u64::from(pad.len)).then_some(pad)
    }

    fn copy_of(&self, at: u64) -> Option<u64> {
        let link = LinkAddr(at.wrapping_sub(self.bias));
        let found = self
            .plan
            .copies
            .binary_search_by_key(&link, |(at, _)| *at)
            .ok()?;
        let (_, offset) = self.plan.copies.get(found)?;
        Some(self.island + u64::from(*offset))
    }

    /// Whether what returns to `at` goes on as planned once the pads are there.
    fn may_return(&self, at: u64, memory: &Memory) -> bool {
        if !self.range.contains(&at) {
            return true;
        }
        let starts = |at: u64| self.pad_over(at).is_some_and(|pad| self.run(pad.at) == at);
        match (self.pad_over(at), self.copy_of(at)) {
            (None, None) => true,
            (Some(_), _) => starts(at),
            (None, Some(_)) => starts(at + 4) && memory.read(at, 4).as_deref() == Some(&ENDBR64),
        }
    }

    /// Where a thread goes on when the pads are there; or why it cannot be told.
    pub(super) fn enter(
        &self,
        registers: &user_regs_struct,
        memory: &Memory,
    ) -> Result<u64, &'static str> {
        let pc = registers.rip;
        if is_in_call(registers) {
            let call_stays = [1, 2]
                .into_iter()
                .all(|back| self.pad_over(pc.wrapping_sub(back)).is_none());
            return if call_stays && self.may_return(pc, memory) {
                Ok(pc)
            } else {
                Err("a thread waits in a system call whose instruction would be displaced")
            };
        }
        match self.copy_of(pc) {
            Some(copy) => Ok(copy),
            None if self.may_return(pc, memory) => Ok(pc),
            None => Err("a thread stands amid displaced code"),
        }
    }

    /// Whether a stack's words hold an address amid displaced code.
    pub(super) fn is_interrupted(&self, stack: &[u8], memory: &Memory) -> bool {
        words(stack).any(|word| !self.may_return(word, memory))
    }

    /// Whether `address` lies in the island.
    pub(super) fn is_in_island(&self, address: u64) -> bool {
        self.island != 0 && address.wrapping_sub(self.island) < self.header.island_len
    }

    /// Where a jump to a copy, which is at `pc`, leads.
    pub(super) fn jump_target(&self, pc: u64) -> Option<u64> {
        let pad = self.pad_over(pc).filter(|pad| self.run(pad.at) == pc)?;
        let bytes = pad.written(self.delta()).filter(|bytes| bytes[0] == JUMP)?;
        let distance = i32::from_le_bytes(bytes.get(1..5)?.try_into().ok()?);
        let target = pc.wrapping_add(5).wrapping_add_signed(i64::from(distance));
        self.is_in_island(target).then_some(target)
    }

    /// Where a thread in the island at `pc` goes on in the code, if it is about to execute a copy.
    pub(super) fn home_of(&self, pc: u64) -> Option<u64> {
        let offset = u32::try_from(pc.wrapping_sub(self.island)).ok()?;
        let found = self
            .plan
            .copies
            .binary_search_by_key(&offset, |(_, offset)| *offset)
            .ok()?;
        self.plan.copies.get(found).map(|(at, _)| self.run(*at))
    }

    /// The counters as they are now.
    pub(super) fn counts(&self) -> Vec<u64> {
        let counters = self.counters.as_ref();
        counters.map(Counters::counts).unwrap_or_default()
    }
}

/// A stack's words.
pub(super) fn words(stack: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let words = stack
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok());
    words.map(u64::from_le_bytes)
}

/// The file of a mapping, as the process sees it.
fn open(pid: Pid, mapping: &Mapping, path: &str) -> Result<Elf> {
    use std::os::unix::fs::MetadataExt;
    let (start, end) = (mapping.range.start, mapping.range.end);
    let names = [
        format!("/proc/{pid}/map_files/{start:x}-{end:x}"),
        format!("/proc/{pid}/root{path}"),
        format!("/proc/{pid}/exe"),
    ];
    for name in names {
        let same = std::fs::metadata(&name).is_ok_and(|file| file.ino() == mapping.file.1);
        if same {
            return Elf::open(&name).context("its file");
        }
    }
    bail!("its file is not there any more")
}
