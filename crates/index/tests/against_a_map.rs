//! The index against a plain ordered map: whatever is inserted and erased, every address in and
//! around every block has the same answer in both. And the tree of origins: a path has one, however it is come to.

#![allow(unsafe_code)] // Makes a region out of zeroed memory and writers for it.

use pointee_index::class::Class;
use pointee_index::direct::Reader;
use pointee_index::layout::{LARGE, Layout, MAGIC, PAGE, VERSION};
use pointee_index::nested::Nested;
use pointee_index::origins::{Frame, Node, Origins, ROOTS, Rule};
use pointee_index::words::ORIGIN_LIMIT;
use pointee_index::{Geometry, Header, Index, Memory, Writer};
use proptest::prelude::*;
use std::alloc::{Layout as Shape, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

struct Region {
    base: *mut u8,
    shape: Shape,
    layout: Layout,
}

impl Region {
    fn new() -> Self {
        let geometry = Geometry::narrow(256 << 20);
        let layout = Layout::of(&geometry);
        let shape = Shape::from_size_align(layout.len as usize, 4096).unwrap();
        // SAFETY: the shape is not empty.
        let base = unsafe { alloc_zeroed(shape) };
        assert!(!base.is_null());
        let header = base.cast::<Header>();
        // SAFETY: the region starts with a header; zero is a valid value of all its fields.
        unsafe {
            (&raw mut (*header).geometry).write(geometry);
            (*header).base.store(base as u64, Relaxed);
            (*header).version.store(VERSION, Relaxed);
            (*header).magic.store(MAGIC, Relaxed);
        }
        Self {
            base,
            shape,
            layout,
        }
    }

    fn reader(&self) -> Reader {
        // SAFETY: the region outlives the reader in every test.
        unsafe { Reader::new(self.base, &self.layout) }
    }

    fn origins(&self) -> Origins {
        let header = self.base.cast::<Header>();
        // SAFETY: the region starts with a header, and outlives the tree in every test.
        unsafe {
            (*header).origins.store(ROOTS, Relaxed);
            Origins::new(self.base, &self.layout)
        }
    }

    fn writer(&self) -> Writer {
        // SAFETY: the region outlives the writer in every test.
        unsafe { Writer::new(self.base, &self.layout) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated with this shape.
        unsafe { dealloc(self.base, self.shape) };
    }
}

impl Memory for &Region {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        let Some(end) = offset.checked_add(buffer.len() as u64) else {
            return false;
        };
        if end > self.layout.len {
            return false;
        }
        // SAFETY: in bounds; no one writes while a test reads.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.base.add(offset as usize), buffer.len()) };
        buffer.copy_from_slice(bytes);
        true
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        (offset < self.layout.len).then_some(offset)
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// At the place-th free gap of `gap` bytes behind some block.
    Insert {
        place: u16,
        gap: u16,
        size: u64,
        origin: u32,
    },
    Erase {
        which: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        0u64..=16,
        0u64..=64,
        0u64..=5_000,
        60_000u64..=70_000,
        1u64 << 17..=1 << 22,
        (60u64 << 20)..=(140 << 20),
    ];
    prop_oneof![
        3 => (any::<u16>(), 0u16..4, size, 1u32..ORIGIN_LIMIT)
            .prop_map(|(place, gap, size, origin)| Step::Insert { place, gap, size, origin }),
        2 => any::<u16>().prop_map(|which| Step::Erase { which }),
    ]
}

/// Bytes a block takes away from others: at least 8, a multiple of 8.
fn extent(size: u64) -> u64 {
    size.max(1).next_multiple_of(8)
}

fn check(start: u64, steps: &[Step]) -> Result<(), TestCaseError> {
    let region = Region::new();
    let writer = region.writer();
    let mut truth: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
    for step in steps {
        match *step {
            Step::Insert {
                place,
                gap,
                size,
                origin,
            } => {
                let ends: Vec<u64> = truth
                    .iter()
                    .map(|(base, block)| base + extent(block.0))
                    .collect();
                let from = ends
                    .get(usize::from(place) % (ends.len() + 1))
                    .copied()
                    .unwrap_or(start);
                let base = from + 8 * u64::from(gap);
                let free = truth
                    .range(base..)
                    .next()
                    .is_none_or(|(next, _)| base + extent(size) <= *next);
                let clear = truth
                    .range(..=base)
                    .next_back()
                    .is_none_or(|(last, block)| last + extent(block.0) <= base);
                if free && clear && base + size < start + (400 << 20) {
                    let (replaced, recorded) = writer.insert(base, size, origin);
                    prop_assert_eq!(replaced, None);
                    if recorded {
                        truth.insert(base, (size, origin));
                    }
                }
            }
            Step::Erase { which } => {
                if let Some(base) = truth
                    .keys()
                    .nth(usize::from(which) % truth.len().max(1))
                    .copied()
                {
                    let (size, origin) = truth[&base];
                    let erased = writer.erase(base).map(|block| (block.size, block.origin));
                    prop_assert_eq!(erased, Some((size, origin)));
                    prop_assert_eq!(writer.erase(base), None);
                    truth.remove(&base);
                }
            }
        }
    }
    let index = Index::open(&region).unwrap();
    let direct = region.reader();
    let mut found = BTreeMap::new();
    index.each_block(|block| {
        found.insert(block.base, (block.size, block.origin));
    });
    prop_assert_eq!(&found, &truth);
    for (base, (size, origin)) in &truth {
        let last = base + size.max(&1) - 1;
        let mut inside = vec![
            *base,
            last,
            base + (last - base) / 2,
            base + (last - base) / 3,
        ];
        inside.extend(
            (1..=last >> 16)
                .map(|span| span << 16)
                .filter(|at| (*base..=last).contains(at))
                .take(40),
        );
        for at in inside {
            let block = index.block_at(at);
            prop_assert_eq!(direct.block_at(at), block, "at {:#x}", at);
            prop_assert_eq!(
                block.map(|block| (block.base, block.size, block.origin)),
                Some((*base, *size, *origin)),
                "at {:#x}",
                at
            );
        }
        for at in [base.wrapping_sub(1), last + 1] {
            let expected = truth
                .range(..=at)
                .next_back()
                .filter(|(base, block)| at - **base < block.0.max(1));
            prop_assert_eq!(direct.block_at(at), index.block_at(at), "at {:#x}", at);
            prop_assert_eq!(
                index.block_at(at).map(|block| block.base),
                expected.map(|(base, _)| *base),
                "at {:#x}",
                at
            );
            // A page that is called bare has no byte of a block.
            let page = at & !0xfff;
            let before = truth.range(..page).next_back();
            let reaches = before.is_some_and(|(base, block)| page - base < block.0.max(1));
            let starts = truth.range(page..=page + 0xfff).next().is_some();
            if direct.is_bare(page, 0x1000) {
                prop_assert!(!reaches && !starts, "page {:#x}", page);
            } else {
                // And one is, where nothing is near.
                let far = 1 << 18;
                let around = page.saturating_sub(far)..=page + far;
                let is_large = before.is_some_and(|(base, block)| page - base < block.0 + far);
                prop_assert!(
                    is_large || truth.range(around).next().is_some(),
                    "page {:#x}",
                    page
                );
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_history_equals_the_map(
        start in prop_oneof![Just(0x5555_5555_0000u64), Just(0x7f00_03ff_fff0), (1u64 << 20..1 << 46).prop_map(|at| at & !7)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        check(start, &steps)?;
    }
}

#[test]
fn eight_byte_blocks_at_eight_byte_steps() {
    let region = Region::new();
    let writer = region.writer();
    let base = 0x7f12_3456_0000;
    for n in 0..10_000u64 {
        assert_eq!(
            writer.insert(base + 8 * n, n % 9, n as u32 + 1),
            (None, true)
        );
    }
    let index = Index::open(&region).unwrap();
    for n in (0..10_000u64).filter(|n| n % 9 != 0) {
        let inside = base + 8 * n + (n % 9 - 1);
        let block = index.block_at(inside).unwrap();
        assert_eq!(region.reader().block_at(inside), Some(block));
        assert_eq!(
            (block.base, block.size, block.origin),
            (base + 8 * n, n % 9, n as u32 + 1)
        );
    }
}

#[test]
fn a_block_freed_out_of_sight_is_given_back() {
    let region = Region::new();
    let writer = region.writer();
    writer.insert(0x1000, 100, 7);
    let (replaced, recorded) = writer.insert(0x1000, 200, 8);
    assert_eq!(
        replaced.map(|block| (block.size, block.origin)),
        Some((100, 7))
    );
    assert!(recorded);
}

#[test]
fn what_is_no_multiple_of_eight_is_left_out_and_said() {
    let region = Region::new();
    assert_eq!(region.writer().insert(0x1003, 8, 1), (None, false));
    let index = Index::open(&region).unwrap();
    let unseen = index.header_u32(std::mem::offset_of!(Header, unseen));
    assert_ne!(unseen & pointee_index::layout::unseen::UNALIGNED_BLOCK, 0);
}

/// Calls that return to the code of two modules, from under each other in any way, recursion included.
fn paths() -> impl Strategy<Value = Vec<(u32, Vec<u64>)>> {
    let call = (0..2_u64, 1..6_u64).prop_map(|(module, call)| module << 32 | call << 4);
    prop::collection::vec((1..3_u32, prop::collection::vec(call, 1..8)), 1..200)
}

/// The origin of a path, innermost first: looked up frame by frame, and added where it is not known.
fn origin(origins: &Origins, root: u32, path: &[u64]) -> u32 {
    let mut below: Option<&Node> = None;
    for (depth, address) in path.iter().enumerate() {
        let parent = below.map_or(root, |node| node.id.load(Relaxed));
        let found = match below {
            Some(below) => origins.find_above(below, *address),
            None => origins.find(parent, *address),
        };
        let frame = Frame {
            module: (address >> 32) as u32,
            depth: depth as u32,
            is_undecided: false,
        };
        let class = Class::of(0);
        let node = found.or_else(|| origins.add(parent, below, *address, Rule::LEAF, frame, class));
        below = node;
        assert_eq!(below.map(Node::frame), Some(frame));
    }
    below.map_or(root, |node| node.id.load(Relaxed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_path_has_one_origin(paths in paths()) {
        let region = Region::new();
        let origins = region.origins();
        let mut known = BTreeMap::new();
        for (root, path) in &paths {
            let id = origin(&origins, *root, path);
            prop_assert_eq!(*known.entry((*root, path.clone())).or_insert(id), id);
        }
        let different: std::collections::BTreeSet<_> = known.values().collect();
        prop_assert_eq!(different.len(), known.len());

        // Other code at the same addresses has origins of its own.
        let through = |path: &[u64]| path.iter().any(|address| address >> 32 == 1);
        origins.unload(1);
        // SAFETY: the region starts with a header.
        let first_new = unsafe { (*region.base.cast::<Header>()).origins.load(Relaxed) };
        for ((root, path), id) in &known {
            let again = origin(&origins, *root, path);
            prop_assert_eq!(again >= first_new, through(path));
            prop_assert!(through(path) || again == *id);
        }
    }
}

/// What a pool does to its bytes: cuts a block out anywhere, whatever was there, or takes some bytes back.
#[derive(Clone, Debug)]
enum Cut {
    Out { at: u64, size: u64, origin: u32 },
    Back { at: u64, len: u64 },
}

/// Where the pool begins: its chunk's end lies in the middle.
const POOL: u64 = (5 << 26) - 160_000;

fn cut() -> impl Strategy<Value = Cut> {
    let anywhere = || (0u64..40_000).prop_map(|at| at * 8);
    // So near a page's end that their words may lie on the next.
    let end = || (1u64..78, 1u64..=5).prop_map(|(page, back)| page * PAGE - POOL % PAGE - back * 8);
    let at = || prop_oneof![3 => anywhere(), 1 => end()];
    let size = prop_oneof![1u64..=16, 17u64..=200, 60_000u64..=70_000];
    prop_oneof![
        5 => (at(), size, 1u32..ORIGIN_LIMIT).prop_map(|(at, size, origin)| Cut::Out { at, size, origin }),
        1 => (at(), 1u64..5_000).prop_map(|(at, len)| Cut::Back { at, len }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn blocks_of_pools_never_start_in_a_later_one(cuts in proptest::collection::vec(cut(), 1..200)) {
        let region = Region::new();
        // SAFETY: the region outlives what reads and writes it.
        let (nested, reader) = unsafe {
            (Nested::new(region.base, &region.layout), Reader::of_pools(region.base, &region.layout))
        };
        let base = POOL;
        let mut truth: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        // Those into which later ones were cut: what was behind these is nobody's.
        let mut cut_into = std::collections::BTreeSet::new();
        for cut in cuts {
            let (range, new) = match cut {
                Cut::Out { at, size, origin } => (base + at..base + at + size, Some((size, origin))),
                Cut::Back { at, len } => (base + at..base + at + len, None),
            };
            let mut gone = Vec::new();
            if let Some((size, origin)) = new {
                if !nested.insert_new(range.start, size, origin) {
                    prop_assert!(nested.insert(range.start, size, origin, |old| gone.push((old.size, old.origin))));
                }
            } else {
                nested.erase_in(range.start, range.end - range.start, |old| gone.push((old.size, old.origin)));
            }
            // An old block in front goes too where its size would be written over.
            let is_hit = |start: u64, size: u64| {
                let distance = range.start.wrapping_sub(start);
                new.is_some() && (distance == 16 && size > 16 || distance == 32 && size >= LARGE)
            };
            let is_gone = |start: &u64, size: u64| range.contains(start) || is_hit(*start, size);
            let mut expect: Vec<_> =
                truth.iter().filter(|(start, block)| is_gone(start, block.0)).map(|(_, block)| *block).collect();
            truth.retain(|start, block| !is_gone(start, block.0));
            if let Some(new) = new {
                let holds = |(at, block): &(&u64, &(u64, u32))| {
                    **at < range.start && range.start - **at < block.0
                };
                cut_into.extend(truth.iter().filter(holds).map(|(at, _)| *at));
                cut_into.remove(&range.start);
                truth.insert(range.start, new);
            }
            gone.sort_unstable();
            expect.sort_unstable();
            prop_assert_eq!(gone, expect);
        }
        let index = Index::open(&region).expect("sound");
        let mut found = BTreeMap::new();
        index.each_nested_block(|block| { found.insert(block.base, (block.size, block.origin)); });
        prop_assert_eq!(&found, &truth);
        for (start, (size, origin)) in &truth {
            let last = truth.range(start + 1..).next().map_or(start + size - 1, |(next, _)| (start + size - 1).min(next - 1));
            let inside = (!cut_into.contains(start)).then_some(last);
            for address in std::iter::once(*start).chain(inside) {
                for block in [reader.block_at(address), index.nested_block_at(address)] {
                    prop_assert_eq!(block.map(|it| (it.base, it.size, it.origin)), Some((*start, *size, *origin)));
                }
            }
        }
        // Behind what is said to be fresh of a page lies no word of a block.
        for page in (base..base + 400_000).step_by(PAGE as usize) {
            let fresh = nested.fresh_from(page);
            let page = page & !(PAGE - 1);
            for (start, (size, _)) in truth.range(page - 32..page + PAGE) {
                let words = 1 + u64::from(*size > 16) + u64::from(*size >= LARGE);
                // Those behind a chunk's last granule lie behind its table.
                let words = (0..words).map(|number| start + number * 16).filter(|word| word >> 26 == start >> 26);
                for word in words {
                    prop_assert!(!(page..page + PAGE).contains(&word) || word < fresh, "{word:#x} {fresh:#x}");
                }
            }
        }
        // None of them is a block of an allocator.
        let mut outer = 0;
        index.each_block(|_| outer += 1);
        prop_assert_eq!(outer, 0);
    }
}
