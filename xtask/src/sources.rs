//! What belongs to the sources of an example, and whether it was built from them.
//!
//! The end-to-end tests read this file too: they take no program that was built from
//! other sources than there are.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

/// The file in a build's folder that says what it was built from.
const MARK: &str = "built-from";

/// The files of an example, by their path in it: those at its top, and all below `src`.
/// Whatever a build in place leaves lies in other folders. Texts for people do not count.
pub(crate) fn files(example: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(example.join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if path.extension().is_some_and(|kind| kind == "md") {
                continue;
            }
            if entry.file_type()?.is_file() {
                files.insert(path, fs::read(entry.path())?);
            } else if path.starts_with("src") {
                folders.push(path);
            }
        }
    }
    Ok(files)
}

/// Whether what is in the folder `build` was built from these files.
pub(crate) fn is_built(files: &BTreeMap<PathBuf, Vec<u8>>, build: &Path) -> bool {
    fs::read_to_string(build.join(MARK)).is_ok_and(|mark| mark == fingerprint(files))
}

/// Notes that what is in the folder `build` was built from these files.
#[allow(dead_code, reason = "the tests only read")]
pub(crate) fn mark_built(files: &BTreeMap<PathBuf, Vec<u8>>, build: &Path) -> io::Result<()> {
    fs::write(build.join(MARK), fingerprint(files))
}

fn fingerprint(files: &BTreeMap<PathBuf, Vec<u8>>) -> String {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    format!("{:016x}\n", hasher.finish())
}
