//! *What is this heap made of?* — the histogram by type and by site, in the shape of the JSON.
//!
//! Field names are the published schema (`"schema": 1`); a later version may add fields and will not
//! change these. What is not known is `null`, never left out.

use crate::describe::{Shape, ShapeIdentity};
use crate::footprint::Footprint;
use crate::process::{Ending, ModuleInfo, Tally};
use crate::resolve::{Place, Resolver, Site};
use crate::wrong_frees::{WrongFreeRow, wrong_frees};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write;

/// Number of the JSON's schema.
pub const SCHEMA: u32 = 1;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// What became of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Alive when the report was made.
    Running,
    /// Ended; `exit` says how, if that is known.
    Ended,
    /// Became another program, which has a report of its own.
    Exec,
}

/// One process. Sizes are bytes requested by the program.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct ProcessReport {
    pub schema: u32,
    /// Path of the executable.
    pub program: String,
    pub pid: u32,
    pub parent: u32,
    /// Counts execs in this process.
    pub generation: u32,
    pub state: State,
    pub exit: Option<Exit>,
    /// What is missing from this report, in words.
    pub unseen: Vec<String>,
    pub totals: Totals,
    /// Memory that the record itself took, in bytes. It depends on which images there were at the time, which
    /// nothing else here does; so the command shows it only when asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recording: Option<Footprint>,
    /// Blocks that were freed by the wrong function.
    pub wrong_frees: Vec<WrongFreeRow>,
    /// Most live bytes first.
    pub types: Vec<TypeRow>,
    /// Most live bytes first.
    pub sites: Vec<SiteRow>,
}

/// Sums over the whole process.
#[derive(Debug, Clone, Default, Serialize)]
#[allow(missing_docs)]
pub struct Totals {
    #[serde(flatten)]
    pub counts: Counts,
    /// Highest number of live bytes; may be late by 64 KiB a thread in processes of several threads.
    pub peak_bytes: u64,
    /// What pools cut out of these blocks, and out of mappings: counted here only, but listed with all types and sites.
    pub pools: Counts,
}

/// What came of a type or site. Events of the process itself; `live` includes what it inherited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Counts {
    pub allocations: u64,
    pub frees: u64,
    pub bytes_allocated: u64,
    pub live: u64,
    pub live_bytes: u64,
    /// Blocks inherited at fork.
    pub inherited: u64,
    pub inherited_bytes: u64,
    /// Blocks alive when the heap was at its highest (within 1 %).
    pub live_at_peak: u64,
    pub live_bytes_at_peak: u64,
}

impl From<Tally> for Counts {
    fn from(tally: Tally) -> Self {
        let live = tally.live();
        Self {
            allocations: tally.allocated.blocks,
            frees: tally.freed.blocks,
            bytes_allocated: tally.allocated.bytes,
            live: live.blocks,
            live_bytes: live.bytes,
            inherited: tally.inherited.blocks,
            inherited_bytes: tally.inherited.bytes,
            live_at_peak: tally.peak.blocks,
            live_bytes_at_peak: tally.peak.bytes,
        }
    }
}

/// One type.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct TypeRow {
    /// As C writes it; `null` if not known.
    pub r#type: Option<String>,
    #[serde(flatten)]
    pub counts: Counts,
}

/// A place of an inline chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct PlaceRow {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

impl From<&Place> for PlaceRow {
    fn from(place: &Place) -> Self {
        Self {
            function: place.function.clone(),
            file: place.file.clone(),
            line: place.line,
        }
    }
}

/// One allocation site.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct SiteRow {
    /// Build ID (path where there is none) and link-time address of the call.
    pub id: String,
    /// Path of the file it lies in.
    pub module: Option<String>,
    /// Link-time address of the call, in hexadecimal.
    pub offset: String,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub r#type: Option<String>,
    /// How the witnesses agree: `agreed`, `single`, `conflicting`, `opaque`, `unknown`.
    pub verdict: &'static str,
    /// Witnesses of the type.
    pub evidence: Vec<String>,
    /// Functions between the site and the allocator, innermost first.
    pub wrappers: Vec<String>,
    pub allocator: String,
    /// The other places of the inline chain.
    pub inlined: Vec<PlaceRow>,
    #[serde(flatten)]
    pub counts: Counts,
}

/// What the index of a process does not say about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    /// Process id as the reader sees it.
    pub pid: u32,
    /// Parent's.
    pub parent: u32,
    /// How many execs came before.
    pub generation: u32,
    /// What became of it.
    pub state: State,
    /// How it ended, if known.
    pub exit: Option<Exit>,
    /// More that is unseen.
    pub unseen: Vec<String>,
}

