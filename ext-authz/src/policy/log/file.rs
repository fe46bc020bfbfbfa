//! A log file that is renamed when it is large.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

use attache_service::config::Size;

use crate::policy::config;

/// Identities may be in it: not for everybody.
const MODE: u32 = 0o640;
const MAX_SIZE: Size = Size(100 << 20);
const KEEP: u32 = 5;
/// More older files than anybody looks through.
const MAX_KEEP: u32 = 1000;

/// A log file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// Opened when there is something to write.
    file: Option<File>,
    size: u64,
    /// 0 for no bound.
    max_size: u64,
    keep: u32,
}

impl LogFile {
    pub(super) fn new(path: PathBuf, raw: &config::LogFile) -> Self {
        Self {
            path,
            file: None,
            size: 0,
            max_size: raw.max_size.unwrap_or(MAX_SIZE).0,
            keep: raw.keep.unwrap_or(KEEP).min(MAX_KEEP),
        }
    }

    /// Whether it can be written, as far as that can be seen without making it.
    pub(super) fn writable(&self) -> Result<(), String> {
        let opened = OpenOptions::new().append(true).open(&self.path);
        let folder = || match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => fs::read_dir(folder).map(drop),
            _ => Ok(()),
        };
        let result = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => folder(),
            opened => opened.map(drop),
        };
        result.map_err(|error| format!("cannot write `{}`: {error}", self.path.display()))
    }

    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let more = lines.len() as u64;
        if self.away()? {
            self.reopen()?;
        }
        if self.max_size > 0 && self.size > 0 && self.size.saturating_add(more) > self.max_size {
            self.rotate()?;
            self.reopen()?;
        }
        if let Some(file) = &mut self.file {
            file.write_all(lines)?;
        }
        self.size = self.size.saturating_add(more);
        Ok(())
    }

    /// Whether the file is not open yet, or somebody else has taken it away.
    fn away(&self) -> io::Result<bool> {
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let ours = file.metadata()?;
        Ok(match fs::metadata(&self.path) {
            Ok(there) => (there.dev(), there.ino()) != (ours.dev(), ours.ino()),
            Err(_) => true,
        })
    }

    fn reopen(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Makes room: the file becomes the first of the older ones, the oldest goes.
    fn rotate(&self) -> io::Result<()> {
        if self.keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            match fs::rename(self.older(number), self.older(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.older(1))
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use attache_service::config::Located;

    use super::*;

    fn log(path: &Path, max_size: u64, keep: u32) -> LogFile {
        let raw = config::LogFile {
            path: Located::nowhere(path.to_path_buf()),
            max_size: Some(Size(max_size)),
            keep: Some(keep),
        };
        LogFile::new(path.to_path_buf(), &raw)
    }

    #[test]
    fn a_large_file_becomes_an_older_one_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.log");
        let mut file = log(&path, 10, 2);
        for line in [
            "1111\n",
            "2222\n",
            "3333\n",
            "4444\n",
            "5555\n",
            "6666\n",
            "77777777777\n",
        ] {
            file.write(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("d.log").as_deref(), Some("77777777777\n"));
        assert_eq!(read("d.log.1").as_deref(), Some("5555\n6666\n"));
        assert_eq!(read("d.log.2").as_deref(), Some("3333\n4444\n"));
        assert_eq!(read("d.log.3"), None);
        // What was there before counts.
        let mut file = log(&path, 10, 0);
        file.write(b"8888\n").unwrap();
        assert_eq!(read("d.log").as_deref(), Some("8888\n"));
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o007, 0);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.log");
        let mut file = log(&path, 0, 2);
        file.write(b"1\n").unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        file.write(b"2\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
    }
}
