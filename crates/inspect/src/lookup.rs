//! *What lies at this address?*
//!
//! ```text
//!   address ─▶ block (base, size, offset) ─▶ origin ─▶ site ─▶ type ─▶ field at the offset ─▶ value
//!           └▶ else: static variable or function of a loaded file
//! ```

use crate::describe::{Shape, field_at, size_of_type, type_name};
use crate::memory::Region;
use crate::report::PlaceRow;
use crate::resolve::{Resolver, Site, function_at};
use crate::value::{self, Contents};
use pointee_index::Index;
use pointee_index::read::Block;
use pointee_model::addr::{Alleged, LinkAddr, RunAddr};
use pointee_model::evidence::Role;
use pointee_model::image::{Image, NO_TYPE};
use serde::Serialize;

/// The answer for one address.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Answer {
    /// In hexadecimal.
    pub address: String,
    /// `heap`, `static`, `code`, `module`, or `null` when it lies in nothing that is known.
    pub kind: Option<&'static str>,
    /// First byte of the block, variable or function.
    pub base: Option<String>,
    /// Bytes requested.
    pub size: Option<u64>,
    /// How far into it the address lies.
    pub offset: Option<u64>,
    /// Type of the whole.
    pub r#type: Option<String>,
    /// The field at the offset: `struct commit[3].parents.item`.
    pub field: Option<String>,
    pub field_type: Option<String>,
    /// The value of the field.
    pub value: Option<String>,
    /// The value of the whole.
    pub whole: Option<String>,
    /// Name of the variable or function.
    pub name: Option<String>,
    /// File that the variable, function or site lies in.
    pub module: Option<String>,
    pub site: Option<SiteAnswer>,
}

/// Where a block was allocated.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct SiteAnswer {
    /// Build ID and link-time address.
    pub id: String,
    pub offset: String,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: Vec<PlaceRow>,
    pub verdict: &'static str,
    pub evidence: Vec<String>,
    pub wrappers: Vec<String>,
    pub allocator: String,
    /// The hooked function that was called.
    pub entry: String,
}

/// Answers for `address`.
#[must_use]
pub fn what(
    index: &Index<Region>,
    resolver: &Resolver<'_>,
    contents: Option<&dyn Contents>,
    address: Alleged,
) -> Answer {
    match index.block_at(address.0) {
        Some(block) => in_block(resolver, contents, address, &block),
        None => in_module(resolver, contents, address),
    }
}

fn nothing(address: Alleged) -> Answer {
    Answer {
        address: format!("{:#x}", address.0),
        kind: None,
        base: None,
        size: None,
        offset: None,
        r#type: None,
        field: None,
        field_type: None,
        value: None,
        whole: None,
        name: None,
        module: None,
        site: None,
    }
}

fn in_block(
    resolver: &Resolver<'_>,
    contents: Option<&dyn Contents>,
    address: Alleged,
    block: &Block,
) -> Answer {
    let offset = address.0 - block.base;
    let mut answer = Answer {
        kind: Some("heap"),
        base: Some(format!("{:#x}", block.base)),
        size: Some(block.size),
        offset: Some(offset),
        ..nothing(address)
    };
    let process = resolver.process();
    let path = process
        .path_of(block.origin)
        .and_then(|at| process.paths.get(at));
    let Some(path) = path else { return answer };
    let site = resolver.resolve(path);
    if let Some((shape, image)) = site
        .shape
        .and_then(|shape| Some((shape, resolver.image(shape.module)?)))
    {
        typed(
            &mut answer,
            image,
            &shape,
            block.size,
            offset,
            contents,
            Alleged(block.base),
        );
    }
    let module = site
        .module
        .and_then(|number| process.modules.get(number as usize));
    answer.module = module.map(|module| module.path.clone());
    answer.site = Some(site_answer(resolver, site));
    answer
}