impl ProcessReport {
    /// Makes the report of one process.
    #[must_use]
    pub fn new(resolver: &Resolver<'_>, circumstances: &Circumstances) -> Self {
        let process = resolver.process();
        let resolved = resolve_all(resolver);
        let mut unseen = circumstances.unseen.clone();
        unseen.extend(process.unseen.iter().cloned());
        let exit = circumstances.exit.or(match process.ending {
            Ending::Code(code) => Some(Exit::Code(code.into())),
            Ending::Exec | Ending::Unsaid => None,
        });
        Self {
            schema: SCHEMA,
            program: process.program.clone(),
            pid: circumstances.pid,
            parent: circumstances.parent,
            generation: circumstances.generation,
            state: circumstances.state,
            exit: exit.filter(|_| circumstances.state == State::Ended),
            unseen,
            totals: Totals {
                counts: process.total.into(),
                peak_bytes: process.peak_bytes,
                pools: process.pooled.into(),
            },
            recording: Some(process.footprint),
            wrong_frees: wrong_frees(resolver),
            types: by_type(resolver, &resolved),
            sites: by_site(resolver, &resolved),
        }
    }

    /// The report of a process of which nothing was seen.
    #[must_use]
    pub fn unseen(program: String, circumstances: Circumstances) -> Self {
        Self {
            schema: SCHEMA,
            program,
            pid: circumstances.pid,
            parent: circumstances.parent,
            generation: circumstances.generation,
            state: circumstances.state,
            exit: circumstances.exit,
            unseen: circumstances.unseen,
            totals: Totals::default(),
            recording: None,
            wrong_frees: Vec::new(),
            types: Vec::new(),
            sites: Vec::new(),
        }
    }

    /// Whether nearly all was freed at the end, so that the peak is what tells something.
    #[must_use]
    pub fn is_told_by_peak(&self) -> bool {
        self.state == State::Ended && self.totals.counts.live_bytes < self.totals.peak_bytes / 10
    }
}

/// Every path with its site.
#[must_use]
pub fn resolve_all(resolver: &Resolver<'_>) -> Vec<(Site, Tally)> {
    resolver
        .process()
        .paths
        .iter()
        .map(|path| (resolver.resolve(path), path.tally))
        .collect()
}

fn identity(resolver: &Resolver<'_>, shape: &Shape) -> Option<ShapeIdentity> {
    Some(shape.identity(resolver.image(shape.module)?))
}

fn name(resolver: &Resolver<'_>, site: &Site) -> Option<String> {
    let shape = site.shape.as_ref()?;
    Some(shape.name(resolver.image(shape.module)?))
}

