//! *Is the highest point captured, whichever thread ends it?* Several threads' counters are written here by one, in an order that is
//! chosen.

#![allow(unsafe_code)] // Makes a region out of zeroed memory and counters for it.

use pointee_index::counters::{Counters, FIRST_OWN, Live, Thread};
use pointee_index::layout::Layout;
use pointee_index::{Geometry, Header};
use std::alloc::{Layout as Shape, alloc_zeroed, dealloc};
use std::sync::atomic::Ordering::Relaxed;

const ORIGIN: u32 = 40;

struct Heap {
    base: *mut u8,
    shape: Shape,
    layout: Layout,
    counters: Counters,
    threads: [&'static Thread; 2],
}

impl Heap {
    fn new() -> Self {
        let geometry = Geometry::narrow(1 << 20);
        let layout = Layout::of(&geometry);
        let shape = Shape::from_size_align(layout.len as usize, 4096).expect("a shape");
        // SAFETY: the shape is not empty; the region starts with a header, of which zero is a valid value.
        let (base, counters) = unsafe {
            let base = alloc_zeroed(shape);
            assert!(!base.is_null());
            let header = base.cast::<Header>();
            (&raw mut (*header).geometry).write(geometry);
            (*header).origins.store(ORIGIN + 1, Relaxed);
            (*header).threads.store(FIRST_OWN + 2, Relaxed);
            (base, Counters::new(base, layout))
        };
        let threads = [0, 1].map(|number| counters.give(FIRST_OWN + number, 1, 1));
        Self {
            base,
            shape,
            layout,
            counters,
            threads,
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the region starts with one.
        unsafe { &*self.base.cast::<Header>() }
    }

    fn allocate(&self, thread: usize, bytes: u64) {
        self.counters.allocated(self.threads[thread], ORIGIN, bytes);
    }

    fn free(&self, thread: usize, bytes: u64) {
        self.counters.freed(self.threads[thread], ORIGIN, bytes);
    }

    /// Blocks and bytes of the one origin when the peak was captured.
    fn captured(&self) -> (u64, u64) {
        // SAFETY: the peak section has room for the origin.
        let live = unsafe {
            let peak = self.base.add(self.layout.peak as usize).cast::<Live>();
            &*peak.add(ORIGIN as usize)
        };
        (live.blocks.load(Relaxed), live.bytes.load(Relaxed))
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this shape.
        unsafe { dealloc(self.base, self.shape) };
    }
}

#[test]
fn the_first_free_captures_whosever_it_is() {
    for freeing in [0, 1] {
        let heap = Heap::new();
        for _ in 0..1000 {
            heap.allocate(0, 100);
        }
        heap.free(freeing, 100);
        assert_eq!(heap.captured(), (1000, 100_000), "thread {freeing}");
        // Neither the other thread's free nor a lower hill changes it.
        heap.free(1 - freeing, 100);
        heap.free(freeing, 100);
        heap.allocate(freeing, 250);
        heap.free(1 - freeing, 250);
        assert_eq!(heap.captured(), (1000, 100_000), "thread {freeing}");
        // A hill that is more than 1 % higher does.
        heap.allocate(1 - freeing, 1500);
        heap.free(freeing, 100);
        assert_eq!(heap.captured(), (998, 101_200), "thread {freeing}");
        assert_eq!(heap.header().peak_bytes.load(Relaxed), 101_200);
    }
}

#[test]
fn a_failed_reallocation_changes_nothing() {
    let heap = Heap::new();
    heap.allocate(0, 5000);
    heap.free(0, 5000);
    heap.counters.not_freed(heap.threads[0], ORIGIN, 5000);
    heap.counters.settle(heap.threads[0]);
    assert_eq!(heap.header().live_bytes.load(Relaxed), 5000);
    assert_eq!(heap.header().peak_bytes.load(Relaxed), 5000);
    heap.allocate(0, 5000);
    heap.free(1, 5000);
    assert_eq!(heap.captured(), (2, 10_000));
}
