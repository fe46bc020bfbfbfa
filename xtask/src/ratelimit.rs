//! The pinned reference of our rate limit service: envoyproxy/ratelimit.

use std::path::Path;

use crate::go::GoTool;
use crate::tools::{Source, Tool};

/// The version that our rate limit service is compared with: the newest that the Go module proxy
/// has.
const VERSION: &str = "v1.4.1-0.20260122083618-3fb702589d36";

/// What to install, and from where.
pub(crate) const RATELIMIT: Tool = Tool {
    name: "ratelimit",
    title: "envoyproxy/ratelimit of 2026-01-22",
    check,
    sources: &[Source::Go(GoTool {
        folder: "ratelimit",
        package: "github.com/envoyproxy/ratelimit/src/service_cmd",
    })],
};

/// The version of the service at `path`; an error if it is not the pinned one.
///
/// It has no option that tells, but Go writes into a program which module it was built from.
fn check(path: &Path) -> Result<String, String> {
    let program = std::fs::read(path).map_err(|why| format!("{}: {why}", path.display()))?;
    let module = format!("mod\tgithub.com/envoyproxy/ratelimit\t{VERSION}\t");
    let found = program
        .windows(module.len())
        .any(|bytes| bytes == module.as_bytes());
    if found {
        Ok(format!("ratelimit {VERSION}"))
    } else {
        Err(format!("wanted ratelimit {VERSION}, found another program"))
    }
}
