//! *What is known of one ELF file?* — world: host (`std`).
//!
//! ```text
//!   ELF file ──elf──▶ sections, symbols, build ID
//!      │                        │
//!      │   configuration (what people say) ──config──────────────────────┐
//!      └─debug_files─▶ debug ELF, dwz, dwo ──dwarf──▶ Facts ──sites──▶ Sites
//!                                                       └───────writer────┴──▶ image bytes ──cache──▶ file
//!                                    summaries of the functions that it exports ◀─────┘
//!      link_map: those of the files that one is bound to ──▶ its sites
//! ```
//!
//! Most users want [`cache::image_for`]. Nothing here runs the file it looks at, and no bytes of a
//! file make it panic, hang or take memory beyond a multiple of the file's size ([`read_untrusted`]).

pub mod cache;
pub mod config;
pub mod debug_files;
pub mod debuginfod;
pub mod dwarf;
pub mod elf;
pub mod facts;
pub mod link_map;
pub mod names;
pub mod needed;
pub mod sites;
pub mod writer;

/// Does everything that is done with a file, from memory alone: the target of fuzzing.
///
/// Returns how many bytes the image would have; 0 where the bytes are no ELF file.
#[must_use]
pub fn read_untrusted(bytes: &[u8]) -> usize {
    let Ok(elf) = elf::Elf::from_bytes(bytes.to_vec()) else {
        return 0;
    };
    let taken = elf.imported_names().chain(elf.needed());
    let _ = taken.take(1 << 10).filter(|name| elf.exports(name)).count();
    let debug = debug_files::DebugFiles::inside(&elf);
    let facts = dwarf::read_facts(&elf, &debug);
    // The paths of source files that a stranger's debug info names are not opened.
    let options = sites::Options {
        sources: false,
        ..sites::Options::default()
    };
    let sites = sites::infer(&elf, &facts, &options);
    let provenance = writer::Provenance {
        build_id: elf.identity().to_vec(),
        ..writer::Provenance::default()
    };
    writer::write(&facts, &sites, &config::Config::default(), &provenance).len()
}
