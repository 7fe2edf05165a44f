//! *What has to be mapped and written, so that a file's probes are there?*
//!
//! A placement is computed once from a file and applied wherever that file is loaded. It is a run
//! of bytes, so that it can be made in one process and applied in another:
//!
//! ```text
//!   header │ island: code, page-aligned │ relative: u32* │ absolute: u32* │ counters: u32* │ pads: Pad*
//! ```
//!
//! - The **island** is code that was laid out as if it lay at link-time address `base`. Loaded
//!   elsewhere — anywhere within 2 GiB of the module, at run-time address `I` of a module whose bias
//!   is `B` — its distance to the module is other by `delta = I - (base + B)`.
//! - **relative**: offsets in the island of 32-bit distances to the module: `delta` is subtracted.
//! - **absolute**: offsets of 64-bit addresses in the module: `B` is added.
//! - The **counters**, 64 bits each, lie in the pages right behind the island, so that distances to
//!   them never change. For each, **counters** has the offset of its instruction, `ds inc` of
//!   memory. The first byte of it, a prefix without effect (`3E`), becomes `lock` (`F0`) before the
//!   program has a second thread or process: counts are exact in both, and cheap in the first. Words among
//!   them that no such instruction counts have the offset [`NOBODY`].
//! - Behind the last counter is one word more, the **tally**: in how many processes the pads were written.
//! - **pads** are the bytes to write in the module, sorted by address; with the distance to the
//!   island corrected by `delta` where `is_relative`.
//! - A pad that is a **trap**, one `int3`, says where in the island the thread that meets it goes on.
//! - The island begins with one **slot** of eight bytes for each [`Event`], to be filled with the
//!   address of a function that keeps all registers. Copies of certain functions' entries call it.
//!   [`Event::Carve`] is called before instructions that write a pool's cursor; behind the slots lies a
//!   [`Carving`] for each, to be filled too.
//!   [`Event::SignalCall`] is not called: copies of system calls jump to it, with the address to go on at
//!   in `rcx` and that of a `syscall` instruction in `r11`, the two registers that a system call takes.

use pointee_model::addr::LinkAddr;

/// First eight bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PTEEPLAC");
/// Bytes of the header; the island follows at [`PAGE`].
pub const HEADER_LEN: usize = 64;
/// The island begins at a multiple, and is as long as one.
pub const PAGE: usize = 4096;
/// `ds`: a prefix without effect on an instruction whose operand is in a flat segment.
pub const UNLOCKED: u8 = 0x3e;
/// `lock`.
pub const LOCKED: u8 = 0xf0;
/// Instead of an instruction's offset: the word is written in other ways.
pub const NOBODY: u32 = u32::MAX;
/// Bytes of one pad's record.
pub const PAD_RECORD_LEN: usize = 48;
/// The most bytes that a pad has.
pub const PAD_MAX: usize = 16;

/// What whoever maps placements has to hear of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Event {
    /// The dynamic linker's list of objects changed, or is about to (`r_brk`).
    LinkMap,
    /// A second thread or process is about to be made.
    Concurrency,
    /// `prctl`.
    Prctl,
    /// `syscall`.
    Syscall,
    /// A system call that may be about signals, instead of its instruction.
    SignalCall,
    /// The cursor of a pool is about to be written.
    Carve,
}

impl Event {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// Offset of its slot in the island.
    #[must_use]
    pub const fn slot(self) -> usize {
        self as usize * 8
    }
}

/// What whoever is told of the write of a cursor knows of it: where [`Event::Carve`]'s slot is called, `rsi` has the address of this, `rdi` that of the
/// cursor, and the word at `rsp + 24` is what will be written; `rsp + 160` is the stack pointer there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Carving {
    /// The instruction behind the write.
    pub next: u64,
    /// The write's number among those of the file's image; whoever fills it in puts the root of the origin there.
    pub number: u32,
    /// As in the image.
    pub flags: u32,
    /// As in the image; whoever fills it in puts the address in the process there, if it is one.
    pub base: u64,
    /// As in the image.
    pub room: u64,
    /// As in the image.
    pub step: u32,
    /// As in the image.
    pub scale: u32,
    /// What is added to a number, and cleared in it then, to round it up.
    pub rounding: u64,
}

