//! JSON web tokens: whether one holds, remembered while it does.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_service::{Metrics, config::Errors, metrics::Counter};
use jsonwebtoken::{Algorithm, Validation, decode, decode_header, errors::ErrorKind};
use quick_cache::sync::Cache;
use serde_json::Value;

use super::{
    config::{self, JwksSource},
    credential::Spot,
    identity::{Found, Identity},
    jwks::{self, Key},
    keys::{Hash, sha256},
};
use crate::server::CheckRequestView;

/// Larger tokens are refused unread; header fields are rarely allowed to be larger anyway.
const MAX_TOKEN: usize = 16 << 10;
/// How long a verified token is believed without looking again.
const MAX_REMEMBERED: u64 = 300;
const MAX_LEEWAY: Duration = Duration::from_secs(3600);

/// The tokens of one issuer.
#[derive(Debug)]
pub(super) struct Tokens {
    source: usize,
    spots: Vec<Spot>,
    keys: Vec<Key>,
    verified: Option<Cache<Hash, Verified>>,
    hits: Counter,
    misses: Counter,
}

#[derive(Debug, Clone)]
struct Verified {
    identity: Arc<Identity>,
    /// Seconds since 1970.
    until: u64,
}

impl Tokens {
    pub(super) fn plan(
        source: usize,
        name: &str,
        raw: &config::Jwt,
        read: &dyn Fn(&Path) -> Result<String, String>,
        metrics: &Metrics,
        errors: &mut Errors,
    ) -> Option<Self> {
        let default = Spot::Header {
            name: "authorization".to_owned(),
            scheme: "Bearer".to_owned(),
        };
        let spots = Spot::plan(&raw.from, default, errors);
        let leeway = raw
            .leeway
            .as_ref()
            .map_or(Duration::from_secs(30), |leeway| {
                if leeway.value > MAX_LEEWAY {
                    errors.push(leeway, "more than an hour makes expired tokens useful");
                }
                leeway.value
            });
        let any_audience = raw.any_audience.unwrap_or(false);
        if raw.audiences.is_empty() != any_audience {
            errors.push(
                &raw.issuer,
                "a token source needs either `audiences` or `any_audience: true`",
            );
        }
        let mut validation = Validation::new(Algorithm::RS256);
        validation.leeway = leeway.min(MAX_LEEWAY).as_secs();
        validation.validate_nbf = true;
        validation.set_issuer(&[&raw.issuer.value]);
        if any_audience {
            validation.validate_aud = false;
            validation.set_required_spec_claims(&["exp", "iss"]);
        } else {
            validation.set_audience(&raw.audiences);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        }

        let accepted: Vec<Algorithm> = if raw.algorithms.is_empty() {
            ASYMMETRIC.to_vec()
        } else {
            raw.algorithms
                .iter()
                .filter_map(|a| a.as_str().parse().ok())
                .collect()
        };
        let set = match &raw.jwks.value {
            JwksSource::Inline(set) => Ok(set.clone()),
            JwksSource::File(file) => read(file).and_then(|text| {
                serde_json::from_str(&text).map_err(|error| format!("not JSON: {error}"))
            }),
        };
        let keys = set.and_then(|set: Value| jwks::keys(&set, &accepted, &validation));
        let keys = match keys {
            Ok(keys) => keys,
            Err(problem) => {
                let file = match &raw.jwks.value {
                    JwksSource::File(file) => format!("`{}`: ", file.display()),
                    JwksSource::Inline(_) => String::new(),
                };
                errors.push(&raw.jwks, format!("{file}{problem}"));
                return None;
            }
        };
        let counter = |result| {
            let labels = [("source", name), ("result", result)];
            metrics.counter(
                "attache_auth_token_cache",
                "Tokens looked up among the verified ones.",
                &labels,
            )
        };
        let capacity = raw.cache_size.unwrap_or(10_000) as usize;
        Some(Self {
            source,
            spots,
            keys,
            verified: (capacity > 0).then(|| Cache::new(capacity)),
            hits: counter("hit"),
            misses: counter("miss"),
        })
    }

    /// The key file, to watch.
    pub(super) fn file(raw: &config::Jwt) -> Option<&PathBuf> {
        match &raw.jwks.value {
            JwksSource::File(file) => Some(file),
            JwksSource::Inline(_) => None,
        }
    }

    pub(super) fn identify(&self, request: &CheckRequestView) -> Found<Arc<Identity>> {
        let mut found = Found::Nothing;
        for token in self.spots.iter().filter_map(|spot| spot.find(request)) {
            match self.verify(&token) {
                Ok(identity) => return Found::Good(identity),
                Err(reason) => found = Found::Bad(reason),
            }
        }
        found
    }

    fn verify(&self, token: &str) -> Result<Arc<Identity>, &'static str> {
        if token.len() > MAX_TOKEN {
            return Err("too_long");
        }
        let Some(cache) = &self.verified else {
            return self.verify_anew(token).map(|verified| verified.identity);
        };
        let hash = sha256(token.as_bytes());
        if let Some(verified) = cache.get(&hash) {
            if verified.until > now() {
                self.hits.inc();
                return Ok(verified.identity);
            }
            cache.remove(&hash);
        }
        self.misses.inc();
        let verified = self.verify_anew(token)?;
        if verified.until > now() {
            cache.insert(hash, verified.clone());
        }
        Ok(verified.identity)
    }

    fn verify_anew(&self, token: &str) -> Result<Verified, &'static str> {
        let header = decode_header(token).map_err(|_| "malformed")?;
        // RFC 7515 §4.1.11: extensions that must be understood, and none is.
        if header.crit.is_some() {
            return Err("unknown_extension");
        }
        let mut reason = "unknown_key";
        for key in &self.keys {
            let other = matches!((&header.kid, &key.id), (Some(a), Some(b)) if a != b);
            if other || !key.validation.algorithms.contains(&header.alg) {
                continue;
            }
            match decode::<Value>(token, &key.key, &key.validation) {
                Ok(token) => return self.accept(token.claims),
                Err(error) => reason = why(error.kind()),
            }
        }
        Err(reason)
    }

    fn accept(&self, claims: Value) -> Result<Verified, &'static str> {
        // A list of issuers is not what RFC 7519 allows.
        if !claims.get("iss").is_some_and(Value::is_string) {
            return Err("wrong_issuer");
        }
        let expires = claims
            .get("exp")
            .and_then(Value::as_f64)
            .ok_or("malformed")?;
        Ok(Verified {
            // Times before 1970 become 0, those too far away the largest number.
            until: (expires as u64).min(now().saturating_add(MAX_REMEMBERED)),
            identity: Arc::new(Identity {
                source: self.source,
                claims,
            }),
        })
    }
}

const ASYMMETRIC: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn why(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "expired",
        ErrorKind::ImmatureSignature => "not_yet_valid",
        ErrorKind::InvalidIssuer => "wrong_issuer",
        ErrorKind::InvalidAudience => "wrong_audience",
        ErrorKind::InvalidSignature => "bad_signature",
        ErrorKind::MissingRequiredClaim(_) => "missing_claim",
        _ => "malformed",
    }
}
