//! *What is the value there?* — printed by its type, as a debugger does.
//!
//! ```text
//!   {id = 7, name = 0x55d0 "hello", next = 0x0, in = {{a = 0, b = 7}, …}}
//! ```
//!
//! Bounded in depth, elements and length, for both the types and the memory may be nonsense. What cannot
//! be read says so in its place.

use crate::describe::{size_of_type, underlying};
use pointee_model::addr::Alleged;
use pointee_model::image::{Image, MemberRecord, TypeIndex, TypeKind, TypeRecord, member_flags};
use std::fmt::Write;

/// Nesting that is printed.
const DEEPEST: u32 = 6;
/// Elements of an array that are printed.
const ELEMENTS: u64 = 16;
/// Characters of a string that are printed.
const CHARACTERS: usize = 120;
/// Bytes of text after which the rest is left out.
const LONGEST: usize = 4000;

/// Memory of the process, however it is read.
pub trait Contents {
    /// Fills `buffer` from `address` on; `false` if it is not there.
    fn read(&self, address: Alleged, buffer: &mut [u8]) -> bool;
}

/// The value of type `index` at `address`.
#[must_use]
pub fn print(
    image: &Image<'_>,
    index: TypeIndex,
    address: Alleged,
    contents: &dyn Contents,
) -> String {
    let mut printer = Printer {
        image,
        contents,
        out: String::new(),
    };
    printer.value(index, address, 0);
    printer.out
}

/// `count` values of type `index`, one after the other.
#[must_use]
pub fn print_array(
    image: &Image<'_>,
    index: TypeIndex,
    count: u64,
    address: Alleged,
    contents: &dyn Contents,
) -> String {
    let mut printer = Printer {
        image,
        contents,
        out: String::new(),
    };
    printer.array(index, count, address, 0);
    printer.out
}

/// The text of `len` bytes at `address`, up to its first NUL, quoted; `None` if it cannot be read.
#[must_use]
pub fn text(address: Alleged, len: u64, contents: &dyn Contents) -> Option<String> {
    let shown = usize::try_from(len).unwrap_or(CHARACTERS).min(CHARACTERS);
    let mut bytes = vec![0; shown];
    if !contents.read(address, &mut bytes) {
        return None;
    }
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(shown)]);
    let more = if end.is_none() && len > shown as u64 {
        "…"
    } else {
        ""
    };
    Some(format!("{text:?}{more}"))
}

struct Printer<'a, 'i> {
    image: &'a Image<'i>,
    contents: &'a dyn Contents,
    out: String,
}

impl Printer<'_, '_> {
    fn put(&mut self, text: impl std::fmt::Display) {
        // Writing to a string does not fail.
        let _ = write!(self.out, "{text}");
    }

    fn value(&mut self, index: TypeIndex, address: Alleged, depth: u32) {
        let Some((index, record)) = underlying(self.image, index) else {
            return self.put("?");
        };
        if depth > DEEPEST || self.out.len() > LONGEST {
            return self.put("…");
        }
        match TypeKind::from_byte(record.kind) {
            TypeKind::Base => self.base(record, address),
            TypeKind::Enum => self.enumeration(record, address),
            TypeKind::Pointer | TypeKind::Reference | TypeKind::RvalueReference => {
                self.pointer(record, address);
            }
            TypeKind::Struct | TypeKind::Class | TypeKind::Union | TypeKind::Variant => {
                self.members(record, address, depth);
            }
            TypeKind::Array => {
                let count = if record.count == u64::MAX {
                    0
                } else {
                    record.count
                };
                self.array(record.target, count, address, depth);
            }
            _ => match size_of_type(self.image, index) {
                Some(size) => self.put(format_args!("<{size} bytes>")),
                None => self.put("?"),
            },
        }
    }

    fn number(&self, address: Alleged, size: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let part = bytes.get_mut(..usize::try_from(size).ok()?)?;
        self.contents
            .read(address, part)
            .then(|| u64::from_le_bytes(bytes))
    }

