//! *Which system calls does the engine make?* — all of them are here.
//!
//! Raw, because the program's libc has an errno and locks of its own, a stopped thread may hold one of those locks, and
//! the code being patched may be libc's.

#![allow(unsafe_code)] // System calls are made by hand.

use core::arch::asm;
use core::ffi::CStr;
use core::sync::atomic::AtomicU32;

/// What the kernel answered: a positive `errno`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub u16);

impl Errno {
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const NOT_PERMITTED: Self = Self(1);
    pub(crate) const NO_PROCESS: Self = Self(3);
}

macro_rules! numbers {
    ($($name:ident = $number:literal),+ $(,)?) => { $(const $name: usize = $number;)+ };
}

// arch/x86/entry/syscalls/syscall_64.tbl
numbers! {
    READ = 0, WRITE = 1, CLOSE = 3, FSTAT = 5, LSEEK = 8, MMAP = 9, MPROTECT = 10, MUNMAP = 11, RT_SIGACTION = 13, RT_SIGPROCMASK = 14,
    PREAD64 = 17, PWRITE64 = 18, GETPID = 39, GETTID = 186, FUTEX = 202, GETDENTS64 = 217, CLOCK_GETTIME = 228,
    MKDIR = 83, GETEUID = 107, TGKILL = 234, OPENAT = 257, UNLINKAT = 263, RT_TGSIGQUEUEINFO = 297, MEMBARRIER = 324,
}

/// # Safety
/// The call with these arguments must not break memory this program relies on.
#[inline(always)]
unsafe fn call(number: usize, a: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    match result {
        -4095..=-1 => Err(Errno(result.unsigned_abs() as u16)),
        _ => Ok(result as usize),
    }
}

