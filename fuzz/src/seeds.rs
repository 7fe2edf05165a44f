//! *What do the targets start from?* — from real files: a random byte string is no ELF file.
//!
//! With `SEEDS_TO` in the environment a target writes its first inputs into that folder before it
//! begins, made from the files in `SEEDS_FROM` (paths, apart by colons).

use crate::region::Pages;
use pointee_index::counters::{Counts, FIRST_OWN, Live};
use pointee_index::layout::{FIRST_LEVEL, Layout, MAGIC, TABLE_WORDS, VERSION};
use pointee_index::origins::{Node, ROOTS};
use pointee_index::records::{Hook, Module};
use pointee_index::table::{directory_index, granule};
use pointee_index::{Geometry, Header, words};
use pointee_inspect::images::{AlignedBytes, ImageBytes, Images};
use pointee_inspect::process::ProcessData;
use pointee_inspect::report::{Circumstances, State};
use pointee_inspect::running::Mapping;
use pointee_inspect::snapshot::{self, Heap, Info};
use pointee_inspect::space::{self, Frame, Object, Span, Thread, ThreadLocalSegment};
use pointee_meta::debug_files::DebugFiles;
use pointee_meta::{dwarf, elf, sites, writer};
use pointee_model::addr::{LinkAddr, LoadBias, RunAddr};
use pointee_model::image::{Image, MemberRecord, TypeKind, TypeRecord};
use std::mem::offset_of;
use std::path::PathBuf;
use std::sync::Arc;

/// Writes what `make` makes of each real file, if seeds are wanted.
pub fn plant(make: impl Fn(&[u8]) -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os("SEEDS_TO").map(PathBuf::from) else {
        return;
    };
    let from = std::env::var_os("SEEDS_FROM").unwrap_or_default();
    for (file, path) in std::env::split_paths(&from).enumerate() {
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        for (number, seed) in make(&bytes).iter().enumerate() {
            let name = folder.join(format!("seed-{file:02}-{number:04}"));
            std::fs::write(name, seed).expect("the folder of seeds can be written");
        }
    }
}

/// Images of types that make no sense, one for each kind of type: every type is of that kind and holds
/// itself, as do all its members.
#[must_use]
pub fn absurd_images(image: &[u8]) -> Vec<Vec<u8>> {
    let aligned = AlignedBytes::copy_of(image);
    let Ok(view) = Image::parse(aligned.as_ref()) else {
        return Vec::new();
    };
    let start = aligned.as_ref().as_ptr() as usize;
    let types = view.types.as_ptr() as usize - start;
    let members = view.members.as_ptr() as usize - start;
    let absurd = |kind: u8| {
        let mut image = image.to_vec();
        let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        for number in 0..view.types.len() {
            let record = types + number * size_of::<TypeRecord>();
            set(record + offset_of!(TypeRecord, kind), &[kind]);
            set(
                record + offset_of!(TypeRecord, count),
                &u64::MAX.wrapping_sub(1).to_le_bytes(),
            );
            set(
                record + offset_of!(TypeRecord, target),
                &(number as u32).to_le_bytes(),
            );
            set(record + offset_of!(TypeRecord, first_member), &[0; 4]);
            let all = view.members.len() as u32;
            set(record + offset_of!(TypeRecord, members), &all.to_le_bytes());
        }
        for number in 0..view.members.len() {
            let record = members + number * size_of::<MemberRecord>();
            let r#type = (number % view.types.len().max(1)) as u32;
            set(
                record + offset_of!(MemberRecord, r#type),
                &r#type.to_le_bytes(),
            );
            set(record + offset_of!(MemberRecord, offset), &[0; 8]);
        }
        image
    };
    (0..=TypeKind::Variant as u8).map(absurd).collect()
}

/// A region whose header claims the most that a header can, with owners for thousands of tables.
#[must_use]
pub fn boastful_region() -> Pages {
    let mut region = Writer(Pages::default());
    let geometry = Geometry {
        modules: 1 << 16,
        hooks: 1 << 16,
        strings: 1 << 26,
        origins: 1 << 24,
        origin_levels: [FIRST_LEVEL, 24, 24],
        threads: 1 << 10,
        tables: 1 << 20,
        reserved: 0,
    };
    header(&mut region, &geometry, u32::MAX);
    let counts = [offset_of!(Header, threads), offset_of!(Header, tables)];
    for field in counts {
        region.u32(field as u64, u32::MAX);
    }
    let layout = Layout::of(&geometry);
    region.0.write(layout.table_owners, &[1; 4 * 4096]);
    region.0.write(layout.tables, &[0xc4; 64]);
    region.0
}

/// The metadata image of an ELF file; `None` if the bytes are none.
#[must_use]
pub fn image_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let elf = elf::Elf::from_bytes(bytes.to_vec()).ok()?;
    let facts = dwarf::read_facts(&elf, &DebugFiles::inside(&elf));
    let options = sites::Options {
        sources: false,
        ..sites::Options::default()
    };
    let sites = sites::infer(&elf, &facts, &options);
    let provenance = writer::Provenance {
        build_id: elf.build_id().to_vec(),
        ..writer::Provenance::default()
    };
    Some(writer::write(
        &facts,
        &sites,
        &pointee_meta::config::Config::default(),
        &provenance,
    ))
}

