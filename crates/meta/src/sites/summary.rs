//! *What do a file's functions that hand out memory do for callers in other files?*
//!
//! Analysis sees one file. What it finds of an exported function (which argument is the size, which the old block, what the
//! result points to) is kept in the image as its *summary*, and the files that import the name are analysed by it, as
//! by what the model says of `malloc`. Types cross by identity, since each file numbers its own.

use super::allocators::{Allocator, Allocators};
use super::calls::Program;
use super::model::{self, Makes, Size};
use super::typing::Types;
use super::value::is_number;
use pointee_model::image::{Image, StrRef, SummaryRecord, summary_flags, summary_size};
use std::collections::BTreeMap;

/// What one exported function hands out.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Summary {
    /// Its linker name, without a version.
    pub name: String,
    /// File name of the file that defines it; empty among that file's own.
    pub library: String,
    /// How many bytes a call asks for.
    pub size: Size,
    /// The argument that is the old block, if it reallocates.
    pub old: Option<u8>,
    /// The argument that is the size of one element.
    pub unit: Option<u8>,
    /// The argument through which the block is stored.
    pub out: Option<u8>,
    /// The argument whose text, or what else it points to, is copied.
    pub text: Option<u8>,
    /// Where in the block its result points.
    pub offset: i64,
    /// Identity of the type that its result points to, if not to `void`.
    pub base: Option<[u8; 16]>,
    /// Bits of [`summary_flags`].
    pub flags: u32,
}

impl Summary {
    /// Whether it hands out text.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.flags & summary_flags::TEXT != 0
    }

    /// Whether it cuts its blocks out of larger ones.
    #[must_use]
    pub fn is_pool(&self) -> bool {
        self.flags & summary_flags::POOL != 0
    }

    /// The same, of whatever file.
    pub(crate) fn anywhere(&self) -> Self {
        Self {
            library: String::new(),
            ..self.clone()
        }
    }

    fn of(name: &str, allocator: &Allocator, is_pool: bool, types: &Types<'_>) -> Option<Self> {
        let is_text = match allocator.makes {
            Makes::Whatever => false,
            Makes::Characters => true,
            Makes::Object(_) | Makes::Array(_) => return None,
        };
        // A collection keeps the block: its callers see nothing of it.
        if !allocator.returns_it && allocator.out.is_none() {
            return None;
        }
        let identity = |at| types.get(at).map(|entry| entry.identity);
        let flag = |is_so: bool, flag: u32| if is_so { flag } else { 0 };
        Some(Self {
            name: name.to_owned(),
            library: String::new(),
            size: allocator.size,
            old: allocator.old,
            unit: allocator.unit,
            out: allocator.out,
            text: match is_text {
                true => allocator.text,
                false => allocator.copies,
            },
            offset: allocator.offset,
            base: allocator.base.and_then(identity),
            flags: flag(allocator.returns_it, summary_flags::RETURNS)
                | flag(is_text, summary_flags::TEXT)
                | flag(allocator.kept, summary_flags::KEPT)
                | flag(allocator.element, summary_flags::ELEMENT)
                | flag(is_pool, summary_flags::POOL),
        })
    }

    /// The function, as an importer takes it.
    pub(super) fn allocator(&self, types: &Types<'_>) -> Allocator {
        let has = |flag: u32| self.flags & flag != 0;
        let makes = match self.is_text() {
            true => Makes::Characters,
            false => Makes::Whatever,
        };
        Allocator {
            old: self.old,
            unit: self.unit,
            out: self.out,
            text: self.text.filter(|_| self.is_text()),
            copies: self.text.filter(|_| !self.is_text()),
            offset: self.offset,
            base: self.base.and_then(|base| types.identified(base)),
            returns_it: has(summary_flags::RETURNS),
            kept: has(summary_flags::KEPT),
            element: has(summary_flags::ELEMENT),
            ..Allocator::of(self.size, makes)
        }
    }

    /// As images hold it.
    pub(crate) fn to_record(&self, mut intern: impl FnMut(&str) -> StrRef) -> SummaryRecord {
        let argument = |argument: Option<u8>| argument.unwrap_or(SummaryRecord::NONE);
        let (size, first, second, scale, add) = match self.size {
            Size::Unknown => (summary_size::UNKNOWN, 0, 0, 0, 0),
            Size::Argument { index, scale, add } => (summary_size::ARGUMENT, index, 0, scale, add),
            Size::Product(count, unit) => (summary_size::PRODUCT, count, unit, 0, 0),
            Size::Derived(mask) => (summary_size::DERIVED, mask, 0, 0, 0),
        };
        SummaryRecord {
            base: self.base.unwrap_or_default(),
            offset: self.offset,
            add,
            scale,
            name: intern(&self.name),
            library: intern(&self.library),
            flags: self.flags,
            size,
            first,
            second,
            old: argument(self.old),
            unit: argument(self.unit),
            out: argument(self.out),
            text: argument(self.text),
            reserved: 0,
        }
    }

    /// From a record of `image`; `None` if it is damaged.
    fn from_record(image: &Image<'_>, record: &SummaryRecord) -> Option<Self> {
        let argument = |index: u8| (index < ARGUMENTS).then_some(index);
        let size = match record.size {
            summary_size::UNKNOWN => Size::Unknown,
            summary_size::ARGUMENT => Size::Argument {
                index: argument(record.first)?,
                scale: record.scale,
                add: Some(record.add).filter(is_near)?,
            },
            summary_size::PRODUCT => {
                Size::Product(argument(record.first)?, argument(record.second)?)
            }
            summary_size::DERIVED => Size::Derived(record.first),
            _ => return None,
        };
        let is_offset = |offset: &i64| !is_number(*offset) || is_near(offset);
        Some(Self {
            name: image.string(record.name).to_owned(),
            library: image.string(record.library).to_owned(),
            size,
            old: argument(record.old),
            unit: argument(record.unit),
            out: argument(record.out),
            text: argument(record.text),
            offset: Some(record.offset).filter(is_offset)?,
            base: (record.base != [0; 16]).then_some(record.base),
            flags: record.flags,
        })
    }

    /// What the functions that a file exports hand out, as its `image` says.
    #[must_use]
    pub fn exported(image: &Image<'_>) -> Vec<Self> {
        let records = image.exports.iter();
        let read = records.filter_map(|record| Self::from_record(image, record));
        read.collect()
    }

    /// By what of other files an `image` was made.
    #[must_use]
    pub fn imported(image: &Image<'_>) -> Vec<Self> {
        let records = image.imports.iter();
        let read = records.filter_map(|record| Self::from_record(image, record));
        read.collect()
    }
}

