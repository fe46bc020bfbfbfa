//! The service: a policy from a file, replaced when the file changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use attache_service::{
    Metrics,
    config::{Errors, reload::Watch},
    metrics::Counter,
};

use super::plan::Policy;
use crate::server::{Authorizer, CheckError, CheckRequestView, Decision};

/// The ready-made authorizer. Cheap to clone; clones share the policy.
///
/// It exists only with a policy whose keys are loaded, so it is ready as soon as it is there.
#[derive(Debug, Clone)]
pub struct AuthService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    metrics: Metrics,
    policy: ArcSwap<Policy>,
    reloaded: Counter,
    refused: Counter,
}

impl AuthService {
    /// Reads the configuration at `path` and the key files that it names.
    ///
    /// # Errors
    /// All that is wrong with it, each with its place.
    pub fn load(path: &Path, metrics: &Metrics) -> Result<Self, Errors> {
        let policy = Policy::load(path, metrics)?;
        let counter = |result| {
            metrics.counter(
                "attache_auth_reloads",
                "Reloads of the policy file.",
                &[("result", result)],
            )
        };
        Ok(Self(Arc::new(Inner {
            path: path.to_path_buf(),
            metrics: metrics.clone(),
            policy: ArcSwap::from_pointee(policy),
            reloaded: counter("ok"),
            refused: counter("error"),
        })))
    }

    /// Reads everything anew and replaces the policy at once; checks under way finish on the
    /// old one.
    ///
    /// # Errors
    /// All that is wrong; the old policy then stays.
    pub fn reload(&self) -> Result<(), Errors> {
        match Policy::load(&self.0.path, &self.0.metrics) {
            Ok(policy) => {
                self.0.policy.store(Arc::new(policy));
                self.0.reloaded.inc();
                Ok(())
            }
            Err(errors) => {
                self.0.refused.inc();
                Err(errors)
            }
        }
    }

    /// The files that the policy was made of: its own and the key files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.policy.load().files.clone()
    }

    /// Reloads whenever one of the files changes, for ever. Failures are logged.
    pub async fn watch(&self) {
        loop {
            let files = self.files();
            let mut watch = match Watch::new(&files) {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(%error, "policy files cannot be watched; they are read once");
                    return;
                }
            };
            // Watches the same files until a reload names others.
            while self.files() == files {
                watch.changed().await;
                match self.reload() {
                    Ok(()) => tracing::info!("policy reloaded"),
                    Err(errors) => {
                        tracing::error!(%errors, "policy not reloaded; the old one stays")
                    }
                }
            }
        }
    }

    /// Decides on one request. Nothing is awaited.
    pub fn decide(&self, request: &CheckRequestView) -> Decision {
        self.0.policy.load().decide(request)
    }
}

impl Authorizer for AuthService {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        Ok(self.decide(request))
    }
}
