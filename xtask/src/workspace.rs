//! *Where does what lie?* — the workspace, cargo's target folder, packages that cargo fetched, what it built.

use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace as cargo sees it.
pub(crate) struct Workspace {
    root: PathBuf,
    metadata: Value,
}

impl Workspace {
    /// Asks cargo; fetches packages that are not there yet.
    pub(crate) fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in the workspace")?
            .to_owned();
        let mut command = cargo(&root);
        command.args(["metadata", "--format-version", "1"]);
        let metadata = serde_json::from_str(&shell::output(&mut command)?)?;
        Ok(Self { root, metadata })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A cargo command that runs at the root.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// Cargo's target folder, as configuration and environment have it.
    pub(crate) fn target(&self) -> Result<PathBuf> {
        let folder = self.metadata["target_directory"].as_str();
        Ok(folder
            .context("cargo metadata names no target folder")?
            .into())
    }

    /// A folder for what `task` makes; created.
    pub(crate) fn folder(&self, task: &str) -> Result<PathBuf> {
        let folder = self.target()?.join(task);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// The sources of a package, where cargo unpacked them.
    pub(crate) fn sources_of(&self, package: &str) -> Result<PathBuf> {
        let packages = self.metadata["packages"].as_array();
        let manifest = packages
            .into_iter()
            .flatten()
            .find(|found| found["name"] == package)
            .and_then(|found| found["manifest_path"].as_str())
            .with_context(|| format!("cargo metadata has no package {package}"))?;
        let folder = Path::new(manifest).parent();
        Ok(folder.context("a manifest lies in a folder")?.to_owned())
    }

    /// Name and version, and licence expression, of each package that is not of the workspace.
    pub(crate) fn licences_of_dependencies(&self) -> impl Iterator<Item = (String, &str)> {
        let packages = self.metadata["packages"].as_array().into_iter().flatten();
        let foreign = packages.filter(|package| !package["source"].is_null());
        foreign.map(|package| {
            let text = |key: &str| package[key].as_str().unwrap_or("");
            let name = format!("{} {}", text("name"), text("version"));
            (name, text("license"))
        })
    }

    /// Builds the command (release) and gives its path.
    pub(crate) fn build_pointee(&self) -> Result<PathBuf> {
        let mut command = self.cargo();
        command.args(["build", "--release", "--package", "pointee"]);
        shell::step("building Pointee", &mut command)?;
        Ok(self.target()?.join("release/pointee"))
    }
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}
