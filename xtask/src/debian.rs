//! One program out of packages of Debian, or of a system made from it.
//!
//! Some programs need so much of the system around them that only its own
//! package manager can install them.

use std::process::Command;

use crate::process;

/// Packages, and the program that is wanted of them.
pub(crate) struct Debian {
    pub(crate) packages: &'static [&'static str],
    /// Its name on the machine's path once they are installed.
    pub(crate) program: &'static str,
}

impl Debian {
    /// Installs the packages. Needs to be root, or allowed to be without a password.
    pub(crate) fn install(&self) -> Result<(), String> {
        // The lists of a new machine are empty, and old ones name what is gone.
        process::output(apt_get()?.arg("update"))?;
        let mut install = apt_get()?;
        install.args(["install", "--yes", "--no-install-recommends"]);
        process::output(install.args(self.packages))?;
        Ok(())
    }
}

/// `apt-get` as root, asking nothing.
fn apt_get() -> Result<Command, String> {
    let user = process::output(Command::new("id").arg("-u"))?;
    let mut command = Command::new(if user.trim() == "0" { "env" } else { "sudo" });
    if user.trim() != "0" {
        command.args(["--non-interactive", "env"]);
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(command)
}
