//! Where a server's rules come from, to be read again.

use std::path::{Path, PathBuf};

use attache_service::config::Errors;

use super::RuntimeDirectory;
use crate::config::{Merge, Rules};

/// Where the rules come from.
#[derive(Debug, Clone)]
pub enum RuleSource {
    /// A file, or all files of a directory.
    Path {
        /// The file or directory.
        path: PathBuf,
        /// Whether files of the same domain add up.
        merge: Merge,
    },
    /// Files as the reference service has them laid out.
    Runtime {
        /// Where they lie.
        directory: RuntimeDirectory,
        /// Whether files of the same domain add up.
        merge: Merge,
    },
    /// Somebody gives them, with [`RateLimitServer::set_rules`](super::RateLimitServer::set_rules).
    Given,
}

impl RuleSource {
    /// A file, or all files of a directory, each with a domain of its own.
    pub fn path(path: &Path) -> Self {
        Self::Path {
            path: path.to_path_buf(),
            merge: Merge::default(),
        }
    }

    /// Reads them; `None` when somebody gives them.
    ///
    /// # Errors
    /// All faults of all files.
    pub fn load(&self) -> Option<Result<Rules, Errors>> {
        match self {
            Self::Path { path, merge } => Some(Rules::load_merging(path, *merge)),
            Self::Runtime { directory, merge } => Some(match directory.files() {
                Ok(files) => Rules::load_named(files, *merge),
                Err(error) => {
                    let mut errors = Errors::new();
                    let name = directory.watched().display().to_string();
                    errors.push_file(name, format!("cannot be read: {error}"));
                    Err(errors)
                }
            }),
            Self::Given => None,
        }
    }

    /// The files and directories whose change means that the rules are to be read again.
    pub fn watched(&self) -> Vec<PathBuf> {
        match self {
            Self::Path { path, .. } => vec![path.clone()],
            Self::Runtime { directory, .. } => vec![directory.watched()],
            Self::Given => Vec::new(),
        }
    }
}
