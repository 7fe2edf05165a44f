//! *Can types that make no sense keep a printer busy?* — each row an image that no compiler made,
//! whose types hold themselves or repeat without end.

use pointee_inspect::describe::{Shape, field_at, type_name};
use pointee_inspect::images::AlignedBytes;
use pointee_inspect::value::{Contents, print, print_array};
use pointee_model::addr::Alleged;
use pointee_model::evidence::Role;
use pointee_model::image::{
    FORMAT, Header, Image, MAGIC, MemberRecord, NO_TYPE, Section, TypeKind, TypeRecord,
    member_flags, section_kind,
};
use zerocopy::{Immutable, IntoBytes};

/// Members of the widest type here.
const MANY: u32 = 50_000;

fn image(types: &[TypeRecord], members: &[MemberRecord]) -> AlignedBytes {
    let start = size_of::<Header>() + 2 * size_of::<Section>();
    let section = |kind, record, offset, count| Section {
        kind,
        record: record as u32,
        offset: offset as u64,
        count: count as u64,
    };
    let record = size_of::<TypeRecord>();
    let behind = start + size_of_val(types);
    let sections = [
        section(section_kind::TYPES, record, start, types.len()),
        section(
            section_kind::MEMBERS,
            size_of::<MemberRecord>(),
            behind,
            members.len(),
        ),
    ];
    let header = Header {
        magic: MAGIC,
        format: FORMAT,
        sections: 2,
        build_id: [0; 20],
        build_id_len: 0,
        provenance: [0; 16],
        flags: 0,
    };
    AlignedBytes::copy_of(
        &[
            header.as_bytes(),
            sections.as_bytes(),
            bytes(types),
            bytes(members),
        ]
        .concat(),
    )
}

fn bytes<T: IntoBytes + Immutable>(records: &[T]) -> &[u8] {
    records.as_bytes()
}

fn record(kind: TypeKind, size: u64, target: u32, members: u32) -> TypeRecord {
    TypeRecord {
        identity: [1; 16],
        size,
        count: u64::from(u32::MAX),
        name: 0,
        target,
        first_member: 0,
        members,
        kind: kind as u8,
        encoding: 0,
        flags: 0,
        reserved: 0,
    }
}

fn member(r#type: u32, flags: u32) -> MemberRecord {
    MemberRecord {
        offset: 0,
        discriminant: 7,
        name: 0,
        r#type,
        bit_offset: 0,
        bit_size: 0,
        flags,
    }
}

struct Zeros;

impl Contents for Zeros {
    fn read(&self, _: Alleged, buffer: &mut [u8]) -> bool {
        buffer.fill(0);
        true
    }
}

#[test]
fn every_answer_ends_and_is_short() {
    let tag = member(1, member_flags::IS_DISCRIMINANT);
    let byte = record(TypeKind::Base, 1, NO_TYPE, 0);
    let rows: [(&str, Vec<TypeRecord>, Vec<MemberRecord>); 6] = [
        (
            "a function whose parameters are itself",
            vec![record(TypeKind::Function, 8, 0, 64)],
            vec![member(0, 0); 64],
        ),
        (
            "a pointer to itself",
            vec![record(TypeKind::Pointer, 8, 0, 0)],
            Vec::new(),
        ),
        (
            "a typedef of itself",
            vec![record(TypeKind::Typedef, 8, 0, 0)],
            Vec::new(),
        ),
        (
            "an array of itself",
            vec![record(TypeKind::Array, 8, 0, 0)],
            Vec::new(),
        ),
        (
            "a struct that holds itself, many times",
            vec![record(TypeKind::Struct, 8, NO_TYPE, MANY)],
            vec![member(0, 0); MANY as usize],
        ),
        (
            "a variant with more default arms than bytes",
            vec![record(TypeKind::Variant, 8, NO_TYPE, MANY), byte],
            std::iter::once(tag)
                .chain(std::iter::repeat_n(member(0, 0), MANY as usize - 1))
                .collect(),
        ),
    ];
    for (what, types, members) in rows {
        let bytes = image(&types, &members);
        let image = Image::parse(bytes.as_ref()).expect("an image");
        assert_eq!(image.members.len(), members.len(), "{what}");
        let shape = Shape {
            module: 0,
            role: Role::Element,
            r#type: 0,
            tail: 0,
            front: 0,
        };
        let texts = [
            type_name(&image, 0),
            print(&image, 0, Alleged(64), &Zeros),
            print_array(&image, 0, u64::MAX, Alleged(64), &Zeros),
            field_at(&image, &shape, u64::MAX, u64::MAX).path,
        ];
        for text in texts {
            assert!(text.len() < 100_000, "{what}: {} bytes", text.len());
        }
    }
}
