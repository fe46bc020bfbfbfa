//! memcached.

use std::path::Path;
use std::process::Command;

use crate::debian::Debian;
use crate::process;
use crate::tools::{Source, Tool};

/// What to install, and from where.
pub(crate) const MEMCACHED: Tool = Tool {
    name: "memcached",
    title: "memcached",
    check,
    sources: &[
        Source::Path("memcached"),
        Source::Debian(Debian {
            packages: &["memcached"],
            program: "memcached",
        }),
    ],
};

/// Name and version of the server at `path`.
fn check(path: &Path) -> Result<String, String> {
    let said = process::output(Command::new(path).arg("--version"))?;
    match said.split_ascii_whitespace().collect::<Vec<_>>()[..] {
        ["memcached", version] => Ok(format!("memcached {version}")),
        _ => Err(format!("`{}` names no version", said.trim())),
    }
}