/// Fills in type, field and values.
fn typed(
    answer: &mut Answer,
    image: &Image<'_>,
    shape: &Shape,
    size: u64,
    offset: u64,
    contents: Option<&dyn Contents>,
    base: Alleged,
) {
    let name = type_name(image, shape.r#type);
    answer.r#type = Some(shape.name(image));
    let field = field_at(image, shape, size, offset);
    let mut path = format!("{name}{}", field.path);
    if field.inside != 0 {
        path.push_str(&format!(" + {}", field.inside));
    }
    answer.field = Some(path);
    answer.field_type = Some(type_name(image, field.r#type));
    let Some(contents) = contents else { return };
    let at = Alleged(base.0.wrapping_add(offset).wrapping_sub(field.inside));
    answer.value = Some(value::print(image, field.r#type, at, contents));
    let unit = size_of_type(image, shape.r#type).filter(|unit| *unit > 0);
    answer.whole = match (shape.role, unit) {
        (Role::Element | Role::Characters, Some(unit)) => Some(value::print_array(
            image,
            shape.r#type,
            size / unit,
            base,
            contents,
        )),
        (Role::Header, Some(unit)) if shape.tail != NO_TYPE => {
            let header = value::print(image, shape.r#type, base, contents);
            let element = size_of_type(image, shape.tail)
                .filter(|element| *element > 0)
                .unwrap_or(1);
            let count = size.saturating_sub(unit) / element;
            let tail = value::print_array(image, shape.tail, count, base.plus(unit), contents);
            Some(format!("{header} + {tail}"))
        }
        _ => Some(value::print(image, shape.r#type, base, contents)),
    };
}

fn site_answer(resolver: &Resolver<'_>, site: Site) -> SiteAnswer {
    SiteAnswer {
        id: crate::report::site_id(resolver, &site),
        offset: format!("{:#x}", site.offset.0),
        function: site.position.place.function,
        file: site.position.place.file,
        line: site.position.place.line,
        inlined: site.position.inlined.iter().map(PlaceRow::from).collect(),
        verdict: site.verdict.word(),
        evidence: site.evidence,
        wrappers: site.wrappers,
        allocator: site.allocator,
        entry: site.entry,
    }
}

fn in_module(resolver: &Resolver<'_>, contents: Option<&dyn Contents>, address: Alleged) -> Answer {
    let mut answer = nothing(address);
    let Some((number, module)) = resolver.process().module_at(RunAddr(address.0)) else {
        return answer;
    };
    answer.module = Some(module.path.clone());
    answer.kind = Some("module");
    let link = module.bias.to_link(RunAddr(address.0));
    let Some(image) = resolver.image(number) else {
        return answer;
    };
    if let Some(function) = image.function_at(link) {
        answer.kind = Some("code");
        answer.name = function_at(image, link);
        answer.offset = Some(link.0 - function.start);
        answer.size = Some(function.end.saturating_sub(function.start));
        answer.base = Some(module.bias.to_run(LinkAddr(function.start)).to_string());
        return answer;
    }
    let after = image
        .variables
        .partition_point(|variable| variable.address <= link.0);
    let variable = after.checked_sub(1).and_then(|at| image.variables.get(at));
    let holds = |size: u64| move |start: u64| link.0 - start < size.max(1);
    if let Some(variable) = variable
        .filter(|variable| variable.flags & 1 == 0 && holds(variable.size)(variable.address))
    {
        let offset = link.0 - variable.address;
        let base = module.bias.to_run(LinkAddr(variable.address));
        let shape = Shape {
            module: number,
            role: Role::Whole,
            r#type: variable.r#type,
            tail: NO_TYPE,
        };
        answer.kind = Some("static");
        answer.base = Some(base.to_string());
        answer.size = Some(variable.size);
        answer.offset = Some(offset);
        answer.name = Some(image.string(variable.name).to_owned());
        if variable.r#type != NO_TYPE {
            typed(
                &mut answer,
                image,
                &shape,
                variable.size,
                offset,
                contents,
                Alleged(base.0),
            );
        }
    }
    answer
}
