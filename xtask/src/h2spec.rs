//! The pinned conformance tests of HTTP/2: summerwind/h2spec.

use std::path::Path;

use crate::go::GoTool;
use crate::tools::{Source, Tool};

/// The newest version that the Go module proxy has.
const VERSION: &str = "v2.2.1+incompatible";

/// What to install, and from where.
pub(crate) const H2SPEC: Tool = Tool {
    name: "h2spec",
    title: "h2spec 2.2.1",
    check,
    sources: &[Source::Go(GoTool {
        folder: "h2spec",
        package: "github.com/summerwind/h2spec/cmd/h2spec",
    })],
};

/// The version of the program at `path`; an error if it is not the pinned one.
///
/// What it says itself is set by its own build only, but Go writes into a program which module it
/// was built from.
fn check(path: &Path) -> Result<String, String> {
    let program = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let module = format!("\tgithub.com/summerwind/h2spec\t{VERSION}\t");
    let found = program
        .windows(module.len())
        .any(|bytes| bytes == module.as_bytes());
    if found {
        Ok(format!("h2spec {VERSION}"))
    } else {
        Err(format!("wanted h2spec {VERSION}, found another program"))
    }
}
