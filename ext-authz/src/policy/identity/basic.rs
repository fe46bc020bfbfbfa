//! Names and passwords (RFC 7617), known by slow hashes.
//!
//! Slow hashes are there to make guessing expensive; here they also make each check expensive.
//! So few run at once, on threads of their own, few wait for their turn, and what was right is
//! remembered for a while by a fast hash whose key nobody else has.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use attache_service::{config::Located, metrics::Counter};
use aws_lc_rs::{hmac, rand::SystemRandom};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use quick_cache::sync::Cache;
use serde_json::Map;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Found, Identity, credential::Spot, key_file, keys::Hash};
use crate::policy::{check::Check, config::Basic, planning::Planning};

use hash::Stored;

mod hash;

/// Passwords hashed at the same time.
const HASHING: usize = 4;
/// Checks that wait for their turn; more are told that it cannot be told.
const WAITING: usize = 64;
/// Longer credentials are refused unread.
const MAX_CREDENTIAL: usize = 4 << 10;
const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// The passwords of one source.
#[derive(Debug)]
pub(super) struct Passwords {
    spots: [Spot; 1],
    challenge: String,
    users: HashMap<String, User>,
    /// Stands in for the hash of a user that does not exist, so that it takes as long.
    stand_in: Option<Stored>,
    right: Option<Cache<Hash, Right>>,
    key: hmac::Key,
    ttl: Duration,
    hashing: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    hits: Counter,
    misses: Counter,
}

#[derive(Debug)]
struct User {
    hash: Stored,
    identity: Arc<Identity>,
}

/// A pair that was right.
#[derive(Debug, Clone)]
struct Right {
    identity: Arc<Identity>,
    until: Instant,
}

