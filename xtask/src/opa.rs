//! The pinned Open Policy Agent, with its plugin that answers Envoy.

use std::path::Path;
use std::process::Command;

use crate::go::GoTool;
use crate::process;
use crate::tools::{Source, Tool};

/// The version that our Rego policies are compared with.
const VERSION: &str = "1.15.2";

/// What to install, and from where.
pub(crate) const OPA: Tool = Tool {
    name: "opa",
    title: "Open Policy Agent 1.15.2",
    check,
    sources: &[Source::Go(GoTool {
        folder: "opa",
        package: "github.com/open-policy-agent/opa-envoy-plugin/cmd/opa-envoy-plugin",
    })],
};

/// The version of the OPA at `path`; an error if it is not the pinned one.
fn check(path: &Path) -> Result<String, String> {
    let said = process::output(Command::new(path).arg("version"))?;
    let version = said
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .unwrap_or_default();
    if version == VERSION {
        Ok(format!("OPA {version}"))
    } else {
        Err(format!("wanted OPA {VERSION}, found `{}`", said.trim()))
    }
}
