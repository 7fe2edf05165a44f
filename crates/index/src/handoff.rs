//! *What do the command and the runtime say to each other when a process starts?*
//!
//! The command starts a program with two more variables at the end of its environment:
//!
//! ```text
//!   LD_PRELOAD=<runtime>[:<what it was set to>]
//!   POINTEE_HANDOFF=<field>\x1f<field>…      field: key=value
//! ```
//!
//! An `LD_PRELOAD` that was there stays where and as it is: glibc's dynamic linker takes the last one. The runtime takes
//! both out again before the program's first instruction. Being two, they leave a gap on the
//! stack between the environment and the auxiliary vector that is exactly one auxiliary entry, which becomes `AT_IGNORE`;
//! being the last, they can be cut off what `/proc/PID/environ` shows.
//!
//! A started or forked process that has a region for others to read sends it to the session's socket: one
//! datagram, a [`Hello`], the region's file descriptor, that of the file for the blocks at the peak where they are wanted,
//! and, from a process that was started and not forked, one of its executable, which may be gone by the time it is
//! wanted (`SCM_RIGHTS`). Nobody answers.

/// Name of the variable.
pub const VARIABLE: &str = "POINTEE_HANDOFF";
/// Separates fields.
pub const SEPARATOR: u8 = 0x1f;

/// File in the folder of images: what is declared of functions by their names.
pub const DECLARED: &str = "declared";

/// Keys of the fields; all are optional.
pub mod key {
    /// Path of the session's datagram socket. Without it the index is private to the process.
    pub const SOCKET: &str = "socket";
    /// Folder of metadata images, `<build id in hex>.img`: tells the walk where it may stop.
    pub const IMAGES: &str = "images";
    /// Folder of images as the cache names them, `<build id in hex>-<format>.image`: not known to be up to date, and
    /// only good for answering a program's own questions. Without the command, the
    /// runtime looks where the environment says.
    pub const CACHE: &str = "cache";
    /// How many execs came before (decimal).
    pub const GENERATION: &str = "generation";
    /// `1`: the blocks alive at the highest point are wanted ([`peak`](crate::peak)).
    pub const PEAK: &str = "peak";
    /// `0`: children are not recorded and programs they become neither.
    pub const FOLLOW: &str = "follow";
    /// `live`: nobody wants to know of single blocks after the process's end, so the tables may be private memory of it.
    pub const BLOCKS: &str = "blocks";
    /// Path of the socket that placements are asked for at. Then probes are put in, and allocations not recorded.
    pub const PROBES: &str = "probes";
    /// Path of the socket where the command is asked to follow a process into a statically linked program ([`Next`](super::Next)).
    pub const NEXT: &str = "next";
    /// Path of the runtime itself, to be preloaded again at exec.
    pub const RUNTIME: &str = "runtime";
}

/// First field of [`Request`].
pub const REQUEST_MAGIC: u64 = u64::from_le_bytes(*b"PTEEASKS");
/// The whole of an [`Answer`].
pub const ANSWER_MAGIC: u64 = u64::from_le_bytes(*b"PTEEPLAN");

/// What a process sends to ask for a placement: this, the object's path as the process knows it (to the packet's
/// end), and the open file.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Request {
    /// [`REQUEST_MAGIC`].
    pub magic: u64,
    /// Process id in the sender's namespace.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

impl Request {
    /// Bytes in front of the path.
    pub const LEN: usize = size_of::<Self>();

    /// As bytes, in field order, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.magic.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pid.to_le_bytes());
        bytes
    }
}

/// What comes back, with two files: the placement, and the memory of its counters. Nothing comes back, and the
/// connection is closed, where there is nothing to place.
#[derive(Clone, Copy, Debug)]
pub struct Answer;

impl Answer {
    /// Bytes of one.
    pub const LEN: usize = 8;
}

/// First field of [`Next`].
pub const NEXT_MAGIC: u64 = u64::from_le_bytes(*b"PTEENEXT");
/// The command's answer to [`Next`]: the process is traced, and may execute the program.
pub const NEXT_TRACED: u8 = 1;
/// What the process says after that if the program could not be executed. When it could, the connection closes.
pub const NEXT_FAILED: u8 = 2;

/// What a process sends that is about to execute a statically linked program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// How many execs will have come before in the process.
    pub generation: u32,
}

impl Next {
    /// Bytes of one.
    pub const LEN: usize = 12;

    /// As bytes: [`NEXT_MAGIC`], then the field, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&NEXT_MAGIC.to_le_bytes());
        bytes[8..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    /// Reads one; `None` if it is none.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let generation = u32::from_le_bytes(rest.try_into().ok()?);
        (u64::from_le_bytes(*magic) == NEXT_MAGIC).then_some(Self { generation })
    }
}

/// First field of [`Hello`].
pub const HELLO_MAGIC: u64 = u64::from_le_bytes(*b"PTEEHELO");

/// The datagram that comes with a region.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Hello {
    /// [`HELLO_MAGIC`].
    pub magic: u64,
    /// Length of the region; 0 if it is private to the process, and no file comes with the datagram.
    pub region_len: u64,
    /// Process id in the sender's namespace; the socket's credentials have the receiver's.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// How many execs came before in this process.
    pub generation: u32,
    /// 1 if a file for the blocks at the peak ([`peak`](crate::peak)) comes with it, else 0.
    pub peak: u32,
}

impl Hello {
    /// Bytes of a datagram.
    pub const LEN: usize = size_of::<Self>();

    /// As bytes, in field order, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.magic.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.region_len.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.pid.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.parent.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.generation.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.peak.to_le_bytes());
        bytes
    }

    /// Reads a datagram; `None` if it is none of ours.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let hello = Self {
            magic: u64_at(0)?,
            region_len: u64_at(8)?,
            pid: u32_at(16)?,
            parent: u32_at(20)?,
            generation: u32_at(24)?,
            peak: u32_at(28)?,
        };
        (hello.magic == HELLO_MAGIC).then_some(hello)
    }
}
