//! The files of access logs: each is open once, however many logs and plans write to it.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::Sink;

/// The files that logs write to, by path, and who writes. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    open: Arc<Mutex<HashMap<PathBuf, Weak<LogFile>>>>,
    writers: TaskTracker,
    /// The logs of those who write.
    written: Arc<Mutex<Vec<Weak<str>>>>,
}

/// Somebody who writes a log, as long as this lives.
#[derive(Debug)]
pub(super) struct Writing {
    /// Where to.
    pub(super) log: Arc<str>,
    _token: TaskTrackerToken,
}

impl Files {
    /// The file at `path`, opened when no log writes to it yet. One that was moved away is opened
    /// anew; where that cannot be, its logs go on where they were.
    ///
    /// # Errors
    /// A file that is not open cannot be opened.
    pub(super) fn open(&self, path: &Path) -> io::Result<Arc<LogFile>> {
        let mut files = lock(&self.open);
        files.retain(|_, file| file.strong_count() > 0);
        if let Some(known) = files.get(path).and_then(Weak::upgrade) {
            known.follow();
            return Ok(known);
        }
        let file = Arc::new(LogFile {
            path: path.to_owned(),
            file: Mutex::new(open(path)?),
            moved: AtomicBool::new(false),
        });
        files.insert(path.to_owned(), Arc::downgrade(&file));
        Ok(file)
    }

    /// Has all files opened anew, each before its next line: they were moved away.
    pub(crate) fn reopen(&self) {
        let files = lock(&self.open);
        for file in files.values().filter_map(Weak::upgrade) {
            file.moved.store(true, Ordering::Relaxed);
        }
    }

    /// Who writes, to files or elsewhere, holds this meanwhile.
    pub(super) fn writer(&self, sink: &Sink) -> Writing {
        let log: Arc<str> = sink.to_string().into();
        let mut written = lock(&self.written);
        written.retain(|log| log.strong_count() > 0);
        written.push(Arc::downgrade(&log));
        Writing {
            log,
            _token: self.writers.token(),
        }
    }

    /// The logs that somebody writes.
    fn written(&self) -> Vec<Arc<str>> {
        let written = lock(&self.written);
        written.iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits until all lines are written, when nobody hands over any more.
    pub(crate) async fn finish(&self, limit: Duration) {
        self.writers.close();
        let written = tokio::time::timeout(limit, self.writers.wait()).await;
        if written.is_err() {
            for log in self.written() {
                tracing::warn!(%log, "an access log is not written to its end within {limit:?}");
            }
        }
    }
}

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
    /// It is to be opened anew before the next line.
    moved: AtomicBool,
}

impl LogFile {
    /// Appends whole lines.
    pub(super) fn write(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = lock(&self.file);
        if self.moved.swap(false, Ordering::Relaxed) {
            self.renew(&mut file);
        }
        file.write_all(lines)
    }

    /// Opens the file anew if another one, or none, is at its path.
    fn follow(&self) {
        let mut file = lock(&self.file);
        let same = |there: &std::fs::Metadata, ours: &std::fs::Metadata| {
            (there.dev(), there.ino()) == (ours.dev(), ours.ino())
        };
        let there = std::fs::metadata(&self.path).ok();
        let ours = file.metadata().ok();
        if !there
            .zip(ours)
            .is_some_and(|(there, ours)| same(&there, &ours))
        {
            self.renew(&mut file);
        }
    }

    fn renew(&self, file: &mut File) {
        match open(&self.path) {
            Ok(new) => *file = new,
            Err(error) => {
                let path = self.path.display();
                tracing::warn!(%path, %error, "the access log cannot be opened again: it goes on where it was");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// What is locked stays whole whatever happens.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_path_is_open_once_and_closed_with_its_last_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let files = Files::default();

        let (one, two) = (files.open(&path).unwrap(), files.open(&path).unwrap());
        one.write(b"one\n").unwrap();
        two.write(b"two\n").unwrap();

        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(text(&path), "one\ntwo\n");
        drop((one, two));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(files.open(&path).is_err());
    }

    #[test]
    fn it_is_known_which_logs_are_not_written_to_their_end() {
        let files = Files::default();
        let writing = files.writer(&Sink::File("/var/log/edge".into()));
        drop(files.writer(&Sink::Stdout));

        let names: Vec<_> = files.written().iter().map(ToString::to_string).collect();

        assert_eq!(names, ["/var/log/edge"]);
        drop(writing);
        assert!(files.written().is_empty());
    }

    #[test]
    fn a_file_that_was_moved_is_opened_anew_when_that_is_said_and_by_the_next_log() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("log"), folder.path().join("log.1"));
        let files = Files::default();
        let log = files.open(&path).unwrap();
        for anew in [
            (|files: &Files, _: &Path| files.reopen()) as fn(&Files, &Path),
            |files, path| drop(files.open(path).unwrap()),
        ] {
            fs::rename(&path, &moved).unwrap();
            log.write(b"old\n").unwrap();

            anew(&files, &path);
            log.write(b"new\n").unwrap();

            assert!(text(&moved).ends_with("old\n"));
            assert_eq!(text(&path), "new\n");
        }
    }

    #[test]
    fn what_cannot_be_opened_again_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, moved) = (folder.path().join("logs"), folder.path().join("moved"));
        fs::create_dir(&logs).unwrap();
        let files = Files::default();
        let log = files.open(&logs.join("log")).unwrap();
        fs::rename(&logs, &moved).unwrap();

        let again = files.open(&logs.join("log")).unwrap();
        files.reopen();
        again.write(b"line\n").unwrap();

        assert!(Arc::ptr_eq(&log, &again));
        assert_eq!(text(&moved.join("log")), "line\n");
    }
}
