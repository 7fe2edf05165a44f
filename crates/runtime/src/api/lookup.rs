//! *Which type goes by this name?*
//!
//! Names are written as C writes them, with or without the keyword: `struct commit`, `commit`, `struct commit *`, `int[4]`; or as
//! liballocs names its symbols: `__uniqtype__commit`, and `__uniqtype_1a2b3c4d_commit` where a name has several
//! types (the first bytes of the identity). A typedef's name stands for what it stands for.

use super::objects;
use super::types::{self, Record, UNKNOWN};
use crate::modules::{self, Module};
use pointee_model::image::{Image, TypeIndex, TypeKind, type_flags};

/// Stars and brackets behind a name that are followed.
const DEEPEST: u32 = 16;

/// The keyword that goes before a name of this kind.
fn keyword(kind: TypeKind) -> &'static [u8] {
    match kind {
        TypeKind::Struct => b"struct",
        TypeKind::Class => b"class",
        TypeKind::Union => b"union",
        TypeKind::Enum => b"enum",
        _ => b"",
    }
}

/// A name with its keyword taken off.
fn split(name: &[u8]) -> (&[u8], &[u8]) {
    for keyword in [&b"struct"[..], b"class", b"union", b"enum"] {
        if let Some(rest) = name.strip_prefix(keyword)
            && let Some(rest) = rest.strip_prefix(b" ")
        {
            return (keyword, rest);
        }
    }
    (b"", name)
}

/// Whether `name`, with or without keyword, is the record's.
pub(super) fn is_name_of(name: &[u8], record: &Record) -> bool {
    let (wanted_keyword, wanted) = split(name);
    let whole = record.name();
    let (keyword, own) = split(&whole[..whole.len() - 1]);
    own == wanted && (wanted_keyword.is_empty() || keyword.is_empty() || wanted_keyword == keyword)
}

/// The type that goes by `name`.
pub(super) fn named(name: &[u8]) -> Option<&'static Record> {
    let name = name.trim_ascii();
    if name.len() > 1024 {
        return None;
    }
    if let Some(rest) = name.strip_prefix(b"__uniqtype_") {
        let bar = rest.iter().position(|byte| *byte == b'_')?;
        let (code, symbol) = (&rest[..bar], &rest[bar + 1..]);
        let mut readable = [0; 1024];
        let name = unmangled(symbol, &mut readable)?;
        return plain(name, code);
    }
    derived(name, 0)
}

fn derived(name: &[u8], depth: u32) -> Option<&'static Record> {
    let name = name.trim_ascii_end();
    if depth == DEEPEST {
        return None;
    }
    if let Some(target) = name.strip_suffix(b"*") {
        return types::derived(TypeKind::Pointer, derived(target, depth + 1)?, 0);
    }
    if let Some(array) = name.strip_suffix(b"]")
        && let Some(bracket) = array.iter().position(|byte| *byte == b'[')
    {
        // int[2][3] is two times int[3]: the first length belongs to the whole.
        let (length, inner) = match array[bracket + 1..].iter().position(|byte| *byte == b']') {
            Some(end) => (
                &array[bracket + 1..bracket + 1 + end],
                &array[bracket + 2 + end..],
            ),
            None => (&array[bracket + 1..], &array[array.len()..]),
        };
        let element = array_of(derived(&array[..bracket], depth + 1)?, inner, depth)?;
        return types::derived(TypeKind::Array, element, number(length)?);
    }
    plain(name, b"")
}

/// `element` with the lengths in `brackets`, which lacks its last bracket: `[3][4`.
fn array_of(element: &'static Record, brackets: &[u8], depth: u32) -> Option<&'static Record> {
    let Some(rest) = brackets.strip_prefix(b"[") else {
        return brackets.is_empty().then_some(element);
    };
    if depth == DEEPEST {
        return None;
    }
    let end = rest.iter().position(|byte| *byte == b']');
    let (length, inner) = rest.split_at(end.unwrap_or(rest.len()));
    let inner = inner.strip_prefix(b"]").unwrap_or(inner);
    let element = array_of(element, inner, depth + 1)?;
    types::derived(TypeKind::Array, element, number(length)?)
}

fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return Some(UNKNOWN);
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

/// The type with this name of its own, and an identity that begins with `code` in hexadecimal: a definition before a declaration.
fn plain(name: &[u8], code: &[u8]) -> Option<&'static Record> {
    if name == b"void" {
        return types::void().and_then(|void| types::complete(void).map(|()| void));
    }
    let (keyword, own) = split(name);
    let known = types::find_map(|record| {
        let (image, source) = record.source()?;
        let is_it = is_called(image, record, own, keyword)
            && source.flags & type_flags::DECLARATION == 0
            && record.begins_with(code);
        is_it.then_some(record)
    });
    if known.is_some() {
        return known;
    }
    let mut found: Option<(&'static Module, TypeIndex)> = None;
    let mut is_defined = false;
    modules::each(|module| {
        let Some(image) = module.image.as_ref().filter(|_| !is_defined) else {
            return;
        };
        if let Some((index, defined)) = in_image(module, image, keyword, own, code)
            && (defined || found.is_none())
        {
            found = Some((module, index));
            is_defined = defined;
        }
    });
    let (module, index) = found?;
    objects::type_of(module, index)
}

fn is_called(image: &Image<'_>, record: &Record, own: &[u8], wanted: &[u8]) -> bool {
    let Some((_, source)) = record.source() else {
        return false;
    };
    let fits = wanted.is_empty() || wanted == keyword(record.kind());
    fits && image.is_string(source.name, own)
}

fn in_image(
    module: &'static Module,
    image: &Image<'static>,
    wanted: &[u8],
    own: &[u8],
    code: &[u8],
) -> Option<(TypeIndex, bool)> {
    let mut declared = None;
    for (index, record) in image.types.iter().enumerate() {
        let kind = TypeKind::from_byte(record.kind);
        let fits = wanted.is_empty() || wanted == keyword(kind);
        if !fits || own.is_empty() || !image.is_string(record.name, own) {
            continue;
        }
        let index = index as TypeIndex;
        let is_coded = code.is_empty()
            || objects::type_of(module, index).is_some_and(|record| record.begins_with(code));
        if !is_coded {
            continue;
        }
        if record.flags & type_flags::DECLARATION == 0 {
            return Some((index, true));
        }
        declared = declared.or(Some((index, false)));
    }
    declared
}

/// Undoes liballocs' spelling of symbols: `$20` for a space, `$$` for a dollar.
fn unmangled<'b>(symbol: &[u8], to: &'b mut [u8; 1024]) -> Option<&'b [u8]> {
    let mut len = 0;
    let mut rest = symbol;
    while let [byte, tail @ ..] = rest {
        let (byte, tail) = match (byte, tail) {
            (b'$', [b'$', tail @ ..]) => (b'$', tail),
            (b'$', [high, low, tail @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                ((digit(*high)? * 16 + digit(*low)?) as u8, tail)
            }
            (byte, tail) => (*byte, tail),
        };
        *to.get_mut(len)? = byte;
        len += 1;
        rest = tail;
    }
    Some(&to[..len])
}
