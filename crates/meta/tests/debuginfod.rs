//! *Is debug info fetched from a server, once, and only where one is configured?* — against a server on
//! the loopback interface that speaks the protocol.

mod common;

use common::{compile_c, run};
use pointee_meta::debug_files::{DebugFiles, Search};
use pointee_meta::debuginfod::Servers;
use pointee_meta::dwarf::read_facts;
use pointee_meta::elf::Elf;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How the server answers.
#[derive(Clone, Copy, Debug)]
enum Way {
    Length,
    Chunked,
    Redirected,
    CutShort,
    Missing,
}

/// Serves `file` under its build ID; counts the requests.
fn serve(id: String, file: Vec<u8>, way: Way) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
            lines.read_line(&mut line).expect("a request");
            // A connection that is closed with something unread is reset, and the answer with it.
            while lines
                .by_ref()
                .lines()
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            count.fetch_add(1, Ordering::SeqCst);
            let wanted = format!("GET /buildid/{id}/debuginfo HTTP/1.1\r\n");
            let answer: Vec<u8> = match way {
                Way::Redirected if line == wanted => {
                    b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n".to_vec()
                }
                Way::Redirected if !line.starts_with("GET /elsewhere ") => {
                    b"HTTP/1.1 400 Bad\r\n\r\n".to_vec()
                }
                Way::Missing => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
                _ if line != wanted && !matches!(way, Way::Redirected) => {
                    b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()
                }
                Way::Chunked => {
                    let mut answer =
                        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                    for chunk in file.chunks(1000) {
                        answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                        answer.extend(chunk);
                        answer.extend(b"\r\n");
                    }
                    answer.extend(b"0\r\n\r\n");
                    answer
                }
                Way::CutShort => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
                    [head.as_bytes(), &file[..file.len() / 2]].concat()
                }
                Way::Length | Way::Redirected => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
                    [head.as_bytes(), &file].concat()
                }
            };
            // Whoever asked may be gone.
            let _ = stream.write_all(&answer);
        }
    });
    (url, asked)
}

/// A stripped program and its debug file.
fn stripped(at: &Path) -> (PathBuf, Vec<u8>, String) {
    let program = compile_c(at, &["-g", "-Wl,--build-id"]);
    let name = program.to_string_lossy().into_owned();
    let debug = at.join("program.debug");
    run(
        "objcopy",
        &["--only-keep-debug", &name, &debug.to_string_lossy()],
        at,
    );
    run("strip", &[&name], at);
    let elf = Elf::open(&program).expect("an ELF file");
    let id = elf
        .build_id()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let bytes = std::fs::read(&debug).expect("the debug file");
    std::fs::remove_file(debug).expect("removed");
    (program, bytes, id)
}

fn search(urls: Vec<String>, at: &Path) -> Search {
    Search {
        roots: Vec::new(),
        servers: Servers {
            urls,
            cache: Some(at.join("cache")),
            timeout: Duration::from_secs(5),
        },
    }
}

#[test]
fn every_way_to_answer() {
    let rows = [
        (Way::Length, true, 1),
        (Way::Chunked, true, 1),
        (Way::Redirected, true, 2),
        (Way::CutShort, false, 2),
        (Way::Missing, false, 2),
    ];
    for (way, found, requests) in rows {
        let directory = tempfile::tempdir().expect("temporary folder");
        let at = directory.path();
        let (program, file, id) = stripped(at);
        let (url, asked) = serve(id, file, way);
        let search = search(vec![url], at);
        let elf = Elf::open(&program).expect("an ELF file");
        // The second look is served by the cache where the first was answered.
        for _ in 0..2 {
            let debug = DebugFiles::find(&elf, &search);
            assert_eq!(debug.debug.is_some(), found, "{way:?}");
            assert_eq!(read_facts(&elf, &debug).has_dwarf, found);
        }
        assert_eq!(asked.load(Ordering::SeqCst), requests);
    }
}

#[test]
fn another_files_debug_info_is_refused() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let (program, _, id) = stripped(at);
    let other = std::fs::read("/proc/self/exe").expect("this program");
    let (url, _) = serve(id, other, Way::Length);
    let elf = Elf::open(&program).expect("an ELF file");
    assert!(
        DebugFiles::find(&elf, &search(vec![url], at))
            .debug
            .is_none()
    );
}

#[test]
fn nothing_is_asked_unless_configured() {
    let directory = tempfile::tempdir().expect("temporary folder");
    let at = directory.path();
    let (program, file, id) = stripped(at);
    let (_, asked) = serve(id, file, Way::Length);
    let elf = Elf::open(&program).expect("an ELF file");
    assert!(
        DebugFiles::find(&elf, &search(Vec::new(), at))
            .debug
            .is_none()
    );
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
