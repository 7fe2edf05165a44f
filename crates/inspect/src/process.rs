//! *What did this process allocate, from where?* — the index, read once, in plain owned data.
//!
//! Origins become paths (innermost frame first); origins with equal paths are merged. Counts are
//! exact sums over thread slots; what a forked child inherited is kept apart. Blocks are not copied:
//! they are asked of the index when needed.

use crate::footprint::Footprint;
use crate::memory::Region;
use pointee_index::class::Class;
use pointee_index::counters::{Counts, INHERITED, Live};
use pointee_index::layout::{Header, PAGE, exit_kind, unseen};
use pointee_index::origins::ROOTS;
use pointee_index::records::{Role, module_flags};
use pointee_index::{Index, Memory, read::OriginNode};
use pointee_model::addr::{LinkAddr, LoadBias, RunAddr};
use pointee_model::entries::is_language_library;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::mem::offset_of;
use std::ops::Range;

/// Frames of a path that are read; deeper ones can only come from a damaged index.
const DEEPEST: usize = 512;
/// Bytes of a name or path that are read.
const LONGEST: usize = 4096;

/// One loaded object.
#[derive(Debug, Clone)]
pub struct ModuleInfo {
    /// First byte in the process.
    pub start: RunAddr,
    /// One past the last.
    pub end: RunAddr,
    /// From link-time to run-time addresses.
    pub bias: LoadBias,
    /// Its path as the process knew it.
    pub path: String,
    /// Build ID; empty if there is none.
    pub build_id: Vec<u8>,
    /// Bits of `module_flags`.
    pub flags: u32,
    /// Still loaded when the index was read.
    pub loaded: bool,
}

impl ModuleInfo {
    /// The file's name without its folders.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Belongs to the language, not to the program: its frames are not where an allocation "comes from".
    #[must_use]
    pub fn is_library_of_language(&self) -> bool {
        self.flags & module_flags::RUNTIME != 0 || is_language_library(self.name().as_bytes())
    }
}

/// One patched (or refused) entry.
#[derive(Debug, Clone)]
pub struct HookInfo {
    /// First byte that differs.
    pub address: RunAddr,
    /// Where the launch pad leads.
    pub trampoline: RunAddr,
    /// Name of the function.
    pub name: String,
    /// Module number.
    pub module: u32,
    /// What was there.
    pub before: Vec<u8>,
    /// What is there.
    pub after: Vec<u8>,
    /// What the function does.
    pub role: Role,
    /// 0: refused.
    pub placement: u8,
    /// Why it was refused.
    pub reason: u8,
    /// The origin that stands for it; 0 for none.
    pub root: u32,
}

/// One frame of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Module number; `u32::MAX` for code outside all modules.
    pub module: u32,
    /// Return address, by the file's addresses; the run-time address where there is no module.
    pub return_address: LinkAddr,
}

/// Blocks and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    /// Number of blocks.
    pub blocks: u64,
    /// Bytes requested for them.
    pub bytes: u64,
}

impl Amount {
    /// The sum, wrapping: counters of a damaged index may hold anything.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.wrapping_add(other.blocks),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            blocks: self.blocks.wrapping_sub(other.blocks),
            bytes: self.bytes.wrapping_sub(other.bytes),
        }
    }
}

/// What came of one path (or of several, summed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Allocated by this process itself.
    pub allocated: Amount,
    /// Freed by it, inherited blocks included.
    pub freed: Amount,
    /// Inherited from the parent at fork.
    pub inherited: Amount,
    /// Alive when the heap was at its highest.
    pub peak: Amount,
}

impl Tally {
    /// Alive now.
    #[must_use]
    pub const fn live(&self) -> Amount {
        self.allocated.plus(self.inherited).minus(self.freed)
    }

    /// The sum of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            allocated: self.allocated.plus(other.allocated),
            freed: self.freed.plus(other.freed),
            inherited: self.inherited.plus(other.inherited),
            peak: self.peak.plus(other.peak),
        }
    }
}

/// One path and what came of it.
#[derive(Debug, Clone)]
pub struct Path {
    /// The hooked entry (below [`ROOTS`]); 0 if not known.
    pub root: u32,
    /// Frames, innermost first.
    pub frames: Vec<Frame>,
    /// Counts.
    pub tally: Tally,
}

/// Frees of blocks of one path along another, by a function of another class.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// Where they came from; without counts.
    pub allocated: Path,
    /// Who has to free them.
    pub class: Class,
    /// Whether the class may as well be that of `new[]`.
    pub is_undecided: bool,
    /// Where they were freed; without counts.
    pub freed: Path,
    /// How many.
    pub blocks: u64,
    /// The first of them.
    pub first: RunAddr,
    /// Its size, in bytes.
    pub first_len: u64,
    /// The function that the freeing call names; 0 if that is not known.
    pub called: RunAddr,
}

