//! *Where can one read what generated code is for?* In a listing, one for each piece of code, to which the line tables lead that debuggers are
//! told (`announce.rs`):
//!
//! ```text
//!   /tmp/pointee-code-PID/malloc@hook.7ffff7c21040.lst
//!     1  entry hook of malloc (libc.so.6+0x98850): each call and return is observed
//!     2  push: the hook's record, for the stub
//!     3  jump: to the stub, which calls the observers and comes back to the next line but one
//!     4  no code: what the jump reads, and what is left over
//!     5  displaced: malloc (libc.so.6+0x98850), 41 54
//!     …
//!     8  jump: back to malloc+0x6 (libc.so.6+0x98856)
//! ```
//!
//! A displaced instruction is told by where it comes from: the function by what the dynamic linker exports, the object and how far its first
//! byte is from where the object is loaded, and its bytes as they were. The program's own lines are known to the debugger, under that address.
//!
//! Line tables are always told. Files are written only when they are asked for, one for each hook that is in place, and go with the hook;
//! what a process leaves behind when it ends serves its core file. They are the user's alone, in a folder that is the user's alone.

use core::ffi::CStr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use pointee_model::addr::RunAddr;
use pointee_patch::EntryPlan;
use pointee_patch::arch::x86_64::context::{Action, Context};

use crate::announce::{Announcement, NAME};
use crate::characters::Characters;
use crate::hook::{self, Hook, Made, Purpose};
use crate::lines::What;
use crate::probe::Stack;
use crate::stop;
use crate::sys::{self, Errno, Folder};
use crate::text::Text;
use crate::unwinder;
use crate::wrap;

static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// `/tmp/pointee-code-`, ten digits, a zero.
const FOLDER: usize = 32;
/// A name with its suffix, sixteen digits, `.lst`, a zero.
const FILE: usize = NAME + 28;
/// Two places with names, and what is said of them.
const LINE: usize = 512;

/// From now on each hook has a file that tells what its code is for, `/tmp/pointee-code-PID/NAME@hook.ADDRESS.lst`: those that are in place, and
/// those to come. A debugger's lines in that code lead there.
///
/// # Errors
///
/// [`Errno`]: the folder cannot be made, or is another user's. Nothing is written then, nor later.
pub fn write_listings() -> Result<(), Errno> {
    let _held = stop::exclusive();
    open(sys::process_id())?;
    if !IS_WANTED.swap(true, Relaxed) {
        for hook in hook::in_place().chain(hook::retired()) {
            add(hook);
        }
        add_thunks();
    }
    Ok(())
}

/// Where the listings of a process lie.
pub(crate) fn folder(process: u32) -> Characters<FOLDER> {
    let mut folder = Characters::new();
    folder.put(b"/tmp/pointee-code-");
    folder.decimal(process);
    folder
}

/// The name of the listing of code at `at` with a name of these parts.
pub(crate) fn file(at: RunAddr, name: [&[u8]; 2]) -> Characters<FILE> {
    let mut file = Characters::new();
    for byte in name.into_iter().flatten() {
        let plain = byte.is_ascii_alphanumeric() || b"_.$@".contains(byte);
        file.put(&[if plain { *byte } else { b'_' }]);
    }
    file.put(b".");
    file.hexadecimal(at.0);
    file.put(b".lst");
    file
}

fn open(process: u32) -> Result<Folder, Errno> {
    let mut path = folder(process);
    path.put(b"\0");
    Folder::make(c_str(&path)?)
}

/// Text that ends with a zero.
fn c_str<const ROOM: usize>(text: &Characters<ROOM>) -> Result<&CStr, Errno> {
    CStr::from_bytes_until_nul(text.bytes()).map_err(|_| Errno(22))
}

