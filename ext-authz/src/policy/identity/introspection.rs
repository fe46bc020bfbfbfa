//! Tokens that only their issuer can read: it is asked about each (RFC 7662).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use attache_service::{
    config::{ConfigValue as _, Errors, Hidden, Located},
    fetch::{Fetcher, HttpService},
    metrics::{Counter, Histogram},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_cache::sync::Cache;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{
    Found, Identity,
    credential::Spot,
    keys::{Hash, sha256},
};
use crate::policy::{
    check::Check,
    config::{self, ClientAuthentication},
    planning::Planning,
};

const MAX_TOKEN: usize = 16 << 10;
const TTL: Duration = Duration::from_secs(30);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);
const MAX_TTL: Duration = Duration::from_secs(3600);

/// Tokens of one issuer.
#[derive(Debug)]
pub(super) struct Introspection {
    source: usize,
    spots: Vec<Spot>,
    endpoint: Fetcher,
    client: Client,
    issuer: Option<String>,
    audiences: Vec<String>,
    ttl: Duration,
    negative_ttl: Duration,
    answers: Arc<Answers>,
    max_pending: usize,
    stats: Stats,
}

/// What was answered lately, and what is being asked.
struct Answers {
    known: Cache<Hash, Answer>,
    pending: Mutex<HashMap<Hash, Question>>,
}

/// A question under way.
#[derive(Default)]
struct Question {
    asked: Arc<OnceCell<Asked>>,
    waiting: usize,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("known", &self.known.len())
            .finish_non_exhaustive()
    }
}

/// What the issuer says of a token.
#[derive(Debug, Clone)]
struct Answer {
    says: Result<Arc<Identity>, &'static str>,
    until: Instant,
}

/// How asking ended; why it failed is for the log.
type Asked = Result<Answer, String>;

#[derive(Debug)]
struct Stats {
    hits: Counter,
    misses: Counter,
    failed: Counter,
    seconds: Histogram,
}

impl Introspection {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &config::Introspection,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let default = Spot::Header {
            name: "authorization".to_owned(),
            scheme: "Bearer".to_owned(),
        };
        let spots = Spot::plan(&raw.from, default, planning);
        let ttl = bounded(raw.ttl.as_ref(), TTL, planning.errors);
        let negative_ttl = bounded(raw.negative_ttl.as_ref(), NEGATIVE_TTL, planning.errors);
        let secret = planning.secret(&raw.client_secret);
        let endpoint = planning.fetcher(&raw.endpoint, HttpService::MAX_SIZE)?;
        let settings = raw.encode().unwrap_or_default();
        let kept = format!("introspection {source} {} {settings}", name.value);
        let capacity = raw.cache_size.unwrap_or(10_000) as usize;
        let answers = planning.kept(kept, || Answers {
            known: Cache::new(capacity),
            pending: Mutex::default(),
        });
        Some(Self {
            source,
            spots,
            endpoint,
            client: Client {
                id: raw.client_id.clone(),
                secret: secret?,
                way: raw.client_authentication.unwrap_or_default(),
            },
            issuer: raw.issuer.clone(),
            audiences: raw.audiences.clone(),
            ttl,
            negative_ttl,
            answers,
            max_pending: raw.max_pending.unwrap_or(100) as usize,
            stats: Stats::new(name, planning),
        })
    }

    /// Where the tokens are.
    pub(super) fn spots(&self) -> &[Spot] {
        &self.spots
    }

    pub(super) async fn identify(&self, check: &Check<'_>) -> Found {
        let mut found = Found::Nothing;
        for token in self.spots.iter().filter_map(|spot| spot.find(check)) {
            if token.len() > MAX_TOKEN {
                found = Found::Bad("too_long");
                continue;
            }
            match self.answer(&token).await {
                Ok(answer) => {
                    let left = answer.until.saturating_duration_since(Instant::now());
                    check.holds_until(SystemTime::now() + left);
                    match answer.says {
                        Ok(identity) => return Found::Good(identity),
                        Err(reason) => found = Found::Bad(reason),
                    }
                }
                Err(reason) => return Found::Failed(reason),
            }
        }
        found
    }

    /// What the issuer says, asked once however many want to know at a time.
    async fn answer(&self, token: &str) -> Asked {
        let hash = sha256(token.as_bytes());
        if let Some(answer) = self.answers.known.get(&hash) {
            if answer.until > Instant::now() {
                self.stats.hits.inc();
                return Ok(answer);
            }
            self.answers.known.remove(&hash);
        }
        self.stats.misses.inc();
        let waiting = {
            let mut pending = self.answers.pending();
            if !pending.contains_key(&hash) && pending.len() >= self.max_pending {
                self.stats.failed.inc();
                return Err(format!(
                    "{} is being asked about {} tokens already",
                    self.endpoint.url(),
                    self.max_pending
                ));
            }
            let question = pending.entry(hash).or_default();
            question.waiting = question.waiting.saturating_add(1);
            Waiting {
                asked: question.asked.clone(),
                answers: &self.answers,
                hash,
            }
        };
        // When whoever asks goes away, the next one who waits asks.
        let asked = waiting.asked.get_or_init(|| self.ask(token, hash));
        asked.await.clone()
    }

    async fn ask(&self, token: &str, hash: Hash) -> Asked {
        let began = Instant::now();
        let asked = self.fetch(token).await;
        self.stats.seconds.observe(began.elapsed().as_secs_f64());
        match &asked {
            Ok(answer) if answer.until > Instant::now() => {
                self.answers.known.insert(hash, answer.clone());
            }
            Ok(_) => {}
            Err(_) => _ = self.stats.failed.inc(),
        }
        asked
    }

    async fn fetch(&self, token: &str) -> Asked {
        let request = self.client.request(&self.endpoint, token)?;
        let answered = self.endpoint.send(request).await;
        let answer = answered.map_err(|error| error.to_string())?;
        let url = self.endpoint.url();
        if answer.status() != StatusCode::OK {
            return Err(format!("{url} answered {}", answer.status()));
        }
        let said: Value = serde_json::from_slice(answer.body())
            .map_err(|_| format!("{url} answered with what is not JSON"))?;
        let active = said.get("active").and_then(Value::as_bool);
        let active =
            active.ok_or_else(|| format!("{url} does not say whether a token is `active`"))?;
        Ok(self.read(active, said))
    }

    fn read(&self, active: bool, said: Value) -> Answer {
        let now = SystemTime::now();
        let says = self.judge(active, said, now);
        let ttl = match &says {
            Ok(identity) => {
                let left = identity.until.map(|until| until.duration_since(now));
                left.map_or(self.ttl, |left| self.ttl.min(left.unwrap_or_default()))
            }
            Err(_) => self.negative_ttl,
        };
        Answer {
            says,
            until: Instant::now() + ttl,
        }
    }

    fn judge(
        &self,
        active: bool,
        said: Value,
        now: SystemTime,
    ) -> Result<Arc<Identity>, &'static str> {
        if !active {
            return Err("inactive");
        }
        let time = |claim| -> Result<_, &'static str> {
            match said.get(claim) {
                None | Some(Value::Null) => Ok(None),
                Some(time) => {
                    let seconds = time.as_f64().ok_or("malformed")?;
                    // Times before 1970 become 0, those too far away the largest number.
                    Ok(UNIX_EPOCH.checked_add(Duration::from_secs(seconds as u64)))
                }
            }
        };
        let until = time("exp")?;
        if until.is_some_and(|until| until <= now) {
            return Err("expired");
        }
        if time("nbf")?.is_some_and(|from| from > now) {
            return Err("not_yet_valid");
        }
        let is =
            |claim: Option<&Value>, wanted: &str| claim.and_then(Value::as_str) == Some(wanted);
        if let Some(issuer) = &self.issuer
            && !is(said.get("iss"), issuer)
        {
            return Err("wrong_issuer");
        }
        let for_us = |audience: &String| match said.get("aud") {
            Some(Value::Array(listed)) => listed.iter().any(|one| is(Some(one), audience)),
            one => is(one, audience),
        };
        if !self.audiences.is_empty() && !self.audiences.iter().any(for_us) {
            return Err("wrong_audience");
        }
        Ok(Arc::new(Identity {
            source: self.source,
            claims: said,
            until,
        }))
    }
}