/// How a process ended, as its index tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It did not say: running, or ended by a signal.
    Unsaid,
    /// Ended by itself with this status.
    Code(u8),
    /// Became another program.
    Exec,
}

/// All of a process but its blocks.
#[derive(Debug)]
pub struct ProcessData {
    /// Path of the executable.
    pub program: String,
    /// Process id in its own namespace.
    pub pid: u32,
    /// Parent's.
    pub parent: u32,
    /// How it ended.
    pub ending: Ending,
    /// What is not seen, in words.
    pub unseen: Vec<String>,
    /// Loaded objects.
    pub modules: Vec<ModuleInfo>,
    /// Hooks.
    pub hooks: Vec<HookInfo>,
    /// Distinct paths.
    pub paths: Vec<Path>,
    /// Sum of all paths but those of pools.
    pub total: Tally,
    /// Sum of the paths of pools, whose blocks were cut out of others.
    pub pooled: Tally,
    /// Frees that may have been made by the wrong function.
    pub mismatches: Vec<Mismatch>,
    /// Highest number of live bytes.
    pub peak_bytes: u64,
    /// What the record itself takes.
    pub footprint: Footprint,
    /// Number of the path of each origin that counted something.
    path_of: HashMap<u32, usize>,
    /// All origins.
    nodes: HashMap<u32, OriginNode>,
}

impl ProcessData {
    /// A process that has no index.
    #[must_use]
    pub fn unrecorded(pid: u32) -> Self {
        Self {
            program: String::new(),
            pid,
            parent: 0,
            ending: Ending::Unsaid,
            unseen: Vec::new(),
            modules: Vec::new(),
            hooks: Vec::new(),
            paths: Vec::new(),
            total: Tally::default(),
            pooled: Tally::default(),
            mismatches: Vec::new(),
            peak_bytes: 0,
            footprint: Footprint::default(),
            path_of: HashMap::new(),
            nodes: HashMap::new(),
        }
    }

    /// Reads the index.
    #[must_use]
    pub fn read(index: &Index<Region>) -> Self {
        let modules: Vec<_> = (0..index.modules())
            .filter_map(|number| module(index, number))
            .collect();
        let hooks: Vec<_> = (0..index.hooks())
            .filter_map(|number| hook(index, number))
            .collect();
        let footprint = Footprint::of(index, &modules, &hooks);
        let tallies = tallies(index);
        let nodes = nodes(index);

        let mut paths: Vec<Path> = Vec::new();
        let mut path_of = HashMap::new();
        let mut known: HashMap<(u32, Vec<Frame>), usize> = HashMap::new();
        let cutting = hooks.iter().filter(|hook: &&HookInfo| hook.role.cuts_out());
        let pools: HashSet<u32> = cutting.map(|hook| hook.root).collect();
        let (mut total, mut pooled) = (Tally::default(), Tally::default());
        for (origin, tally) in tallies {
            let (root, frames) = path_to(origin, &nodes, &modules);
            let sum = if pools.contains(&root) {
                &mut pooled
            } else {
                &mut total
            };
            *sum = sum.plus(tally);
            let at = *known
                .entry((root, frames))
                .or_insert_with_key(|(root, frames)| {
                    paths.push(Path {
                        root: *root,
                        frames: frames.clone(),
                        tally: Tally::default(),
                    });
                    paths.len() - 1
                });
            paths[at].tally = paths[at].tally.plus(tally);
            path_of.insert(origin, at);
        }
        let mismatches = mismatches(index, &nodes, &modules);
        let peak_bytes = peak_bytes(index, total.live().bytes);
        // What was captured may lag behind what is alive now: a heap that only grew was never captured.
        if total.peak.bytes < total.live().bytes {
            for path in &mut paths {
                path.tally.peak = path.tally.live();
            }
            total.peak = total.live();
            pooled.peak = pooled.live();
        }
        Self {
            program: string(index, index.header_u32(offset_of!(Header, program))),
            pid: index.header_u32(offset_of!(Header, pid)),
            parent: index.header_u32(offset_of!(Header, parent)),
            ending: ending(index.header_u32(offset_of!(Header, exit))),
            unseen: unseen_in_words(index.header_u32(offset_of!(Header, unseen))),
            modules,
            hooks,
            paths,
            total,
            pooled,
            mismatches,
            peak_bytes,
            footprint,
            path_of,
            nodes,
        }
    }

    /// The path that `origin` stands for, whether anything was counted under it or not; without counts. `None` if it is none.
    #[must_use]
    pub fn path_along(&self, origin: u32) -> Option<Path> {
        let (root, frames) = path_to(origin, &self.nodes, &self.modules);
        (root != 0).then(|| Path {
            root,
            frames,
            tally: Tally::default(),
        })
    }