/// Writes the listing of `hook`, if there is to be one. Under the engine's lock. Names are asked of the dynamic linker, but for relays, which are
/// made at any moment of any thread.
pub(crate) fn add(hook: &Hook) {
    if !IS_WANTED.load(Relaxed) {
        return;
    }
    let announcement = &hook.announcement;
    let made = hook.made();
    write(announcement, |listing| {
        listing.title(made);
        for what in announcement.lines().iter() {
            listing.line(made, what);
        }
    });
}

/// Likewise that of the thunks by which wrapped functions return, if they are there.
pub(crate) fn add_thunks() {
    if IS_WANTED.load(Relaxed) {
        write(wrap::announced(), |listing| {
            listing.say(b"thunks by which wrapped functions return");
            listing.say(
                b"return: through the exit stub, which calls the observers, to where the function was called",
            );
        });
    }
}

/// Takes the listing away that was written when this was announced, by this process. Under the engine's lock.
pub(crate) fn remove(announcement: &Announcement) {
    if !IS_WANTED.load(Relaxed) || announcement.process() != sys::process_id() {
        return;
    }
    if let (Ok(folder), Ok(name)) = (open(announcement.process()), c_str(&name_of(announcement))) {
        folder.remove(name);
    }
}

/// The file's name with a zero behind it.
fn name_of(announcement: &Announcement) -> Characters<FILE> {
    let mut name = file(announcement.at(), [announcement.name(), &[]]);
    name.put(b"\0");
    name
}

/// Who cannot write any more, on a full disk, has fewer or shorter listings.
fn write(announcement: &Announcement, fill: impl FnOnce(&mut Writer)) {
    if announcement.name().is_empty() {
        return;
    }
    let name = name_of(announcement);
    let folder = open(announcement.process());
    if let Ok(file) = folder.and_then(|folder| folder.create(c_str(&name)?)) {
        fill(&mut Writer { file });
    }
}

/// A listing that is being written, line after line.
struct Writer {
    file: sys::File,
}

impl Writer {
    fn say(&mut self, text: &[u8]) {
        let mut line = Line::new();
        line.put(text);
        self.put(line);
    }

    fn put(&mut self, mut line: Line) {
        // A line that was cut ends all the same: the next has its number.
        let _ = self.file.append(line.ended());
    }

    /// What is hooked, and how.
    fn title(&mut self, made: &Made) {
        let mut line = Line::new();
        let entry = |line: &mut Line| {
            line.put(b"entry hook of ");
            line.place(made.target);
        };
        match made.purpose {
            Purpose::Replace(replacement) if made.plan.is_some() => {
                entry(&mut line);
                line.put(b": replaced by ");
                line.place(replacement);
            }
            Purpose::Replace(destination) => {
                line.put(b"hook of the call at ");
                line.place(made.target);
                line.put(b": it goes to ");
                line.place(destination);
            }
            Purpose::Wrap(_) => {
                entry(&mut line);
                line.put(b": each call and return is observed");
            }
            Purpose::Callers(_) => {
                entry(&mut line);
                line.put(b": each call is led away at the place it comes from");
            }
            Purpose::Probe(_) => {
                line.put(b"probe at ");
                line.place(made.target);
            }
            Purpose::Relay(_) => {
                line.put(b"where calls of ");
                line.number(made.original.0);
                line.put(b" are led to");
            }
        }
        self.put(line);
    }

    fn line(&mut self, made: &Made, what: What) {
        let mut line = Line::new();
        match (what, made.purpose) {
            (What::ToReplacement, Purpose::Replace(to)) => {
                line.put(b"jump: to ");
                line.place(to);
            }
            (What::ToReplacement, Purpose::Relay(relay)) => {
                line.put(b"jump: to ");
                line.number(relay.destination.0);
            }
            (What::Push, _) => line.put(b"push: the hook's record, for the stub"),
            (What::ToStub, Purpose::Callers(_)) => {
                line.put(b"jump: to the stub, which asks where this place's calls are to go");
            }
            (What::ToStub, _) => {
                line.put(b"jump: to the stub, which calls the observers and goes on with what was displaced");
            }
            (What::Save, _) => line.put(b"save: what the function may still read"),
            (What::Action(number), Purpose::Probe(stack)) => line.action(&stack, number),
            (What::Restore, _) => line.put(b"restore: what was saved"),
            (What::Displaced(number), _) => line.displaced(made.plan.as_ref(), number),
            (What::Home, _) => {
                line.put(b"jump: back to ");
                if let Some(plan) = &made.plan {
                    line.place(plan.pad_at().plus(u64::from(plan.displaced_len)));
                }
            }
            (What::Data | What::Return | What::ToReplacement | What::Action(_), _) => {
                line.put(b"no code: what the jump reads, and what is left over");
            }
        }
        self.put(line);
    }
}

