//! *What do the configuration files and the environment say?*
//!
//! ```text
//!   /etc/pointee/pointee.toml, CONFIG_HOME/pointee/pointee.toml, ./pointee.toml, --config FILE, LIBALLOCS_… variables
//! ```
//!
//! Read once, before the subcommand starts: a mistake in a file is an error, whatever was asked. In the environment a word that
//! cannot be read is said and passed over, for those variables are meant for another program.

use anyhow::{Context, Result};
use pointee_meta::cache::Options;
use pointee_meta::config::{self, Config};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

static CONFIG: OnceLock<Config> = OnceLock::new();

/// Name of the file, in each of its folders.
const NAME: &str = "pointee.toml";

/// Reads all layers, `named` on top of the files.
///
/// # Errors
/// When a file has a mistake, or the one named cannot be read.
pub(crate) fn read(named: Option<&Path>) -> Result<()> {
    let mut all = Config::default();
    for path in usual_files() {
        // A file that is not there, or not ours to read, is no mistake.
        if let Ok(text) = std::fs::read_to_string(&path) {
            all.add(config::parse(&text, &path)?);
        }
    }
    if let Some(path) = named {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        all.add(config::parse(&text, path)?);
    }
    let (from_environment, wrong) = config::from_environment(|name| std::env::var(name).ok());
    for (name, error) in wrong {
        eprintln!("pointee: {name}: {error}");
    }
    all.add(from_environment);
    let _ = CONFIG.set(all);
    Ok(())
}

/// The files that are looked for, the lowest layer first.
pub(crate) fn usual_files() -> Vec<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let home = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    let system = PathBuf::from("/etc/pointee").join(NAME);
    let user = home.map(|home| home.join("pointee").join(NAME));
    [system]
        .into_iter()
        .chain(user)
        .chain([PathBuf::from(NAME)])
        .collect()
}

/// All that was said.
pub(crate) fn config() -> &'static Config {
    CONFIG.get_or_init(Config::default)
}

/// What images are made with.
pub(crate) fn options() -> Options {
    Options {
        config: config().clone(),
        ..Options::default()
    }
}