/// A descriptor of ours, closed when dropped.
#[derive(Debug)]
pub(crate) struct File(usize);

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours.
        let _ = unsafe { call(CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}

impl File {
    /// Opens a path; close-on-exec.
    pub(crate) fn open(path: &CStr, write: bool) -> Result<Self, Errno> {
        const AT_FDCWD: isize = -100;
        const O_RDWR: usize = 2;
        const O_CLOEXEC: usize = 0o2_000_000;
        let flags = O_CLOEXEC | if write { O_RDWR } else { 0 };
        let path = path.as_ptr() as usize;
        // SAFETY: reads the path.
        unsafe { call(OPENAT, [AT_FDCWD as usize, path, flags, 0, 0, 0]) }.map(Self)
    }

    /// Opens a file to write at its end, for the user alone if it is new; not through a symbolic link at its end.
    pub(crate) fn open_to_append(path: &CStr) -> Result<Self, Errno> {
        const AT_FDCWD: isize = -100;
        // O_WRONLY, O_CREAT, O_APPEND, O_NOFOLLOW, O_CLOEXEC
        const FLAGS: usize = 0o1 | 0o100 | 0o2000 | 0o400_000 | 0o2_000_000;
        let path = path.as_ptr() as usize;
        // SAFETY: reads the path.
        unsafe { call(OPENAT, [AT_FDCWD as usize, path, FLAGS, 0o600, 0, 0]) }.map(Self)
    }

    /// Writes behind what is there, as much as the kernel takes.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<(), Errno> {
        let (at, len) = (bytes.as_ptr() as usize, bytes.len());
        // SAFETY: reads `bytes`; the file is one that was opened to be written.
        unsafe { call(WRITE, [self.0, at, len, 0, 0, 0]) }.map(|_| ())
    }

    /// Reads from where the file stands.
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let (at, len) = (into.as_mut_ptr() as usize, into.len());
        // SAFETY: writes into `into` only.
        unsafe { call(READ, [self.0, at, len, 0, 0, 0]) }
    }

    /// Reads at `offset`.
    pub(crate) fn read_at(&self, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let (at, len) = (into.as_mut_ptr() as usize, into.len());
        // SAFETY: writes into `into` only.
        unsafe { call(PREAD64, [self.0, at, len, offset as usize, 0, 0]) }
    }

    /// Writes at `offset`.
    ///
    /// # Safety
    /// In `/proc/self/mem` the offset is an address: writing these bytes there breaks nothing.
    pub(crate) unsafe fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
        let (at, len) = (bytes.as_ptr() as usize, bytes.len());
        // SAFETY: the caller's promise.
        unsafe { call(PWRITE64, [self.0, at, len, offset as usize, 0, 0]) }
    }

    /// Entries of an open directory, as `struct linux_dirent64`.
    pub(crate) fn entries(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let (at, len) = (into.as_mut_ptr() as usize, into.len());
        // SAFETY: writes into `into` only.
        unsafe { call(GETDENTS64, [self.0, at, len, 0, 0, 0]) }
    }

    /// Goes back to the first byte or entry.
    pub(crate) fn rewind(&self) -> Result<(), Errno> {
        // SAFETY: touches no memory.
        unsafe { call(LSEEK, [self.0, 0, 0, 0, 0, 0]) }.map(|_| ())
    }

    /// The number of links to it: of a directory in `/proc`, two and its folders.
    pub(crate) fn links(&self) -> Result<u64, Errno> {
        let mut stat = [0_u64; 18];
        // SAFETY: a struct stat is 144 bytes.
        unsafe { call(FSTAT, [self.0, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
        Ok(stat[2])
    }
}

/// A folder of the user's, open.
#[derive(Debug)]
pub(crate) struct Folder(File);

impl Folder {
    /// Opens the folder at `path`; makes it, for the user alone, if there is nothing. Refused is one of another user's, or a link.
    pub(crate) fn make(path: &CStr) -> Result<Self, Errno> {
        const AT_FDCWD: isize = -100;
        // O_DIRECTORY, O_NOFOLLOW, O_CLOEXEC
        const FLAGS: usize = 0o200_000 | 0o400_000 | 0o2_000_000;
        let path = path.as_ptr() as usize;
        // SAFETY: reads the path, and fills a struct stat of 144 bytes.
        unsafe {
            // What is wrong with it shows when it is opened.
            let _ = call(MKDIR, [path, 0o700, 0, 0, 0, 0]);
            let opened = call(OPENAT, [AT_FDCWD as usize, path, FLAGS, 0, 0, 0])?;
            let folder = File(opened);
            let mut stat = [0_u64; 18];
            call(FSTAT, [folder.0, stat.as_mut_ptr() as usize, 0, 0, 0, 0])?;
            let owner = (stat[3] >> 32) as usize;
            match call(GETEUID, [0; 6]) {
                Ok(user) if user == owner => Ok(Self(folder)),
                _ => Err(Errno::NOT_PERMITTED),
            }
        }
    }

    /// A new file in it, for the user alone, to be written at its end. One that has this name goes.
    pub(crate) fn create(&self, name: &CStr) -> Result<File, Errno> {
        // O_WRONLY, O_CREAT, O_EXCL, O_APPEND, O_CLOEXEC
        const FLAGS: usize = 0o1 | 0o100 | 0o200 | 0o2000 | 0o2_000_000;
        self.remove(name);
        let name = name.as_ptr() as usize;
        // SAFETY: reads the name.
        unsafe { call(OPENAT, [self.0.0, name, FLAGS, 0o600, 0, 0]) }.map(File)
    }

    /// Takes the file with this name out of it, if there is one.
    pub(crate) fn remove(&self, name: &CStr) {
        // SAFETY: reads the name.
        let _ = unsafe { call(UNLINKAT, [self.0.0, name.as_ptr() as usize, 0, 0, 0, 0]) };
    }
}

/// `MAP_*` and `PROT_*` (asm-generic/mman-common.h).
pub(crate) mod map {
    pub(crate) const READ: usize = 1;
    pub(crate) const WRITE: usize = 2;
    pub(crate) const EXEC: usize = 4;
}

/// New private pages where the kernel likes, or exactly at `hint`.
pub(crate) fn map_pages(hint: Option<u64>, len: usize, protection: usize) -> Result<u64, Errno> {
    const PRIVATE_ANONYMOUS: usize = 0x22;
    const FIXED_NOREPLACE: usize = 0x10_0000;
    let flags = PRIVATE_ANONYMOUS | if hint.is_some() { FIXED_NOREPLACE } else { 0 };
    let at = hint.unwrap_or(0) as usize;
    // SAFETY: without MAP_FIXED no mapping is replaced.
    unsafe { call(MMAP, [at, len, protection, flags, usize::MAX, 0]) }.map(|at| at as u64)
}

/// Gives pages back.
///
/// # Safety
/// `[at, at + len)` is a mapping of ours that nobody uses any more.
pub(crate) unsafe fn unmap_pages(at: u64, len: usize) {
    // SAFETY: the caller's promise. It cannot fail on a whole mapping.
    let _ = unsafe { call(MUNMAP, [at as usize, len, 0, 0, 0, 0]) };
}

/// Changes what may be done with pages.
///
/// # Safety
/// Nobody relies on what is taken away.
pub(crate) unsafe fn protect_pages(at: u64, len: usize, protection: usize) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { call(MPROTECT, [at as usize, len, protection, 0, 0, 0]) }.map(|_| ())
}

/// `struct sigaction` as the kernel takes it.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Disposition {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

/// Exchanges what is done at `signal`.
///
/// # Safety
/// `new` names a handler that may run at any instruction of any thread.
pub(crate) unsafe fn exchange_disposition(
    signal: u32,
    new: &Disposition,
) -> Result<Disposition, Errno> {
    let mut old = Disposition::default();
    let (new, old_at) = (core::ptr::from_ref(new) as usize, (&raw mut old) as usize);
    // SAFETY: reads one structure, writes the other; the rest is the caller's promise.
    unsafe { call(RT_SIGACTION, [signal as usize, new, old_at, 8, 0, 0]) }?;
    Ok(old)
}

/// Sets this thread's mask of blocked signals; the answer is the one before.
pub(crate) fn exchange_mask(mask: u64) -> u64 {
    const SIG_SETMASK: usize = 2;
    let mut old = 0_u64;
    let (new, old_at) = ((&raw const mask) as usize, (&raw mut old) as usize);
    // SAFETY: reads and writes locals. With valid arguments it does not fail.
    let _ = unsafe { call(RT_SIGPROCMASK, [SIG_SETMASK, new, old_at, 8, 0, 0]) };
    old
}

/// The part of `siginfo_t` that a queued signal fills.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalInfo {
    pub(crate) signal: u32,
    pub(crate) error: u32,
    pub(crate) code: i32,
    pub(crate) _unused: u32,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) value: u64,
    pub(crate) _rest: [u64; 12],
}