/// Where the process of [`region_with`] has its heap.
pub const HEAP: u64 = 0x5555_0400_0000;
/// Where it has its one module.
pub const BIAS: u64 = 0x4000_0000;

/// A region as the runtime writes it, of a process that loaded the file of `image` and allocated
/// one block from each of its first sites, one of them large.
#[must_use]
pub fn region_with(image: &Image<'_>) -> Pages {
    let geometry = Geometry::narrow(1 << 30);
    let layout = Layout::of(&geometry);
    let mut region = Writer(Pages::default());
    let sites = &image.sites[..image.sites.len().min(8)];
    let origins = ROOTS + sites.len() as u32;
    header(&mut region, &geometry, origins);
    loaded(&mut region, &layout);

    let chunk = directory_index(HEAP);
    let table = layout.tables;
    region.u64(layout.directory + chunk as u64 * 8, REGION_AT + table);
    region.u32(layout.table_owners, chunk as u32 + 1);
    let mut address = HEAP;
    for (site, number) in sites.iter().zip(0u32..) {
        let id = ROOTS + number;
        let node = layout.origins[0] + u64::from(number) * size_of::<Node>() as u64;
        let code = site.return_address.wrapping_add(BIAS);
        region.u64(node + offset_of!(Node, return_address) as u64, code);
        region.u32(node + offset_of!(Node, parent) as u64, 1);
        region.u32(node + offset_of!(Node, id) as u64, id);

        let size = if number == 1 { 200_000 } else { 72 };
        let block = words::encode(size, id);
        let all = [Some(block.first), block.second, block.third];
        for (word, at) in all.into_iter().flatten().zip(granule(address)..) {
            region.u32(table + at * 4, word);
        }
        let spans = table + TABLE_WORDS * 4 + pointee_index::layout::SPILL_BYTES;
        for span in (address >> 16) + 1..=(address + size - 1) >> 16 {
            region.u64(spans + span % 1024 * 8, address);
        }
        address += size.next_multiple_of(16) + 16;

        let counts = layout.counters
            + u64::from(FIRST_OWN) * layout.counters_stride
            + u64::from(id) * size_of::<Counts>() as u64;
        region.u64(counts, 3);
        region.u64(counts + 8, 3 * size);
        region.u64(counts + 16, 2);
        region.u64(counts + 24, 2 * size);
        let peak = layout.peak + u64::from(id) * size_of::<Live>() as u64;
        region.u64(peak, 2);
        region.u64(peak + 8, 2 * size);
    }
    region.0
}

/// Where the region lies in its process.
const REGION_AT: u64 = 0x7000_0000_0000;

fn header(region: &mut Writer, geometry: &Geometry, origins: u32) {
    region.u64(offset_of!(Header, magic) as u64, MAGIC);
    let room = [
        geometry.modules,
        geometry.hooks,
        geometry.strings,
        geometry.origins,
        geometry.origin_levels[0],
        geometry.origin_levels[1],
        geometry.origin_levels[2],
        geometry.threads,
        geometry.tables,
    ];
    for (number, at) in room.into_iter().zip((0..).step_by(4)) {
        region.u32(offset_of!(Header, geometry) as u64 + at, number);
    }
    region.u64(offset_of!(Header, base) as u64, REGION_AT);
    let fields = [
        (offset_of!(Header, version), VERSION),
        (offset_of!(Header, pid), 77),
        (offset_of!(Header, modules), 1),
        (offset_of!(Header, hooks), 1),
        (offset_of!(Header, strings), 32),
        (offset_of!(Header, origins), origins),
        (offset_of!(Header, threads), FIRST_OWN + 1),
        (offset_of!(Header, tables), 1),
        (offset_of!(Header, program), 1),
    ];
    for (field, value) in fields {
        region.u32(field as u64, value);
    }
    region.u64(offset_of!(Header, peak_bytes) as u64, 1 << 20);
}

