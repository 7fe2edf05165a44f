//! *How is the program started, so that it cannot tell?*
//!
//! Forked and executed directly: same process group, terminal, descriptors, signal mask and
//! dispositions as this process was given itself. Only two variables are added to its environment
//! ([`pointee_index::handoff`]), which the runtime takes out again; none for a statically linked program, which the runtime is
//! mapped into while it stands before its first instruction. Where that fails it is killed there and started anew without.

#![allow(unsafe_code)] // fork, and what the child does between fork and exec.

use crate::outside::{Held, Mapped};
use crate::program::{self, NotRunnable};
use crate::session::Session;
use crate::supervise::Signals;
use crate::{start_state, tracked};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::{ForkResult, Pid};
use pointee_index::handoff::{SEPARATOR, VARIABLE, key};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What the runtime is told.
#[derive(Debug)]
pub(crate) struct HandOff<'a> {
    /// The session's socket.
    pub(crate) socket: &'a Path,
    /// The socket where the command is asked to follow into statically linked programs, if it does.
    pub(crate) next: Option<&'a Path>,
    /// Folder of images, if there is one.
    pub(crate) images: Option<&'a Path>,
    /// The user's cache of images, if there is one.
    pub(crate) cache: Option<&'a Path>,
    /// Whether descendants are recorded.
    pub(crate) follow: bool,
    /// Whether single blocks are asked for after the end of their process.
    pub(crate) blocks_outlive: bool,
    /// Whether the blocks at the highest point are wanted.
    pub(crate) peak: bool,
    /// The runtime's own path.
    pub(crate) runtime: &'a Path,
    /// The socket where placements are asked for, if probes are wanted instead of a record.
    pub(crate) probes: Option<&'a Path>,
}

/// The environment `variables` with the runtime's two variables added at the end.
pub(crate) fn environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
    handoff: &HandOff<'_>,
) -> Vec<OsString> {
    let mut environment = Vec::new();
    let mut before = None;
    for (name, value) in variables {
        if name == VARIABLE {
            continue;
        }
        environment.push(assignment(&name, &value));
        if name == "LD_PRELOAD" {
            before = Some(value);
        }
    }
    let mut preload = handoff.runtime.as_os_str().to_owned();
    if let Some(before) = before {
        preload.push(":");
        preload.push(before);
    }
    environment.push(assignment("LD_PRELOAD", preload));
    let text = hand_off_text(handoff);
    environment.push(assignment(VARIABLE, OsString::from_vec(text)));
    environment
}

/// What the runtime reads.
pub(crate) fn hand_off_text(handoff: &HandOff<'_>) -> Vec<u8> {
    let follow = if handoff.follow { "1" } else { "0" };
    let mut fields: Vec<(&str, &OsStr)> = vec![
        (key::SOCKET, handoff.socket.as_os_str()),
        (key::RUNTIME, handoff.runtime.as_os_str()),
        (key::FOLLOW, OsStr::new(follow)),
        (key::GENERATION, OsStr::new("0")),
    ];
    if let Some(next) = handoff.next {
        fields.push((key::NEXT, next.as_os_str()));
    }
    if let Some(images) = handoff.images {
        fields.push((key::IMAGES, images.as_os_str()));
    }
    if !handoff.blocks_outlive && may_be_private() {
        fields.push((key::BLOCKS, OsStr::new("live")));
    }
    if let Some(cache) = handoff.cache {
        fields.push((key::CACHE, cache.as_os_str()));
    }
    if handoff.peak {
        fields.push((key::PEAK, OsStr::new("1")));
    }
    if let Some(probes) = handoff.probes {
        fields.push((key::PROBES, probes.as_os_str()));
    }
    let mut text = Vec::new();
    for (name, value) in fields {
        if !text.is_empty() {
            text.push(SEPARATOR);
        }
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend_from_slice(value.as_bytes());
    }
    text
}

/// The same `text` for a program before which `generation` others were executed in its process.
pub(crate) fn with_generation(text: &[u8], generation: u32) -> Vec<u8> {
    let name = format!("{}=", key::GENERATION).into_bytes();
    let fields = text.split(|byte| *byte == SEPARATOR).map(|field| {
        if field.starts_with(&name) {
            format!("{}={generation}", key::GENERATION).into_bytes()
        } else {
            field.to_vec()
        }
    });
    fields.collect::<Vec<_>>().join(&SEPARATOR)
}