fn by_type(resolver: &Resolver<'_>, resolved: &[(Site, Tally)]) -> Vec<TypeRow> {
    let mut groups: HashMap<Option<ShapeIdentity>, (Option<String>, Tally)> = HashMap::new();
    for (site, tally) in resolved {
        let key = site.shape.and_then(|shape| identity(resolver, &shape));
        let group = groups
            .entry(key)
            .or_insert_with(|| (name(resolver, site), Tally::default()));
        group.1 = group.1.plus(*tally);
    }
    let rows = groups.into_values().map(|(r#type, tally)| TypeRow {
        r#type,
        counts: tally.into(),
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| heavier(&a.counts, &b.counts).then_with(|| a.r#type.cmp(&b.r#type)));
    rows
}

fn heavier(a: &Counts, b: &Counts) -> std::cmp::Ordering {
    let weight = |counts: &Counts| {
        (
            counts.live_bytes,
            counts.live_bytes_at_peak,
            counts.bytes_allocated,
            counts.allocations,
        )
    };
    weight(b).cmp(&weight(a))
}

fn by_site(resolver: &Resolver<'_>, resolved: &[(Site, Tally)]) -> Vec<SiteRow> {
    // One site may be reached through several wrappers; it is told by the path that allocated most.
    struct Group<'a> {
        told_by: &'a Site,
        weight: u64,
        tally: Tally,
    }
    let mut groups: HashMap<String, Group<'_>> = HashMap::new();
    for (site, tally) in resolved {
        let weight = tally
            .allocated
            .blocks
            .saturating_add(tally.inherited.blocks);
        let group = groups.entry(site_id(resolver, site)).or_insert(Group {
            told_by: site,
            weight,
            tally: Tally::default(),
        });
        group.tally = group.tally.plus(*tally);
        let told = (weight, Reverse(&site.wrappers));
        if told > (group.weight, Reverse(&group.told_by.wrappers)) {
            group.told_by = site;
            group.weight = weight;
        }
    }
    let rows = groups.into_iter().map(|(id, group)| {
        let site = group.told_by;
        let module = site.module.and_then(|number| module(resolver, number));
        SiteRow {
            id,
            module: module.map(|module| module.path.clone()),
            offset: format!("{:#x}", site.offset.0),
            function: site.position.place.function.clone(),
            file: site.position.place.file.clone(),
            line: site.position.place.line,
            r#type: name(resolver, site),
            verdict: site.verdict.word(),
            evidence: site.evidence.clone(),
            wrappers: site.wrappers.clone(),
            allocator: site.allocator.clone(),
            inlined: site.position.inlined.iter().map(PlaceRow::from).collect(),
            counts: group.tally.into(),
        }
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by(|a, b| heavier(&a.counts, &b.counts).then_with(|| a.id.cmp(&b.id)));
    rows
}

fn module<'a>(resolver: &Resolver<'a>, number: u32) -> Option<&'a ModuleInfo> {
    resolver.process().modules.get(number as usize)
}

/// Build ID and link-time address: the same in every run and on every machine.
#[must_use]
pub fn site_id(resolver: &Resolver<'_>, site: &Site) -> String {
    let Some(module) = site.module.and_then(|number| module(resolver, number)) else {
        return format!("?+{:#x}", site.offset.0);
    };
    let mut id = String::new();
    if module.build_id.is_empty() {
        id.push_str(&module.path);
    }
    for byte in &module.build_id {
        // Writing to a string does not fail.
        let _ = write!(id, "{byte:02x}");
    }
    let _ = write!(id, "+{:#x}", site.offset.0);
    id
}

/// What a histogram is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Grouping {
    Type,
    Site,
    Allocator,
    Function,
    Module,
}

/// One group of a histogram that is neither by type nor by site.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct GroupRow {
    pub name: Option<String>,
    #[serde(flatten)]
    pub counts: Counts,
}

impl ProcessReport {
    /// The report with `groups` beside it.
    #[must_use]
    pub fn with_groups<'a>(&'a self, groups: &'a [GroupRow]) -> GroupedReport<'a> {
        GroupedReport {
            report: self,
            groups,
        }
    }

    /// The histogram over `grouping`, heaviest first.
    #[must_use]
    pub fn grouped(&self, grouping: Grouping) -> Vec<GroupRow> {
        let mut groups: HashMap<Option<String>, Counts> = HashMap::new();
        if grouping == Grouping::Type {
            for row in &self.types {
                add(groups.entry(row.r#type.clone()).or_default(), &row.counts);
            }
        } else {
            for site in &self.sites {
                let name = match grouping {
                    Grouping::Allocator => Some(site.allocator.clone()),
                    Grouping::Function => site.function.clone(),
                    Grouping::Module => site.module.clone(),
                    Grouping::Site | Grouping::Type => Some(site.id.clone()),
                };
                add(groups.entry(name).or_default(), &site.counts);
            }
        }
        let rows = groups
            .into_iter()
            .map(|(name, counts)| GroupRow { name, counts });
        let mut rows: Vec<_> = rows.collect();
        rows.sort_by(|a, b| heavier(&a.counts, &b.counts).then_with(|| a.name.cmp(&b.name)));
        rows
    }
}

/// A report with a histogram over something else beside it.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct GroupedReport<'a> {
    #[serde(flatten)]
    pub report: &'a ProcessReport,
    pub groups: &'a [GroupRow],
}

fn add(to: &mut Counts, more: &Counts) {
    to.allocations = to.allocations.wrapping_add(more.allocations);
    to.frees = to.frees.wrapping_add(more.frees);
    to.bytes_allocated = to.bytes_allocated.wrapping_add(more.bytes_allocated);
    to.live = to.live.wrapping_add(more.live);
    to.live_bytes = to.live_bytes.wrapping_add(more.live_bytes);
    to.inherited = to.inherited.wrapping_add(more.inherited);
    to.inherited_bytes = to.inherited_bytes.wrapping_add(more.inherited_bytes);
    to.live_at_peak = to.live_at_peak.wrapping_add(more.live_at_peak);
    to.live_bytes_at_peak = to.live_bytes_at_peak.wrapping_add(more.live_bytes_at_peak);
}
