//! One program of a Python package that needs others, in an environment of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{process, wheel, workspace};

/// A program that pip installs.
pub(crate) struct Python {
    /// A requirements file in `xtask/tools`: names, versions and digests of all packages.
    pub(crate) requirements: &'static str,
    /// The program's name.
    pub(crate) program: &'static str,
}

impl Python {
    /// Installs the packages below `target/tools`; gives a link in `scratch` to the program.
    pub(crate) fn install(&self, root: &Path, scratch: &Path) -> Result<PathBuf, String> {
        // Its programs name their place, so it cannot be moved there when it is whole.
        let environment = workspace::tools().join("python").join(self.program);
        process::output(
            Command::new(wheel::python()?)
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
        )?;
        let programs = environment.join("bin");
        process::output(
            Command::new(programs.join("python"))
                .args(["-m", "pip", "install", "--quiet", "--no-input"])
                .args(["--disable-pip-version-check", "--only-binary", ":all:"])
                .args(["--require-hashes", "-r"])
                .arg(root.join("xtask").join("tools").join(self.requirements)),
        )?;
        let link = scratch.join("program");
        std::os::unix::fs::symlink(programs.join(self.program), &link)
            .map_err(|why| format!("{}: {why}", self.program))?;
        Ok(link)
    }
}
