//! What checks units of systemd.

use std::path::Path;
use std::process::Command;

use crate::debian::Debian;
use crate::process;
use crate::tools::{Source, Tool};

/// What to install, and from where.
pub(crate) const SYSTEMD_ANALYZE: Tool = Tool {
    name: "systemd-analyze",
    title: "systemd-analyze",
    check,
    sources: &[
        Source::Path("systemd-analyze"),
        Source::Debian(Debian {
            packages: &["systemd"],
            program: "systemd-analyze",
        }),
    ],
};

/// The version of the program at `path`.
fn check(path: &Path) -> Result<String, String> {
    // "systemd 252 (…)", and its features on a second line.
    let said = process::output(Command::new(path).arg("--version"))?;
    match said.split_ascii_whitespace().nth(1) {
        Some(version) => Ok(format!("systemd-analyze {version}")),
        None => Err(format!("`{}` names no version", said.trim())),
    }
}
