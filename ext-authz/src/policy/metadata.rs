//! What is looked up about a request: documents of HTTP services, kept for a while.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use attache_service::{
    config::{Located, Size},
    fetch::Fetcher,
    metrics::{Counter, Histogram},
};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{Method, StatusCode};
use quick_cache::sync::Cache;
use serde_json::Value;

use super::{
    condition::Condition,
    config::{self, MetadataFailure},
    explain::Stage,
    facts::Facts,
    planning::Planning,
    template::Template,
};

const TTL: Duration = Duration::from_secs(60);
const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// A failure counts for others that ask for the same, so that they do not all wait in turn.
const FAILURE_TTL: Duration = Duration::from_secs(1);
const CACHE_SIZE: u32 = 10_000;
const MAX_CACHE_SIZE: u32 = 10_000_000;
const MAX_SIZE: Size = Size(64 << 10);

/// The documents about one request, by name.
#[derive(Debug, Default)]
pub(super) struct Fetched(Vec<(Arc<str>, Arc<Value>)>);

impl Fetched {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(known, _)| **known == *name);
        found.map(|(_, document)| document.as_ref())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0
            .iter()
            .map(|(name, document)| (name.as_ref(), document.as_ref()))
    }
}

/// Something that can be looked up.
pub(super) struct Source {
    name: Arc<str>,
    fetcher: Fetcher,
    path: Option<Template>,
    when: Option<Condition>,
    on_failure: MetadataFailure,
    ttl: Duration,
    /// By path.
    kept: Option<Cache<Arc<str>, Kept>>,
    hits: Counter,
    misses: Counter,
    failures: Counter,
    latency: Histogram,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("name", &self.name).finish()
    }
}

/// What an answer said.
#[derive(Debug, Clone)]
struct Kept {
    /// `None` when there is no such document.
    answer: Result<Option<Arc<Value>>, Arc<str>>,
    until: SystemTime,
}

impl Source {
    /// `None` when it cannot be used; why, is reported.
    pub(super) fn plan(
        raw: &Located<config::MetadataSource>,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let errors = &mut *planning.errors;
        let fetcher = raw.http.plan(raw.max_size.unwrap_or(MAX_SIZE), errors);
        let path = raw.path.as_ref().and_then(|path| {
            if !path.starts_with('/') {
                errors.push(path, "a path starts with a slash");
            }
            let template = Template::new(path);
            template.map_err(|problem| errors.push(path, problem)).ok()
        });
        let when = raw.when.as_ref().and_then(|when| {
            let condition = Condition::new(when);
            condition.map_err(|problem| errors.push(when, problem)).ok()
        });
        let ttl = raw.ttl.as_ref().map_or(TTL, |ttl| {
            if ttl.value > MAX_TTL {
                errors.push(ttl, "expected at most 24 h");
            }
            ttl.value
        });
        let size = raw.cache_size.as_ref().map_or(CACHE_SIZE, |size| {
            if !(1..=MAX_CACHE_SIZE).contains(&size.value) {
                errors.push(size, "expected from 1 to 10000000");
            }
            size.value.clamp(1, MAX_CACHE_SIZE)
        });
        let fetcher = fetcher?;
        for file in fetcher.files() {
            planning.watch_resolved(file.clone());
        }
        let name = raw.name.as_str();
        let looked_up = |result| {
            let labels = [("metadata", name), ("result", result)];
            let help = "Documents looked up about requests.";
            planning
                .metrics
                .counter("attache_auth_metadata", help, &labels)
        };
        Some(Self {
            name: name.into(),
            fetcher,
            path,
            when,
            on_failure: raw.on_failure.unwrap_or(MetadataFailure::Fail),
            ttl,
            kept: (!ttl.is_zero()).then(|| Cache::new(size as usize)),
            hits: looked_up("kept"),
            misses: looked_up("fetched"),
            failures: looked_up("failed"),
            latency: planning.metrics.histogram(
                "attache_auth_metadata_seconds",
                "Time to fetch a document about a request.",
                &[("metadata", name)],
            ),
        })
    }