    /// As short as it can be read back, with an exponent where there would be more zeros than digits.
    fn float(&mut self, number: impl Copy + Into<f64> + std::fmt::Display + std::fmt::LowerExp) {
        let size = number.into().abs();
        if size == 0.0 || !size.is_finite() || (1e-5..1e17).contains(&size) {
            self.put(number);
        } else {
            self.put(format_args!("{number:e}"));
        }
    }

    fn base(&mut self, record: &TypeRecord, address: Alleged) {
        // DWARF 5, table 7.11.
        const BOOLEAN: u8 = 2;
        const FLOAT: u8 = 4;
        const SIGNED: u8 = 5;
        const SIGNED_CHAR: u8 = 6;
        const UNSIGNED_CHAR: u8 = 8;
        const UTF: u8 = 0x10;
        if record.size == 16 {
            let mut bytes = [0; 16];
            if !self.contents.read(address, &mut bytes) {
                return self.put("<not readable>");
            }
            let number = u128::from_le_bytes(bytes);
            return match record.encoding {
                SIGNED => self.put(number as i128),
                FLOAT => self.put(format_args!(
                    "<long double {:#x}>",
                    number & ((1 << 80) - 1)
                )),
                _ => self.put(number),
            };
        }
        let Some(number) = self.number(address, record.size) else {
            return self.put("<not readable>");
        };
        match (record.encoding, record.size) {
            (BOOLEAN, _) => self.put(match number {
                0 => "false".to_owned(),
                1 => "true".to_owned(),
                other => other.to_string(),
            }),
            (FLOAT, 4) => self.float(f32::from_bits(number as u32)),
            (FLOAT, 8) => self.float(f64::from_bits(number)),
            (SIGNED_CHAR | UNSIGNED_CHAR, 1) => {
                self.put(format_args!("{number} {:?}", char::from(number as u8)));
            }
            (UTF, _) => match u32::try_from(number).ok().and_then(char::from_u32) {
                Some(character) => self.put(format_args!("{character:?}")),
                None => self.put(number),
            },
            (SIGNED | SIGNED_CHAR, _) => self.put(signed(number, record.size)),
            _ => self.put(number),
        }
    }

    fn enumeration(&mut self, record: &TypeRecord, address: Alleged) {
        let Some(number) = self.number(address, record.size) else {
            return self.put("<not readable>");
        };
        let enumerators = self.image.enumerators_of(record);
        let is = |value: i64| value as u64 == number || value == signed(number, record.size);
        match enumerators.iter().find(|enumerator| is(enumerator.value)) {
            Some(found) => self.put(self.image.string(found.name)),
            None => self.put(number),
        }
    }

    fn pointer(&mut self, record: &TypeRecord, address: Alleged) {
        let Some(target) = self.number(address, 8) else {
            return self.put("<not readable>");
        };
        self.put(format_args!("{target:#x}"));
        let to_characters =
            underlying(self.image, record.target).is_some_and(|(_, to)| is_character(to));
        if target != 0 && to_characters {
            self.string(Alleged(target));
        }
    }

    /// ` "text"`, when there is some at `address`.
    fn string(&mut self, address: Alleged) {
        let mut text = Vec::new();
        let mut byte = [0];
        let mut at = address;
        let mut ended = false;
        while text.len() < CHARACTERS && self.contents.read(at, &mut byte) {
            if byte[0] == 0 {
                ended = true;
                break;
            }
            text.push(byte[0]);
            at = at.plus(1);
        }
        if ended || text.len() == CHARACTERS {
            let more = if ended { "" } else { "…" };
            self.put(format_args!(" {:?}{more}", String::from_utf8_lossy(&text)));
        }
    }

