//! The settings, checked and compiled: what each check runs on.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use attache_service::{
    Metrics,
    config::{Document, Errors, Located},
    metrics::Counter,
};
use http::{HeaderName, HeaderValue};

use super::{
    config::{self, AuthConfig, HeaderSource, IdentityKind},
    jwt::Tokens,
    keys::Keys,
    path::Reading,
    rule::Rule,
};

/// Largest key file.
const MAX_FILE: u64 = 8 << 20;

/// A policy: immutable, shared by all workers.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) sources: Vec<Source>,
    pub(super) rules: Vec<Rule>,
    pub(super) upstream_headers: Vec<(String, HeaderSource)>,
    pub(super) client_headers: Vec<(String, HeaderSource)>,
    pub(super) unauthenticated: Reply,
    pub(super) denied: Reply,
    pub(super) reading: Reading,
    pub(super) unknown: Decided,
    /// The files it was made of.
    pub(super) files: Vec<PathBuf>,
}

/// An identity source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) decided: Decided,
    pub(super) refused: Counter,
}

#[derive(Debug)]
pub(super) enum Kind {
    Keys(Keys),
    Tokens(Box<Tokens>),
    Anonymous,
}

/// Counters of decisions.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) allowed: Counter,
    pub(super) denied: Counter,
}

impl Decided {
    fn new(source: &str, metrics: &Metrics) -> Self {
        let counter = |decision| {
            let labels = [("source", source), ("decision", decision)];
            metrics.counter(
                "attache_auth_decisions",
                "Decisions by identity source.",
                &labels,
            )
        };
        Self {
            allowed: counter("allow"),
            denied: counter("deny"),
        }
    }
}

/// An answer to the client, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) headers: Vec<(String, String)>,
}

impl Reply {
    pub(super) fn plan(raw: &Located<config::Reply>, default: u16, errors: &mut Errors) -> Self {
        let status = raw.status.unwrap_or(default);
        if !(200..600).contains(&status) {
            errors.push(raw, format!("{status} is not a status from 200 to 599"));
        }
        let body = raw.body.clone().unwrap_or_default();
        if matches!(status, 204 | 304) && !body.is_empty() {
            errors.push(raw, format!("an answer with status {status} has no body"));
        }
        let mut headers = Vec::new();
        for (name, value) in &raw.headers {
            match settable(name) {
                Ok(name) => headers.push((name, value.clone())),
                Err(problem) => errors.push(raw, problem),
            }
            if HeaderValue::from_bytes(value.as_bytes()).is_err() {
                errors.push(raw, format!("the value of `{name}` cannot be a header's"));
            }
        }
        Self {
            status,
            body,
            headers,
        }
    }

    fn new(status: u16) -> Self {
        Self {
            status,
            body: String::new(),
            headers: Vec::new(),
        }
    }
}

