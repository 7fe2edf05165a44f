//! Heaps made up to be recognised.

use super::*;

/// A heap whose functions are 0 `xmalloc`, 1 `malloc`, 2 `_int_malloc` (of every other block), 3 `free`, 4 `strlen`, 5 `realloc`, 6 `calloc`.
#[derive(Default)]
struct Heap {
    calls: Vec<Call>,
    clock: u64,
    top: u64,
    free: Vec<(u64, u64)>,
}

impl Heap {
    fn call(&mut self, function: usize, arguments: [u64; 3]) -> usize {
        self.clock += 1;
        self.calls.push(Call {
            function,
            began: self.clock,
            ended: None,
            arguments,
            result: 0,
            is_in_heap: false,
        });
        self.calls.len() - 1
    }

    fn end(&mut self, call: usize, result: u64) {
        self.clock += 1;
        let call = &mut self.calls[call];
        (call.ended, call.result) = (Some(self.clock), result);
        call.is_in_heap = result >= 0x10000;
    }

    fn place(&mut self, size: u64) -> u64 {
        let room = (size + 8).next_multiple_of(16).max(32);
        if let Some(at) = self.free.iter().position(|(_, had)| *had == room) {
            return self.free.swap_remove(at).0;
        }
        self.top += room;
        0x10000 + self.top - room
    }

    fn malloc(&mut self, size: u64) -> u64 {
        let outer = self.call(0, [size, 7, 7]);
        let middle = self.call(1, [size, 7, 7]);
        let block = self.place(size);
        if size.is_multiple_of(32) {
            let inner = self.call(2, [0x4000, size, 7]);
            self.end(inner, block);
        }
        self.end(middle, block);
        self.end(outer, block);
        block
    }

    fn free(&mut self, block: u64, size: u64) {
        let call = self.call(3, [block, 1, 1]);
        self.end(call, 0);
        self.free
            .push((block, (size + 8).next_multiple_of(16).max(32)));
    }
}

#[test]
fn what_a_heap_does_is_recognised() {
    let mut heap = Heap::default();
    for round in 0..20u64 {
        let blocks: Vec<(u64, u64)> = (0..30)
            .map(|at| 16 + (at * 13 + round) % 20 * 16)
            .map(|size| (heap.malloc(size), size))
            .collect();
        let zeroed = heap.call(6, [3 + round % 4, 24, 9]);
        let block = heap.place((3 + round % 4) * 24);
        heap.end(zeroed, block);
        for (block, size) in &blocks {
            let length = heap.call(4, [*block + 1, 0, 0]);
            heap.end(length, 5);
            let length = heap.call(4, [*block, 0, 0]);
            heap.end(length, 5);
            if size % 48 == 0 {
                let grown = heap.call(5, [*block, size * 2, 0]);
                let to = heap.place(size * 2);
                heap.end(grown, to);
                heap.free
                    .push((*block, (size + 8).next_multiple_of(16).max(32)));
                heap.free(to, size * 2);
            } else {
                heap.free(*block, *size);
            }
        }
    }
    let found: Vec<(usize, Role)> = judge(&heap.calls)
        .families
        .iter()
        .flatten()
        .map(|found| (found.function, found.role))
        .collect();
    let expect = [
        (1, Role::Malloc),
        (5, Role::Realloc),
        (6, Role::Calloc),
        (3, Role::Free),
    ];
    assert_eq!(found, expect);
}

#[test]
fn where_nothing_is_given_nothing_is_found() {
    let mut heap = Heap::default();
    for at in 0..100 {
        let call = heap.call(0, [at, 8, 8]);
        heap.end(call, at);
        // Returns what it was given, as memcpy does.
        let call = heap.call(1, [0x20000 + at * 64, 0, 64]);
        heap.end(call, 0x20000 + at * 64);
    }
    assert_eq!(judge(&heap.calls), Shown::default());
}

#[test]
fn a_state_that_stays_is_no_block_that_is_moved() {
    let mut heap = Heap::default();
    let state = heap.malloc(512);
    for at in 0..100 {
        let call = heap.call(5, [state, 16 + at % 20 * 16, 0]);
        let block = heap.place(16 + at % 20 * 16);
        heap.end(call, block);
    }
    assert_eq!(judge(&heap.calls), Shown::default());
}

