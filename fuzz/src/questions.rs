//! *What can be asked of an index?* — all of it, of any index, with any images and any memory.

use pointee_index::{Index, Memory};
use pointee_inspect::census::census;
use pointee_inspect::explain::Explanation;
use pointee_inspect::images::Images;
use pointee_inspect::lookup::what;
use pointee_inspect::memory::Region;
use pointee_inspect::process::ProcessData;
use pointee_inspect::report::{Circumstances, Grouping, ProcessReport, State};
use pointee_inspect::resolve::Resolver;
use pointee_inspect::space::{Layout, Space};
use pointee_inspect::text::{self, Style};
use pointee_inspect::value::Contents;
use pointee_model::addr::Alleged;
use std::hint::black_box;

/// Addresses that are asked for, of each kind.
const ADDRESSES: usize = 16;
/// Slots that are asked for one by one.
const SLOTS: u32 = 8;

/// Asks the index itself.
pub fn ask_index<M: Memory>(index: &Index<M>) {
    let mut buffer = [0; 4096];
    for number in 0..index.modules().min(SLOTS) {
        if let Some(module) = index.module(number) {
            assert!(index.string(module.path, &mut buffer).len() <= 4096);
        }
    }
    for number in 0..index.hooks().min(SLOTS) {
        if let Some(hook) = index.hook(number) {
            assert!(hook.len <= 16);
            index.string(hook.name, &mut buffer);
        }
    }
    // Behind the last, too: a reader may be given any number.
    for number in [index.modules(), u32::MAX] {
        assert!(index.module(number).is_none());
        assert!(index.hook(index.hooks().max(number)).is_none());
        index.string(number, &mut buffer);
    }
    index.each_origin(|node| assert_ne!(node.id, 0));
    index.each_at_peak(|_, _, _| {});
    for slot in (0..index.threads().min(SLOTS)).chain([u32::MAX]) {
        black_box(index.held_back(slot));
        index.each_count(slot, |_, _| {});
    }
    for address in addresses(index) {
        if let Some(block) = index.block_at(address) {
            assert!(block.holds(address), "{block:?} for {address:#x}");
        }
    }
}

/// Addresses in and around live blocks, and those at which tables begin and end.
fn addresses<M: Memory>(index: &Index<M>) -> Vec<u64> {
    let mut addresses = vec![
        0,
        7,
        (1 << 26) - 8,
        1 << 26,
        (1 << 47) - 1,
        1 << 47,
        u64::MAX,
    ];
    let few = addresses.len() + 3 * ADDRESSES;
    index.each_block(|block| {
        if addresses.len() < few {
            let last = block.base.wrapping_add(block.size).wrapping_sub(1);
            addresses.extend([block.base, last, block.base.wrapping_sub(1)]);
        }
    });
    addresses
}

/// Makes every report of a process, and looks addresses up.
pub fn ask_process(
    index: &Index<Region>,
    images: &Images,
    layout: &Layout,
    contents: Option<&dyn Contents>,
) {
    let mut process = ProcessData::read(index);
    let numbers = layout.join(&mut process);
    let resolver = Resolver::new(&process, images);
    let circumstances = Circumstances {
        pid: process.pid,
        parent: process.parent,
        generation: 0,
        state: State::Ended,
        exit: None,
        unseen: Vec::new(),
    };
    let report = ProcessReport::new(&resolver, &circumstances);
    let groupings = [
        Grouping::Type,
        Grouping::Site,
        Grouping::Allocator,
        Grouping::Function,
        Grouping::Module,
    ];
    for grouping in groupings {
        let groups = report.grouped(grouping);
        as_json(&report.with_groups(&groups));
    }
    let style = Style {
        colour: false,
        rows: 20,
        at_peak: report.is_told_by_peak(),
    };
    black_box(text::render(&report, style));
    black_box(text::render_sites(&report, style));
    as_json(&Explanation::of_record(&process));

    let space = Space::new(layout, &numbers, &resolver, Some(index), contents);
    let modules = process.modules.iter().zip(0..).take(ADDRESSES);
    let statics = modules.flat_map(|(module, number)| {
        let variables = resolver
            .image(number)
            .map_or(&[][..], |image| image.variables);
        let link = variables.iter().map(|variable| variable.address);
        let run = link.map(|address| address.wrapping_add(module.bias.0));
        run.take(ADDRESSES).chain([module.start.0])
    });
    for address in addresses(index).into_iter().chain(statics) {
        as_json(&what(&space, Alleged(address)));
    }
    let starts = layout.mappings.iter().map(|mapping| mapping.start.0);
    let frames = layout.threads.iter().flat_map(|thread| &thread.frames);
    let stacks = frames.map(|frame| frame.span.start.0);
    for address in starts.chain(stacks).take(ADDRESSES) {
        as_json(&what(&space, Alleged(address)));
    }
    as_json(&census(&space, 1));
}

fn as_json(value: &impl serde::Serialize) {
    serde_json::to_vec(value).expect("reports are plain data");
}
