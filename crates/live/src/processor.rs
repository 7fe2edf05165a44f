//! *Which vector registers does this processor have, as the kernel has switched them on?* (Intel SDM 1, 13.2 to 13.4.)

#![allow(unsafe_code)] // Asks the processor.

use core::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pointee_patch::arch::x86_64::context::{Processor, Width};

/// Whether a processor that runs an instruction whose byte is being replaced runs the old one or the new, and nothing else. AMD64 APM 2,
/// 7.6.1, promises it; Intel does for breakpoints only.
pub(crate) fn takes_single_bytes() -> bool {
    let id = __cpuid(0);
    let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
    matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// State components that are switched on, a bit each.
#[derive(Clone, Copy)]
pub(crate) struct States(u64);

/// x87, SSE, AVX, masks, and both parts of AVX-512: what functions may change and a signal's frame restores. Not the protection
/// keys, and not the tiles, which no handler comes to use unasked.
const OF_FUNCTIONS: u64 = 0xe7;
const AVX: u64 = 0x06;
const AVX512: u64 = 0xe6;

pub(crate) fn states() -> States {
    const UNKNOWN: u64 = u64::MAX;
    static KNOWN: AtomicU64 = AtomicU64::new(UNKNOWN);
    const OSXSAVE: u32 = 1 << 27;
    #[target_feature(enable = "xsave")]
    fn enabled() -> u64 {
        // SAFETY: register 0 exists where `xgetbv` does.
        unsafe { _xgetbv(0) }
    }
    let known = KNOWN.load(Relaxed);
    if known != UNKNOWN {
        return States(known);
    }
    let states = match __cpuid(1).ecx & OSXSAVE {
        0 => 0,
        // SAFETY: the kernel has switched it on.
        _ => unsafe { enabled() },
    };
    KNOWN.store(states, Relaxed);
    States(states)
}

impl States {
    pub(crate) fn width(self) -> Width {
        match self.0 {
            states if states & AVX512 == AVX512 => Width::Avx512,
            states if states & AVX == AVX => Width::Avx,
            _ => Width::Sse,
        }
    }

    /// For probes that never need `xsavec`.
    pub(crate) fn without_xsave(self) -> Processor {
        Processor {
            width: self.width(),
            xsave_components: 0,
            xsave_len: 0,
        }
    }

    /// What probes have to know; `None` for a processor without `xsavec`.
    pub(crate) fn processor(self) -> Option<Processor> {
        const LEAF: u32 = 13;
        const XSAVEC: u32 = 2;
        const ALIGNED: u32 = 2;
        /// The legacy region and the header.
        const HEAD: u32 = 576;
        let components = (self.0 & OF_FUNCTIONS) as u32;
        if components == 0 || __cpuid_count(LEAF, 1).eax & XSAVEC == 0 {
            return None;
        }
        let of_components = (2..32).filter(|number| components >> number & 1 != 0);
        let xsave_len = of_components.fold(HEAD, |len, number| {
            let component = __cpuid_count(LEAF, number);
            let aligned = component.ecx & ALIGNED != 0;
            (if aligned {
                len.next_multiple_of(64)
            } else {
                len
            }) + component.eax
        });
        Some(Processor {
            width: self.width(),
            xsave_components: components,
            xsave_len,
        })
    }
}