    /// The path of a block's origin, by number in `paths`.
    #[must_use]
    pub fn path_of(&self, origin: u32) -> Option<usize> {
        self.path_of.get(&origin).copied()
    }

    /// The hook that an origin below [`ROOTS`] stands for.
    #[must_use]
    pub fn hook_of_root(&self, root: u32) -> Option<&HookInfo> {
        self.hooks
            .iter()
            .find(|hook| root != 0 && hook.root == root)
    }

    /// The module that holds `address` now, with its number.
    #[must_use]
    pub fn module_at(&self, address: RunAddr) -> Option<(u32, &ModuleInfo)> {
        let holds =
            |module: &ModuleInfo| module.loaded && (module.start..module.end).contains(&address);
        let at = self.modules.iter().position(holds)?;
        Some((at as u32, &self.modules[at]))
    }
}

fn string(index: &Index<Region>, at: u32) -> String {
    let mut buffer = [0; LONGEST];
    String::from_utf8_lossy(index.string(at, &mut buffer)).into_owned()
}

fn module(index: &Index<Region>, number: u32) -> Option<ModuleInfo> {
    let record = index.module(number)?;
    Some(ModuleInfo {
        start: RunAddr(record.start),
        end: RunAddr(record.end),
        bias: LoadBias(record.bias),
        path: string(index, record.path),
        build_id: record.build_id[..record.build_id_len.min(20) as usize].to_vec(),
        flags: record.flags,
        loaded: record.unloaded.into_inner() == u64::MAX,
    })
}

fn hook(index: &Index<Region>, number: u32) -> Option<HookInfo> {
    let record = index.hook(number)?;
    let len = usize::from(record.len);
    Some(HookInfo {
        address: RunAddr(record.address),
        trampoline: RunAddr(record.trampoline),
        name: string(index, record.name),
        module: record.module,
        before: record.before[..len].to_vec(),
        after: record.after[..len].to_vec(),
        role: Role::from_byte(record.role),
        placement: record.placement,
        reason: record.reason,
        root: record.root,
    })
}

/// Sums the counters of all thread slots, in order of origin. Goes by the pages that were written: a
/// damaged header may claim more slots and origins than anyone could visit.
fn tallies(index: &Index<Region>) -> BTreeMap<u32, Tally> {
    let layout = index.layout();
    let region = index.memory();
    let origins = u64::from(index.origins());
    let slots = u64::from(index.threads().max(1));
    let mut tallies = BTreeMap::<u32, Tally>::new();
    let range = layout.counters..layout.counters + slots * layout.counters_stride;
    each_record::<{ size_of::<Counts>() }>(region, range, |at, record| {
        let place = at - layout.counters;
        let slot = place / layout.counters_stride;
        let origin = place % layout.counters_stride / size_of::<Counts>() as u64;
        if origin >= origins {
            return;
        }
        let given = amount(
            record,
            offset_of!(Counts, allocations),
            offset_of!(Counts, bytes),
        );
        let freed = amount(
            record,
            offset_of!(Counts, frees),
            offset_of!(Counts, freed_bytes),
        );
        let tally = tallies.entry(origin as u32).or_default();
        if slot == u64::from(INHERITED) {
            tally.inherited = tally.inherited.plus(given);
        } else {
            tally.allocated = tally.allocated.plus(given);
        }
        tally.freed = tally.freed.plus(freed);
    });
    let range = layout.peak..layout.peak + origins * size_of::<Live>() as u64;
    each_record::<{ size_of::<Live>() }>(region, range, |at, record| {
        let origin = (at - layout.peak) / size_of::<Live>() as u64;
        let tally = tallies.entry(origin as u32).or_default();
        tally.peak = amount(record, offset_of!(Live, blocks), offset_of!(Live, bytes));
    });
    tallies
}

/// Calls `each` with offset and bytes of every record in `range` that is not all zero.
fn each_record<const RECORD: usize>(
    region: &Region,
    range: Range<u64>,
    mut each: impl FnMut(u64, &[u8; RECORD]),
) {
    let mut page = [0; PAGE as usize];
    region.each_touched(range.clone(), |start| {
        if !region.read(start, &mut page) {
            return;
        }
        let (records, _) = page.as_chunks::<RECORD>();
        for (record, at) in records.iter().zip((start..).step_by(RECORD)) {
            if at < range.end && record.iter().any(|byte| *byte != 0) {
                each(at, record);
            }
        }
    });
}

