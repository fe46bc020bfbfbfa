//! The decision log: what was decided, why, and on whom.

mod file;
mod http;
mod record;
mod sink;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use attache_service::Metrics;
use attache_service::time::rfc3339;
use serde_json::Value;

use super::{
    check::Read,
    config::{self, LogOutput},
    engine::Engine,
    explain::Account,
    planning::Planning,
};
use crate::server::{CheckRequestView, form_pairs};
pub(super) use record::DecisionId;
use record::{Ending, Record, Request, cut, masked};
use sink::Sink;

/// Headers that carry credentials, whoever reads them.
const SECRET_HEADERS: [&str; 5] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
];
/// Headers whose values are URLs.
const URL_HEADERS: [&str; 6] = [
    "referer",
    "x-envoy-original-path",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-original-uri",
    "x-original-url",
];
/// Query parameters that carry credentials, whoever reads them.
const SECRET_PARAMETERS: [&str; 11] = [
    "access_token",
    "api_key",
    "apikey",
    "client_secret",
    "code",
    "id_token",
    "password",
    "refresh_token",
    "sig",
    "signature",
    "token",
];

/// Whether a header carries a credential, whoever reads it.
pub(super) fn is_secret_header(name: &str) -> bool {
    SECRET_HEADERS
        .iter()
        .any(|secret| name.eq_ignore_ascii_case(secret))
}

/// What to log of each decision, and where to.
#[derive(Debug)]
pub(super) struct DecisionLog {
    sample: f64,
    headers: Shown,
    query: Shown,
    claims: Shown,
    pub(super) explain: bool,
    revision: String,
    sink: Sink,
}

/// What to show of a kind of thing, by name.
#[derive(Debug)]
struct Shown {
    names: Vec<String>,
    all: bool,
    masked: HashSet<String>,
}

impl Shown {
    fn new(names: &[String], masked: HashSet<String>) -> Self {
        Self {
            all: names.iter().any(|name| name == "*"),
            names: names.to_vec(),
            masked,
        }
    }

    fn nothing(&self) -> bool {
        self.names.is_empty()
    }

    /// The value as it may be shown, if it is to be.
    fn show<'a>(&self, name: &str, value: impl FnOnce() -> Cow<'a, str>) -> Option<Cow<'a, str>> {
        if !self.all && !self.names.iter().any(|shown| shown == name) {
            return None;
        }
        // However it is written: not every proxy has names in lower case.
        let mut secrets = self.masked.iter();
        Some(
            match secrets.any(|secret| secret.eq_ignore_ascii_case(name)) {
                true => Cow::Borrowed(masked()),
                false => cut(value()),
            },
        )
    }
}

impl DecisionLog {
    pub(super) fn plan(raw: &config::DecisionLog, planning: &mut Planning<'_>) -> Option<Self> {
        let sample = raw.sample.as_ref().map_or(1.0, |sample| {
            if !(0.0..=1.0).contains(&sample.value) {
                planning.errors.push(sample, "expected a share from 0 to 1");
            }
            sample.value
        });
        let none = Vec::new();
        let mask =
            |names: fn(&config::Mask) -> &Vec<String>| raw.mask.as_ref().map_or(&none, names);
        let mut secret_headers: HashSet<String> = SECRET_HEADERS.map(str::to_owned).into();
        secret_headers.extend(
            mask(|mask| &mask.headers)
                .iter()
                .map(|n| n.to_ascii_lowercase()),
        );
        let mut secret_parameters: HashSet<String> = SECRET_PARAMETERS.map(str::to_owned).into();
        secret_parameters.extend(mask(|mask| &mask.query).iter().cloned());
        for place in planning.credentials() {
            match place {
                Read::Header(name) => secret_headers.insert(name.to_ascii_lowercase()),
                Read::Parameter(name) => secret_parameters.insert(name.clone()),
                // All cookies are masked.
                _ => false,
            };
        }
        let secret_claims = mask(|mask| &mask.claims).iter().cloned().collect();
        let lower: Vec<String> = raw.headers.iter().map(|n| n.to_ascii_lowercase()).collect();
        let sink = sink::open(raw, planning)?;
        Some(Self {
            sample,
            headers: Shown::new(&lower, secret_headers),
            query: Shown::new(&raw.query, secret_parameters),
            claims: Shown::new(&raw.claims, secret_claims),
            explain: raw.explain.unwrap_or(false),
            revision: planning.digest(),
            sink,
        })
    }

