//! One record of the decision log.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::SystemTime};

use attache_service::time::rfc3339;
use aws_lc_rs::rand;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::{
    policy::explain::Told,
    server::{CheckError, Decision},
};

/// Longer values are cut, in bytes.
const MAX_VALUE: usize = 1024;

/// What stands for a value that is not shown.
pub(super) fn masked() -> &'static str {
    "(masked)"
}

/// A value as far as it is shown.
pub(super) fn cut(value: Cow<'_, str>) -> Cow<'_, str> {
    if value.len() <= MAX_VALUE {
        return value;
    }
    let end = value.floor_char_boundary(MAX_VALUE);
    Cow::Owned(format!("{}…", value.get(..end).unwrap_or_default()))
}

/// What tells a decision from all others: a random UUID (RFC 9562, version 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) struct DecisionId([u8; 16]);

impl DecisionId {
    pub(in crate::policy) fn random() -> Self {
        let mut id = [0; 16];
        // Without random numbers there is no TLS nor any key of this process either.
        let _ = rand::fill(&mut id);
        let [_, _, _, _, _, _, version, _, variant, ..] = &mut id;
        *version = *version & 0x0f | 0x40;
        *variant = *variant & 0x3f | 0x80;
        Self(id)
    }

    /// From 0 to 1, evenly.
    pub(super) fn fraction(&self) -> f64 {
        let [a, b, c, d, ..] = self.0;
        f64::from(u32::from_be_bytes([a, b, c, d])) / (f64::from(u32::MAX) + 1.0)
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Serialize for DecisionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a check ended.
pub(super) enum Ending<'a> {
    Allow,
    Deny(&'a Decision),
    Error(Option<&'a CheckError>),
    /// The caller went away, or its deadline came.
    Cancelled,
}

impl Ending<'_> {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny(_) => "deny",
            Self::Error(_) => "error",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Deny(decision) => decision.status(),
            _ => None,
        }
    }

    pub(super) fn reason(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Deny(decision) => decision.reason().map(|reason| cut(reason.into())),
            _ => None,
        }
    }

    pub(super) fn error(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Error(error) => error.map(|error| cut(error.to_string().into())),
            _ => None,
        }
    }
}

/// A line of the log.
#[derive(Serialize)]
pub(super) struct Record<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) decision_id: &'a DecisionId,
    pub(super) time: String,
    pub(super) decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Cow<'a, str>>,
    pub(super) latency_ms: f64,
    pub(super) cached: bool,
    pub(super) revision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pipeline: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy_revision: Option<String>,
    pub(super) request: Request<'a>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) claims: BTreeMap<&'a str, Cow<'a, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) explain: Option<Told<'a>>,
}

/// What a record says of the request.
#[derive(Serialize)]
pub(super) struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<Cow<'a, str>>,
    /// Without the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<Cow<'a, str>>,
    /// Address of the proxy's peer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) principal: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<&'a str, Cow<'a, str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) query: BTreeMap<Cow<'a, str>, Vec<Cow<'a, str>>>,
}

/// Says how many records are missing before the next.
#[derive(Serialize)]
pub(super) struct Lost {
    #[serde(rename = "type")]
    kind: &'static str,
    time: String,
    count: u64,
}

impl Lost {
    pub(super) fn now(count: u64) -> Self {
        Self {
            kind: "lost",
            time: rfc3339(SystemTime::now()),
            count,
        }
    }
}
