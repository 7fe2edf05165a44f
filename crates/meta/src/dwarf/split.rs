//! *Where is the rest of a skeleton unit?* Split DWARF: `.dwo` files and `.dwp` packages.
//!
//! A skeleton unit in the linked file holds addresses and lines; types, functions and variables are in a
//! split unit of the same ID elsewhere. Each `.dwo` (each unit of a package) becomes a space of its own.

use super::sections::{Bytes, PackageSections, Sections};
use super::units::Units;
use crate::debug_files::DebugFiles;
use crate::elf::Elf;
use gimli::{Dwarf, DwoId, Section as _};

/// The `.dwo` files that the skeleton units of `main` name.
pub(super) fn open_files(main: &Dwarf<Bytes<'_>>, debug: &DebugFiles) -> Vec<Elf> {
    let mut files = Vec::new();
    // Only split DWARF has addresses of its own; everyone else is spared a look at every unit.
    if main.debug_addr.reader().is_empty() || debug.split_base.is_none() {
        return files;
    }
    let mut headers = main.units();
    while let Ok(Some(header)) = headers.next() {
        let Ok(unit) = main.unit(header) else {
            continue;
        };
        if unit.dwo_id.is_none() {
            continue;
        }
        let Ok(Some(name)) = unit.dwo_name() else {
            continue;
        };
        let Ok(name) = main.attr_string(&unit, name) else {
            continue;
        };
        let comp_dir = unit.comp_dir.map_or(&[][..], |bytes| bytes.slice());
        files.extend(debug.open_split(comp_dir, name.slice()));
    }
    files
}

/// Adds the units of `.dwo` files and of a package, and ties them to their skeletons.
pub(super) fn add<'a>(
    units: &mut Units<'a>,
    main: &Dwarf<Bytes<'a>>,
    files: &'a [Sections<'a>],
    package: Option<&'a PackageSections<'a>>,
    diagnostics: &mut Vec<String>,
) {
    for sections in files {
        let mut dwarf = sections.dwarf();
        dwarf.make_dwo(main);
        units.add_space(dwarf, diagnostics);
    }
    if let Some(package) = package.and_then(PackageSections::package) {
        let wanted: Vec<DwoId> = units
            .units
            .iter()
            .filter_map(|entry| entry.unit.dwo_id)
            .collect();
        for id in wanted {
            if let Ok(Some(dwarf)) = package.find_cu(id, main) {
                units.add_space(dwarf, diagnostics);
            }
        }
        for row in 1..=package.tu_index.unit_count() {
            if let Ok(dwarf) = package.tu_sections(row, main) {
                units.add_space(dwarf, diagnostics);
            }
        }
    }
    units.join_skeletons();
}