/// Whether part of an index may be private memory of its process: others of the user's processes may read that, and memory that
/// is reserved and not used counts for nothing (Documentation/admin-guide/LSM/Yama.rst, admin-guide/sysctl/vm.rst).
fn may_be_private() -> bool {
    let setting = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let scope = setting("/proc/sys/kernel/yama/ptrace_scope");
    let is_readable = matches!(scope.trim_end(), "" | "0") || nix::unistd::geteuid().is_root();
    is_readable && setting("/proc/sys/vm/overcommit_memory").trim_end() != "2"
}

/// `NAME=value`.
pub(crate) fn assignment(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> OsString {
    let mut text = name.as_ref().to_owned();
    text.push("=");
    text.push(value);
    text
}

/// What is given to the child of what this process was given.
#[derive(Debug)]
pub(crate) struct Inheritance {
    /// The signal mask at start.
    pub(crate) mask: SigSet,
    /// The limit of open files at start: soft, hard.
    pub(crate) files: (libc::rlim_t, libc::rlim_t),
}

impl Inheritance {
    /// What this process was given itself; it raises its own limit of open files to track many processes.
    pub(crate) fn of(signals: &Signals) -> anyhow::Result<Self> {
        Ok(Self {
            mask: *signals.mask_before(),
            files: tracked::raise_file_limit()?,
        })
    }
}

/// What is to be started.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) path: &'a Path,
    pub(crate) arguments: &'a [OsString],
    pub(crate) environment: &'a [OsString],
    /// The runtime is to be mapped into it.
    pub(crate) mapped: Option<Mapped>,
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Pid,
    /// Why the runtime was not mapped into it, though it was to be.
    pub(crate) unmapped: Option<String>,
}

/// As [`start`]; where the program does not start, `session` is closed and this process ends as a shell does
/// then, with status 126 or 127.
pub(crate) fn start_or_end(
    what: &Start<'_>,
    inheritance: &Inheritance,
    session: Session,
) -> (Session, Started) {
    let error = match start(what, inheritance) {
        Ok(started) => return (session, started),
        Err(error) => error,
    };
    drop(session);
    let name = &what.arguments[0];
    if matches!(error, Errno::ENOENT | Errno::ENOTDIR) {
        program::end_not_runnable(name, NotRunnable::NotFound)
    }
    eprintln!("pointee: {}: {}", name.display(), error.desc());
    std::process::exit(126)
}

