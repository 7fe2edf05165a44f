//! *What do all of Pointee's parts talk about?* — world: everywhere (`no_std`, no allocation).
//!
//! This crate holds the words: addresses that cannot be mixed up ([`addr`]), the evidence for a
//! type ([`evidence`]), which build of a file is meant ([`identity`]), and the metadata image ([`image`]), which is everything Pointee knows of
//! one ELF file, in a flat form that is mapped read-only by the command, by the debugger and by
//! the runtime inside the target.
//!
//! It holds no policy: nothing here decides what a type is; it only says how that is written down.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod call;
pub mod entries;
pub mod evidence;
pub mod identity;
pub mod image;
pub mod source;
