//! *How are all calls of an imported function hooked, without a change of code?* By the slots through which objects reach
//! what they import: the global offset table, and pointers that the dynamic linker has filled.
//!
//! Each object's own relocations tell which words those are: `JUMP_SLOT` (lazy or not), `GLOB_DAT` (`-fno-plt`,
//! addresses taken), `64` (tables of functions). Where the dynamic linker has made them read-only (`RELRO`), the page is
//! writable for the moment of one atomic store; it is data, and never executable. No thread has to stop.
//!
//! An indirect function (`IFUNC`) is an import like others: its slot holds what its resolver chose.
//!
//! # Limits
//!
//! A slot that another thread is binding for the first time at this moment may be overwritten by the dynamic linker;
//! [`SlotHook::refresh`] looks again, and also serves objects that were loaded since. Addresses that a program has copied
//! elsewhere (`dlsym`, a function pointer kept) are not slots. Symbol versions are not told apart.

#![allow(unsafe_code)] // Reads what the dynamic linker has loaded, writes slots.

use core::ffi::CStr;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use pointee_model::addr::RunAddr;

use crate::maps::Maps;
use crate::objects::{self, Object};
use crate::pages::Pages;
use crate::refusal::Refusal;
use crate::stop;
use crate::sys::{self, map};

/// The most slots of one hook.
const SLOTS_MOST: usize = 1 << 16;

/// A symbol's slots, which lead to a hook. Dropping it leaves them so.
#[derive(Debug)]
pub struct SlotHook {
    destination: RunAddr,
    /// Address and former value of each.
    slots: Pages,
    count: usize,
}

/// Has all objects but those in which one of `except` lies reach `destination` where they import `name`. Before
/// the first does, `original` holds where they would have come.
///
/// # Errors
///
/// [`Refusal::NotImported`] when nobody imports `name`.
///
/// # Safety
/// `destination` takes and returns what the function does.
pub unsafe fn redirect_imports(
    name: &CStr,
    destination: RunAddr,
    except: &[RunAddr],
    original: &AtomicU64,
) -> Result<SlotHook, Refusal> {
    let slots = Pages::new(SLOTS_MOST * 16).map_err(|_| Refusal::NoRoom)?;
    let mut hook = SlotHook {
        destination,
        slots,
        count: 0,
    };
    let found = objects::find(name).ok_or(Refusal::NotImported)?;
    original.store(found.0, Release);
    match hook.refresh(name, except)? {
        0 => Err(Refusal::NotImported),
        _ => Ok(hook),
    }
}

impl SlotHook {
    /// How many slots lead to the hook.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Looks for slots that do not lead to the hook yet, as those of objects that were loaded since. The answer: how many.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMaps`]; slots that are read-only and cannot be made writable are left.
    pub fn refresh(&mut self, name: &CStr, except: &[RunAddr]) -> Result<usize, Refusal> {
        let _held = stop::exclusive();
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let before = self.count;
        objects::visit(|object| {
            if except.iter().any(|address| object.holds(*address)) {
                return;
            }
            object.imports(name, |slot| {
                // SAFETY: a word that the dynamic linker fills; aligned, as all loaders of atomic pointers need it.
                let word = unsafe { AtomicU64::from_ptr(slot.0 as *mut u64) };
                let former = word.load(Acquire);
                if former == self.destination.0 || self.count == SLOTS_MOST {
                    return;
                }
                if store(object, &mut maps, word, former, self.destination.0) {
                    let slots: &mut [[u64; 2]] = self.slots.words();
                    // A slot that was bound lazily meanwhile is known already, with an older value that serves as well.
                    let known = slots
                        .iter()
                        .take(self.count)
                        .any(|known| known[0] == slot.0);
                    if !known && let Some(free) = slots.get_mut(self.count) {
                        *free = [slot.0, former];
                        self.count += 1;
                    }
                }
            });
        });
        Ok(self.count - before)
    }

    /// Has the slots lead where they did. Those that others have changed since are left, those of unloaded objects
    /// forgotten. The answer: how many were restored.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoMaps`].
    pub fn remove(mut self) -> Result<usize, Refusal> {
        let _held = stop::exclusive();
        let mut maps = Maps::read().map_err(Refusal::NoMaps)?;
        let destination = self.destination.0;
        let slots: &mut [[u64; 2]] = self.slots.words();
        let mut restored = 0;
        objects::visit(|object| {
            for [slot, former] in slots.iter().take(self.count) {
                if object.holds(RunAddr(*slot)) {
                    // SAFETY: a slot of an object that is loaded, see `refresh`.
                    let word = unsafe { AtomicU64::from_ptr(*slot as *mut u64) };
                    restored += usize::from(store(object, &mut maps, word, destination, *former));
                }
            }
        });
        Ok(restored)
    }
}

/// Has `word` hold `new` if it holds `old`.
fn store(object: &Object<'_>, maps: &mut Maps, word: &AtomicU64, old: u64, new: u64) -> bool {
    const PAGE: u64 = 4096;
    let at = word.as_ptr() as u64;
    let page = at & !(PAGE - 1);
    let writable = maps
        .find(RunAddr(at))
        .is_some_and(|mapping| mapping.writable);
    if !writable {
        if !object.is_read_only_after_relocation(RunAddr(at)) {
            return false;
        }
        // SAFETY: nothing is taken away.
        if unsafe { sys::protect_pages(page, PAGE as usize, map::READ | map::WRITE) }.is_err() {
            return false;
        }
    }
    let done = word.compare_exchange(old, new, AcqRel, Acquire).is_ok();
    if !writable {
        // SAFETY: as it was. Were it refused, the page would stay writable, which harms nobody.
        let _ = unsafe { sys::protect_pages(page, PAGE as usize, map::READ) };
    }
    done
}
