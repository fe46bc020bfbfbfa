//! What making a policy of its settings takes.

use std::{
    any::Any,
    collections::BTreeSet,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use attache_service::{
    Metrics,
    config::{Document, Errors, Hidden, Located, Secret, Size},
    fetch::{Fetcher, HttpService},
};
use aws_lc_rs::digest;

use super::{
    background::{Gate, Task, Tasks},
    check::Read,
    kept::Kept,
};

/// Largest file that a configuration may name, in bytes.
const MAX_FILE: u64 = 8 << 20;

/// How often what decisions rest on has changed beside the file: keys, policies and data that
/// are fetched.
#[derive(Debug, Default)]
pub(super) struct Revision(AtomicU64);

impl Revision {
    /// Decisions made before hold no longer.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn current(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A configuration on its way to a policy: everything that the parts of it need or leave behind.
pub(super) struct Planning<'a> {
    document: &'a Document,
    pub(super) metrics: &'a Metrics,
    pub(super) errors: &'a mut Errors,
    /// What has to be there before the policy can decide.
    pub(super) gate: Gate,
    /// To be advanced by whoever replaces something that was fetched.
    pub(super) revision: Arc<Revision>,
    files: Vec<PathBuf>,
    tasks: Tasks,
    credentials: BTreeSet<Read>,
    digest: digest::Context,
    before: &'a Kept,
    kept: Kept,
}

impl<'a> Planning<'a> {
    /// `before` is what the policy to be replaced hands on.
    pub(super) fn new(
        document: &'a Document,
        metrics: &'a Metrics,
        before: &'a Kept,
        errors: &'a mut Errors,
    ) -> Self {
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(document.source().text().as_bytes());
        let mut kept = Kept::default();
        Self {
            document,
            metrics,
            errors,
            gate: Gate::default(),
            revision: kept.keep(before, "revision".to_owned(), Revision::default),
            files: Vec::new(),
            tasks: Tasks::default(),
            credentials: BTreeSet::new(),
            digest,
            before,
            kept,
        }
    }

    /// Where to report what is wrong with the file as a whole.
    pub(super) fn missing(&mut self, problem: &str) {
        self.errors.push(self.document.root(), problem);
    }

    /// A path as written, from the folder of the file it is written in.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.document.resolve(path)
    }

    /// Watches a file or folder by its path as written: a change of it is a reason to reload.
    pub(super) fn watch(&mut self, path: &Path) {
        self.watch_resolved(self.resolve(path));
    }

    /// [`Planning::watch`] by the path itself.
    pub(super) fn watch_resolved(&mut self, path: PathBuf) {
        if !self.files.contains(&path) {
            self.files.push(path);
        }
    }

    /// Reads a secret, and watches its file. What goes wrong is reported at its place.
    pub(super) fn secret(&mut self, secret: &Secret) -> Option<Hidden> {
        if let Some(file) = secret.file() {
            self.watch_resolved(file);
        }
        secret.read(self.errors)
    }

    /// Reads a file named in the configuration, and watches it.
    pub(super) fn read(&mut self, path: &Path) -> Result<String, String> {
        self.watch(path);
        let path = self.resolve(path);
        let problem = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
        let file = std::fs::File::open(&path).map_err(problem)?;
        let mut text = String::new();
        file.take(MAX_FILE + 1)
            .read_to_string(&mut text)
            .map_err(problem)?;
        if text.len() as u64 > MAX_FILE {
            return Err(format!("`{}` is larger than 8 MiB", path.display()));
        }
        self.digest.update(text.as_bytes());
        Ok(text)
    }

    /// Reads a file of at most `most` bytes, and watches it.
    pub(super) fn read_bytes(&mut self, path: &Path, most: u64) -> Result<Vec<u8>, String> {
        self.watch(path);
        let path = self.resolve(path);
        let problem = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
        let file = std::fs::File::open(&path).map_err(problem)?;
        let mut bytes = Vec::new();
        file.take(most.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(problem)?;
        if bytes.len() as u64 > most {
            return Err(format!("`{}` is larger than {most} bytes", path.display()));
        }
        Ok(bytes)
    }

    /// What tells the settings from others: a digest of the file and all that was read for it.
    pub(super) fn digest(&self) -> String {
        let digest = self.digest.clone().finish();
        let bytes = digest.as_ref().iter().take(8);
        bytes.map(|byte| format!("{byte:02x}")).collect()
    }

    /// This part of requests holds a credential: it is never shown.
    pub(super) fn credential(&mut self, part: Read) {
        self.credentials.insert(part);
    }

    /// The parts of requests that hold credentials, of all sources so far.
    pub(super) fn credentials(&self) -> &BTreeSet<Read> {
        &self.credentials
    }

    /// [`Planning::read`] of a file with a place; what goes wrong is reported there.
    pub(super) fn read_located(&mut self, path: &Located<PathBuf>) -> Option<String> {
        match self.read(&path.value) {
            Ok(text) => Some(text),
            Err(problem) => {
                self.errors.push(path, problem);
                None
            }
        }
    }

    /// Runs `task` for as long as the policy is in use, on the thread of such tasks.
    pub(super) fn run(&mut self, task: Task) {
        self.tasks.add(task);
    }

    /// What the policy to be replaced has by this name, else what is made now. The name must say
    /// all of the settings that the thing depends on.
    pub(super) fn kept<T: Any + Send + Sync>(
        &mut self,
        name: String,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.kept.keep(self.before, name, make)
    }

    /// Makes ready to ask a service, and watches its files. `max_size` bounds its answers where
    /// the settings do not.
    pub(super) fn fetcher(&mut self, service: &HttpService, max_size: Size) -> Option<Fetcher> {
        let fetcher = service.plan(max_size, self.errors)?;
        for file in fetcher.files() {
            self.watch_resolved(file.clone());
        }
        Some(fetcher)
    }

    /// What is left to do.
    pub(super) fn finish(self) -> Finished {
        Finished {
            files: self.files,
            tasks: self.tasks,
            gate: self.gate,
            kept: self.kept,
        }
    }
}

/// What planning leaves to do.
pub(super) struct Finished {
    /// To be watched.
    pub(super) files: Vec<PathBuf>,
    /// To be run.
    pub(super) tasks: Tasks,
    /// To be waited for.
    pub(super) gate: Gate,
    /// For the policy after this one.
    pub(super) kept: Kept,
}
