//! *Does a snapshot say what the index said, and does a damaged one say that it is damaged?*
//!
//! The index is written by the real writers into a memfd, as the runtime does it.

#![allow(unsafe_code)] // Maps a region and hands it to the writers.

use pointee_index::class::{Class, Kind};
use pointee_index::counters::{Counters, FIRST_OWN, INHERITED};
use pointee_index::layout::{Layout, MAGIC, VERSION};
use pointee_index::origins::{Frame, Origins, ROOTS, Rule};
use pointee_index::records::Module;
use pointee_index::{Geometry, Header, Index, Writer};
use pointee_inspect::images::Images;
use pointee_inspect::memory::{Region, RegionFile};
use pointee_inspect::process::ProcessData;
use pointee_inspect::report::{Circumstances, Exit, ProcessReport, State};
use pointee_inspect::resolve::Resolver;
use pointee_inspect::snapshot::{self, Heap, Info, Snapshot};
use pointee_inspect::space;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

const HEAP: u64 = 0x5555_0000_0000;

/// A region with 1,000 blocks of 100 bytes from one path and 10 of 100,000 from another, half of each freed, and
/// three blocks inherited.
fn region() -> File {
    let geometry = Geometry::narrow(1 << 30);
    let layout = Layout::of(&geometry);
    // SAFETY: a new file, mapped whole; the writers get what their contracts ask for.
    unsafe {
        let fd = libc::memfd_create(c"pointee".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        let file = File::from_raw_fd(fd);
        file.set_len(layout.len).expect("a length");
        let base = libc::mmap(
            std::ptr::null_mut(),
            layout.len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            0,
        );
        assert!(base != libc::MAP_FAILED);
        let base = base.cast::<u8>();
        let header = base.cast::<Header>();
        (&raw mut (*header).geometry).write(geometry);
        let header = &*header;
        header.version.store(VERSION, Relaxed);
        header.base.store(base as u64, Relaxed);
        header.pid.store(77, Relaxed);
        header.origins.store(ROOTS, Relaxed);
        header.modules.store(1, Relaxed);
        header.threads.store(FIRST_OWN + 1, Relaxed);
        header.strings.store(16, Relaxed);
        base.add(layout.strings as usize + 1)
            .copy_from(c"/bin/program".as_ptr().cast(), 12);
        header.program.store(1, Relaxed);
        base.add(layout.modules as usize)
            .cast::<Module>()
            .write(Module {
                start: 0x40_0000,
                end: 0x50_0000,
                bias: 0x40_0000,
                path: 1,
                build_id_len: 20,
                build_id: [7; 20],
                flags: 1,
                unloaded: u64::MAX.into(),
            });
        let origins = Origins::new(base, &layout);
        let counters = Counters::new(base, layout);
        let writer = Writer::new(base, &layout);
        let thread = counters.give(FIRST_OWN, 1, 1);
        let add = |parent, return_address, rule, depth| {
            let node = origins
                .add(
                    parent,
                    None,
                    return_address,
                    rule,
                    Frame {
                        module: 0,
                        depth,
                        is_undecided: false,
                    },
                    Class::new(0, Kind::C),
                )
                .expect("room");
            node.id.load(Relaxed)
        };
        let inner = add(1, 0x40_1000, Rule::new(false, 16, 0), 1);
        let small = add(inner, 0x40_2000, Rule::LEAF, 2);
        let large = add(inner, 0x40_3000, Rule::LEAF, 2);
        let inherited = counters.give(INHERITED, 2, 2);
        for number in 0..3 {
            writer.insert(HEAP + (1 << 30) + number * 64, 24, small);
            counters.allocated(inherited, small, 24);
        }
        // As the fork itself leaves it: counted in the header, nothing held back.
        counters.settle(inherited);
        for number in 0..1000 {
            writer.insert(HEAP + number * 112, 100, small);
            counters.allocated(thread, small, 100);
        }
        for number in 0..10 {
            writer.insert(HEAP + (16 << 20) + number * 100_352, 100_000, large);
            counters.allocated(thread, large, 100_000);
        }
        for (count, start, step) in [(1000, HEAP, 112), (10, HEAP + (16 << 20), 100_352)] {
            for number in (0..count).step_by(2) {
                let block = writer.erase(start + number * step).expect("recorded");
                counters.freed(thread, block.origin, block.size);
            }
        }
        header.magic.store(MAGIC, Relaxed);
        libc::munmap(base.cast(), layout.len as usize);
        file
    }
}

fn circumstances() -> Circumstances {
    Circumstances {
        pid: 77,
        parent: 1,
        generation: 0,
        state: State::Ended,
        exit: Some(Exit::Signal(9)),
        unseen: Vec::new(),
    }
}

fn info() -> Info {
    Info {
        circumstances: circumstances(),
        at_peak: false,
        blocks_at_peak: false,
        no_contents: None,
        images: Vec::new(),
    }
}

fn open(file: File) -> Index<Region> {
    Index::open(Region::File(RegionFile::new(file).expect("a region"))).expect("an index")
}

fn saved(index: &Index<Region>) -> Vec<u8> {
    let process = ProcessData::read(index);
    let mut bytes = Vec::new();
    snapshot::write(
        &mut bytes,
        info(),
        index,
        &process,
        &Images::default(),
        &space::Layout::default(),
        &Heap::Gone,
    )
    .expect("writes");
    bytes
}

/// Everything that can be asked, as one text.
fn answers(index: &Index<Region>) -> String {
    let process = ProcessData::read(index);
    let images = Images::default();
    let mut report = ProcessReport::new(&Resolver::new(&process, &images), &circumstances());
    // What a region took as a region it does not take as a file.
    report.recording = None;
    let mut blocks = Vec::new();
    index.each_block(|block| blocks.push((block.base, block.size)));
    blocks.sort_unstable();
    let report = serde_json::to_string(&report).expect("JSON");
    format!("{report}\n{blocks:x?}")
}

#[test]
fn counts_are_what_was_written() {
    let index = open(region());
    let process = ProcessData::read(&index);
    assert_eq!(process.program, "/bin/program");
    let total = process.total;
    assert_eq!(
        (total.allocated.blocks, total.allocated.bytes),
        (1010, 1_100_000)
    );
    assert_eq!((total.freed.blocks, total.freed.bytes), (505, 550_000));
    assert_eq!((total.inherited.blocks, total.inherited.bytes), (3, 72));
    assert_eq!((total.live().blocks, total.live().bytes), (508, 550_072));
    assert_eq!(process.peak_bytes, 1_100_072);
    assert_eq!(process.paths.len(), 2);
    let mut offsets: Vec<_> = process
        .paths
        .iter()
        .map(|path| path.frames[1].return_address.0)
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, [0x2000, 0x3000]);
    let block = index.block_at(HEAP + 112 + 50).expect("a block");
    assert_eq!((block.base, block.size), (HEAP + 112, 100));
    assert_eq!(index.block_at(HEAP + 50), None);
}