/// Arguments that are looked at.
const ARGUMENTS: u8 = 6;

/// Whether a number of bytes is one that headers have.
fn is_near(bytes: &i64) -> bool {
    bytes.unsigned_abs() < 1 << 32
}

/// What the file's exported functions hand out, in order of name. A name of which two versions differ is left out.
pub(super) fn of_exports(
    program: &Program<'_>,
    types: &Types<'_>,
    allocators: &Allocators<'_>,
) -> Vec<Summary> {
    let mut found: BTreeMap<&str, Option<Summary>> = BTreeMap::new();
    let symbols = program.elf.symbols();
    let exported = symbols.filter(|it| it.is_exported() && model::row(it.name).is_none());
    for symbol in exported {
        let key = program.entry(symbol.address);
        let is_pool = key.is_some_and(|key| allocators.is_pool(key));
        let allocator = key.and_then(|key| allocators.get(key));
        let summary = allocator.and_then(|known| Summary::of(symbol.name, known, is_pool, types));
        found
            .entry(symbol.name)
            .and_modify(|known| {
                if *known != summary {
                    *known = None;
                }
            })
            .or_insert(summary);
    }
    found.into_values().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::facts::Facts;
    use crate::sites::Sites;
    use crate::writer::{Provenance, write};
    use pointee_model::image::section_kind;
    use zerocopy::IntoBytes;

    fn summary(size: Size, old: Option<u8>, offset: i64) -> Summary {
        Summary {
            name: "get".to_owned(),
            library: String::new(),
            size,
            old,
            unit: None,
            out: Some(2),
            text: None,
            offset,
            base: Some([7; 16]),
            flags: summary_flags::RETURNS | summary_flags::KEPT,
        }
    }

    /// An image with one function that it exports.
    fn image_of(summary: &Summary) -> Vec<u8> {
        let sites = Sites {
            exports: vec![summary.clone()],
            ..Sites::default()
        };
        let config = Config::default();
        write(&Facts::default(), &sites, &config, &Provenance::default())
    }

    /// Records are read where they lie in an image, which is aligned.
    fn read(bytes: &[u8]) -> Vec<Summary> {
        let mut words = vec![0_u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        let image = Image::parse(&words.as_bytes()[..bytes.len()]).expect("an image");
        Summary::exported(&image)
    }

    #[test]
    fn what_is_written_is_read() {
        let (scale, add) = (8, -16);
        let rows = [
            (Size::Unknown, None, i64::MIN),
            (
                Size::Argument {
                    index: 1,
                    scale,
                    add,
                },
                Some(0),
                16,
            ),
            (Size::Product(0, 5), None, i64::MIN + 3),
            (Size::Derived(0b101), Some(5), -8),
        ];
        for (size, old, offset) in rows {
            let written = summary(size, old, offset);
            assert_eq!(read(&image_of(&written)), [written]);
        }
    }

    #[test]
    fn damaged_ones_are_left_out() {
        let far = i64::from(u32::MAX) * 2;
        let (scale, add) = (1, far);
        let rows = [
            summary(
                Size::Argument {
                    index: 6,
                    scale,
                    add: 0,
                },
                None,
                0,
            ),
            summary(
                Size::Argument {
                    index: 0,
                    scale,
                    add,
                },
                None,
                0,
            ),
            summary(Size::Product(0, 6), None, 0),
            summary(Size::Unknown, None, far),
        ];
        for damaged in rows {
            assert_eq!(read(&image_of(&damaged)), [], "{damaged:?}");
        }
        // Another kind of size than there is.
        let mut bytes = image_of(&summary(Size::Unknown, None, 0));
        let at = |bytes: &[u8], from: usize| {
            usize::from_le_bytes(bytes[from..from + 8].try_into().expect("eight"))
        };
        let table = 64;
        let exports = (0..).map(|row| table + row * 24);
        let is_it = |row: &usize| bytes[*row] == section_kind::EXPORTS as u8;
        let row = exports.into_iter().find(is_it).expect("a section");
        let record = at(&bytes, row + 8);
        bytes[record + 48] = 9;
        assert_eq!(read(&bytes), []);
    }
}
