//! *Does a server have the debug info of this build ID?* — the protocol of debuginfod, as a client.
//!
//! ```text
//!   CACHE/BUILDID/debuginfo          fetched before, by us or by another client: elfutils' layout
//!   GET URL/buildid/BUILDID/debuginfo   for each URL, until one has it; stored by renaming
//! ```
//!
//! Nothing is asked for unless servers are configured (`DEBUGINFOD_URLS`, as for other clients). Plain
//! HTTP is spoken here; for `https` the fetching is left to `debuginfod-find`, if that is installed.
//! What comes back counts only when its own build ID is the one asked for.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Servers and the folder for what they gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers {
    /// Base URLs, in order of preference; none: nothing is fetched.
    pub urls: Vec<String>,
    /// The cache; `None`: nothing is fetched.
    pub cache: Option<PathBuf>,
    /// Longest time without a byte.
    pub timeout: Duration,
}

/// A debug file is seldom above 2 GB; what is longer is not waited for.
const LARGEST: u64 = 8 << 30;
/// Redirections followed; a chain of more is a loop.
const REDIRECTIONS: usize = 5;
/// Bytes of a status line and headers.
const LONGEST_HEAD: u64 = 64 << 10;

impl Servers {
    /// `DEBUGINFOD_URLS`, `DEBUGINFOD_CACHE_PATH` and `DEBUGINFOD_TIMEOUT` (seconds), as debuginfod(8) has
    /// them.
    #[must_use]
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        let urls = text("DEBUGINFOD_URLS").unwrap_or_default();
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let cache = folder("DEBUGINFOD_CACHE_PATH").or_else(|| {
            let base = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
            Some(base?.join("debuginfod_client"))
        });
        let seconds = text("DEBUGINFOD_TIMEOUT").and_then(|seconds| seconds.parse().ok());
        Self {
            urls: urls.split_whitespace().map(str::to_owned).collect(),
            cache,
            timeout: Duration::from_secs(seconds.filter(|seconds| *seconds > 0).unwrap_or(90)),
        }
    }

    /// The debug file of a build ID (lower-case hex), from the cache or a server.
    #[must_use]
    pub fn debug_file(&self, build_id: &str) -> Option<PathBuf> {
        if self.urls.is_empty() || build_id.len() < 4 {
            return None;
        }
        let folder = self.cache.as_ref()?.join(build_id);
        let known = folder.join("debuginfo");
        // An empty file is how other clients note that no server had it.
        if let Ok(found) = fs::metadata(&known) {
            return (found.len() > 0).then_some(known);
        }
        fs::create_dir_all(&folder).ok()?;
        self.urls.iter().find_map(|base| {
            let base = base.trim_end_matches('/');
            if base.starts_with("https://") {
                return by_tool(base, build_id);
            }
            let url = format!("{base}/buildid/{build_id}/debuginfo");
            self.fetch(&url, &folder, &known).ok()?;
            Some(known.clone())
        })
    }

    /// Fetches a URL into `to`, by way of a file beside it.
    fn fetch(&self, url: &str, folder: &Path, to: &Path) -> io::Result<()> {
        let part = folder.join(format!("debuginfo.{}.part", std::process::id()));
        let done = (|| {
            let mut body = self.get(url)?;
            let mut file = File::create(&part)?;
            io::copy(&mut body, &mut file)?;
            file.sync_all()?;
            fs::rename(&part, to)
        })();
        if done.is_err() {
            // Nothing may be there to be removed.
            let _ = fs::remove_file(&part);
        }
        done
    }

    fn get(&self, url: &str) -> io::Result<Box<dyn Read>> {
        let mut url = url.to_owned();
        for _ in 0..=REDIRECTIONS {
            let (host, path) = split(&url).ok_or(io::ErrorKind::Unsupported)?;
            let mut stream = self.connect(&host)?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: pointee\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = BufReader::new(stream);
            let head = Head::read(&mut answer)?;
            match (head.status, head.location) {
                (200, _) if head.chunked => return Ok(Box::new(Chunks::new(answer).take(LARGEST))),
                (200, _) => {
                    return Ok(match head.length {
                        Some(length) if length > LARGEST => {
                            return Err(io::ErrorKind::FileTooLarge.into());
                        }
                        Some(left) => Box::new(Exactly { from: answer, left }),
                        None => Box::new(answer.take(LARGEST)),
                    });
                }
                (301 | 302 | 303 | 307 | 308, Some(next)) => {
                    url = if next.starts_with('/') {
                        format!("http://{host}{next}")
                    } else {
                        next
                    };
                }
                _ => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Err(io::ErrorKind::QuotaExceeded.into())
    }

    fn connect(&self, host: &str) -> io::Result<TcpStream> {
        let with_port = if host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in with_port.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.timeout) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(self.timeout))?;
                    stream.set_write_timeout(Some(self.timeout))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Host (with its port) and path of an `http` URL.
fn split(url: &str) -> Option<(String, String)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let path = if path.is_empty() { "/" } else { path };
    (!host.is_empty() && plain(host) && plain(path)).then(|| (host.to_owned(), path.to_owned()))
}

/// What an answer says before its body.
#[derive(Default)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
    location: Option<String>,
}

impl Head {
    fn read(answer: &mut impl BufRead) -> io::Result<Self> {
        let mut lines = answer.take(LONGEST_HEAD);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let status = line
            .split_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok());
        let mut head = Self {
            status: status
                .filter(|_| line.starts_with("HTTP/1."))
                .ok_or(io::ErrorKind::InvalidData)?,
            ..Self::default()
        };
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let Some((name, value)) = line.split_once(':') else {
                return Ok(head);
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.parse().ok(),
                "transfer-encoding" => head.chunked = value.eq_ignore_ascii_case("chunked"),
                "location" => head.location = Some(value.to_owned()),
                _ => {}
            }
        }
    }
}

/// A body of stated length: one that ends before is an error, not a shorter file.
struct Exactly<R> {
    from: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        if most == 0 {
            return Ok(0);
        }
        match self.from.read(&mut into[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

/// A body in chunks (RFC 9112, §7.1): length in hex, line end, bytes, line end; the last has length 0.
struct Chunks<R> {
    from: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            ended: false,
        }
    }

    fn next_length(&mut self) -> io::Result<u64> {
        let mut line = String::new();
        // The line end of the chunk before may come first.
        while line.trim().is_empty() {
            line.clear();
            if self.from.by_ref().take(256).read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let digits = line.trim().split(';').next().unwrap_or("");
        u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            self.left = self.next_length()?;
            self.ended = self.left == 0;
        }
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        match self.from.read(&mut into[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

/// Has elfutils' own client fetch, which speaks TLS; it prints the path in its cache.
fn by_tool(base: &str, build_id: &str) -> Option<PathBuf> {
    let output = Command::new("debuginfod-find")
        .args(["debuginfo", build_id])
        .env("DEBUGINFOD_URLS", base)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && path.is_file()).then_some(path)
}
