//! Running other programs, with errors that say what was run and what it said.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Runs `command` quietly and gives its output; a failure carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let name = name(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .map_err(|why| format!("cannot start {name}: {why}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    let said = said.trim();
    if said.is_empty() {
        Err(format!("{name} failed ({})", out.status))
    } else {
        Err(format!("{name} failed ({}):\n{said}", out.status))
    }
}

/// Runs `command` in the foreground, its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let line = line(command);
    let status = command
        .status()
        .map_err(|why| format!("cannot start `{line}`: {why}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{line}` failed ({status})"))
    }
}

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn name(command: &Command) -> String {
    std::path::Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

fn line(command: &Command) -> String {
    let mut line = name(command);
    for arg in command.get_args().map(OsStr::to_string_lossy) {
        line.push(' ');
        line.push_str(&arg);
    }
    line
}
