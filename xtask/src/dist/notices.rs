//! The licences of what is in the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{process, workspace};

const HEAD: &str = "\
Attaché is under the Apache License 2.0, see the file LICENSE. It is made with the works of others,
which are listed here with their licences; the texts follow below.

The GNU C Library is linked in, under the GNU Lesser General Public License 2.1 or later. To use
another version of it, build anew from the sources of Attaché: `cargo xtask dist`.
The standard library of Rust is linked in, under MIT or Apache-2.0.
";

/// Beginnings of the names of files that hold a licence, in capitals.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// How deep below a crate licences are looked for: those of C sources lie there.
const DEPTH: usize = 4;

/// The folder of the crates' sources.
pub(super) fn crates() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    home.unwrap_or_default().join("registry").join("src")
}

/// The list, and every text once.
pub(super) fn all(features: &[&str]) -> Result<String, String> {
    let tree = process::output(
        process::cargo()
            .current_dir(workspace::root())
            .args(["tree", "--locked", "--package", super::PROGRAM])
            .args(["--edges", "normal,no-proc-macro", "--target", super::TARGET])
            .args(["--prefix", "none", "--format", "{p}\t{l}\t{r}"])
            .args(features),
    )?;
    let packages = packages(&tree);
    let mut texts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for package in &packages {
        for text in licences(package)? {
            texts.entry(text).or_default().push(package.name);
        }
    }
    let mut notices = HEAD.to_owned();
    for package in &packages {
        let Package {
            name,
            version,
            licence,
            repository,
        } = package;
        notices += &format!("\n{name} {version}: {licence}\n    {repository}");
    }
    for (text, names) in texts {
        let line = "-".repeat(80);
        notices += &format!("\n\n{line}\n{}\n{line}\n\n{text}", names.join(", "));
    }
    notices.push('\n');
    Ok(notices)
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package<'a> {
    name: &'a str,
    version: &'a str,
    licence: &'a str,
    repository: &'a str,
}

/// The packages of others. Ours have their folder behind the version.
fn packages(tree: &str) -> Vec<Package<'_>> {
    let packages: BTreeSet<_> = tree.lines().filter_map(package).collect();
    packages.into_iter().collect()
}

fn package(line: &str) -> Option<Package<'_>> {
    let mut parts = line.trim_end_matches(" (*)").split('\t');
    let (package, licence, repository) = (parts.next()?, parts.next()?, parts.next()?);
    let (name, version) = package.split_once(" v")?;
    (!version.contains(' ')).then_some(Package {
        name,
        version,
        licence,
        repository,
    })
}

/// The texts that a package brings.
fn licences(package: &Package) -> Result<BTreeSet<String>, String> {
    let sources = crates();
    let registries =
        fs::read_dir(&sources).map_err(|why| format!("{}: {why}", sources.display()))?;
    let folder = format!("{}-{}", package.name, package.version);
    let mut texts = BTreeSet::new();
    for registry in registries.filter_map(Result::ok) {
        let folder = registry.path().join(&folder);
        if folder.is_dir() {
            gather(&folder, DEPTH, &mut texts);
        }
    }
    Ok(texts)
}

fn gather(folder: &Path, depth: usize, texts: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().to_uppercase();
        if path.is_dir() {
            if depth > 0 {
                gather(&path, depth - 1, texts);
            }
        } else if NAMES.iter().any(|start| name.starts_with(start))
            && !name.ends_with(".RS")
            && let Ok(text) = fs::read_to_string(&path)
        {
            texts.insert(text.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_of_others_is_listed_once() {
        let tree = "attache v0.1.0 (/src/cli)\tApache-2.0\t\n\
                    bytes v1.12.1\tMIT\thttps://example.com/bytes\n\
                    bytes v1.12.1\tMIT\thttps://example.com/bytes (*)\n";
        let bytes = Package {
            name: "bytes",
            version: "1.12.1",
            licence: "MIT",
            repository: "https://example.com/bytes",
        };
        assert_eq!(packages(tree), [bytes]);
    }
}