#[test]
fn a_snapshot_gives_the_same_answers_and_is_small() {
    let index = open(region());
    let bytes = saved(&index);
    assert!(bytes.len() < 200_000, "{} bytes", bytes.len());
    let snapshot = Snapshot::from_bytes(bytes.into()).expect("opens");
    assert_eq!(answers(&snapshot.index), answers(&index));
    assert_eq!(snapshot.info.circumstances.exit, Some(Exit::Signal(9)));
    assert!(snapshot.info.no_contents.is_some());
}

#[test]
fn a_damaged_snapshot_is_an_error_or_harmless() {
    let bytes = saved(&open(region()));
    for len in (0..bytes.len()).step_by(bytes.len() / 200 + 1) {
        assert!(
            Snapshot::from_bytes(bytes[..len].into()).is_err(),
            "cut at {len}"
        );
    }
    for at in (0..bytes.len()).step_by(bytes.len() / 500 + 1) {
        for bit in [0, 7] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            // Padding may be anything; all else is covered by a check.
            if let Ok(snapshot) = Snapshot::from_bytes(damaged.into()) {
                answers(&snapshot.index);
            }
        }
    }
}

/// Damage inside the sections, with checksums that are right.
#[test]
fn a_hostile_snapshot_is_an_error_or_harmless() {
    let bytes = saved(&open(region()));
    let word = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize
    };
    // The second section is the region.
    let record = 16 + 24;
    let (start, len) = (word(&bytes, record + 8), word(&bytes, record + 16));
    for seed in 0..600u64 {
        let mut damaged = bytes.clone();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..=seed % 4 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Half of the hits in the tables, half anywhere.
            let within = if seed % 2 == 0 { len.min(600) } else { len };
            damaged[start + random as usize % within] = (random >> 32) as u8;
        }
        let sum = crc32fast::hash(&damaged[start..start + len]);
        damaged[record + 4..record + 8].copy_from_slice(&sum.to_le_bytes());
        let damaged: Arc<[u8]> = damaged.into();
        if let Ok(snapshot) = Snapshot::from_bytes(damaged) {
            answers(&snapshot.index);
        }
    }
}

/// A process that scribbles over its own index.
#[test]
fn a_scribbled_index_is_harmless() {
    use std::os::unix::fs::FileExt;
    for seed in 1..200u64 {
        let file = region();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random % 400_000;
            file.write_all_at(&random.to_le_bytes(), at)
                .expect("writes");
        }
        let region = Region::File(RegionFile::new(file).expect("a region"));
        if let Ok(index) = Index::open(region) {
            answers(&index);
        }
    }
}
