//! `pointee runtime-path`: *where is the library to preload?*

use anyhow::Result;

/// Print the path of the runtime library
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  LD_PRELOAD=$(pointee runtime-path) ./server &
  pointee histo $!          its heap by type, read from outside")]
pub(crate) struct Arguments {}

pub(crate) fn run(_: &Arguments) -> Result<()> {
    let path = crate::runtime_file::in_cache()?;
    crate::output::print(&format!("{}\n", path.display()))
}
