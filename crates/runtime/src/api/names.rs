//! *How is this type written?* — as C writes it, from the inside out, without typedefs and qualifiers.
//!
//! The same words as `what` prints (`inspect/src/describe.rs`), made without memory of its own: a declaration grows
//! at both ends of a buffer, and is cut with `…` where it does not fit.

use super::types::{Record, TRAILED, UNKNOWN};
use pointee_model::image::{TypeKind, type_flags};

/// Bytes of a name at most.
const LONGEST: usize = 512;
/// Derivations that are followed.
const DEEPEST: u32 = 32;
/// Functions whose parameters are functions: what is written out of them.
const NESTED: u32 = 2;

/// Text that grows at both ends.
pub(super) struct Text {
    bytes: [u8; LONGEST],
    start: usize,
    end: usize,
}

impl Text {
    fn new() -> Self {
        Self {
            bytes: [0; LONGEST],
            start: LONGEST * 3 / 4,
            end: LONGEST * 3 / 4,
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn prepend(&mut self, text: &[u8]) {
        // A name is cut at its end.
        let text = &text[..text.len().min(self.start)];
        self.start -= text.len();
        self.bytes[self.start..self.start + text.len()].copy_from_slice(text);
    }

    fn append(&mut self, text: &[u8]) {
        let text = &text[..text.len().min(LONGEST - self.end)];
        self.bytes[self.end..self.end + text.len()].copy_from_slice(text);
        self.end += text.len();
    }

    fn append_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut at, mut rest) = (digits.len(), number);
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.append(&digits[at..]);
    }

    /// Puts the name of what is declared before the declarator.
    fn head(&mut self, name: &[u8], keyword: &str) {
        let inner = self.as_bytes();
        let marks = inner.starts_with(b"(*") || inner.starts_with(b"(&");
        if !inner.is_empty() && (marks || !matches!(inner[0], b'[' | b'(')) {
            self.prepend(b" ");
        }
        let room = self.start.saturating_sub(keyword.len() + 1);
        if name.len() > room {
            self.prepend("…".as_bytes());
            self.prepend(&name[..room.saturating_sub(3)]);
        } else {
            self.prepend(name);
        }
        if !keyword.is_empty() {
            self.prepend(b" ");
            self.prepend(keyword.as_bytes());
        }
    }
}

/// The name of a record whose links, and those of all it leads to, are there.
pub(super) fn of(record: &'static Record) -> Text {
    let mut text = Text::new();
    declare(Some(record), &mut text, 0);
    text
}

fn declare(mut record: Option<&'static Record>, text: &mut Text, nested: u32) {
    for _ in 0..DEEPEST {
        let Some(this) = record else {
            return text.head(b"void", "");
        };
        let mark: &[u8] = match this.kind() {
            TypeKind::Pointer if is_nameless(this) => b"*",
            TypeKind::MemberPointer => b"*",
            TypeKind::Reference if is_nameless(this) => b"&",
            TypeKind::RvalueReference if is_nameless(this) => b"&&",
            TypeKind::Array => {
                text.append(b"[");
                if this.length != UNKNOWN {
                    text.append_number(this.length);
                }
                text.append(b"]");
                record = this.target();
                continue;
            }
            TypeKind::Function => {
                parameters(this, text, nested);
                record = this.target();
                continue;
            }
            _ => return head(this, text, nested),
        };
        text.prepend(mark);
        record = this.target();
        let encloses = record
            .is_some_and(|target| matches!(target.kind(), TypeKind::Array | TypeKind::Function));
        if encloses {
            text.prepend(b"(");
            text.append(b")");
        }
    }
    text.head("…".as_bytes(), "");
}

fn is_nameless(record: &Record) -> bool {
    record
        .source()
        .is_none_or(|(image, source)| image.string(source.name).is_empty())
}

fn parameters(record: &'static Record, text: &mut Text, nested: u32) {
    text.append(b"(");
    for (number, parameter) in record.members().iter().take(64).enumerate() {
        if number != 0 {
            text.append(b", ");
        }
        if nested == NESTED {
            text.append("…".as_bytes());
        } else {
            let mut inner = Text::new();
            declare(parameter.record(), &mut inner, nested + 1);
            text.append(inner.as_bytes());
        }
    }
    text.append(b")");
}

/// The type at the start of a declaration.
fn head(record: &'static Record, text: &mut Text, nested: u32) {
    if record.kind == TRAILED {
        let [header, tail @ ..] = record.members() else {
            return;
        };
        // Nothing but such a type's own name has one inside.
        if nested < NESTED {
            declare(header.record(), text, nested + 1);
            text.append(b" + ");
            let mut inner = Text::new();
            match tail.first() {
                Some(tail) => declare(tail.record(), &mut inner, nested + 1),
                None => inner.append("…".as_bytes()),
            }
            text.append(inner.as_bytes());
        }
        return;
    }
    let Some((image, source)) = record.source() else {
        let word: &[u8] = match record.kind() {
            TypeKind::Void => b"void",
            TypeKind::Union => b"union {\xe2\x80\xa6}",
            _ => b"?",
        };
        return text.head(word, "");
    };
    let name = image.string(source.name);
    let keyword = match record.kind() {
        TypeKind::Struct => "struct",
        TypeKind::Union => "union",
        TypeKind::Enum => "enum",
        _ => "",
    };
    let foreign = name.contains("::") || name.contains('<') || name.starts_with(['(', '{']);
    if name.is_empty() {
        let keyword = if keyword.is_empty() { "?" } else { keyword };
        text.head("{…}".as_bytes(), keyword);
    } else if foreign || source.flags & type_flags::ANONYMOUS != 0 {
        text.head(name.as_bytes(), "");
    } else {
        text.head(name.as_bytes(), keyword);
    }
}
