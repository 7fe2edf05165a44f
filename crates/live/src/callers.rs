//! *How is every call of a function hooked where it is made, without knowing the places before?* The function's entry is hooked, and
//! tells where a call came from. What is to become of calls from there is asked once; then the instruction itself is led there,
//! and its calls do not pass the entry any more. Places that never run are never touched.
//!
//! ```text
//!   first call:  call f ─► pad ─► entry stub ─► first_hit: choose, write one byte ─► what was chosen
//!   from then:   call f + k·2²⁴ ─► relay ───────────────────────────────────────► what was chosen
//!                call [cell + k·2²⁴] ───────────────────────────────────────────► what was chosen
//! ```
//!
//! **Where relays lie.** A distance that differs from the old one by a multiple of 2²⁴ differs in one byte, for which nobody has to
//! stand still (`change.rs`); and one relay serves every caller of the same address.
//!
//! Calls whose instruction cannot be led elsewhere — through a register, by a jump, from where another hook is, or when no such memory is free — come
//! by the entry to the same answer. So does a call for which the engine is just then busy.
//!
//! **On whose time.** The first call from a place may be made by any thread in any state: what is done for it asks nothing of libc or the unwinder.
//! So only debuggers are told of relays, not the unwinder: a relay is one jump, and no exception starts or passes there.

#![allow(unsafe_code)] // Tables in pages of their own, read without a lock.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pointee_model::addr::RunAddr;
use pointee_patch::arch::x86_64::decode::{Flow, decode};
use pointee_patch::arch::x86_64::emit::Emitter;
use pointee_patch::arch::x86_64::{ENDBR64, MAX_INSTRUCTION_LEN};

use crate::change::Change;
use crate::entry;
use crate::frames::Frames;
use crate::hook::{self, Hook, Installed, Purpose, Relay, State};
use crate::lines::{Lines, What};
use crate::listing;
use crate::refusal::Refusal;
use crate::stop::{self, Exclusive, Pause};
use crate::sys::{self, map};
use crate::text::Text;

/// Places that are remembered for one function; calls from others come by the entry, and `choose` is asked each time.
const PLACES: usize = 4096;
/// How many of them are looked at for one that has the same hash.
const PROBES: usize = 32;
/// How many multiples of 2²⁴ are tried, up and down.
const STEPS: i32 = 16;
/// `jmp [rip+0]; .quad`: a relay at most.
const RELAY_LEN: usize = 14;
/// The bytes of a distance.
const FIELD: usize = 4;

/// What is asked where calls go.
#[derive(Clone, Copy, Debug)]
pub struct Callers {
    /// Asked for the place that a call returns to, with `data`: where it goes. 0: to the function as it was. May be asked more
    /// than once for one place, by several threads; calls that it makes itself of the function go to that as it was.
    pub choose: extern "C" fn(RunAddr, u64) -> RunAddr,
    /// Given to it.
    pub data: u64,
    table: *mut Table,
}

impl PartialEq for Callers {
    fn eq(&self, other: &Self) -> bool {
        (self.choose as usize, self.data) == (other.choose as usize, other.data)
    }
}

impl Eq for Callers {}

/// A place from which the function was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// Where the call returns to.
    pub return_address: RunAddr,
    /// Where it goes.
    pub destination: RunAddr,
    /// The instruction itself leads there; else its calls come by the function's entry.
    pub in_place: bool,
}

/// What is known of a place; all zeros if nothing is.
#[repr(C)]
struct Place {
    return_address: AtomicU64,
    /// Written before the address, read after it.
    destination: AtomicU64,
    /// The field that was changed, if it was. Used under the engine's lock.
    field: u64,
    before: [u8; FIELD],
    after: [u8; FIELD],
}

#[repr(C)]
struct Table([Place; PLACES]);

/// Has each call of `function` go where `callers` are told to. Before the first of them does, `original` holds the address by
/// which the function is called as it was.
///
/// # Errors
///
/// [`Refusal`]: nothing has changed.
///
/// # Safety
/// What is chosen takes and returns what `function` does. `choose` may be called on any thread, wherever `function` is.
pub unsafe fn redirect_callers(
    function: RunAddr,
    choose: extern "C" fn(RunAddr, u64) -> RunAddr,
    data: u64,
    original: &AtomicU64,
) -> Result<(Installed, Pause), Refusal> {
    let mut held = stop::exclusive();
    let purpose = Purpose::Callers(Callers {
        choose,
        data,
        table: core::ptr::null_mut(),
    });
    entry::install(&mut held, function, purpose, |at| {
        original.store(at.0, Release);
    })
}

impl Callers {
    /// The same with a table, empty.
    pub(crate) fn with_table(self) -> Result<Self, Refusal> {
        let pages = sys::map_pages(None, size_of::<Table>(), map::READ | map::WRITE);
        let table = pages.map_err(|_| Refusal::NoRoom)? as *mut Table;
        Ok(Self { table, ..self })
    }

