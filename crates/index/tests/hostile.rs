//! *Does a header that claims terabytes send a reader through them?* What a reader visits is bounded
//! by what was written, not by what is claimed.

use pointee_index::layout::{FIRST_LEVEL, Layout, MAGIC, PAGE, VERSION};
use pointee_index::words::ORIGIN_LIMIT;
use pointee_index::{Geometry, Header, Index, Memory};
use std::cell::Cell;
use std::mem::offset_of;

/// The largest geometry that is read.
const LARGEST: Geometry = Geometry {
    modules: 1 << 16,
    hooks: 1 << 16,
    strings: 1 << 26,
    origins: ORIGIN_LIMIT,
    origin_levels: [FIRST_LEVEL, 24, 24],
    threads: 1 << 16,
    tables: 1 << 20,
    reserved: 0,
};

/// A region that says all of it is in use. Every table has an owner; nothing else is written but one
/// word in the last table.
struct Boaster {
    layout: Layout,
    looks: Cell<u64>,
}

impl Boaster {
    fn byte(&self, offset: u64) -> u8 {
        let fields: [(usize, &[u8]); 14] = [
            (offset_of!(Header, magic), &MAGIC.to_le_bytes()),
            (offset_of!(Header, version), &VERSION.to_le_bytes()),
            (
                at(offset_of!(Geometry, modules)),
                &LARGEST.modules.to_le_bytes(),
            ),
            (
                at(offset_of!(Geometry, hooks)),
                &LARGEST.hooks.to_le_bytes(),
            ),
            (
                at(offset_of!(Geometry, strings)),
                &LARGEST.strings.to_le_bytes(),
            ),
            (
                at(offset_of!(Geometry, origins)),
                &LARGEST.origins.to_le_bytes(),
            ),
            (
                at(offset_of!(Geometry, origin_levels)),
                &[FIRST_LEVEL as u8],
            ),
            (at(offset_of!(Geometry, origin_levels) + 4), &[24]),
            (at(offset_of!(Geometry, origin_levels) + 8), &[24]),
            (
                at(offset_of!(Geometry, threads)),
                &LARGEST.threads.to_le_bytes(),
            ),
            (
                at(offset_of!(Geometry, tables)),
                &LARGEST.tables.to_le_bytes(),
            ),
            (offset_of!(Header, tables), &u32::MAX.to_le_bytes()),
            (offset_of!(Header, origins), &u32::MAX.to_le_bytes()),
            (offset_of!(Header, threads), &u32::MAX.to_le_bytes()),
        ];
        let field = fields.iter().find_map(|(start, bytes)| {
            bytes.get(usize::try_from(offset.checked_sub(*start as u64)?).ok()?)
        });
        let owner = self.layout.table_owners..self.layout.directory;
        match field {
            Some(byte) => *byte,
            None if owner.contains(&offset) => u8::from(offset.is_multiple_of(4)),
            // A block of one granule.
            None if offset == self.last_table() + 3 => 0xc4,
            None => 0,
        }
    }

    fn last_table(&self) -> u64 {
        self.layout.len - pointee_index::layout::TABLE_BYTES
    }
}

fn at(field: usize) -> usize {
    offset_of!(Header, geometry) + field
}

impl Memory for &Boaster {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.looks.set(self.looks.get() + 1);
        for (place, byte) in (offset..).zip(buffer) {
            *byte = self.byte(place);
        }
        true
    }

    fn next_touched(&self, offset: u64) -> Option<u64> {
        self.looks.set(self.looks.get() + 1);
        let written = [
            0..PAGE,
            self.layout.table_owners..self.layout.directory,
            self.last_table()..self.last_table() + PAGE,
        ];
        let next = written.iter().find(|range| offset < range.end)?;
        Some(offset.max(next.start))
    }
}

#[test]
fn a_reader_looks_at_what_was_written() {
    let boaster = Boaster {
        layout: Layout::of(&LARGEST),
        looks: Cell::new(0),
    };
    let index = Index::open(&boaster).expect("the largest geometry is read");
    let looks = |ask: &dyn Fn()| {
        boaster.looks.set(0);
        ask();
        boaster.looks.get()
    };
    let blocks = Cell::new(0);
    let rows: [(&str, &dyn Fn()); 4] = [
        ("blocks", &|| {
            index.each_block(|_| blocks.set(blocks.get() + 1))
        }),
        ("origins", &|| index.each_origin(|_| {})),
        ("peak", &|| index.each_at_peak(|_, _, _| {})),
        ("counts", &|| index.each_count(65_535, |_, _| {})),
    ];
    for (what, ask) in rows {
        let looks = looks(ask);
        assert!(looks < 100, "{what}: {looks} looks at the memory");
    }
    assert_eq!(blocks.get(), 1);
}
