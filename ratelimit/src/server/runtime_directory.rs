//! The reference's way to lay out rule files: a root that is swapped as a whole, or a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How deep directories are looked into.
const MAX_DEPTH: usize = 16;

/// Where rule files lie, by the reference's variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDirectory {
    /// `RUNTIME_ROOT`, which may be a symbolic link that is swung to another version.
    pub root: PathBuf,
    /// `RUNTIME_SUBDIRECTORY`.
    pub subdirectory: String,
    /// `RUNTIME_APPDIRECTORY`.
    pub app_directory: String,
    /// `RUNTIME_IGNOREDOTFILES`: names that begin with a dot are passed over.
    pub ignore_dot_files: bool,
    /// `RUNTIME_WATCH_ROOT`: a new version is there when the root leads elsewhere. Otherwise,
    /// when a file in the innermost directory changes.
    pub watch_root: bool,
}

impl RuntimeDirectory {
    /// The files with rules, by the names that the reference has for them: the path below the
    /// directory, with dots for slashes.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn files(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut files = Vec::new();
        let top = match self.watch_root {
            true => self.root.join(&self.subdirectory),
            false => self.innermost(),
        };
        self.collect(&top, "", MAX_DEPTH, &mut files)?;
        if self.watch_root {
            let prefix = format!("{}.", self.app_directory);
            files.retain(|(name, _)| name.starts_with(&prefix));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// What to watch for changes.
    pub fn watched(&self) -> PathBuf {
        match self.watch_root {
            true => self.root.clone(),
            false => self.innermost(),
        }
    }

    fn innermost(&self) -> PathBuf {
        self.root.join(&self.subdirectory).join(&self.app_directory)
    }

    fn collect(
        &self,
        directory: &Path,
        prefix: &str,
        depth: usize,
        files: &mut Vec<(String, PathBuf)>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // `..data` and `..2026_…` are how Kubernetes swaps a mounted ConfigMap: the same
            // files once more.
            if name.starts_with("..") || (self.ignore_dot_files && name.starts_with('.')) {
                continue;
            }
            let path = entry.path();
            let key = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                match depth.checked_sub(1) {
                    Some(depth) => self.collect(&path, &format!("{key}."), depth, files)?,
                    None => return Err(io::Error::other("directories are too deep")),
                }
            } else if !path.is_dir() {
                files.push((key, path));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory(root: &Path, watch_root: bool) -> RuntimeDirectory {
        RuntimeDirectory {
            root: root.to_path_buf(),
            subdirectory: "ratelimit".to_owned(),
            app_directory: "config".to_owned(),
            ignore_dot_files: false,
            watch_root,
        }
    }

    fn names(directory: &RuntimeDirectory) -> Vec<String> {
        let files = directory.files().unwrap();
        files.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn files_have_the_names_of_the_reference() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().join("v1");
        let write = |path: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "domain: d").unwrap();
        };
        write("ratelimit/config/a.yaml");
        write("ratelimit/config/deep/b");
        write("ratelimit/config/.hidden");
        write("ratelimit/other.yaml");
        write("elsewhere/config/c.yaml");
        let link = temporary.path().join("current");
        symlink("v1", &link).unwrap();

        let mut watched = directory(&link, true);
        assert_eq!(
            names(&watched),
            ["config..hidden", "config.a.yaml", "config.deep.b"]
        );
        assert_eq!(watched.watched(), link);
        watched.ignore_dot_files = true;
        assert_eq!(names(&watched), ["config.a.yaml", "config.deep.b"]);

        let plain = directory(&link, false);
        assert_eq!(names(&plain), [".hidden", "a.yaml", "deep.b"]);
        assert_eq!(plain.watched(), link.join("ratelimit/config"));
    }

    #[test]
    fn a_config_map_is_read_once_whatever_dot_files_are() {
        let temporary = tempfile::tempdir().unwrap();
        let inner = temporary.path().join("ratelimit/config");
        fs::create_dir_all(inner.join("..2026_01_01")).unwrap();
        fs::write(inner.join("..2026_01_01/a.yaml"), "domain: d").unwrap();
        symlink("..2026_01_01", inner.join("..data")).unwrap();
        symlink("..data/a.yaml", inner.join("a.yaml")).unwrap();
        assert_eq!(names(&directory(temporary.path(), false)), ["a.yaml"]);
        assert_eq!(names(&directory(temporary.path(), true)), ["config.a.yaml"]);
    }

    #[test]
    fn without_a_subdirectory_the_files_lie_below_the_root() {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir(temporary.path().join("config")).unwrap();
        fs::write(temporary.path().join("config/a.yaml"), "domain: d").unwrap();
        let directory = RuntimeDirectory {
            subdirectory: String::new(),
            ..directory(temporary.path(), true)
        };
        assert_eq!(names(&directory), ["config.a.yaml"]);
    }

    #[test]
    fn without_its_directory_there_is_an_error() {
        let temporary = tempfile::tempdir().unwrap();
        assert!(directory(temporary.path(), true).files().is_err());
    }
}
