//! *How does C or C++ write a type?* — for reports of the analysis.

use crate::facts::Type;
use pointee_model::image::{TypeIndex, TypeKind, type_flags};

/// How deep nested types are followed; cyclic input ends here.
const DEPTH: u32 = 24;

/// The type as C or C++ writes it.
pub(super) fn spelled(types: &[Type], index: TypeIndex) -> String {
    spelled_within(types, index, DEPTH)
}

fn spelled_within(types: &[Type], index: TypeIndex, depth: u32) -> String {
    let (Some(entry), Some(depth)) = (types.get(index as usize), depth.checked_sub(1)) else {
        return "?".to_owned();
    };
    let target = || {
        entry
            .target
            .map_or_else(|| "void".to_owned(), |at| spelled_within(types, at, depth))
    };
    let stars = |mark: &str| {
        let target = target();
        let space = if target.ends_with('*') { "" } else { " " };
        format!("{target}{space}{mark}")
    };
    match entry.kind {
        TypeKind::Pointer => stars("*"),
        TypeKind::Reference => stars("&"),
        TypeKind::RvalueReference => stars("&&"),
        TypeKind::Const => format!("const {}", target()),
        TypeKind::Volatile => format!("volatile {}", target()),
        TypeKind::Restrict => stars("restrict"),
        TypeKind::Atomic => format!("_Atomic {}", target()),
        TypeKind::Array => match entry.count {
            Some(count) if count != u64::MAX => format!("{}[{count}]", target()),
            _ => format!("{}[]", target()),
        },
        TypeKind::Function => format!("{} (…)", target()),
        _ if entry.name.is_empty() => format!("({:?} #{index})", entry.kind),
        _ if entry.flags & type_flags::ANONYMOUS != 0 => entry.name.clone(),
        TypeKind::Struct => format!("struct {}", entry.name),
        TypeKind::Union => format!("union {}", entry.name),
        TypeKind::Enum => format!("enum {}", entry.name),
        _ => entry.name.clone(),
    }
}