    fn members(&mut self, record: &TypeRecord, address: Alleged, depth: u32) {
        self.put("{");
        let mut first = true;
        let members = self.image.members_of(record);
        let tag = members
            .iter()
            .find(|member| member.flags & member_flags::IS_DISCRIMINANT != 0)
            .and_then(|member| {
                self.number(
                    address.plus(member.offset),
                    size_of_type(self.image, member.r#type)?,
                )
            });
        let has_arm = tag.is_some_and(|tag| members.iter().any(|member| is_arm_of(member, tag)));
        for member in members {
            if member.flags & member_flags::IS_DISCRIMINANT != 0 {
                continue;
            }
            // Of a tagged union only the arm that holds; the arm without a tag is the default.
            if let Some(tag) = tag {
                let tagged = member.flags & member_flags::HAS_DISCRIMINANT != 0;
                if (tagged && member.discriminant != tag) || (!tagged && has_arm) {
                    continue;
                }
            }
            if !std::mem::take(&mut first) {
                self.put(", ");
            }
            if self.out.len() > LONGEST {
                self.put("…");
                break;
            }
            self.member(member, address, depth);
        }
        self.put("}");
    }

    fn member(&mut self, member: &MemberRecord, address: Alleged, depth: u32) {
        let name = self.image.string(member.name);
        let at = address.plus(member.offset);
        if member.flags & member_flags::VIRTUAL_BASE != 0 {
            return self.put("<virtual base>");
        }
        if !name.is_empty() {
            self.put(format_args!("{name} = "));
        }
        if member.bit_size == 0 {
            return self.value(member.r#type, at, depth + 1);
        }
        let bits = u32::from(member.bit_size);
        let from = u32::from(member.bit_offset);
        let size = u64::from(from + bits).div_ceil(8).min(8);
        match self.number(at, size) {
            Some(word) if from < 64 => {
                let mask = u64::MAX.checked_shr(64 - bits.min(64)).unwrap_or(0);
                self.put(word >> from & mask);
            }
            _ => self.put("<not readable>"),
        }
    }

    fn array(&mut self, element: TypeIndex, count: u64, address: Alleged, depth: u32) {
        let is_text =
            underlying(self.image, element).is_some_and(|(_, record)| is_character(record));
        if is_text {
            return self.characters(count, address);
        }
        let Some(size) = size_of_type(self.image, element).filter(|size| *size > 0) else {
            return self.put("?");
        };
        self.put("{");
        for number in 0..count.min(ELEMENTS) {
            if number != 0 {
                self.put(", ");
            }
            if self.out.len() > LONGEST {
                break;
            }
            self.value(element, address.plus(number.wrapping_mul(size)), depth + 1);
        }
        if count > ELEMENTS {
            self.put(format_args!(", … {} more", count - ELEMENTS));
        }
        self.put("}");
    }

    /// An array of characters: up to its first NUL, as text.
    fn characters(&mut self, count: u64, address: Alleged) {
        let len = usize::try_from(count).unwrap_or(CHARACTERS).min(CHARACTERS);
        let mut bytes = vec![0; len];
        if !self.contents.read(address, &mut bytes) {
            return self.put("<not readable>");
        }
        let end = bytes.iter().position(|byte| *byte == 0);
        let text = String::from_utf8_lossy(&bytes[..end.unwrap_or(len)]).into_owned();
        let more = if end.is_none() && count > len as u64 {
            "…"
        } else {
            ""
        };
        self.put(format_args!("{text:?}{more}"));
    }
}

fn is_arm_of(member: &MemberRecord, tag: u64) -> bool {
    member.flags & member_flags::HAS_DISCRIMINANT != 0 && member.discriminant == tag
}

fn is_character(record: &TypeRecord) -> bool {
    TypeKind::from_byte(record.kind) == TypeKind::Base
        && record.size == 1
        && matches!(record.encoding, 6 | 8 | 0x10)
}

fn signed(number: u64, size: u64) -> i64 {
    match size {
        1 => i64::from(number as u8 as i8),
        2 => i64::from(number as u16 as i16),
        4 => i64::from(number as u32 as i32),
        _ => number as i64,
    }
}