fn amount(record: &[u8], blocks: usize, bytes: usize) -> Amount {
    let word = |at: usize| {
        let word = record.get(at..at + 8).and_then(|word| word.try_into().ok());
        word.map_or(0, u64::from_le_bytes)
    };
    Amount {
        blocks: word(blocks),
        bytes: word(bytes),
    }
}

fn nodes(index: &Index<Region>) -> HashMap<u32, OriginNode> {
    let mut nodes = HashMap::new();
    index.each_origin(|node| {
        nodes.insert(node.id, node);
    });
    nodes
}

fn mismatches(
    index: &Index<Region>,
    nodes: &HashMap<u32, OriginNode>,
    modules: &[ModuleInfo],
) -> Vec<Mismatch> {
    let path = |origin| {
        let (root, frames) = path_to(origin, nodes, modules);
        Path {
            root,
            frames,
            tally: Tally::default(),
        }
    };
    let mut mismatches = Vec::new();
    index.each_mismatch(|frees| {
        let node = nodes.get(&frees.allocated);
        mismatches.push(Mismatch {
            allocated: path(frees.allocated),
            class: frees.class,
            is_undecided: node.is_some_and(|node| node.is_undecided),
            freed: path(frees.freed),
            blocks: frees.blocks,
            first: RunAddr(frees.first.0),
            first_len: frees.first.1,
            called: RunAddr(frees.called),
        });
    });
    mismatches
}

/// The root of an origin, and its frames from the innermost outwards.
fn path_to(
    origin: u32,
    nodes: &HashMap<u32, OriginNode>,
    modules: &[ModuleInfo],
) -> (u32, Vec<Frame>) {
    let mut frames = Vec::new();
    let mut at = origin;
    while at >= ROOTS && frames.len() < DEEPEST {
        let Some(node) = nodes.get(&at) else {
            return (0, Vec::new());
        };
        let return_address = match modules.get(node.module as usize) {
            Some(module) => module.bias.to_link(RunAddr(node.return_address)),
            None => LinkAddr(node.return_address),
        };
        frames.push(Frame {
            module: node.module,
            return_address,
        });
        at = node.parent;
    }
    // The tree hangs from the innermost frame; walking up gave the outermost first.
    frames.reverse();
    (if at < ROOTS { at } else { 0 }, frames)
}

/// The highest number of live bytes: what was settled, and what threads have not settled yet.
fn peak_bytes(index: &Index<Region>, live: u64) -> u64 {
    let settled = index.header_u64(offset_of!(Header, live_bytes)) as i64;
    let held = (0..index.threads()).filter_map(|slot| index.held_back(slot));
    let unsettled = held
        .map(|(_, highest)| settled.saturating_add(highest))
        .max()
        .unwrap_or(0);
    index
        .header_u64(offset_of!(Header, peak_bytes))
        .max(unsettled.max(0) as u64)
        .max(live)
}

fn ending(word: u32) -> Ending {
    match word & 0xffff_0000 {
        exit_kind::CODE => Ending::Code(word as u8),
        exit_kind::EXEC => Ending::Exec,
        _ => Ending::Unsaid,
    }
}

fn unseen_in_words(bits: u32) -> Vec<String> {
    const WORDS: [(u32, &str); 11] = [
        (
            unseen::NO_LIBC,
            "no malloc was found: of the heap only what other declared functions hand out is seen",
        ),
        (
            unseen::HOOK_REFUSED,
            "an allocation function could not be hooked (see `pointee explain`)",
        ),
        (
            unseen::TABLES_FULL,
            "the index was full: later blocks are missing",
        ),
        (
            unseen::ORIGINS_FULL,
            "too many distinct call paths: later ones are attributed to an inner frame",
        ),
        (
            unseen::THREADS_FULL,
            "more threads at once than can be told apart (16,382): what the others did is not recorded",
        ),
        (
            unseen::MODULES_FULL,
            "too many loaded objects: later ones have no names",
        ),
        (
            unseen::UNALIGNED_BLOCK,
            "blocks at addresses that are no multiple of 8 were not recorded",
        ),
        (
            unseen::PRIVATE_INDEX,
            "the index is private to the process: it is gone when the process ends",
        ),
        (
            unseen::FORK_UNRECORDED,
            "a forked child could not be recorded",
        ),
        (
            unseen::MISMATCHES_FULL,
            "more than a thousand pairs of places where the wrong function may have freed: later ones are missing",
        ),
        (
            unseen::PAGES_FULL,
            "who mapped some of the memory was not noted: the table of pages is full",
        ),
    ];
    let mut words: Vec<String> = WORDS
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, text)| (*text).to_owned())
        .collect();
    let unknown = bits & !WORDS.iter().fold(0, |all, (bit, _)| all | bit);
    if unknown != 0 {
        words.push(format!(
            "something this version has no word for ({unknown:#x})"
        ));
    }
    words
}