impl Passwords {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &Basic,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let realm = raw.realm.as_ref().unwrap_or(name);
        if !realm.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
            planning
                .errors
                .push(realm, "a realm has visible ASCII characters only");
        }
        let realm = realm.replace('\\', r"\\").replace('"', "\\\"");
        let file = &raw.htpasswd_file;
        key_file::warn_if_readable_by_all(&planning.resolve(file));
        let text = planning.read_located(file)?;
        let mut users = HashMap::new();
        let mut stand_in = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut wrong = |problem: &str| {
                let number = number + 1;
                let problem = format!("`{}`: line {number}: {problem}", file.display());
                planning.errors.push(file, problem);
            };
            // What stands in the line may be a password: it is not shown.
            let Some((user, hash)) = line.split_once(':').filter(|(user, _)| !user.is_empty())
            else {
                wrong("expected `<name>:<hash>`");
                continue;
            };
            match Stored::parse(hash) {
                Err(problem) => wrong(problem),
                Ok(hash) => {
                    stand_in.get_or_insert_with(|| hash.clone());
                    let identity = Identity::named(source, user, Map::new(), None);
                    let identity = Arc::new(identity);
                    let user = users.insert(user.to_owned(), User { hash, identity });
                    if user.is_some() {
                        wrong("this name is there twice");
                    }
                }
            }
        }
        let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
            planning
                .errors
                .push(name, "the system has no random numbers");
            return None;
        };
        let counter = |result| {
            let labels = [("source", name.as_str()), ("result", result)];
            planning.metrics.counter(
                "attache_auth_password_cache",
                "Passwords looked up among those that were right.",
                &labels,
            )
        };
        let capacity = raw.cache_size.unwrap_or(10_000) as usize;
        Some(Self {
            spots: [Spot::Header {
                name: "authorization".to_owned(),
                scheme: "Basic".to_owned(),
            }],
            challenge: format!(r#"Basic realm="{realm}", charset="UTF-8""#),
            users,
            stand_in,
            right: (capacity > 0).then(|| Cache::new(capacity)),
            key,
            ttl: raw.cache_ttl.unwrap_or(DEFAULT_TTL),
            hashing: Arc::new(Semaphore::new(HASHING)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            hits: counter("hit"),
            misses: counter("miss"),
        })
    }

    /// Where the passwords are.
    pub(super) fn spots(&self) -> &[Spot] {
        &self.spots
    }

    /// What a 401 asks for.
    pub(super) fn challenge(&self) -> &str {
        &self.challenge
    }

    pub(super) async fn identify(&self, check: &Check<'_>) -> Found {
        let [spot] = &self.spots;
        let Some(credential) = spot.find(check) else {
            return Found::Nothing;
        };
        match Pair::decode(&credential) {
            Some(pair) => self.verify(&pair).await,
            None => Found::Bad("malformed"),
        }
    }

    async fn verify(&self, pair: &Pair) -> Found {
        let Some(right) = &self.right else {
            return self.hash(pair).await;
        };
        let tag = hmac::sign(&self.key, pair.0.as_bytes());
        let Ok(key) = Hash::try_from(tag.as_ref()) else {
            return self.hash(pair).await;
        };
        if right
            .remove_if(&key, |right| right.until <= Instant::now())
            .is_none()
            && let Some(right) = right.get(&key)
        {
            self.hits.inc();
            return Found::Good(right.identity);
        }
        self.misses.inc();
        // Of checks with the same pair one hashes, and the others wait for what it finds.
        let guard = match right.get_value_or_guard_async(&key).await {
            Ok(right) => return Found::Good(right.identity),
            Err(guard) => guard,
        };
        let found = self.hash(pair).await;
        if let Found::Good(identity) = &found
            && let Some(until) = Instant::now().checked_add(self.ttl)
        {
            // Refused only when the place has been taken away meanwhile.
            let _ = guard.insert(Right {
                identity: identity.clone(),
                until,
            });
        }
        found
    }

    async fn hash(&self, pair: &Pair) -> Found {
        let (name, password) = pair.parts();
        let user = self.users.get(name);
        let Some(hash) = user.map(|user| &user.hash).or(self.stand_in.as_ref()) else {
            return Found::Bad("wrong_password");
        };
        let Some(turn) = self.turn().await else {
            return Found::Failed("too many passwords to hash at once".to_owned());
        };
        let (hash, password) = (hash.clone(), password.to_owned());
        let hashed = tokio::task::spawn_blocking(move || {
            let right = hash.verify(&password);
            // Held until the hash is done, even when nobody waits for it any more.
            drop(turn);
            right
        });
        match (hashed.await, user) {
            (Ok(true), Some(user)) => Found::Good(user.identity.clone()),
            (Ok(_), _) => Found::Bad("wrong_password"),
            (Err(_), _) => Found::Failed("hashing a password was cut off".to_owned()),
        }
    }

    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(turn) = self.hashing.clone().try_acquire_owned() {
            return Some(turn);
        }
        let _place = self.waiting.try_acquire().ok()?;
        self.hashing.clone().acquire_owned().await.ok()
    }
}

/// `name:password`, with a colon in it.
struct Pair(String);

impl Pair {
    fn decode(credential: &str) -> Option<Self> {
        if credential.len() > MAX_CREDENTIAL {
            return None;
        }
        let text = String::from_utf8(STANDARD.decode(credential).ok()?).ok()?;
        // RFC 7617 §2 allows neither control characters nor a name with a colon.
        let fine = text.contains(':') && !text.contains(char::is_control);
        fine.then_some(Self(text))
    }

    fn parts(&self) -> (&str, &str) {
        self.0.split_once(':').unwrap_or((&self.0, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_utf8_with_a_colon_and_without_control_characters() {
        for (text, expected) in [
            ("ada:lovelace".as_bytes(), Some(("ada", "lovelace"))),
            ("ada:a:b".as_bytes(), Some(("ada", "a:b"))),
            ("zoë:pässword".as_bytes(), Some(("zoë", "pässword"))),
            (b":x", Some(("", "x"))),
            (b"ada:", Some(("ada", ""))),
            (b"ada", None),
            (b"ada:\xe4", None),
            (b"ada:a\0b", None),
            (b"ada:a\nb", None),
            (b"", None),
        ] {
            let pair = Pair::decode(&STANDARD.encode(text));
            let parts = pair.as_ref().map(Pair::parts);
            assert_eq!(parts, expected, "{text:?}");
        }
        assert!(Pair::decode("YWRhOng").is_none(), "padding is missing");
        assert!(Pair::decode("ada:x").is_none(), "not base64");
        let long = STANDARD.encode(format!("ada:{}", "x".repeat(4096)));
        assert!(Pair::decode(&long).is_none());
    }
}