impl Carving {
    /// Bytes of one.
    pub const LEN: usize = size_of::<Self>();
    /// What the stack pointer has gone down where the slot's function is entered.
    pub const MOVED: usize = 160;
    /// Where the word to be written lies, then.
    pub const VALUE: usize = 24;

    /// Offset in the island of the one with this number.
    #[must_use]
    pub const fn offset(at: usize) -> usize {
        Event::COUNT * 8 + at * Self::LEN
    }

    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let half = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let words = [
            self.next,
            half(self.number, self.flags),
            self.base,
            self.room,
            half(self.step, self.scale),
            self.rounding,
        ];
        let mut bytes = [0; Self::LEN];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        Self {
            next: word(0),
            number: word(1) as u32,
            flags: (word(1) >> 32) as u32,
            base: word(2),
            room: word(3),
            step: word(4) as u32,
            scale: (word(4) >> 32) as u32,
            rounding: word(5),
        }
    }
}

/// What is written at one place of the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PadBytes {
    /// Link-time address of the first byte.
    pub at: LinkAddr,
    /// How many there are, at most [`PAD_MAX`].
    pub len: u8,
    /// The last four are a distance to the island.
    pub is_relative: bool,
    /// Of a trap: where it leads, an offset in the island.
    pub trap: Option<u32>,
    /// What is written.
    pub bytes: [u8; PAD_MAX],
    /// What was there.
    pub original: [u8; PAD_MAX],
}

impl PadBytes {
    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PAD_RECORD_LEN] {
        let mut record = [0; PAD_RECORD_LEN];
        record[..8].copy_from_slice(&self.at.0.to_le_bytes());
        record[8] = self.len;
        record[9] = u8::from(self.is_relative);
        record[10] = u8::from(self.trap.is_some());
        record[12..16].copy_from_slice(&self.trap.unwrap_or(0).to_le_bytes());
        record[16..32].copy_from_slice(&self.bytes);
        record[32..].copy_from_slice(&self.original);
        record
    }

    /// From bytes; `None` if they make no sense.
    fn from_bytes(record: &[u8]) -> Option<Self> {
        let len = *record.get(8)?;
        let pad = Self {
            at: LinkAddr(u64::from_le_bytes(record.get(..8)?.try_into().ok()?)),
            len,
            is_relative: *record.get(9)? != 0,
            trap: (*record.get(10)? != 0)
                .then_some(u32::from_le_bytes(record.get(12..16)?.try_into().ok()?)),
            bytes: record.get(16..32)?.try_into().ok()?,
            original: record.get(32..48)?.try_into().ok()?,
        };
        let least = if pad.is_relative { 4 } else { 1 };
        (usize::from(len) <= PAD_MAX && len >= least).then_some(pad)
    }

    /// What is written when the island's distance is other by `delta`; `None` out of reach.
    #[must_use]
    pub fn written(&self, delta: i64) -> Option<[u8; PAD_MAX]> {
        let mut bytes = self.bytes;
        if self.is_relative {
            let field = bytes.get_mut(usize::from(self.len) - 4..usize::from(self.len))?;
            let distance = i32::from_le_bytes(field.try_into().ok()?);
            let moved = i32::try_from(i64::from(distance).checked_add(delta)?).ok()?;
            field.copy_from_slice(&moved.to_le_bytes());
        }
        Some(bytes)
    }
}

/// The numbers in the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Link-time address that the island was laid out for.
    pub base: u64,
    /// Bytes of the island, whole pages.
    pub island_len: u64,
    /// How many of each.
    pub relative: u32,
    /// See the module.
    pub absolute: u32,
    /// See the module.
    pub counters: u32,
    /// See the module.
    pub pads: u32,
    /// Functions that should call a slot, and do not: counters have to be locked from the start.
    pub unwatched: u32,
    /// 1 where traps are allowed, there or in what is loaded with it: whoever applies it has to take `SIGTRAP`.
    pub traps: u32,
    /// How many [`Carving`]s there are.
    pub carvings: u32,
}

