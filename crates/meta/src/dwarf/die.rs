//! *What does one debugging information entry say?*
//!
//! [`Die`] gathers the attributes that Pointee uses from one entry; everything else is skipped.
//! It is filled anew for each entry, so that a walk allocates nothing per entry.

use super::sections::Bytes;
use gimli::{AttributeValue, DwAt, DwTag, EntriesRaw, constants as c};

/// `DW_AT_LLVM_alloc_type` of a call site: the type that the call allocates, as the source has it. LLVM 21 and later, for
/// `operator new` and functions declared to allocate.
const LLVM_ALLOC_TYPE: DwAt = DwAt(0x3e0e);

pub(super) type Value<'a> = AttributeValue<Bytes<'a>>;

/// The attributes of one entry.
#[derive(Clone, Default)]
pub(super) struct Die<'a> {
    tag: Option<DwTag>,
    pub(super) offset: u32,
    pub(super) has_children: bool,
    pub(super) name: Option<Value<'a>>,
    pub(super) linkage_name: Option<Value<'a>>,
    pub(super) r#type: Option<Value<'a>>,
    /// `DW_AT_abstract_origin` or `DW_AT_specification`.
    pub(super) origin: Option<Value<'a>>,
    pub(super) signature: Option<Value<'a>>,
    pub(super) discriminant: Option<Value<'a>>,
    pub(super) byte_size: Option<u64>,
    pub(super) bit_size: Option<u64>,
    /// `DW_AT_bit_offset` of DWARF 2 and 3: counted from the most significant bit; negative where a
    /// packed field goes beyond its storage unit.
    pub(super) old_bit_offset: Option<i64>,
    pub(super) data_bit_offset: Option<u64>,
    pub(super) member_location: Option<Value<'a>>,
    pub(super) encoding: Option<u8>,
    pub(super) language: Option<u16>,
    pub(super) decl_file: Option<u64>,
    pub(super) decl_line: Option<u64>,
    pub(super) call_file: Option<u64>,
    pub(super) call_line: Option<u64>,
    pub(super) low_pc: Option<Value<'a>>,
    pub(super) high_pc: Option<Value<'a>>,
    pub(super) entry_pc: Option<Value<'a>>,
    pub(super) ranges: Option<Value<'a>>,
    pub(super) location: Option<Value<'a>>,
    pub(super) frame_base: Option<Value<'a>>,
    pub(super) count: Option<Value<'a>>,
    pub(super) upper_bound: Option<Value<'a>>,
    pub(super) lower_bound: Option<i64>,
    pub(super) const_value: Option<Value<'a>>,
    pub(super) alloc_type: Option<Value<'a>>,
    pub(super) return_pc: Option<Value<'a>>,
    pub(super) declaration: bool,
    pub(super) artificial: bool,
    pub(super) external: bool,
    pub(super) is_virtual: bool,
    pub(super) containing_type: bool,
}

impl<'a> Die<'a> {
    /// Reads the next entry; `Ok(false)` for the null entry that ends a list of children.
    pub(super) fn read(&mut self, entries: &mut EntriesRaw<'_, Bytes<'a>>) -> gimli::Result<bool> {
        let offset = u32::try_from(entries.next_offset().0).unwrap_or(u32::MAX);
        let Some(abbreviation) = entries.read_abbreviation()? else {
            return Ok(false);
        };
        *self = Self {
            tag: Some(abbreviation.tag()),
            offset,
            has_children: abbreviation.has_children(),
            ..Self::default()
        };
        let of_interest = match abbreviation.tag() {
            c::DW_TAG_call_site | c::DW_TAG_GNU_call_site => {
                let mut attributes = abbreviation.attributes().iter();
                attributes.any(|attribute| attribute.name() == LLVM_ALLOC_TYPE)
            }
            tag => is_of_interest(tag),
        };
        if !of_interest {
            entries.skip_attributes(abbreviation.attributes())?;
            return Ok(true);
        }
        for spec in abbreviation.attributes() {
            let attribute = entries.read_attribute(*spec)?;
            self.set(attribute.name(), || attribute.value());
        }
        Ok(true)
    }

