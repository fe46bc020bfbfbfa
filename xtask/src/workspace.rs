//! Where things are: the workspace's root and the folder of the tools.

use std::path::{Path, PathBuf};

/// The root of the workspace that this was started in.
pub(crate) fn root() -> PathBuf {
    // cargo sets the variable when it runs us; the value known at build time
    // serves a binary started by hand.
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or_else(|| own.clone(), Path::to_path_buf)
}

/// `target/tools`, whatever the target folder of the build is.
pub(crate) fn tools() -> PathBuf {
    root().join("target").join("tools")
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let root = root();
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(chosen) => root.join(chosen),
        None => root.join("target"),
    }
}