    /// Begins the record of a check. If nothing else is said, it says that the caller gave up.
    pub(super) fn begin<'a>(
        &'a self,
        request: &'a CheckRequestView,
        id: DecisionId,
    ) -> Pending<'a> {
        Pending {
            log: self,
            request,
            id,
            time: SystemTime::now(),
            began: Instant::now(),
            over: false,
        }
    }

    /// Puts the writer to work.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(&self) -> std::io::Result<()> {
        self.sink.start()
    }

    /// Waits until all so far is written, or `within` is over.
    pub(super) async fn flush(&self, within: Duration) {
        self.sink.flush(within).await;
    }

    fn wants(&self, ending: &Ending<'_>, id: &DecisionId) -> bool {
        !matches!(ending, Ending::Allow) || self.sample >= 1.0 || id.fraction() < self.sample
    }

    fn request<'a>(&self, view: &'a CheckRequestView) -> Request<'a> {
        let mut headers: BTreeMap<&str, Cow<'_, str>> = BTreeMap::new();
        if !self.headers.nothing() {
            // Pseudo-headers are shown as what they are.
            let lines = view.headers().filter(|(name, _)| !name.starts_with(':'));
            for (name, value) in lines {
                let shown = self
                    .headers
                    .show(name, || without_query(name, String::from_utf8_lossy(value)));
                if let Some(shown) = shown {
                    headers
                        .entry(name)
                        .and_modify(|before| *before = format!("{before},{shown}").into())
                        .or_insert(shown);
                }
            }
        }
        let mut query: BTreeMap<Cow<'_, str>, Vec<Cow<'_, str>>> = BTreeMap::new();
        if !self.query.nothing() {
            for (name, value) in form_pairs(view.query().unwrap_or_default()) {
                if let Some(shown) = self.query.show(&name, || value) {
                    query.entry(cut(name)).or_default().push(shown);
                }
            }
        }
        Request {
            id: view
                .id()
                .filter(|id| !id.is_empty())
                .map(|id| cut(id.into())),
            method: view.method(),
            host: view.host().map(|host| cut(host.into())),
            path: view.path().map(|path| cut(path.into())),
            source: view.source_address().map(|source| source.to_string()),
            principal: view.principal().map(|principal| cut(principal.into())),
            headers,
            query,
        }
    }

    fn claims<'a>(&self, claims: &'a Value) -> BTreeMap<&'a str, Cow<'a, Value>> {
        let claims = claims.as_object().into_iter().flatten();
        let shown = claims.filter_map(|(name, value)| {
            if !self.claims.all && !self.claims.names.contains(name) {
                return None;
            }
            let value = match self.claims.masked.contains(name) {
                true => Cow::Owned(masked().into()),
                false => Cow::Borrowed(value),
            };
            Some((name.as_str(), value))
        });
        shown.collect()
    }

    fn subject<'a>(&self, claims: &'a Value) -> Option<Cow<'a, str>> {
        let subject = claims.get("sub")?.as_str()?;
        Some(match self.claims.masked.contains("sub") {
            true => masked().into(),
            false => cut(subject.into()),
        })
    }
}

/// The record of a check under way.
pub(super) struct Pending<'a> {
    log: &'a DecisionLog,
    request: &'a CheckRequestView,
    id: DecisionId,
    time: SystemTime,
    began: Instant,
    over: bool,
}

impl Pending<'_> {
    /// Logs what came of the check.
    pub(super) fn end(mut self, account: &Account<'_>) {
        self.over = true;
        let ending = match &account.result {
            Ok(decision) if decision.is_allow() => Ending::Allow,
            Ok(decision) if decision.is_error() => Ending::Error(None),
            Ok(decision) => Ending::Deny(decision),
            Err(error) => Ending::Error(Some(error)),
        };
        self.write(&ending, Some(account));
    }

    fn write(&self, ending: &Ending<'_>, account: Option<&Account<'_>>) {
        let log = self.log;
        if !log.wants(ending, &self.id) {
            return;
        }
        let claims = account.and_then(|account| account.claims);
        let policy = account.and_then(|account| account.policy);
        let record = Record {
            kind: "decision",
            decision_id: &self.id,
            time: rfc3339(self.time),
            decision: ending.name(),
            status: ending.status(),
            reason: ending.reason(),
            error: ending.error(),
            latency_ms: self.began.elapsed().as_secs_f64() * 1e3,
            cached: account.is_some_and(|account| account.cached),
            revision: &log.revision,
            pipeline: account.and_then(|account| account.pipeline),
            source: account.and_then(|account| account.source),
            subject: claims.and_then(|claims| log.subject(claims)),
            rule: account.and_then(|account| account.rule),
            policy: policy.map(Engine::name),
            policy_revision: policy.and_then(Engine::revision),
            request: log.request(self.request),
            claims: claims.map(|claims| log.claims(claims)).unwrap_or_default(),
            explain: account.filter(|_| log.explain).map(Account::told),
        };
        // What is made of texts and numbers can be written.
        if let Ok(line) = serde_json::to_vec(&record) {
            log.sink.push(line);
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.write(&Ending::Cancelled, None);
        }
    }
}

/// Queries are shown by parameter, not within headers.
fn without_query<'a>(name: &str, value: Cow<'a, str>) -> Cow<'a, str> {
    let mut urls = URL_HEADERS.iter();
    if !urls.any(|url| url.eq_ignore_ascii_case(name)) {
        return value;
    }
    match value {
        Cow::Borrowed(value) => value.split('?').next().unwrap_or_default().into(),
        Cow::Owned(mut value) => {
            value.truncate(value.find('?').unwrap_or(value.len()));
            value.into()
        }
    }
}

/// Counters of records.
fn records(metrics: &Metrics, result: &str) -> attache_service::metrics::Counter {
    let help = "Records of the decision log by what became of them.";
    metrics.counter(
        "attache_auth_decision_log_records",
        help,
        &[("result", result)],
    )
}

/// Where the log goes, for messages.
fn destination(output: &LogOutput) -> String {
    match output {
        LogOutput::Stdout(_) => "the standard output".to_owned(),
        LogOutput::File(file) => format!("`{}`", file.path.display()),
        LogOutput::Http(http) => http
            .service
            .url
            .value
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned(),
    }
}