    async fn look_up(&self, facts: &Facts<'_>) -> Result<Option<Arc<Value>>, String> {
        if let Some(when) = &self.when
            && !when.holds(facts).unwrap_or(false)
        {
            return Ok(None);
        }
        let path = self.path.as_ref().map(|path| path.fill(facts)).transpose();
        let path: Arc<str> = match path {
            Ok(path) => path.unwrap_or_default().into(),
            Err(problem) => return self.failed(facts, &problem),
        };
        let kept = match &self.kept {
            None => {
                facts.check.holds_once();
                self.fetch(&path).await
            }
            Some(kept) => self.find(kept, path).await,
        };
        facts.check.holds_until(kept.until);
        match kept.answer {
            Ok(document) => {
                facts.check.note(Stage::Metadata, &self.name, || {
                    let found = document.is_some();
                    if found { "found" } else { "not found" }.to_owned()
                });
                Ok(document)
            }
            Err(problem) => self.failed(facts, &problem),
        }
    }

    fn failed(&self, facts: &Facts<'_>, problem: &str) -> Result<Option<Arc<Value>>, String> {
        self.failures.inc();
        let check = facts.check;
        check.note(Stage::Metadata, &self.name, || format!("failed: {problem}"));
        tracing::warn!(metadata = &*self.name, problem, "not looked up");
        match self.on_failure {
            MetadataFailure::Fail => Err(format!("metadata `{}`: {problem}", self.name)),
            MetadataFailure::Absent => Ok(None),
        }
    }

    /// What is kept, or else fetched by one request for all that ask for the same.
    async fn find(&self, kept: &Cache<Arc<str>, Kept>, path: Arc<str>) -> Kept {
        loop {
            match kept.get_value_or_guard_async(&path).await {
                Ok(found) if found.until > SystemTime::now() => {
                    self.hits.inc();
                    return found;
                }
                Ok(old) => {
                    kept.remove_if(&path, |found| found.until == old.until);
                }
                Err(guard) => {
                    let fetched = self.fetch(&path).await;
                    // What cannot be kept is there for this request at least.
                    let _ = guard.insert(fetched.clone());
                    return fetched;
                }
            }
        }
    }

    async fn fetch(&self, path: &str) -> Kept {
        self.misses.inc();
        let start = Instant::now();
        let answer = self.ask(path).await.map_err(Arc::from);
        self.latency.observe(start.elapsed().as_secs_f64());
        let ttl = match &answer {
            Ok(_) => self.ttl,
            Err(_) => self.ttl.min(FAILURE_TTL),
        };
        Kept {
            answer,
            until: SystemTime::now() + ttl,
        }
    }

    async fn ask(&self, path: &str) -> Result<Option<Arc<Value>>, String> {
        let mut request = self.fetcher.request(Method::GET);
        if self.path.is_some() {
            request = request.uri(path);
        }
        let request = request
            .header(http::header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        let answer = self.fetcher.send(request).await;
        let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
        match head.status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(|document| Some(Arc::new(document)))
                .map_err(|error| format!("{} answered no JSON: {error}", self.fetcher.url())),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(format!("{} answered {status}", self.fetcher.url())),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

/// Looks up what the sources with these indices know, all at once.
///
/// # Errors
/// When one fails that must not.
pub(super) async fn look_up(
    sources: &[Source],
    wanted: &[usize],
    facts: &Facts<'_>,
) -> Result<Fetched, String> {
    let sources = wanted.iter().filter_map(|index| sources.get(*index));
    let documents = try_join_all(sources.map(async |source| {
        let name = [("attache.metadata", &*source.name)];
        let looking = source.look_up(facts);
        let document = facts.check.span().waits("metadata", &name, looking).await?;
        Ok::<_, String>(document.map(|document| (source.name.clone(), document)))
    }));
    Ok(Fetched(documents.await?.into_iter().flatten().collect()))
}
