//! *Where does an allocation return to whose call was a jump?*
//!
//! A function that ends in `return xcalloc(1, sizeof(struct attr))` jumps there, and nothing of it is left on the
//! stack: what a walk finds is the call of that function. Such a call *stands in* for the site, and gets its
//! type, unless the function makes several jumps that differ. It counts only where it is the first code that a walk
//! comes to; further out, the same call is just a caller.

use super::calls::{Key, Program};
use super::{Site, wrappers};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use pointee_model::image::site_flags;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Functions that jump to functions that jump, followed so often.
const DEPTH: usize = 4;
/// The longest instruction (Intel SDM, volume 2, §2.3.11).
const LONGEST_INSTRUCTION: usize = 15;

/// The stand-ins for sites that are jumps.
pub(super) fn find(
    program: &Program<'_>,
    found: &wrappers::Found<'_>,
    sites: &[Site],
) -> Vec<Site> {
    let jumps: HashMap<u64, &Site> = sites
        .iter()
        .filter(|site| site.flags & site_flags::TAIL != 0)
        .filter(|site| site.flags & site_flags::WRAPPER == 0)
        .map(|site| (site.call, site))
        .collect();
    let mut ends: BTreeMap<u32, Vec<&Site>> = BTreeMap::new();
    for (at, outcome) in &found.outcomes {
        let own = outcome.met.iter().filter_map(|met| jumps.get(&met.call));
        let own: Vec<&Site> = own.copied().collect();
        if !own.is_empty() && found.allocators.get(Key::Local(*at)).is_none() {
            ends.insert(*at, own);
        }
    }
    if ends.is_empty() {
        return Vec::new();
    }
    for _ in 0..DEPTH {
        let mut further: Vec<(u32, Vec<&Site>)> = Vec::new();
        for (at, body) in (0..).zip(&program.bodies) {
            if ends.contains_key(&at) {
                continue;
            }
            let behind = body.calls.iter().find_map(|call| match call.callee {
                Key::Local(callee) => {
                    let behind = ends.get(&callee)?;
                    returns_to(program, call.address)
                        .is_none()
                        .then_some(behind)
                }
                _ => None,
            });
            further.extend(behind.map(|behind| (at, behind.clone())));
        }
        if further.is_empty() {
            break;
        }
        ends.extend(further);
    }
    let known: HashSet<u64> = sites.iter().map(|site| site.return_address).collect();
    let mut stand_ins = Vec::new();
    for body in &program.bodies {
        for call in &body.calls {
            let Key::Local(callee) = call.callee else {
                continue;
            };
            let Some((first, rest)) = ends.get(&callee).and_then(|ends| ends.split_first()) else {
                continue;
            };
            let shape = |site: &Site| (site.r#type, site.tail, site.role, site.verdict);
            if rest.iter().any(|other| shape(other) != shape(first)) {
                continue;
            }
            let next = returns_to(program, call.address);
            if let Some(return_address) = next.filter(|next| !known.contains(next)) {
                stand_ins.push(Site {
                    call: call.address,
                    return_address,
                    callee: program.name(call.callee).to_owned(),
                    flags: first.flags & !site_flags::TAIL | site_flags::STAND_IN,
                    ..(*first).clone()
                });
            }
        }
    }
    stand_ins
}

/// Where the call at `address` returns to; `None` for a jump.
fn returns_to(program: &Program<'_>, address: u64) -> Option<u64> {
    let code = program.elf.bytes_from(address)?;
    let code = &code[..code.len().min(LONGEST_INSTRUCTION)];
    let call = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    (call.flow_control() == FlowControl::Call).then(|| call.next_ip())
}
