//! *How are packets sent and received?* — at sockets of the session, with the files that go with them.

#![allow(unsafe_code)] // System calls are made by hand.

use super::{CONNECT, RECVFROM, RECVMSG, SENDMSG, SENDTO, SETSOCKOPT, call, close, socket};
use core::cell::UnsafeCell;

const EINTR: isize = -4;
const MSG_NOSIGNAL: usize = 0x4000;

/// Has sending at socket `fd`, and receiving from it, fail rather than wait for longer than `seconds`.
pub(crate) fn set_deadlines(fd: usize, seconds: i64) {
    const SO_RCVTIMEO: usize = 20;
    const SO_SNDTIMEO: usize = 21;
    let time = [seconds, 0];
    for option in [SO_SNDTIMEO, SO_RCVTIMEO] {
        let time = time.as_ptr() as usize;
        // SAFETY: reads sixteen bytes.
        unsafe { call(SETSOCKOPT, [fd, SOL_SOCKET as usize, option, time, 16, 0]) };
    }
}

/// Sends a packet, without SIGPIPE. `false` if that failed.
pub(crate) fn send(fd: usize, bytes: &[u8]) -> bool {
    let (at, len) = (bytes.as_ptr() as usize, bytes.len());
    // SAFETY: reads the bytes.
    let sent = unsafe { call(SENDTO, [fd, at, len, MSG_NOSIGNAL, 0, 0]) };
    sent == len as isize
}

/// Receives a packet of exactly `bytes.len()` bytes. `false` if none came, or another one.
pub(crate) fn receive(fd: usize, bytes: &mut [u8]) -> bool {
    let (at, len) = (bytes.as_mut_ptr() as usize, bytes.len());
    loop {
        // SAFETY: writes the bytes.
        let received = unsafe { call(RECVFROM, [fd, at, len, 0, 0, 0]) };
        if received != EINTR {
            return received == len as isize;
        }
    }
}

/// `sendmsg` with a prepared header, without SIGPIPE.
///
/// # Safety
/// `message` is a `struct msghdr` whose pointers are valid.
pub(crate) unsafe fn sendmsg(fd: usize, message: *const u8) -> isize {
    // SAFETY: the caller's promise.
    unsafe { call(SENDMSG, [fd, message as usize, MSG_NOSIGNAL, 0, 0, 0]) }
}

/// A `struct msghdr` (bits/socket.h).
#[repr(C)]
struct Message {
    name: usize,
    name_len: u32,
    parts: *const [usize; 2],
    parts_len: usize,
    control: *const Control,
    control_len: usize,
    flags: u32,
}

/// A `struct cmsghdr` with at most two descriptors.
#[repr(C)]
struct Control {
    len: usize,
    level: u32,
    kind: u32,
    fds: [i32; 2],
}

const SOL_SOCKET: u32 = 1;
const SCM_RIGHTS: u32 = 1;

/// A connection to the sequenced-packet socket at `path`.
pub(crate) fn connect_packets(path: &[u8]) -> Option<usize> {
    const AF_UNIX: u16 = 1;
    const SOCK_SEQPACKET: usize = 5;
    const SOCK_CLOEXEC: usize = 0o2_000_000;
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    let mut address = Address {
        family: AF_UNIX,
        path: [0; 108],
    };
    address.path[..107]
        .get_mut(..path.len())?
        .copy_from_slice(path);
    let fd = usize::try_from(socket(AF_UNIX as usize, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)).ok()?;
    // SAFETY: reads a local.
    let connected = unsafe {
        call(
            CONNECT,
            [
                fd,
                (&raw const address) as usize,
                size_of::<Address>(),
                0,
                0,
                0,
            ],
        )
    };
    if connected < 0 {
        close(fd);
        return None;
    }
    Some(fd)
}

/// Sends `parts` as one packet, with the open file `file`.
pub(crate) fn send_with_file(fd: usize, parts: [&[u8]; 2], file: usize) -> bool {
    let parts = parts.map(|part| [part.as_ptr() as usize, part.len()]);
    let control = Control {
        len: 20,
        level: SOL_SOCKET,
        kind: SCM_RIGHTS,
        fds: [file as i32, 0],
    };
    let message = Message {
        name: 0,
        name_len: 0,
        parts: parts.as_ptr(),
        parts_len: parts.len(),
        control: &raw const control,
        control_len: size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: all pointers in the message are to locals that are alive.
    unsafe { sendmsg(fd, (&raw const message).cast()) > 0 }
}

/// Receives a packet of exactly `bytes.len()` bytes, and the two files that come with it.
pub(crate) fn receive_with_files(fd: usize, bytes: &mut [u8]) -> Option<[usize; 2]> {
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    let parts = [bytes.as_mut_ptr() as usize, bytes.len()];
    let control = UnsafeCell::new(Control {
        len: 0,
        level: 0,
        kind: 0,
        fds: [-1; 2],
    });
    let mut message = Message {
        name: 0,
        name_len: 0,
        parts: &raw const parts,
        parts_len: 1,
        control: control.get(),
        control_len: size_of::<Control>(),
        flags: 0,
    };
    let received = loop {
        // SAFETY: all pointers in the message are to locals that are alive.
        let received = unsafe {
            call(
                RECVMSG,
                [fd, (&raw mut message) as usize, MSG_CMSG_CLOEXEC, 0, 0, 0],
            )
        };
        if received != EINTR {
            break received;
        }
    };
    let control = control.into_inner();
    let both = control.len == 24 && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS;
    if received != bytes.len() as isize || !both {
        return None;
    }
    let [first, second] = control.fds.map(|fd| usize::try_from(fd).ok());
    Some([first?, second?])
}
