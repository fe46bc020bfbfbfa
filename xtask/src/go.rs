//! One program built from a pinned Go module.
//!
//! A folder of `xtask/tools` has a `go.mod` that names the program as a tool and pins its version,
//! and the `go.sum` with the digests of all that it is made of.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// A program that Go builds.
pub(crate) struct GoTool {
    /// Its folder in `xtask/tools`.
    pub(crate) folder: &'static str,
    /// The package to build.
    pub(crate) package: &'static str,
}

impl GoTool {
    /// Builds the program in `scratch`.
    pub(crate) fn build(&self, root: &Path, scratch: &Path) -> Result<PathBuf, String> {
        let program = scratch.join("program");
        let folder = root.join("xtask").join("tools").join(self.folder);
        process::output(
            Command::new("go")
                .current_dir(folder)
                .args(["build", "-mod=readonly", "-trimpath", "-o"])
                .arg(&program)
                .arg(self.package),
        )?;
        Ok(program)
    }
}
