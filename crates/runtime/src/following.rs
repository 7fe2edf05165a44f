//! *How is a statically linked program recorded that a recorded process becomes?* — no dynamic linker will preload anything, so the command
//! is asked to map the runtime into it, as it does for a program that it starts itself.
//!
//! ```text
//!   process    connects, says which program of its own the next one is        executes it │ or says that it could not
//!   command    traces it                                          answers     holds it before its first instruction, maps, lets go
//! ```
//!
//! Who gets no answer in time executes the program as it would without us. Nothing is written to memory that a `vfork`ed child shares.

use crate::region::region;
use crate::sys;
use pointee_index::handoff::{NEXT_FAILED, NEXT_TRACED, Next, key};

/// Seconds that are waited for the command, which may be stopped.
const PATIENCE: i64 = 2;

/// The command traces this process.
pub(crate) struct Followed(usize);

/// Asks the command to follow this process into the program that it is about to execute, its `generation`th.
pub(crate) fn ask(generation: u32) -> Option<Followed> {
    let path = region().handoff.path(key::NEXT);
    // Another thread's number goes to the first one when it executes a program.
    if path.is_empty() || sys::gettid() != sys::getpid() {
        return None;
    }
    let socket = sys::sockets::connect_packets(path.as_bytes())?;
    sys::sockets::set_deadlines(socket, PATIENCE);
    let mut answer = [0];
    let is_asked = sys::sockets::send(socket, &Next { generation }.to_bytes());
    if is_asked && sys::sockets::receive(socket, &mut answer) && answer == [NEXT_TRACED] {
        return Some(Followed(socket));
    }
    sys::close(socket);
    None
}

impl Followed {
    /// The program could not be executed.
    pub(crate) fn failed(self) {
        sys::sockets::send(self.0, &[NEXT_FAILED]);
        sys::close(self.0);
    }
}
