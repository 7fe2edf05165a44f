//! *Where does an inlined function begin in this process?* As a table of a file's says ([`pointee_patch::instances`]), in whichever loaded objects are
//! that build of the file. A probe at such a place is called as the function would be, and its parameters are where the table says.

use pointee_model::addr::RunAddr;
use pointee_patch::instances::{Instance, Table};

use crate::objects;

/// Calls `found` with each place of the table, where it is in each loaded object that is that build. The answer: how many objects are.
pub fn inlined<'t>(table: &Table<'t>, mut found: impl FnMut(RunAddr, Instance<'t>)) -> usize {
    let mut count = 0;
    objects::visit(|object| {
        if !object.is_build(table.build_id()) {
            return;
        }
        count += 1;
        for instance in table.instances() {
            found(object.to_run(instance.at), instance);
        }
    });
    count
}
