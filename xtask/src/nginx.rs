//! nginx: the other parser of what our proxy sends to origins.

use std::path::Path;
use std::process::Command;

use crate::debian::Debian;
use crate::tools::{Source, Tool};

/// What to install, and from where.
pub(crate) const NGINX: Tool = Tool {
    name: "nginx",
    title: "nginx",
    check,
    sources: &[
        Source::Path("nginx"),
        Source::Debian(Debian {
            packages: &["nginx-light"],
            program: "nginx",
        }),
    ],
};

/// Name and version of the server at `path`.
fn check(path: &Path) -> Result<String, String> {
    // It tells on the standard error.
    let said = Command::new(path)
        .arg("-v")
        .output()
        .map_err(|why| format!("{}: {why}", path.display()))?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    match said.trim().strip_prefix("nginx version: nginx/") {
        Some(version) => Ok(format!("nginx {version}")),
        None => Err(format!("`{}` names no version", said.trim())),
    }
}