/// One module and one hook in it.
fn loaded(region: &mut Writer, layout: &Layout) {
    region
        .0
        .write(layout.strings + 1, b"/bin/program\0malloc\0");
    let module = |field: usize| layout.modules + field as u64;
    region.u64(module(offset_of!(Module, start)), BIAS);
    region.u64(module(offset_of!(Module, end)), BIAS + (1 << 30));
    region.u64(module(offset_of!(Module, bias)), BIAS);
    region.u32(module(offset_of!(Module, path)), 1);
    region.u32(module(offset_of!(Module, build_id_len)), 20);
    region.u64(module(offset_of!(Module, build_id)), 0x0123_4567_89ab_cdef);
    region.u64(module(offset_of!(Module, unloaded)), u64::MAX);
    let hook = |field: usize| layout.hooks + field as u64;
    region.u64(hook(offset_of!(Hook, address)), BIAS + 0x1000);
    region.u64(hook(offset_of!(Hook, trampoline)), BIAS - 0x1000);
    region.u32(hook(offset_of!(Hook, name)), 14);
    region.0.write(hook(offset_of!(Hook, len)), &[5, 1, 1, 0]);
    region.u32(hook(offset_of!(Hook, root)), 1);
}

struct Writer(Pages);

impl Writer {
    fn u32(&mut self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn u64(&mut self, offset: u64, value: u64) {
        self.0.write(offset, &value.to_le_bytes());
    }
}

/// The images of a process whose one module is described by `bytes`.
#[must_use]
pub fn images_with(bytes: &[u8]) -> Images {
    Images::new(vec![Some(
        Arc::new(AlignedBytes::copy_of(bytes)) as ImageBytes
    )])
}

/// A snapshot of the process of [`region_with`].
#[must_use]
pub fn snapshot_with(image: &[u8]) -> Option<Vec<u8>> {
    let aligned = AlignedBytes::copy_of(image);
    let index = region_with(&Image::parse(aligned.as_ref()).ok()?).as_saved()?;
    let process = ProcessData::read(&index);
    let circumstances = Circumstances {
        pid: 77,
        parent: 1,
        generation: 0,
        state: State::Running,
        exit: None,
        unseen: vec!["something".to_owned()],
    };
    let info = Info {
        circumstances,
        at_peak: false,
        blocks_at_peak: false,
        no_contents: None,
        images: Vec::new(),
    };
    let mut bytes = Vec::new();
    let images = images_with(image);
    let layout = layout();
    snapshot::write(
        &mut bytes,
        info,
        &index,
        &process,
        &images,
        &layout,
        &Heap::Gone,
    )
    .ok()?;
    Some(bytes)
}

/// An address space of one file, whose image is that of the process, and one thread.
fn layout() -> space::Layout {
    let span = |start, end| Span {
        start: RunAddr(start),
        end: RunAddr(end),
    };
    let mapping = |start, end, permissions: &str, path: &str| Mapping {
        start: RunAddr(start),
        end: RunAddr(end),
        permissions: permissions.to_owned(),
        offset: 0,
        inode: u64::from(path.starts_with('/')),
        path: path.to_owned(),
    };
    space::Layout {
        mappings: vec![
            mapping(0x40_0000, 0x50_0000, "rw-p", "/bin/program"),
            mapping(0x60_0000, 0x61_0000, "rw-p", "[heap]"),
            mapping(0x7000_0000, 0x7001_0000, "rw-p", "[stack]"),
        ],
        objects: vec![Object {
            path: "/bin/program".to_owned(),
            span: span(0x40_0000, 0x50_0000),
            bias: LoadBias(0x40_0000),
            build_id: vec![7; 20],
            segments: vec![(span(0x40_0000, 0x50_0000), 7)],
            thread_local: Some(ThreadLocalSegment {
                address: LinkAddr(0),
                size: 64,
            }),
            unwind_table: None,
            dynamic: None,
            thread_local_number: Some(1),
        }],
        threads: vec![Thread {
            id: 77,
            name: "program".to_owned(),
            stack: Some(span(0x7000_0000, 0x7001_0000)),
            signal_stack: Some(span(0x60_0000, 0x60_4000)),
            frames: vec![Frame {
                pc: RunAddr(0x40_1000),
                is_return: true,
                span: span(0x7000_8000, 0x7000_9000),
                registers: vec![Some(0x7000_8800); 16],
                saved: vec![(RunAddr(0x7000_8ff8), 16)],
                is_signal: false,
            }],
            cut: None,
            control_block: Some(RunAddr(0x60_8000)),
            blocks: vec![(0, span(0x60_7fc0, 0x60_8000))],
        }],
        start: Vec::new(),
    }
}
