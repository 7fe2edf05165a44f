//! *What can be asked for?* — one file a subcommand.

pub(crate) mod explain;
mod explain_file;
pub(crate) mod histo;
mod learned;
pub(crate) mod maps;
pub(crate) mod meta;
pub(crate) mod observe;
pub(crate) mod probe;
pub(crate) mod run;
pub(crate) mod runtime_path;
pub(crate) mod sites;
mod sites_explain;
pub(crate) mod snapshot;
pub(crate) mod types;
pub(crate) mod what;