fn found(calls: &[Call]) -> Vec<Vec<(usize, Role)>> {
    let families = judge(calls).families;
    let of_family = |family: &Vec<Found>| family.iter().map(|it| (it.function, it.role)).collect();
    families.iter().map(of_family).collect()
}

/// Blocks of all sizes, freed in another order than they were made.
fn churn(heap: &mut Heap) {
    for round in 0..20u64 {
        let sizes = (0..30).map(|at| 16 + (at * 13 + round) % 20 * 16);
        let blocks: Vec<(u64, u64)> = sizes.map(|size| (heap.malloc(size), size)).collect();
        for (block, size) in blocks
            .iter()
            .step_by(2)
            .chain(blocks.iter().skip(1).step_by(2))
        {
            heap.free(*block, *size);
        }
    }
}

const PAIR: [(usize, Role); 2] = [(1, Role::Malloc), (3, Role::Free)];

#[test]
fn what_is_cut_out_of_a_block_is_no_allocators() {
    let mut heap = Heap::default();
    let arena = heap.malloc(4096);
    let mut list: Vec<u64> = (0..16).map(|at| arena + 64 + at * 128).collect();
    for round in 0..40u64 {
        let taken: Vec<u64> = list.split_off(list.len() / 2);
        for piece in &taken {
            let call = heap.call(8, [100 + round % 28, 0, 0]);
            heap.end(call, *piece);
        }
        for piece in taken {
            let call = heap.call(9, [piece, 0, 0]);
            heap.end(call, 0);
            list.insert(0, piece);
        }
    }
    churn(&mut heap);
    assert_eq!(found(&heap.calls), [PAIR]);
}

#[test]
fn who_puts_a_header_before_is_a_wrapper() {
    let mut heap = Heap::default();
    let mut blocks = Vec::new();
    for at in 0..200u64 {
        let size = 16 + at * 7 % 20 * 16;
        let outer = heap.call(8, [size, 0, 0]);
        let block = heap.malloc(size + 16);
        heap.end(outer, block + 16);
        blocks.push((block, size));
        if at % 3 == 0 {
            let (block, size) = blocks.swap_remove(blocks.len() / 2);
            let outer = heap.call(9, [block + 16, 0, 0]);
            heap.free(block, size + 16);
            heap.end(outer, 0);
        }
    }
    churn(&mut heap);
    assert_eq!(found(&heap.calls), [PAIR]);
}

#[test]
fn who_was_called_once_is_known_by_who_took_it_back() {
    let mut heap = Heap::default();
    churn(&mut heap);
    // fopen(name, mode) ▶ valloc(1264), and fclose ▶ free.
    let outer = heap.call(10, [0x7ff0_0000_1000, 0x7ff0_0000_1010, 0]);
    let inner = heap.call(11, [1264, 0x7ff0_0000_1000, 9]);
    let block = heap.place(1264);
    heap.end(inner, block);
    heap.end(outer, block);
    heap.free(block, 1264);
    let mut expect = PAIR.to_vec();
    expect.insert(1, (11, Role::Malloc));
    assert_eq!(found(&heap.calls), [expect]);
}

#[test]
fn two_heaps_are_two_families_and_what_they_are_made_of_is_none() {
    let mut heap = Heap::default();
    churn(&mut heap);
    let mut other = Heap {
        top: 1 << 30,
        clock: heap.clock,
        ..Heap::default()
    };
    for round in 0..5 {
        // What is asked of the kernel holds the blocks to come.
        let call = other.call(5, [6000 + round * 16, 0, 0]);
        let at = 0x10000 + other.top;
        other.end(call, at);
        churn(&mut other);
        other.free.clear();
    }
    for call in &mut other.calls {
        call.function += 20;
    }
    let calls: Vec<Call> = heap.calls.into_iter().chain(other.calls).collect();
    let shown = judge(&calls);
    let expect = [PAIR, [(21, Role::Malloc), (23, Role::Free)]];
    let mut families = found(&calls);
    families.sort();
    assert_eq!(families, expect, "{:?}", shown.rest);
    assert_eq!(shown.rest, []);
}