    /// What the entry is.
    pub(super) fn tag(&self) -> DwTag {
        self.tag.unwrap_or(c::DW_TAG_null)
    }

    fn set(&mut self, name: DwAt, value: impl FnOnce() -> Value<'a>) {
        match name {
            c::DW_AT_name => self.name = Some(value()),
            c::DW_AT_linkage_name | c::DW_AT_MIPS_linkage_name => {
                self.linkage_name = Some(value());
            }
            c::DW_AT_type => self.r#type = Some(value()),
            c::DW_AT_abstract_origin | c::DW_AT_specification => self.origin = Some(value()),
            c::DW_AT_signature => self.signature = Some(value()),
            c::DW_AT_discr_value => self.discriminant = Some(value()),
            c::DW_AT_byte_size => self.byte_size = value().udata_value(),
            c::DW_AT_bit_size => self.bit_size = value().udata_value(),
            c::DW_AT_bit_offset => self.old_bit_offset = integer(&value()),
            c::DW_AT_data_bit_offset => self.data_bit_offset = value().udata_value(),
            c::DW_AT_data_member_location => self.member_location = Some(value()),
            c::DW_AT_encoding => {
                if let AttributeValue::Encoding(encoding) = value() {
                    self.encoding = Some(encoding.0);
                }
            }
            c::DW_AT_language => {
                if let AttributeValue::Language(language) = value() {
                    self.language = Some(language.0);
                }
            }
            c::DW_AT_decl_file => self.decl_file = file_index(value()),
            c::DW_AT_decl_line => self.decl_line = value().udata_value(),
            c::DW_AT_call_file => self.call_file = file_index(value()),
            c::DW_AT_call_line => self.call_line = value().udata_value(),
            c::DW_AT_low_pc => self.low_pc = Some(value()),
            c::DW_AT_high_pc => self.high_pc = Some(value()),
            c::DW_AT_entry_pc => self.entry_pc = Some(value()),
            c::DW_AT_ranges => self.ranges = Some(value()),
            c::DW_AT_location => self.location = Some(value()),
            c::DW_AT_frame_base => self.frame_base = Some(value()),
            c::DW_AT_count => self.count = Some(value()),
            c::DW_AT_upper_bound => self.upper_bound = Some(value()),
            c::DW_AT_lower_bound => self.lower_bound = value().sdata_value(),
            c::DW_AT_const_value => self.const_value = Some(value()),
            c::DW_AT_declaration => self.declaration = is_set(value()),
            c::DW_AT_artificial => self.artificial = is_set(value()),
            c::DW_AT_external => self.external = is_set(value()),
            c::DW_AT_virtuality => self.is_virtual = true,
            c::DW_AT_containing_type => self.containing_type = true,
            c::DW_AT_call_return_pc => self.return_pc = Some(value()),
            LLVM_ALLOC_TYPE => self.alloc_type = Some(value()),
            _ => {}
        }
    }
}

fn file_index(value: Value<'_>) -> Option<u64> {
    match value {
        AttributeValue::FileIndex(index) => Some(index),
        other => other.udata_value(),
    }
}

fn is_set(value: Value<'_>) -> bool {
    matches!(value, AttributeValue::Flag(true))
}

/// Call sites and their parameters make up a third of optimized debug info, and hardly any is used.
fn is_of_interest(tag: DwTag) -> bool {
    !matches!(
        tag,
        c::DW_TAG_call_site_parameter
            | c::DW_TAG_GNU_call_site_parameter
            | c::DW_TAG_label
            | c::DW_TAG_imported_declaration
            | c::DW_TAG_imported_module
            | c::DW_TAG_imported_unit
    )
}

/// An integer attribute, whatever its form, sign-extended where the form says so.
pub(super) fn integer(value: &Value<'_>) -> Option<i64> {
    match value {
        AttributeValue::Sdata(value) => Some(*value),
        AttributeValue::Udata(value) | AttributeValue::Data8(value) => Some(*value as i64),
        AttributeValue::Data1(value) => Some(i64::from(*value)),
        AttributeValue::Data2(value) => Some(i64::from(*value)),
        AttributeValue::Data4(value) => Some(i64::from(*value)),
        AttributeValue::Data16(value) => Some(*value as i64),
        _ => None,
    }
}