/// One line; the last character is kept for its end.
struct Line(Characters<LINE>);

impl Line {
    fn new() -> Self {
        Self(Characters::new())
    }

    fn put(&mut self, text: &[u8]) {
        let left = (LINE - 1).saturating_sub(self.0.bytes().len());
        self.0.put(&text[..text.len().min(left)]);
    }

    fn ended(&mut self) -> &[u8] {
        self.0.put(b"\n");
        self.0.bytes()
    }

    fn number(&mut self, number: u64) {
        let mut digits = Characters::<18>::new();
        digits.put(b"0x");
        digits.hexadecimal(number);
        self.put(digits.bytes());
    }

    /// `function+0x12 (object+0x3456)`, as far as the dynamic linker knows.
    fn place(&mut self, at: RunAddr) {
        let Some(symbol) = unwinder::symbol_at(at) else {
            return self.number(at.0);
        };
        let past = |line: &mut Self, from: RunAddr| {
            if at != from {
                line.put(b"+");
                line.number(at.0.wrapping_sub(from.0));
            }
        };
        if let Some((name, start)) = symbol.function {
            self.put(name);
            past(self, start);
            self.put(b" (");
        }
        let folders = symbol.object.iter().rposition(|byte| *byte == b'/');
        self.put(&symbol.object[folders.map_or(0, |slash| slash + 1)..]);
        past(self, symbol.loaded_at);
        if symbol.function.is_some() {
            self.put(b")");
        }
    }

    fn action(&mut self, stack: &Stack, number: u8) {
        match stack.action(usize::from(number)) {
            Some(Action::Count { cell, shared }) => {
                self.put(b"count: the word at ");
                self.number(cell.0);
                if shared {
                    self.put(b", with other threads");
                }
            }
            Some(Action::Call {
                handler,
                data,
                context,
            }) => {
                self.put(b"call: ");
                self.place(handler);
                self.put(b" with ");
                self.number(data);
                self.put(match context {
                    Context::Nothing => b", nothing saved",
                    Context::General => b", general registers saved",
                    Context::Everything => b", everything saved",
                });
            }
            None => {}
        }
    }

    fn displaced(&mut self, plan: Option<&EntryPlan>, number: u8) {
        let landings = plan.map_or(&[][..], EntryPlan::landings);
        let (Some(plan), Some(landing)) = (plan, landings.get(usize::from(number))) else {
            return;
        };
        let start = usize::from(landing.original);
        let next = landings.get(usize::from(number) + 1);
        let end = next.map_or(plan.displaced_len, |next| next.original);
        let at = plan.pad_at().plus(start as u64);
        self.put(b"displaced: ");
        self.place(at);
        self.put(b",");
        // What lies behind the pad is still there.
        let mut bytes = [0; 16];
        let len = usize::from(end).saturating_sub(start).min(bytes.len());
        let read = Text::open().and_then(|text| text.read(at, &mut bytes[..len]));
        for (number, byte) in bytes[..read.unwrap_or(0).min(len)].iter().enumerate() {
            let before = plan.original.get(start + number);
            let mut digits = Characters::<3>::new();
            digits.put(b" ");
            digits.byte(*before.unwrap_or(byte));
            self.put(digits.bytes());
        }
    }
}