    /// # Safety
    /// No thread is in the entry stub, and the hook is used no more.
    pub(crate) unsafe fn give_back(self) {
        // SAFETY: the caller's promise.
        unsafe { sys::unmap_pages(self.table as u64, size_of::<Table>()) };
    }

    fn places(&self) -> &[Place] {
        // SAFETY: mapped as long as the hook is not free.
        unsafe { &(*self.table).0 }
    }

    /// Where calls that return to `address` go, if it is known.
    fn find(&self, address: u64) -> Option<u64> {
        let place = self.slots(address).find_map(|index| {
            let place = &self.places()[index];
            match place.return_address.load(Acquire) {
                0 => Some(None),
                known => (known == address).then_some(Some(place)),
            }
        });
        place.flatten().map(|place| place.destination.load(Relaxed))
    }

    /// Where in the table `address` may be.
    fn slots(&self, address: u64) -> impl Iterator<Item = usize> + use<> {
        // Fibonacci hashing: return addresses differ in their low bits.
        let hash = address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (0..PROBES).map(move |step| (hash as usize + step) % PLACES)
    }

    /// Remembers a place. Under the engine's lock.
    fn insert(&self, address: u64, destination: u64) -> Option<*mut Place> {
        let index = self
            .slots(address)
            .find(|index| self.places()[*index].return_address.load(Relaxed) == 0)?;
        let place = &self.places()[index];
        place.destination.store(destination, Relaxed);
        place.return_address.store(address, Release);
        // SAFETY: within the table.
        Some(unsafe { (&raw mut (*self.table).0).cast::<Place>().add(index) })
    }

    /// What was changed at places. Under the engine's lock.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Change> {
        let changed = self.places().iter().filter(|place| place.field != 0);
        changed.map(|place| change(RunAddr(place.field), place.before, place.after))
    }

    /// Has all places lead where they did. Who has written there since is left alone.
    pub(crate) fn restore(&self, held: &mut Exclusive, text: &Text) -> Result<Pause, Refusal> {
        let mut all = Pause::default();
        for change in self.changes() {
            if change.is_there(text, &change.after) {
                all += change.write(held, text, &change.after, &change.before, None)?;
            }
        }
        self.forget();
        Ok(all)
    }

    /// Empties the table, so that the hook can come again.
    fn forget(&self) {
        for index in 0..PLACES {
            // SAFETY: within the table; what is not atomic is used under the lock.
            unsafe {
                let place = (&raw mut (*self.table).0).cast::<Place>().add(index);
                (*place).return_address.store(0, Release);
                (*place).field = 0;
            }
        }
    }
}

fn change(at: RunAddr, before: [u8; FIELD], after: [u8; FIELD]) -> Change {
    let wide = |field: [u8; FIELD]| [field[0], field[1], field[2], field[3], 0];
    Change {
        at,
        len: FIELD,
        reach: FIELD,
        before: wide(before),
        after: wide(after),
    }
}

/// From the entry stub: a call of the function at `hook` will return to `return_address`. The answer: where it goes on.
pub(crate) fn first_hit(callers: &Callers, hook: *const Hook, return_address: u64) -> u64 {
    if let Some(destination) = callers.find(return_address) {
        return destination;
    }
    // SAFETY: hooks stay while a thread is in the stub.
    let (function, RunAddr(original), _) = unsafe { Hook::served(hook) };
    let RunAddr(chosen) = (callers.choose)(RunAddr(return_address), callers.data);
    let destination = if chosen == 0 { original } else { chosen };
    // Not waited for: it may be this thread that has it, further up its stack.
    if let Some(mut held) = stop::try_exclusive()
        && hook::in_place().any(|other| core::ptr::from_ref(other) == hook)
        && callers.find(return_address).is_none()
        && let Some(place) = callers.insert(return_address, destination)
    {
        // What does not succeed comes by the entry.
        let _ = lead(&mut held, hook, function, place);
    }
    destination
}

/// Leads the call at `place` where it is to go.
fn lead(
    held: &mut Exclusive,
    owner: *const Hook,
    function: RunAddr,
    place: *mut Place,
) -> Result<(), Refusal> {
    // SAFETY: under the lock.
    let place = unsafe { &mut *place };
    let text = Text::open().map_err(Refusal::NoMemoryFile)?;
    let end = RunAddr(place.return_address.load(Relaxed));
    let call = Call::before(&text, end, function).ok_or(Refusal::NotACall)?;
    let destination = RunAddr(place.destination.load(Relaxed));
    let field = RunAddr(end.0 - FIELD as u64);
    let steps = (1..=STEPS).flat_map(|step| [step, -step]);
    for distance in steps.filter_map(|step| call.distance.checked_add(step << 24)) {
        let Some(at) = end.0.checked_add_signed(i64::from(distance)).map(RunAddr) else {
            continue;
        };
        let change = change(field, call.distance.to_le_bytes(), distance.to_le_bytes());
        if hook::meets_another(&change, None) {
            return Err(Refusal::AlreadyHooked);
        }
        let relay = Relay {
            destination,
            owner: owner as u64,
            is_cell: call.through_cell,
        };
        if !has_relay(&relay, at) && make_relay(held, &text, relay, at, function).is_err() {
            continue;
        }
        change.write(held, &text, &change.before, &change.after, None)?;
        place.before = call.distance.to_le_bytes();
        place.after = distance.to_le_bytes();
        place.field = field.0;
        return Ok(());
    }
    Err(Refusal::NoRoom)
}

