//! Which suites of the workspace cannot run here, in one line.
//!
//! The suites look for their programs themselves, and say so where they are; the output of a
//! test that passes is not shown, though, so one place tells for all.

use std::path::{Path, PathBuf};

use crate::{browser::Programs, control_plane, envoy, processors};

/// The line, when something is missing.
pub fn line() -> Option<String> {
    let mut suites = Vec::new();
    if envoy::program().is_none() {
        suites.push("what is compared with Envoy (scenarios, services, wire types)");
    }
    if redis().is_none() {
        suites.push("rate limits in Redis");
    }
    if Programs::find().is_none() {
        suites.push("signing in with a real browser");
    }
    if control_plane::program().is_none() {
        suites.push("configuration from a real control plane");
    }
    let processors = processors::left_out();
    suites.extend(processors.as_deref());
    let line = format!("skipped: {} (run cargo xtask test)", suites.join(", and "));
    (!suites.is_empty()).then_some(line)
}

/// Redis: what `ATTACHE_REDIS` names, else what the workspace has, else the system's.
fn redis() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/redis-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = std::env::split_paths(&path).map(|folder| folder.join("redis-server"));
    std::env::var_os("ATTACHE_REDIS")
        .map(PathBuf::from)
        .into_iter()
        .chain([tools])
        .chain(system)
        .find(|program| program.is_file())
}