impl Answers {
    fn pending(&self) -> MutexGuard<'_, HashMap<Hash, Question>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits for an answer. The question goes once it is answered, or nobody waits.
struct Waiting<'a> {
    asked: Arc<OnceCell<Asked>>,
    answers: &'a Answers,
    hash: Hash,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut pending = self.answers.pending();
        let Some(question) = pending.get_mut(&self.hash) else {
            return;
        };
        // After an answer the same question may have been asked anew.
        if !Arc::ptr_eq(&question.asked, &self.asked) {
            return;
        }
        question.waiting = question.waiting.saturating_sub(1);
        if question.waiting == 0 || self.asked.initialized() {
            pending.remove(&self.hash);
        }
    }
}

/// Who we are at the issuer.
#[derive(Debug)]
struct Client {
    id: String,
    secret: Hidden,
    way: ClientAuthentication,
}

/// What `application/x-www-form-urlencoded` leaves as it is, but for `*`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

fn encoded(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, FORM)
}

impl Client {
    fn request(&self, endpoint: &Fetcher, token: &str) -> Result<http::Request<Bytes>, String> {
        let mut form = format!("token={}&token_type_hint=access_token", encoded(token));
        let mut request = endpoint
            .request(Method::POST)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        let (id, secret) = (encoded(&self.id), encoded(self.secret.reveal()));
        match self.way {
            ClientAuthentication::Basic => {
                // RFC 6749 §2.3.1: both are form-encoded first.
                let credentials = STANDARD.encode(format!("{id}:{secret}"));
                let value = HeaderValue::try_from(format!("Basic {credentials}"));
                let mut value = value.map_err(|error| error.to_string())?;
                value.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, value);
            }
            ClientAuthentication::Post => {
                form.push_str(&format!("&client_id={id}&client_secret={secret}"));
            }
        }
        let request = request.body(Bytes::from(form));
        request.map_err(|error| error.to_string())
    }
}

impl Stats {
    fn new(name: &str, planning: &Planning<'_>) -> Self {
        let metrics = planning.metrics;
        let cache = |result| {
            metrics.counter(
                "attache_auth_token_cache",
                "Tokens looked up among the verified ones.",
                &[("source", name), ("result", result)],
            )
        };
        let source = [("source", name)];
        Self {
            hits: cache("hit"),
            misses: cache("miss"),
            failed: metrics.counter(
                "attache_auth_introspection_failures",
                "Tokens whose issuer could not be asked.",
                &source,
            ),
            seconds: metrics.histogram(
                "attache_auth_introspection_seconds",
                "How long issuers took to answer about a token.",
                &source,
            ),
        }
    }
}

fn bounded(raw: Option<&Located<Duration>>, default: Duration, errors: &mut Errors) -> Duration {
    let Some(raw) = raw else { return default };
    if raw.value > MAX_TTL {
        errors.push(raw, "more than an hour makes revoked tokens useful");
    }
    raw.value
}