impl Header {
    /// As bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.island_len.to_le_bytes());
        let counts = [
            self.relative,
            self.absolute,
            self.counters,
            self.pads,
            self.unwatched,
            self.traps,
            self.carvings,
        ];
        for (at, count) in counts.iter().enumerate() {
            bytes[24 + 4 * at..28 + 4 * at].copy_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    /// Bytes of the pages that the counters and the tally take.
    #[must_use]
    pub fn counters_len(&self) -> usize {
        (self.tally() + 8).next_multiple_of(PAGE)
    }

    /// The tally's offset from the first counter.
    #[must_use]
    pub const fn tally(&self) -> usize {
        self.counters as usize * 8
    }
}

/// A placement in memory, checked.
#[derive(Clone, Copy, Debug)]
pub struct Placement<'b> {
    /// Its numbers.
    pub header: Header,
    island: &'b [u8],
    relative: &'b [u8],
    absolute: &'b [u8],
    counters: &'b [u8],
    pads: &'b [u8],
}

impl<'b> Placement<'b> {
    /// Reads one; `None` when the bytes are none, or end too early.
    #[must_use]
    pub fn parse(bytes: &'b [u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if u64_at(0)? != MAGIC {
            return None;
        }
        let header = Header {
            base: u64_at(8)?,
            island_len: u64_at(16)?,
            relative: u32_at(24)?,
            absolute: u32_at(28)?,
            counters: u32_at(32)?,
            pads: u32_at(36)?,
            unwatched: u32_at(40)?,
            traps: u32_at(44)?,
            carvings: u32_at(48)?,
        };
        let mut rest = bytes.get(PAGE..)?;
        let mut section = |count: usize, each: usize| {
            let (section, behind) = rest.split_at_checked(count.checked_mul(each)?)?;
            rest = behind;
            Some(section)
        };
        Some(Self {
            header,
            island: section(usize::try_from(header.island_len).ok()?, 1)?,
            relative: section(header.relative as usize, 4)?,
            absolute: section(header.absolute as usize, 4)?,
            counters: section(header.counters as usize, 4)?,
            pads: section(header.pads as usize, PAD_RECORD_LEN)?,
        })
    }

    /// The island's bytes, not corrected.
    #[must_use]
    pub fn island(&self) -> &'b [u8] {
        self.island
    }

    /// Corrects `island`, a copy of [`Self::island`], for a module with `bias` whose island is
    /// displaced by `delta`. `None` when a distance or an offset does not fit.
    #[must_use]
    pub fn correct(&self, island: &mut [u8], bias: u64, delta: i64) -> Option<()> {
        for at in words(self.relative) {
            let field = island.get_mut(at..at.checked_add(4)?)?;
            let distance = i32::from_le_bytes((&*field).try_into().ok()?);
            let moved = i32::try_from(i64::from(distance).checked_sub(delta)?).ok()?;
            field.copy_from_slice(&moved.to_le_bytes());
        }
        for at in words(self.absolute) {
            let field = island.get_mut(at..at.checked_add(8)?)?;
            let address = u64::from_le_bytes((&*field).try_into().ok()?).wrapping_add(bias);
            field.copy_from_slice(&address.to_le_bytes());
        }
        Some(())
    }

    /// Makes every counter of `island` exact with several threads.
    pub fn lock(&self, island: &mut [u8]) {
        for at in words(self.counters) {
            if let Some(prefix) = island.get_mut(at)
                && *prefix == UNLOCKED
            {
                *prefix = LOCKED;
            }
        }
    }

    /// Where in the island a thread goes on that met the trap at `at`; `None` if there is none of ours.
    /// Allocates nothing, takes no lock.
    #[must_use]
    pub fn find_trap(&self, at: LinkAddr) -> Option<u32> {
        let record = |number: usize| {
            let from = number * PAD_RECORD_LEN;
            self.pads
                .get(from..from + PAD_RECORD_LEN)
                .and_then(PadBytes::from_bytes)
        };
        let (mut low, mut high) = (0, self.pads.len() / PAD_RECORD_LEN);
        while low < high {
            let middle = low + (high - low) / 2;
            let pad = record(middle)?;
            if pad.at < at {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let pad = record(low)?;
        let offset = pad.trap.filter(|_| pad.at == at)?;
        (u64::from(offset) < self.header.island_len).then_some(offset)
    }

    /// What to write in the module, sorted by address.
    pub fn pads(&self) -> impl Iterator<Item = PadBytes> + 'b {
        self.pads
            .chunks_exact(PAD_RECORD_LEN)
            .filter_map(PadBytes::from_bytes)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .map(|word| u32::from_le_bytes(word) as usize)
}