/// Whether there is that relay. One that was removed and is still there comes back.
fn has_relay(relay: &Relay, at: RunAddr) -> bool {
    let mut known = hook::in_place().chain(hook::retired());
    let same =
        known.find(|hook| hook.slot_at() == at && hook.made().purpose == Purpose::Relay(*relay));
    same.map(|hook| hook.state = State::Installed).is_some()
}

fn make_relay(
    held: &mut Exclusive,
    text: &Text,
    relay: Relay,
    at: RunAddr,
    function: RunAddr,
) -> Result<(), Refusal> {
    let mut bytes = [0; RELAY_LEN];
    let len = if relay.is_cell {
        bytes[..8].copy_from_slice(&relay.destination.0.to_le_bytes());
        8
    } else {
        let mut emitter = Emitter::new(&mut bytes, at);
        let emitted = emitter.jump(relay.destination);
        emitted.map_err(|_| Refusal::NoRoom)?;
        emitter.len()
    };
    let hook = hook::ledger(held).take_at(at, len).ok_or(Refusal::NoRoom)?;
    // SAFETY: a free slot of ours.
    unsafe { text.write(at, &bytes[..len]) }.map_err(Refusal::NoMemoryFile)?;
    if !relay.is_cell {
        let frames = Frames::of_relay(at, len as u64);
        let lines = Lines::all(What::ToReplacement, len as u64);
        hook.announcement
            .announce_to_debuggers(&frames, &lines, at, b"call");
    }
    hook.put_relay(relay, at, function);
    listing::add(hook);
    Ok(())
}

/// A call of a function.
struct Call {
    /// From its end to the function, to a stub that leads there, or to a cell that holds its address.
    distance: i32,
    through_cell: bool,
}

impl Call {
    /// The call of `function` that ends at `end`. Any other instruction could end with the same bytes; but this one has just been
    /// run, and called that function.
    fn before(text: &Text, end: RunAddr, function: RunAddr) -> Option<Self> {
        let start = RunAddr(end.0.checked_sub(6)?);
        let mut bytes = [0; 6];
        if text.read(start, &mut bytes) != Ok(bytes.len()) {
            return None;
        }
        let [first, second, field @ ..] = bytes;
        let distance = i32::from_le_bytes(field);
        let to = RunAddr(end.0.wrapping_add_signed(i64::from(distance)));
        let through_cell = [first, second] == [0xff, 0x15];
        let known = match through_cell {
            true => read_word(text, to) == Some(function.0),
            false => second == 0xe8 && (to == function || is_stub(text, to, function)),
        };
        known.then_some(Self {
            distance,
            through_cell,
        })
    }
}

/// Whether at `at` there is nothing but a jump through a cell that holds `function`: an entry of a PLT.
fn is_stub(text: &Text, at: RunAddr, function: RunAddr) -> bool {
    let mut bytes = [0; MAX_INSTRUCTION_LEN + ENDBR64.len()];
    let Ok(len) = text.read(at, &mut bytes) else {
        return false;
    };
    let code = &bytes[..len];
    let skipped = if code.starts_with(&ENDBR64) {
        ENDBR64.len()
    } else {
        0
    };
    let jump = decode(&code[skipped..]).ok();
    let cell = jump
        .filter(|jump| jump.flow == Flow::IndirectJump && jump.prefixes.segment.is_none())
        .and_then(|jump| jump.rip_offset())
        .map(|offset| at.plus(skipped as u64).plus(offset as u64));
    cell.and_then(|cell| read_word(text, cell)) == Some(function.0)
}

fn read_word(text: &Text, at: RunAddr) -> Option<u64> {
    let mut word = [0; 8];
    (text.read(at, &mut word) == Ok(word.len())).then(|| u64::from_le_bytes(word))
}

/// Calls `visit` with each place from which the function at `hook` was called. `false` if that is no such hook.
pub fn visit_callers(hook: &Installed, mut visit: impl FnMut(Caller)) -> bool {
    let _held = stop::exclusive();
    let Purpose::Callers(callers) = hook.made().purpose else {
        return false;
    };
    for place in callers.places() {
        let return_address = place.return_address.load(Relaxed);
        if return_address != 0 {
            visit(Caller {
                return_address: RunAddr(return_address),
                destination: RunAddr(place.destination.load(Relaxed)),
                in_place: place.field != 0,
            });
        }
    }
    true
}
