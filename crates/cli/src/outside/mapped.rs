//! *How does a process get memory for the copies and their counters?* One of its tasks maps it, while all stand: each call takes two
//! turns of that task, so there are few. The counters of all objects are one memory file, which is opened here too.

use super::Refused;
use super::calls::Calls;
use super::object::Object;
use super::space::{self, Mapping, Memory};
use anyhow::{Context, Result};
use libc::user_regs_struct;
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// How counters are called in `/proc/PID/maps`.
const NAME: &[u8] = b"pointee-counters\0";

/// One object's counters: a part of a memory file of the process.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) file: Rc<File>,
    from: u64,
    len: usize,
}

impl Counters {
    /// As they are now.
    pub(super) fn counts(&self) -> Vec<u64> {
        let mut bytes = vec![0; self.len];
        if self.file.read_exact_at(&mut bytes, self.from).is_err() {
            return Vec::new();
        }
        super::object::words(&bytes).collect()
    }
}

/// Makes islands and counters for `objects`.
pub(super) fn give_memory(
    pid: Pid,
    objects: &mut Vec<Object>,
    refused: &mut Vec<Refused>,
    threads: &[(Pid, user_regs_struct)],
    memory: &Memory,
) -> Result<()> {
    let (task, _) = threads.first().context("the process has ended")?;
    let mut mappings = space::mappings(pid)?;
    let syscall = memory
        .find_syscall(&mappings)
        .context("no code that makes system calls")?;
    let mut calls = Calls::begin(*task, syscall)?;
    let mut made = Vec::new();
    let mut rooms = Vec::new();
    for object in std::mem::take(objects) {
        match space::room(&mappings, &object.range, object.len()) {
            Some(at) => {
                mappings.push(Mapping::unnamed(at..at + object.len()));
                rooms.push(at);
                made.push(object);
            }
            None => refused.push(Refused {
                path: object.path,
                plan: object.plan,
                why: "no room for the copies near it",
            }),
        }
    }
    if made.is_empty() {
        return Ok(());
    }
    let filled = fill(pid, &mut calls, &mut made, &rooms, memory);
    if filled.is_err() {
        for object in made.iter().filter(|object| object.island != 0) {
            let _ = calls.call(libc::SYS_munmap, [object.island, object.len(), 0, 0, 0, 0]);
        }
    }
    let file = Rc::new(filled?);
    let mut from = 0;
    for object in &mut made {
        let len = object.header.counters_len();
        object.counters = Some(Counters {
            file: Rc::clone(&file),
            from,
            len,
        });
        from += len as u64;
    }
    *objects = made;
    Ok(())
}

/// Maps islands and counters in their `rooms`, and writes the islands. The answer: the file of the counters.
fn fill(
    pid: Pid,
    calls: &mut Calls,
    objects: &mut [Object],
    rooms: &[u64],
    memory: &Memory,
) -> Result<File> {
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    for (object, room) in objects.iter_mut().zip(rooms) {
        let arguments = [
            *room,
            object.header.island_len,
            executable as u64,
            anonymous as u64,
            u64::MAX,
            0,
        ];
        object.island = calls.call(libc::SYS_mmap, arguments)?;
    }
    let first = objects.first().context("nothing to map")?.island;
    // Not written yet.
    memory.write(first, NAME)?;
    let flags = u64::from(libc::MFD_CLOEXEC);
    let fd = calls.call(libc::SYS_memfd_create, [first, flags, 0, 0, 0, 0])?;
    let file = give_counters(pid, calls, objects, fd);
    calls.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
    for object in objects {
        let bytes = object.island_bytes().context("out of reach")?;
        memory.write(object.island, &bytes)?;
    }
    file
}

/// Maps the counters behind each island.
fn give_counters(pid: Pid, calls: &mut Calls, objects: &[Object], fd: u64) -> Result<File> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let file = File::options().read(true).write(true).open(&path);
    let file = file.context(path)?;
    let lens = objects.iter().map(|object| object.header.counters_len());
    file.set_len(lens.sum::<usize>() as u64)?;
    let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE) as u64;
    let mut from = 0;
    for object in objects {
        let at = object.island + object.header.island_len;
        let len = object.header.counters_len() as u64;
        calls.call(libc::SYS_mmap, [at, len, access, flags, fd, from])?;
        from += len;
    }
    Ok(file)
}
