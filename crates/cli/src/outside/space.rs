//! *What is mapped in a process, where is room, and what are its bytes?* `/proc/PID/maps` and `/proc/PID/mem`.

use anyhow::{Context, Result};
use nix::unistd::Pid;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Reach of a `jmp rel32`, less room for what lies around.
const REACH: u64 = (1 << 31) - (64 << 20);
/// What a heap or a stack may still need.
const GROWTH: u64 = 256 << 20;
const PAGE: u64 = 4096;

/// One mapping.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub(super) range: Range<u64>,
    pub(super) executable: bool,
    /// Of the file.
    pub(super) offset: u64,
    /// Device and number of the file, as `maps` has them; the number is 0 where there is none.
    pub(super) file: (String, u64),
    pub(super) path: String,
}

impl Mapping {
    /// What is going to be there.
    pub(super) fn unnamed(range: Range<u64>) -> Self {
        Self {
            range,
            executable: false,
            offset: 0,
            file: (String::new(), 0),
            path: String::new(),
        }
    }
}

/// All of a process, in order.
pub(super) fn mappings(pid: Pid) -> Result<Vec<Mapping>> {
    let text = std::fs::read(format!("{}/maps", folder(pid)))
        .with_context(|| format!("the memory of process {pid} may not be read"))?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter_map(parse)
        .collect())
}

/// Where `/proc` has the memory of `pid`: a first thread that ended before the others has none.
fn folder(pid: Pid) -> String {
    let process = format!("/proc/{pid}");
    let has_memory = |folder: &String| {
        std::fs::read_to_string(format!("{folder}/stat")).is_ok_and(|stat| {
            !stat
                .rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with(['Z', 'X']))
        })
    };
    if has_memory(&process) {
        return process;
    }
    let tasks = std::fs::read_dir(format!("{process}/task"))
        .into_iter()
        .flatten();
    let mut tasks = tasks.filter_map(|task| Some(task.ok()?.path().to_str()?.to_owned()));
    tasks.find(has_memory).unwrap_or(process)
}

fn parse(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let permissions = words.next()?;
    Some(Mapping {
        range: hex(start)?..hex(end)?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        offset: hex(words.next()?)?,
        file: (words.next()?.to_owned(), words.next()?.parse().ok()?),
        path: words.next().unwrap_or_default().trim_start().to_owned(),
    })
}

/// Free pages, `len` bytes, all of which all of `module` can reach.
pub(super) fn room(mappings: &[Mapping], module: &Range<u64>, len: u64) -> Option<u64> {
    let free = |at: u64| {
        mappings.iter().all(|mapping| {
            let mut taken = mapping.range.clone();
            match mapping.path.as_str() {
                "[heap]" => taken.end = taken.end.saturating_add(GROWTH),
                "[stack]" => taken.start = taken.start.saturating_sub(GROWTH),
                _ => {}
            }
            at + len <= taken.start || taken.end <= at
        })
    };
    let mut distance = 1u64 << 20;
    while distance < REACH {
        let below = module.start.checked_sub(distance + len);
        for at in [below, module.end.checked_add(distance)]
            .into_iter()
            .flatten()
        {
            let at = at / PAGE * PAGE;
            let near = module.end.max(at + len) - module.start.min(at) < REACH;
            if at >= 1 << 16 && near && free(at) {
                return Some(at);
            }
        }
        distance += (distance / 4).next_multiple_of(1 << 16);
    }
    None
}

/// The memory of a process. Writes do not ask for permissions of pages: nothing is ever writable and executable.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open(pid: Pid) -> Result<Self> {
        let path = format!("{}/mem", folder(pid));
        let file = File::options().read(true).write(true).open(&path);
        file.map(Self).context(path)
    }

    pub(super) fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.0
            .write_all_at(bytes, at)
            .with_context(|| format!("memory at {at:#x}"))
    }

    /// Where there is a `syscall` instruction among `mappings`: the kernel's own page first.
    pub(super) fn find_syscall(&self, mappings: &[Mapping]) -> Option<u64> {
        let mut code: Vec<&Mapping> = mappings
            .iter()
            .filter(|mapping| mapping.executable && mapping.path != "[vsyscall]")
            .collect();
        code.sort_by_key(|mapping| mapping.path != "[vdso]");
        code.into_iter().find_map(|mapping| {
            let len = usize::try_from(mapping.range.end - mapping.range.start).ok()?;
            let bytes = self.read(mapping.range.start, len)?;
            let at = bytes.windows(2).position(|pair| pair == [0x0f, 0x05])?;
            Some(mapping.range.start + at as u64)
        })
    }
}
