//! *Are C++ and Rust understood?* Names, kinds, members, arguments, functions of two fixtures.

mod common;

use common::{fixture, run};
use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use pointee_meta::facts::{Facts, Type};
use pointee_model::image::{TypeKind, member_flags, type_flags};

fn facts_of(compiler: &str, flags: &[&str], source: &str) -> Facts {
    let directory = tempfile::tempdir().expect("temporary folder");
    let source = fixture(source);
    let mut arguments = vec!["-o", "program", &source];
    arguments.extend_from_slice(flags);
    run(compiler, &arguments, directory.path());
    let elf = Elf::open(directory.path().join("program")).expect("ELF");
    read_facts(&elf, &DebugFiles::find(&elf, &Search::default()))
}

fn find<'f>(facts: &'f Facts, kind: TypeKind, name: &str) -> &'f Type {
    let found: Vec<&Type> = facts
        .types
        .iter()
        .filter(|entry| entry.name == name && entry.kind == kind)
        .collect();
    assert_eq!(found.len(), 1, "{kind:?} {name}: {found:#?}");
    found[0]
}

fn arguments<'f>(facts: &'f Facts, of: &[u32]) -> Vec<&'f str> {
    of.iter()
        .map(|index| facts.types[*index as usize].name.as_str())
        .collect()
}

#[test]
fn cpp() {
    for flags in [
        &["-g", "-O0"][..],
        &["-g", "-O2"],
        &["-gdwarf-4", "-O1", "-fdebug-types-section"],
    ] {
        let facts = facts_of("g++", flags, "shapes.cpp");
        assert!(
            facts.diagnostics.is_empty(),
            "{flags:?}: {:?}",
            facts.diagnostics
        );
        // (kind, name, size): sizes by the Itanium ABI.
        for (kind, name, size) in [
            (TypeKind::Struct, "geometry::Point", 8),
            (TypeKind::Class, "geometry::Shape", 16),
            (TypeKind::Class, "geometry::Square", 72),
            (TypeKind::Struct, "geometry::Square::Corner", 12),
            (
                TypeKind::Struct,
                "geometry::(anonymous namespace)::Hidden",
                8,
            ),
            (TypeKind::Struct, "Ring<geometry::Point, 3>", 32),
            (TypeKind::Enum, "Mode", 1),
        ] {
            assert_eq!(
                find(&facts, kind, name).size,
                Some(size),
                "{flags:?}: {name}"
            );
        }
        let square = find(&facts, TypeKind::Class, "geometry::Square");
        let shape = find(&facts, TypeKind::Class, "geometry::Shape");
        for entry in [square, shape] {
            assert_ne!(
                entry.flags & type_flags::POLYMORPHIC,
                0,
                "{flags:?}: {}",
                entry.name
            );
        }
        let base = &square.members[0];
        assert_eq!((base.flags & member_flags::BASE_CLASS, base.offset), (1, 0));
        assert_eq!(facts.types[base.r#type as usize].name, "geometry::Shape");
        let ring = find(&facts, TypeKind::Struct, "Ring<geometry::Point, 3>");
        assert_eq!(arguments(&facts, &ring.arguments), ["geometry::Point"]);
        let mode = find(&facts, TypeKind::Enum, "Mode");
        assert_eq!(mode.enumerators[1], ("Slow".to_owned(), 200), "{flags:?}");

        let create = facts
            .functions
            .iter()
            .find(|function| function.name.starts_with("create<"))
            .unwrap_or_else(|| panic!("{flags:?}: no create"));
        assert_eq!(create.name, "create<geometry::Point>");
        assert_eq!(create.linkage_name, "_Z6createIN8geometry5PointEEPT_v");
        assert_eq!(arguments(&facts, &create.arguments), ["geometry::Point"]);
        let area = facts
            .functions
            .iter()
            .any(|function| function.name == "geometry::Square::area" && function.line == 23);
        assert!(area, "{flags:?}: the definition's own line");
        let vector = "std::vector<geometry::Point, std::allocator<geometry::Point> >";
        assert_eq!(
            find(&facts, TypeKind::Class, vector).size,
            Some(24),
            "{flags:?}"
        );
        assert!(
            facts
                .globals
                .iter()
                .any(|global| global.name == "square" && global.size == 72)
        );
    }
}

#[test]
fn rust() {
    for flags in [&["-g"][..], &["-g", "-O"]] {
        let facts = facts_of("rustc", &[flags, &["--edition=2021"]].concat(), "shapes.rs");
        let node = find(&facts, TypeKind::Struct, "shapes::Node");
        let mut members: Vec<&str> = node
            .members
            .iter()
            .map(|member| member.name.as_str())
            .collect();
        members.sort_unstable();
        assert_eq!(members, ["children", "name", "value"]);
        let value = find(&facts, TypeKind::Variant, "shapes::Value");
        assert_eq!(value.size, Some(16), "{flags:?}");
        let tags = value
            .members
            .iter()
            .filter(|member| member.flags & member_flags::IS_DISCRIMINANT != 0);
        assert_eq!(tags.count(), 1);
        let arms: Vec<(&str, u64)> = value
            .members
            .iter()
            .filter(|member| member.flags & member_flags::HAS_DISCRIMINANT != 0)
            .map(|member| (member.name.as_str(), member.discriminant))
            .collect();
        assert_eq!(
            arms,
            [("Nothing", 0), ("Number", 1), ("Pair", 2)],
            "{flags:?}"
        );
        let vector = find(
            &facts,
            TypeKind::Struct,
            "alloc::vec::Vec<u64, alloc::alloc::Global>",
        );
        assert_eq!(vector.size, Some(24));
        assert_eq!(
            arguments(&facts, &vector.arguments),
            ["u64", "alloc::alloc::Global"]
        );
        let make = facts
            .functions
            .iter()
            .find(|function| function.name.starts_with("shapes::make"))
            .unwrap_or_else(|| panic!("{flags:?}: no make"));
        assert_eq!(arguments(&facts, &make.arguments), ["u64"]);
        assert!(
            make.file
                .is_some_and(|file| facts.files[file as usize].ends_with("shapes.rs"))
        );
    }
}