/// Starts the program. `Err` carries the reason why `execve` failed.
fn start(what: &Start<'_>, inheritance: &Inheritance) -> Result<Started, Errno> {
    let mut unmapped = None;
    if let Some(mapped) = &what.mapped {
        let forked = fork(what, inheritance, true)?;
        let child = forked.child;
        match start_mapped(forked, mapped) {
            Ok(()) => return Ok(Started { child, unmapped }),
            Err(error) => unmapped = Some(format!("{error:#}")),
        }
        // Not one instruction of the program has run; or it could not be executed at all, which is told below.
        let _ = kill(child, Signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(child, None);
    }
    let mut forked = fork(what, inheritance, false)?;
    let child = forked.child;
    let mut errno = [0; 4];
    // The pipe closes without a word when exec succeeds.
    match forked.failure.read_exact(&mut errno) {
        Err(_) => Ok(Started { child, unmapped }),
        Ok(()) => {
            let _ = nix::sys::wait::waitpid(child, None);
            Err(Errno::from_raw(i32::from_ne_bytes(errno)))
        }
    }
}

/// Starts the program, and holds it before its first instruction.
pub(crate) fn start_held(what: &Start<'_>, inheritance: &Inheritance) -> anyhow::Result<Held> {
    held(fork(what, inheritance, true)?)
}

fn held(forked: Forked) -> anyhow::Result<Held> {
    let held = Held::seize(forked.child)?;
    if let Some(mut gate) = forked.gate {
        gate.write_all(&[1])?;
    }
    held.until_program()
}

/// Lets the process execute the program, and maps the runtime into that before it begins.
fn start_mapped(forked: Forked, mapped: &Mapped) -> anyhow::Result<()> {
    held(forked)?.load(mapped)
}

/// A process that will execute the program, once it is let through its gate if it has one; and the pipe by which it tells why it could not.
struct Forked {
    child: Pid,
    gate: Option<File>,
    failure: File,
}

fn fork(what: &Start<'_>, inheritance: &Inheritance, with_gate: bool) -> Result<Forked, Errno> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
    let all = |texts: &[OsString]| -> Result<Vec<CString>, Errno> {
        texts.iter().map(|text| c_string(text)).collect()
    };
    let path = c_string(what.path.as_os_str())?;
    let arguments = all(what.arguments)?;
    let environment = all(what.environment)?;
    let argv = pointers(&arguments);
    let envp = pointers(&environment);
    // For a file of no known format: `/bin/sh file arguments…`, as execvp does.
    let shell = c"/bin/sh";
    let mut shell_argv = vec![shell.as_ptr(), path.as_ptr()];
    shell_argv.extend(argv.iter().skip(1));

    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    let (failure, said) = pipe()?;
    let gate = if with_gate { Some(pipe()?) } else { None };
    // SAFETY: this process has one thread here, and the child calls only what is safe after fork.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            restore(inheritance);
            if let Some((gate, opened)) = gate {
                drop(opened);
                let mut byte = [0u8];
                // SAFETY: one byte of a local is written; without it the command is no more.
                unsafe {
                    if libc::read(gate.as_raw_fd(), byte.as_mut_ptr().cast(), 1) != 1 {
                        libc::_exit(127)
                    }
                }
            }
            // SAFETY: NULL-terminated arrays of C strings that live until exec.
            let errno = unsafe {
                libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr());
                if Errno::last() == Errno::ENOEXEC {
                    libc::execve(shell.as_ptr(), shell_argv.as_ptr(), envp.as_ptr());
                }
                Errno::last_raw()
            };
            let bytes = errno.to_ne_bytes();
            // SAFETY: writes four bytes of a local, then ends without running destructors.
            unsafe {
                libc::write(said.as_raw_fd(), bytes.as_ptr().cast(), bytes.len());
                libc::_exit(127)
            }
        }
        ForkResult::Parent { child } => Ok(Forked {
            child,
            gate: gate.map(|(_, opened)| File::from(opened)),
            failure: File::from(failure),
        }),
    }
}

fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    let mut pointers: Vec<_> = texts.iter().map(|text| CStr::as_ptr(text)).collect();
    pointers.push(std::ptr::null());
    pointers
}

/// Undoes in the child what this process did to itself.
fn restore(inheritance: &Inheritance) {
    start_state::restore_internal_signals();
    // SAFETY: async-signal-safe calls with valid arguments.
    unsafe {
        if !start_state::was_pipe_ignored() {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        }
        let files = libc::rlimit {
            rlim_cur: inheritance.files.0,
            rlim_max: inheritance.files.1,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        for fd in 0..3 {
            if start_state::was_closed(fd) {
                libc::close(fd as i32);
            }
        }
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&inheritance.mask), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &[(&str, &str)], expect: &[&str]) {
        let handoff = HandOff {
            socket: Path::new("/s"),
            next: None,
            images: None,
            cache: None,
            follow: true,
            blocks_outlive: true,
            peak: false,
            runtime: Path::new("/r.so"),
            probes: None,
        };
        let given = given
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        let made = environment(given, &handoff);
        let expect: Vec<OsString> = expect.iter().map(OsString::from).collect();
        assert_eq!(made, expect);
    }

    #[test]
    fn only_the_generation_differs() {
        let text = b"socket=/s\x1fgeneration=0\x1fpeak=1";
        assert_eq!(
            with_generation(text, 12),
            b"socket=/s\x1fgeneration=12\x1fpeak=1"
        );
    }

    #[test]
    fn two_variables_are_added_whatever_was_there() {
        let fields = "POINTEE_HANDOFF=socket=/s\x1fruntime=/r.so\x1ffollow=1\x1fgeneration=0";
        check(&[], &["LD_PRELOAD=/r.so", fields]);
        check(&[("A", "1")], &["A=1", "LD_PRELOAD=/r.so", fields]);
        check(
            &[("LD_PRELOAD", "/x.so"), ("A", "1")],
            &["LD_PRELOAD=/x.so", "A=1", "LD_PRELOAD=/r.so:/x.so", fields],
        );
        check(&[("POINTEE_HANDOFF", "old")], &["LD_PRELOAD=/r.so", fields]);
    }
}
