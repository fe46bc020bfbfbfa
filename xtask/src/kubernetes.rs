//! What holds manifests against the schemas of Kubernetes.

use std::path::Path;
use std::process::Command;

use crate::process;
use crate::python::Python;
use crate::tools::{Source, Tool};

/// The pinned program; it brings the schemas.
const VERSION: &str = "1.37.0";

/// What to install, and from where.
pub(crate) const KUBERNETES_VALIDATE: Tool = Tool {
    name: "kubernetes-validate",
    title: "kubernetes-validate 1.37.0",
    check,
    sources: &[Source::Python(Python {
        requirements: "kubernetes-validate.txt",
        program: "kubernetes-validate",
    })],
};

/// The version of the program at `path`; an error if it is not the pinned one.
fn check(path: &Path) -> Result<String, String> {
    let said = process::output(Command::new(path).arg("--version"))?;
    match said.split_ascii_whitespace().any(|word| word == VERSION) {
        true => Ok(format!("kubernetes-validate {VERSION}")),
        false => Err(format!("wanted {VERSION}, found `{}`", said.trim())),
    }
}
