//! *How is the program started, so that it cannot tell?*
//!
//! Forked and executed directly: same process group, terminal, descriptors, signal mask and
//! dispositions as this process was given itself. Only two variables are added to its environment
//! ([`pointee_index::handoff`]), which the runtime takes out again.

#![allow(unsafe_code)] // fork, and what the child does between fork and exec.

use crate::program::{self, NotRunnable};
use crate::session::Session;
use crate::supervise::Signals;
use crate::{start_state, tracked};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, Pid};
use pointee_index::handoff::{SEPARATOR, VARIABLE, key};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What the runtime is told.
#[derive(Debug)]
pub(crate) struct HandOff<'a> {
    /// The session's socket.
    pub(crate) socket: &'a Path,
    /// Folder of images, if there is one.
    pub(crate) images: Option<&'a Path>,
    /// The user's cache of images, if there is one.
    pub(crate) cache: Option<&'a Path>,
    /// Whether descendants are recorded.
    pub(crate) follow: bool,
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
    let follow = if handoff.follow { "1" } else { "0" };
    let mut fields: Vec<(&str, &OsStr)> = vec![
        (key::SOCKET, handoff.socket.as_os_str()),
        (key::RUNTIME, handoff.runtime.as_os_str()),
        (key::FOLLOW, OsStr::new(follow)),
        (key::GENERATION, OsStr::new("0")),
    ];
    if let Some(images) = handoff.images {
        fields.push((key::IMAGES, images.as_os_str()));
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
    environment.push(assignment(VARIABLE, OsString::from_vec(text)));
    environment
}

fn assignment(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> OsString {
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

/// As [`start`]; where the program does not start, `session` is closed and this process ends as a shell does
/// then, with status 126 or 127.
pub(crate) fn start_or_end(
    path: &Path,
    arguments: &[OsString],
    environment: &[OsString],
    inheritance: &Inheritance,
    session: Session,
) -> (Session, Pid) {
    let error = match start(path, arguments, environment, inheritance) {
        Ok(child) => return (session, child),
        Err(error) => error,
    };
    drop(session);
    let name = &arguments[0];
    if matches!(error, Errno::ENOENT | Errno::ENOTDIR) {
        program::end_not_runnable(name, NotRunnable::NotFound)
    }
    eprintln!("pointee: {}: {}", name.display(), error.desc());
    std::process::exit(126)
}

/// Starts the program. `Err` carries the reason why `execve` failed.
fn start(
    path: &Path,
    arguments: &[OsString],
    environment: &[OsString],
    inheritance: &Inheritance,
) -> Result<Pid, Errno> {
    let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
    let all = |texts: &[OsString]| -> Result<Vec<CString>, Errno> {
        texts.iter().map(|text| c_string(text)).collect()
    };
    let path = c_string(path.as_os_str())?;
    let arguments = all(arguments)?;
    let environment = all(environment)?;
    let argv = pointers(&arguments);
    let envp = pointers(&environment);
    // For a file of no known format: `/bin/sh file arguments…`, as execvp does.
    let shell = c"/bin/sh";
    let mut shell_argv = vec![shell.as_ptr(), path.as_ptr()];
    shell_argv.extend(argv.iter().skip(1));

    let (failure, said) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread here, and the child calls only what is safe after fork.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => {
            restore(inheritance);
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
        ForkResult::Parent { child } => {
            drop(said);
            let mut errno = [0; 4];
            // The pipe closes without a word when exec succeeds.
            match std::fs::File::from(failure).read_exact(&mut errno) {
                Err(_) => Ok(child),
                Ok(()) => {
                    let _ = nix::sys::wait::waitpid(child, None);
                    Err(Errno::from_raw(i32::from_ne_bytes(errno)))
                }
            }
        }
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
            images: None,
            cache: None,
            follow: true,
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
