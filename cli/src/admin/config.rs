//! `/config`: the configuration in use, and what became of the last one that was refused.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use attache_service::{
    admin::ConfigDump,
    config::{ConfigError, Document, Shown},
    time::rfc3339,
    xds::AdsStatus,
};
use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use tokio::sync::watch;

use super::kept::{Fields, Kept};
use crate::Failure;

/// The configuration in use.
pub(crate) struct InUse {
    loaded: ArcSwap<Loaded>,
    /// What no reload changes.
    kept: Mutex<Kept>,
    refused: ArcSwapOption<Refused>,
    /// How things stand with the control plane.
    xds: ArcSwapOption<watch::Receiver<AdsStatus>>,
}

struct Loaded {
    document: Document,
    sha256: String,
    at: SystemTime,
    /// What it does not say as it is.
    kept: Fields,
}

/// A configuration that did not come into use.
#[derive(Serialize)]
struct Refused {
    at: String,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct Told<'a> {
    file: &'a str,
    /// Of the file's bytes, as `sha256sum` prints it.
    sha256: &'a str,
    loaded: String,
    last_failed_reload: Option<&'a Refused>,
    xds: Option<AdsStatus>,
    /// What is in use instead of what `configuration` says, until the next start.
    kept_until_restart: BTreeMap<&'a str, Option<Shown<'a>>>,
    configuration: Shown<'a>,
}

impl InUse {
    /// The first one; `workers_are_given` on the command line.
    pub(crate) fn new(document: &Document, workers_are_given: bool) -> Arc<Self> {
        Arc::new(Self {
            loaded: ArcSwap::from_pointee(Loaded::new(document, Fields::new())),
            kept: Mutex::new(Kept::new(document.root(), workers_are_given)),
            refused: ArcSwapOption::empty(),
            xds: ArcSwapOption::empty(),
        })
    }

    /// There is this control plane, or none.
    pub(crate) fn follow(&self, control_plane: Option<watch::Receiver<AdsStatus>>) {
        self.xds.store(control_plane.map(Arc::new));
    }

    /// Another one has come into use, but for these fields, which only a start changes.
    pub(crate) fn loaded(&self, document: &Document) -> Vec<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let otherwise = kept.otherwise_in(document.root());
        let fields = otherwise.keys().cloned().collect();
        self.loaded
            .store(Arc::new(Loaded::new(document, otherwise)));
        fields
    }

    /// Another one was refused.
    pub(crate) fn refused(&self, why: &Failure) {
        let errors = match why {
            Failure::Config(errors) => errors.iter().map(line).collect(),
            other => vec![other.to_string()],
        };
        let at = rfc3339(SystemTime::now());
        self.refused.store(Some(Arc::new(Refused { at, errors })));
    }

    /// What `/config` says.
    pub(crate) fn dump(&self) -> ConfigDump {
        let loaded = self.loaded.load();
        let refused = self.refused.load();
        let told = Told {
            file: loaded.document.source().name(),
            sha256: &loaded.sha256,
            loaded: rfc3339(loaded.at),
            last_failed_reload: refused.as_deref(),
            xds: self
                .xds
                .load()
                .as_deref()
                .map(|status| status.borrow().clone()),
            kept_until_restart: loaded
                .kept
                .iter()
                .map(|(way, value)| (&**way, value.as_ref().map(Shown::new)))
                .collect(),
            configuration: Shown::new(loaded.document.root()),
        };
        let text = serde_json::to_string_pretty(&told);
        ConfigDump {
            content_type: "application/json",
            text: text.map_or_else(|error| error.to_string(), |text| text + "\n"),
        }
    }
}

impl Loaded {
    fn new(document: &Document, kept: Fields) -> Self {
        let digest = digest(&SHA256, document.source().text().as_bytes());
        let sha256 = digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Self {
            document: document.clone(),
            sha256,
            at: SystemTime::now(),
            kept,
        }
    }
}

/// A mistake with its place, without the line of the file, which may hold anything.
fn line(error: &ConfigError) -> String {
    match (error.file(), error.line(), error.column()) {
        (Some(file), Some(line), Some(column)) => {
            format!("{file}:{line}:{column}: {}", error.message())
        }
        (Some(file), ..) => format!("{file}: {}", error.message()),
        (None, ..) => error.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use attache_service::config::Errors;
    use serde_json::Value;

    use super::*;

    fn told(in_use: &InUse) -> Value {
        serde_json::from_str(&in_use.dump().text).unwrap()
    }

    #[test]
    fn what_is_in_use_is_told_with_what_was_refused_since() {
        let document = Document::parse("edge.yaml", "workers: 2\nadmin: x\n").unwrap();
        let in_use = InUse::new(&document, false);

        let first = told(&in_use);

        assert_eq!(first["file"], "edge.yaml");
        // sha256sum of the same bytes.
        assert_eq!(
            first["sha256"],
            "98a04c63d5dc11dd75c0a7ac4dcd2e99cac8c0c06dea0457d7042a98e92d0f86"
        );
        assert!(first["loaded"].as_str().unwrap().ends_with('Z'), "{first}");
        assert_eq!(first["last_failed_reload"], Value::Null);
        assert_eq!(first["xds"], Value::Null);
        assert_eq!(first["configuration"]["workers"], 2);
        assert_eq!(first["kept_until_restart"], serde_json::json!({}));

        let mut errors = Errors::new();
        errors.push(document.root().get("admin").unwrap(), "no address");
        in_use.refused(&Failure::Config(errors));
        let kept = in_use.loaded(&Document::parse("edge.yaml", "workers: 3\nadmin: x").unwrap());
        assert_eq!(kept, ["workers"]);

        let then = told(&in_use);
        assert_eq!(
            then["last_failed_reload"]["errors"],
            serde_json::json!(["edge.yaml:2:8: no address"])
        );
        assert_eq!(then["configuration"]["workers"], 3);
        assert_eq!(
            then["kept_until_restart"],
            serde_json::json!({ "workers": 2 })
        );
        assert_ne!(then["sha256"], first["sha256"]);
    }

    #[test]
    fn a_control_plane_has_its_place() {
        let document = Document::parse("edge.yaml", "{}").unwrap();
        let status = AdsStatus::default();
        let expected = serde_json::to_value(&status).unwrap();
        let (_control_plane, status) = watch::channel(status);
        let in_use = InUse::new(&document, false);

        in_use.follow(Some(status));

        assert_eq!(told(&in_use)["xds"], expected);
        in_use.follow(None);
        assert_eq!(told(&in_use)["xds"], Value::Null);
    }
}