/// A header name that a policy may set, in lower case.
fn settable(name: &str) -> Result<String, String> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{name}` is not a header name"))?;
    if crate::client::answer::is_framing(&parsed) || parsed == http::header::HOST {
        return Err(format!("`{name}` cannot be set by a policy"));
    }
    Ok(parsed.as_str().to_owned())
}

fn headers(
    raw: &BTreeMap<String, Located<HeaderSource>>,
    errors: &mut Errors,
) -> Vec<(String, HeaderSource)> {
    let mut headers = Vec::new();
    for (name, source) in raw {
        if let HeaderSource::Value(value) = &source.value
            && HeaderValue::from_bytes(value.as_bytes()).is_err()
        {
            errors.push(
                source,
                format!("the value of `{name}` cannot be a header's"),
            );
        }
        match settable(name) {
            Ok(name) => headers.push((name, source.value.clone())),
            Err(problem) => errors.push(source, problem),
        }
    }
    headers
}

/// Reads a file named in the configuration.
fn read(document: &Document, path: &Path) -> Result<String, String> {
    let path = document.resolve(path);
    let problem = |error: std::io::Error| format!("cannot read `{}`: {error}", path.display());
    let file = std::fs::File::open(&path).map_err(problem)?;
    let mut text = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(problem)?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("`{}` is larger than 8 MiB", path.display()));
    }
    Ok(text)
}

impl Policy {
    /// Reads a configuration file and all that it names.
    pub(super) fn load(path: &Path, metrics: &Metrics) -> Result<Self, Errors> {
        let document = Document::load(path)?;
        let (raw, mut errors) = document.decode_partly::<AuthConfig>();
        let mut policy = raw.and_then(|raw| Self::plan(&raw, &document, metrics, &mut errors));
        if let Some(policy) = &mut policy {
            policy.files.push(path.to_path_buf());
        }
        errors.into_result(policy)
    }

    fn plan(
        raw: &AuthConfig,
        document: &Document,
        metrics: &Metrics,
        errors: &mut Errors,
    ) -> Option<Self> {
        if raw.identity.is_empty() {
            errors.push(
                document.root(),
                "at least one source of identity is needed; `anonymous: {}` is one",
            );
        }
        let read = |path: &Path| read(document, path);
        let mut sources: Vec<Source> = Vec::new();
        let mut complete = true;
        let mut names: Vec<&str> = Vec::new();
        let mut files = Vec::new();
        for (index, source) in raw.identity.iter().enumerate() {
            let name = &source.name;
            if names.contains(&name.as_str()) {
                errors.push(
                    name,
                    format!("two identity sources are called `{}`", name.value),
                );
            }
            names.push(name);
            let kind = match &source.kind {
                IdentityKind::ApiKey(keys) => {
                    files.extend(
                        keys.keys_file
                            .as_ref()
                            .map(|file| document.resolve(&file.value)),
                    );
                    Some(Kind::Keys(Keys::plan(index, name, keys, &read, errors)))
                }
                IdentityKind::Jwt(jwt) => {
                    files.extend(Tokens::file(jwt).map(|file| document.resolve(file)));
                    Tokens::plan(index, name, jwt, &read, metrics, errors)
                        .map(|tokens| Kind::Tokens(Box::new(tokens)))
                }
                IdentityKind::Anonymous(_) => Some(Kind::Anonymous),
            };
            let labels = [("source", name.as_str())];
            match kind {
                Some(kind) => sources.push(Source {
                    name: name.value.clone(),
                    kind,
                    decided: Decided::new(name, metrics),
                    refused: metrics.counter(
                        "attache_auth_credentials_refused",
                        "Credentials that did not hold.",
                        &labels,
                    ),
                }),
                None => complete = false,
            }
        }
        let rules = raw.rules.iter().enumerate();
        let rules = rules
            .map(|(number, rule)| Rule::plan(number, rule, &names, errors))
            .collect();
        let mut unauthenticated = raw
            .unauthenticated
            .as_ref()
            .map_or_else(|| Reply::new(401), |reply| Reply::plan(reply, 401, errors));
        let challenge = ("www-authenticate", challenge(&sources));
        let has_challenge = unauthenticated
            .headers
            .iter()
            .any(|(name, _)| name == challenge.0);
        if unauthenticated.status == 401 && !has_challenge {
            unauthenticated
                .headers
                .push((challenge.0.to_owned(), challenge.1.to_owned()));
        }
        let paths = raw.paths.as_ref();
        let on =
            |flag: fn(&config::PathRules) -> Option<bool>| paths.and_then(flag).unwrap_or(false);
        let policy = Self {
            rules,
            upstream_headers: headers(&raw.upstream_headers, errors),
            client_headers: headers(&raw.client_headers, errors),
            unauthenticated,
            denied: raw
                .denied
                .as_ref()
                .map_or_else(|| Reply::new(403), |reply| Reply::plan(reply, 403, errors)),
            reading: Reading {
                merge_slashes: on(|paths| paths.merge_slashes),
                resolve_dots: on(|paths| paths.resolve_dots),
                allow_encoded_slash: on(|paths| paths.allow_encoded_slash),
                allow_semicolon: on(|paths| paths.allow_semicolon),
            },
            unknown: Decided::new("none", metrics),
            sources,
            files,
        };
        complete.then_some(policy)
    }
}

/// What RFC 9110 wants a 401 to say: how to do better.
fn challenge(sources: &[Source]) -> &'static str {
    let tokens = |source: &Source| matches!(source.kind, Kind::Tokens(_));
    if sources.iter().any(tokens) {
        "Bearer"
    } else {
        "ApiKey"
    }
}
