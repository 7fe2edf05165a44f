//! *How do blocks come to be known that inlined code cuts out of a pool?*
//!
//! The command leaves a placement beside an object's image, if that knows writes of cursors: `IMAGES/<build ID>.cursors`. It is applied as those of
//! probes are, before any function of the object is hooked. Each write then calls the slot of [`Event::Carve`], which leads to
//! [`crate::fast_carve`]; what it needs to know lies in the island beside ([`Carving`]).

use crate::environment::PathBuffer;
use crate::modules::Module;
use crate::probes::{self, Files};
use crate::region::region;
use crate::{fast_carve, plant, sys};
use pointee_index::handoff::key;
use pointee_model::image::cursor_flags;
use pointee_patch::placement::{Carving, Event, Header, Placement};

/// Cursors of one object that are told apart.
const CURSORS: usize = 64;

/// Applies what there is for an object that nobody runs in yet.
pub(crate) fn arrived(module: &Module) {
    let has_cursors = |module: &Module| {
        let image = module.image.as_ref();
        image.is_some_and(|image| !image.cursors.is_empty())
    };
    if has_cursors(module) {
        probes::put(module, files);
    }
}

fn files(module: &Module) -> Option<Files> {
    let folder = region().handoff.path(key::IMAGES);
    let id = module.build_id_hex();
    let parts = [folder.as_bytes(), b"/", id.as_bytes(), b".cursors"];
    let path = PathBuffer::of(&parts);
    let placement = usize::try_from(sys::open(path.as_c_str(), false)).ok()?;
    Some(Files {
        placement,
        counters: None,
    })
}

/// Notes the pads that were written, for whoever compares code with its file.
pub(crate) fn note(module: &Module, placement: &Placement<'_>, delta: i64) {
    for pad in placement.pads() {
        if let Some(written) = pad.written(delta) {
            let at = pad.at.0.wrapping_add(module.bias);
            plant::note_pad(module, b"cursor", at, pad.len, pad.original, written);
        }
    }
}

/// Fills in the slot and the roots of an `island` that is about to be used.
pub(crate) fn fill_in(module: &Module, header: &Header, island: &mut [u8]) -> bool {
    let Some(image) = &module.image else {
        return false;
    };
    let slot = Event::Carve.slot();
    let stub = fast_carve::carve_stub as *const () as u64;
    island[slot..slot + 8].copy_from_slice(&stub.to_le_bytes());
    // The name of each cursor, and its root.
    let mut roots = [(0, 0); CURSORS];
    for at in 0..header.carvings as usize {
        let from = Carving::offset(at);
        let Some(bytes) = island
            .get_mut(from..)
            .and_then(|rest| rest.first_chunk_mut())
        else {
            return false;
        };
        let mut carving = Carving::from_bytes(bytes);
        let Some(cursor) = image.cursors.get(carving.number as usize) else {
            return false;
        };
        let is_free = |(name, root): &&mut (u32, u32)| *root == 0 || *name == cursor.name;
        let Some((name, root)) = roots.iter_mut().find(is_free) else {
            return false;
        };
        if *root == 0 {
            let address = cursor.address.wrapping_add(module.bias);
            *name = cursor.name;
            *root = plant::root_of_cursor(module, image.string(cursor.name), address);
        }
        carving.number = *root;
        if cursor.flags & cursor_flags::FIXED != 0 {
            carving.base = carving.base.wrapping_add(module.bias);
        }
        *bytes = carving.to_bytes();
    }
    true
}
