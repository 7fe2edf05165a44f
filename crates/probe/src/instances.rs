//! *What does a process have to know to see its inlined functions?* Where their bodies begin and where their parameters are there, as a table
//! that it reads without debug info ([`pointee_patch::instances`]).

use std::collections::BTreeMap;

use pointee_meta::elf::Elf;
use pointee_model::addr::LinkAddr;
use pointee_patch::instances::{self, header, instance_record, operand_record};

use crate::code::Code;
use crate::subjects;
use crate::values::{Source, each_parameters};

/// Why there is no table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InstancesError {
    /// Another processor's code.
    #[error("not x86-64 code")]
    Machine,
    /// Nothing tells whether a loaded file is this one.
    #[error("it has no build ID by which it could be known in a process")]
    NoBuildId,
    /// More than a table holds.
    #[error("there are too many inlined bodies")]
    TooMany,
}

/// The table of the bodies in `elf` of inlined functions for whose names `wanted` holds, and how many there are. Bodies of which no code is left,
/// or whose beginning the debug info does not tell, are not among them.
///
/// # Errors
/// [`InstancesError`].
pub fn inlined_instances(
    elf: &Elf,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<(Vec<u8>, usize), InstancesError> {
    if elf.machine() != object::elf::EM_X86_64 {
        return Err(InstancesError::Machine);
    }
    if elf.build_id().is_empty() {
        return Err(InstancesError::NoBuildId);
    }
    let code = Code::read(elf);
    let facts = subjects::facts(&code);
    let found = subjects::instances(&code, &facts, wanted);
    let mut names = Names::default();
    let (mut places, mut operands) = (Vec::new(), Vec::new());
    let mut count = 0;
    for (instance, parameters) in found.iter().zip(each_parameters(&code, &facts, &found)) {
        let first = count;
        for parameter in &parameters {
            let source = match parameter.source {
                Source::Constant(value) => instances::Source::Constant(value),
                Source::Register(register, offset) => {
                    instances::Source::Register(register, i64::from(offset))
                }
                Source::Memory(register, offset) => {
                    instances::Source::Memory(register, i64::from(offset))
                }
                // Of stores only.
                Source::SecondByte(_) => continue,
            };
            let form = parameter.form;
            operands.extend(operand_record(
                names.number(&parameter.name),
                source,
                form.width,
                form.is_signed,
            ));
            count += 1;
        }
        places.extend(instance_record(
            LinkAddr(code.places[instance.place].at),
            [
                names.number(&instance.inline().name),
                names.number(&instance.holder.name),
            ],
            [first, count - first],
        ));
    }
    let small = |len: usize| u32::try_from(len).map_err(|_| InstancesError::TooMany);
    let header = header(
        elf.build_id(),
        small(found.len())?,
        count,
        small(names.text.len())?,
    );
    let mut table = header.ok_or(InstancesError::NoBuildId)?.to_vec();
    table.append(&mut places);
    table.append(&mut operands);
    table.append(&mut names.text);
    Ok((table, found.len()))
}

/// Names, each once.
#[derive(Default)]
struct Names {
    text: Vec<u8>,
    known: BTreeMap<String, u32>,
}

impl Names {
    /// Where it begins.
    fn number(&mut self, name: &str) -> u32 {
        if let Some(known) = self.known.get(name) {
            return *known;
        }
        let at = self.text.len() as u32;
        self.text.extend(name.bytes().filter(|byte| *byte != 0));
        self.text.push(0);
        self.known.insert(name.to_owned(), at);
        at
    }
}
