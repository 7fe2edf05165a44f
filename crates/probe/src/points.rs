//! *At which instructions is counted?*

use crate::code::{Code, Kind, Place, mark};
use crate::functions::Exclusion;
use crate::subjects::Subjects;

/// Which instructions of a file are points.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    /// The first of each function.
    Entry,
    /// Each call.
    Call,
    /// Each jump, conditional or not, direct or not.
    Jump,
    /// Each system call.
    Syscall,
    /// Every one.
    Instruction,
    /// The first of each inlined body of the functions that are the subject.
    Inlined,
    /// Each that writes a variable that is the subject.
    Write,
}

/// Marks the points among the instructions of functions for which `wanted` holds.
pub(crate) fn mark_points(
    code: &Code<'_>,
    at: At,
    subjects: &Subjects,
    wanted: impl Fn(&str) -> bool,
) -> Vec<bool> {
    let mut points = vec![false; code.places.len()];
    for (number, function) in code.functions.iter().enumerate() {
        if !wanted(&function.label()) {
            continue;
        }
        if function.exclusion == Some(Exclusion::SignalReturn) {
            continue;
        }
        let (first, last) = code.spans[number];
        let span = first as usize..last as usize;
        let places = &code.places[span.clone()];
        if matches!(at, At::Inlined | At::Write) {
            for (place, _) in subjects.range(span) {
                points[*place] = true;
            }
            continue;
        }
        for (index, (point, place)) in points[span].iter_mut().zip(places).enumerate() {
            let reached = place.is(mark::REACHED);
            *point = match at {
                At::Entry => index == 0 && function.exclusion.is_none(),
                At::Call => place.kind.is_call() && reached,
                At::Jump => {
                    let jumps = [Kind::Jump, Kind::ConditionalJump, Kind::IndirectJump];
                    jumps.contains(&place.kind) && reached
                }
                At::Syscall => place.kind == Kind::Syscall && reached,
                At::Instruction => reached,
                At::Inlined | At::Write => false,
            };
        }
    }
    points
}

/// Whether it does nothing, as what stands between functions.
pub(crate) fn is_padding(code: &Code<'_>, place: &Place) -> bool {
    let bytes = code.bytes(place);
    matches!(bytes.first(), Some(0xcc | 0))
        || code
            .instruction(place)
            .is_some_and(|instruction| instruction.is_nop())
}
