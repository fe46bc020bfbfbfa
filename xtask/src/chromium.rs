//! Chromium, and the program that drives it for the tests.

use std::path::Path;
use std::process::Command;

use crate::debian::Debian;
use crate::process;
use crate::tools::{Source, Tool};

/// Both come together: a driver goes with the browser of its version.
const PACKAGES: &[&str] = &["chromium", "chromium-driver"];

/// The browser.
pub(crate) const CHROMIUM: Tool = Tool {
    name: "chromium",
    title: "Chromium",
    check,
    sources: &[
        Source::Path("chromium"),
        Source::Path("chromium-browser"),
        Source::Path("google-chrome"),
        Source::Debian(Debian {
            packages: PACKAGES,
            program: "chromium",
        }),
    ],
};

/// Its driver.
pub(crate) const DRIVER: Tool = Tool {
    name: "chromedriver",
    title: "ChromeDriver",
    check,
    sources: &[
        Source::Path("chromedriver"),
        Source::Debian(Debian {
            packages: PACKAGES,
            program: "chromedriver",
        }),
    ],
};

/// Name and version of the program at `path`.
fn check(path: &Path) -> Result<String, String> {
    // "Chromium 156.0.8078.79 built on …", "ChromeDriver 156.0.8078.79 (…)"
    let said = process::output(Command::new(path).arg("--version"))?;
    let mut words = said.split_ascii_whitespace();
    let numbered = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    match (words.next(), words.find(numbered)) {
        (Some(name), Some(version)) => Ok(format!("{name} {version}")),
        _ => Err(format!("`{}` names no version", said.trim())),
    }
}