/// Sends a signal with its information to one thread of this process.
pub(crate) fn queue_signal(pid: u32, tid: u32, info: &SignalInfo) -> Result<(), Errno> {
    let (pid, tid, signal) = (pid as usize, tid as usize, info.signal as usize);
    let info = core::ptr::from_ref(info) as usize;
    // SAFETY: reads the structure, which is as large as siginfo_t.
    unsafe { call(RT_TGSIGQUEUEINFO, [pid, tid, signal, info, 0, 0]) }.map(|_| ())
}

/// Whether this process has a thread `tid`, if only one that has ended and was not waited for.
pub(crate) fn has_thread(pid: u32, tid: u32) -> bool {
    // SAFETY: signal 0 is sent to nobody.
    let sent = unsafe { call(TGKILL, [pid as usize, tid as usize, 0, 0, 0, 0]) };
    sent != Err(Errno::NO_PROCESS)
}

/// Process id.
pub(crate) fn process_id() -> u32 {
    // SAFETY: touches no memory.
    unsafe { call(GETPID, [0; 6]) }.unwrap_or(0) as u32
}

/// Thread id.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: touches no memory.
    unsafe { call(GETTID, [0; 6]) }.unwrap_or(0) as u32
}

/// Sleeps while `*word == value`, `timeout_ns` at most.
pub(crate) fn wait_on(word: &AtomicU32, value: u32, timeout_ns: u64) {
    const WAIT_PRIVATE: usize = 128;
    let timeout = [timeout_ns / 1_000_000_000, timeout_ns % 1_000_000_000];
    let (word, timeout) = (word.as_ptr() as usize, timeout.as_ptr() as usize);
    // SAFETY: reads the word and the timeout. Why it returned does not matter: callers look again.
    let _ = unsafe { call(FUTEX, [word, WAIT_PRIVATE, value as usize, timeout, 0, 0]) };
}

/// Wakes all that sleep on `word`.
pub(crate) fn wake_all(word: &AtomicU32) {
    const WAKE_PRIVATE: usize = 129;
    let word = word.as_ptr() as usize;
    // SAFETY: touches nothing but the word's wait queue.
    let _ = unsafe { call(FUTEX, [word, WAKE_PRIVATE, i32::MAX as usize, 0, 0, 0]) };
}

/// Nanoseconds of the monotonic clock.
pub(crate) fn now() -> u64 {
    const MONOTONIC: usize = 1;
    let mut time = [0_u64; 2];
    // SAFETY: writes a struct timespec.
    let _ = unsafe {
        call(
            CLOCK_GETTIME,
            [MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0, 0],
        )
    };
    time[0] * 1_000_000_000 + time[1]
}

const REGISTER_SYNC_CORE: usize = 64;
const SYNC_CORE: usize = 32;

/// Whether [`synchronize_cores`] does what it says (Linux 4.16).
pub(crate) fn can_synchronize_cores() -> bool {
    // SAFETY: touches no memory.
    unsafe { call(MEMBARRIER, [REGISTER_SYNC_CORE, 0, 0, 0, 0, 0]) }.is_ok()
}

/// Has every running thread of the process forget instructions that it fetched ahead. Where the kernel cannot, threads
/// that return from a signal handler do so anyway, by `iret`.
pub(crate) fn synchronize_cores() {
    // SAFETY: touches no memory.
    unsafe {
        if call(MEMBARRIER, [SYNC_CORE, 0, 0, 0, 0, 0]).is_err() {
            let _ = call(MEMBARRIER, [REGISTER_SYNC_CORE, 0, 0, 0, 0, 0]);
            let _ = call(MEMBARRIER, [SYNC_CORE, 0, 0, 0, 0, 0]);
        }
    }
}
