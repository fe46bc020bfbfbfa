//! JSON web tokens: whether one holds, remembered while it does.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_service::{
    config::{ConfigValue as _, Located},
    fetch::HttpService,
    metrics::Counter,
};
use jsonwebtoken::{
    Algorithm, Validation, dangerous::insecure_decode_claims, decode, decode_header,
    errors::ErrorKind,
};
use quick_cache::sync::Cache;
use serde::de;
use serde_json::{Map, Value};

use super::{
    Found, Identity,
    credential::Spot,
    issuer::Issuer,
    jwks::{FetchKeys, KeySet},
    keys::{Hash, sha256},
    refresh::Freshness,
};
use crate::policy::{
    check::Check,
    config::{self, JwksSource},
    follow::Followed,
    planning::Planning,
};

/// Larger tokens are refused unread; header fields are rarely allowed to be larger anyway.
const MAX_TOKEN: usize = 16 << 10;
/// How long a verified token is believed without looking again.
const MAX_REMEMBERED: u64 = 300;
const MAX_LEEWAY: Duration = Duration::from_secs(3600);

/// The tokens of one issuer.
#[derive(Debug)]
pub(super) struct Tokens {
    source: usize,
    name: String,
    /// What `iss` must be.
    issuer: Value,
    spots: Vec<Spot>,
    keys: Keys,
    /// One for each accepted algorithm.
    validations: Vec<(Algorithm, Validation)>,
    verified: Option<Arc<Cache<Hash, Verified>>>,
    hits: Counter,
    misses: Counter,
}

/// Where the keys are.
#[derive(Debug)]
enum Keys {
    Here(KeySet),
    Fetched(Arc<Followed<KeySet>>, Freshness),
    Issuer(Box<Issuer>),
}

#[derive(Debug, Clone)]
struct Verified {
    identity: Arc<Identity>,
    /// Of the keys that it was verified with: when they change, it is verified again.
    revision: Hash,
    /// Seconds since 1970.
    until: u64,
}

/// Why a token does not make an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not hold.
    Bad(&'static str),
    /// Its key is not among those that are known.
    UnknownKey,
    /// No keys are known.
    NoKeys,
}

impl Tokens {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &config::Jwt,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let default = Spot::Header {
            name: "authorization".to_owned(),
            scheme: "Bearer".to_owned(),
        };
        let spots = Spot::plan(&raw.from, default, planning);
        let validation = validation(raw, planning);
        let accepted: Vec<Algorithm> = if raw.algorithms.is_empty() {
            ASYMMETRIC.to_vec()
        } else {
            raw.algorithms
                .iter()
                .filter_map(|a| a.as_str().parse().ok())
                .collect()
        };
        let keys = Keys::plan(name, raw, &accepted, planning)?;
        let counter = |result| {
            let labels = [("source", name.as_str()), ("result", result)];
            planning.metrics.counter(
                "attache_auth_token_cache",
                "Tokens looked up among the verified ones.",
                &labels,
            )
        };
        let (hits, misses) = (counter("hit"), counter("miss"));
        let capacity = raw.cache_size.unwrap_or(10_000) as usize;
        let settings = raw.encode().unwrap_or_default();
        let verified = (capacity > 0).then(|| {
            let kept = format!("tokens {source} {} {settings}", name.value);
            planning.kept(kept, || Cache::new(capacity))
        });
        Some(Self {
            source,
            name: name.value.clone(),
            issuer: raw.issuer.value.clone().into(),
            spots,
            keys,
            validations: validations(&accepted, &validation),
            verified,
            hits,
            misses,
        })
    }

    /// Where the tokens are.
    pub(super) fn spots(&self) -> &[Spot] {
        &self.spots
    }

    pub(super) async fn identify(&self, check: &Check<'_>) -> Found {
        let mut found = Found::Nothing;
        for token in self.spots.iter().filter_map(|spot| spot.find(check)) {
            let mut verified = self.verify(&token);
            if verified == Err(Refusal::UnknownKey) && Box::pin(self.keys.renewed()).await {
                verified = self.verify(&token);
            }
            found = match verified {
                Ok(identity) => return Found::Good(identity),
                Err(Refusal::Bad(reason)) => Found::Bad(reason),
                Err(Refusal::UnknownKey) => Found::Bad("unknown_key"),
                Err(Refusal::NoKeys) => {
                    Found::Failed(format!("the keys of `{}` are not there", self.name))
                }
            };
        }
        found
    }

    fn verify(&self, token: &str) -> Result<Arc<Identity>, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::Bad("too_long"));
        }
        self.keys.look(|keys| {
            let keys = keys.ok_or(Refusal::NoKeys)?;
            let Some(cache) = &self.verified else {
                return Ok(self.verify_anew(token, keys)?.identity);
            };
            let hash = sha256(token.as_bytes());
            if let Some(verified) = cache.get(&hash) {
                if verified.until > now() && verified.revision == keys.revision() {
                    self.hits.inc();
                    return Ok(verified.identity);
                }
                cache.remove(&hash);
            }
            self.misses.inc();
            let verified = self.verify_anew(token, keys)?;
            if verified.until > now() {
                cache.insert(hash, verified.clone());
            }
            Ok(verified.identity)
        })
    }

    fn verify_anew(&self, token: &str, keys: &KeySet) -> Result<Verified, Refusal> {
        let claims = verified(token, keys, &self.validations).map_err(|refusal| match refusal {
            Refusal::UnknownKey if !self.claims_our_issuer(token) => Refusal::Bad("wrong_issuer"),
            other => other,
        })?;
        self.accept(claims, keys.revision())
    }

    /// Whether a token that nobody has verified is meant for this source. Another issuer's is no
    /// reason to look for new keys here.
    fn claims_our_issuer(&self, token: &str) -> bool {
        let claims = insecure_decode_claims::<Value>(token);
        claims.is_ok_and(|claims| claims.get("iss") == Some(&self.issuer))
    }

    fn accept(&self, claims: Map<String, Value>, revision: Hash) -> Result<Verified, Refusal> {
        let expires = claims
            .get("exp")
            .and_then(Value::as_f64)
            .ok_or(Refusal::Bad("malformed"))?;
        // Times before 1970 become 0, those too far away the largest number.
        let expires = expires as u64;
        Ok(Verified {
            revision,
            until: expires.min(now().saturating_add(MAX_REMEMBERED)),
            identity: Arc::new(Identity {
                source: self.source,
                claims: Value::Object(claims),
                until: UNIX_EPOCH.checked_add(Duration::from_secs(expires)),
            }),
        })
    }
}

/// The claims of a token that one of the keys verifies, with one of the algorithms.
///
/// # Errors
/// Why it does not hold.
pub(super) fn verified(
    token: &str,
    keys: &KeySet,
    validations: &[(Algorithm, Validation)],
) -> Result<Map<String, Value>, Refusal> {
    let header = decode_header(token).map_err(|_| Refusal::Bad("malformed"))?;
    // RFC 7515 §4.1.11: extensions that must be understood, and none is.
    if header.crit.is_some() {
        return Err(Refusal::Bad("unknown_extension"));
    }
    let mut accepted = validations.iter();
    let (_, validation) = accepted
        .find(|(algorithm, _)| *algorithm == header.alg)
        .ok_or(Refusal::Bad("algorithm"))?;
    let mut refusal = Refusal::UnknownKey;
    for key in keys.iter() {
        let other = matches!((&header.kid, &key.id), (Some(a), Some(b)) if a != b);
        if other || !key.algorithms.contains(&header.alg) {
            continue;
        }
        match decode::<Claims>(token, &key.key, validation) {
            // A list of issuers is not what RFC 7519 allows.
            Ok(token) if !token.claims.0.get("iss").is_some_and(Value::is_string) => {
                return Err(Refusal::Bad("wrong_issuer"));
            }
            Ok(token) => return Ok(token.claims.0),
            Err(error) => refusal = Refusal::Bad(why(error.kind())),
        }
    }
    Err(refusal)
}

/// The checks of claims for each of the algorithms.
pub(super) fn validations(
    accepted: &[Algorithm],
    validation: &Validation,
) -> Vec<(Algorithm, Validation)> {
    let with = |algorithm| {
        let algorithms = vec![algorithm];
        let validation = Validation {
            algorithms,
            ..validation.clone()
        };
        (algorithm, validation)
    };
    accepted.iter().copied().map(with).collect()
}

/// The checks of claims.
fn validation(raw: &config::Jwt, planning: &mut Planning<'_>) -> Validation {
    let leeway = raw
        .leeway
        .as_ref()
        .map_or(Duration::from_secs(30), |leeway| {
            if leeway.value > MAX_LEEWAY {
                planning
                    .errors
                    .push(leeway, "more than an hour makes expired tokens useful");
            }
            leeway.value
        });
    let any_audience = raw.any_audience.unwrap_or(false);
    if raw.audiences.is_empty() != any_audience {
        planning.errors.push(
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
    validation
}

impl Keys {
    fn plan(
        name: &Located<String>,
        raw: &config::Jwt,
        accepted: &[Algorithm],
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let freshness = Freshness::plan(raw.refresh.as_ref(), planning.errors);
        let (set, file) = match &raw.jwks.value {
            JwksSource::Url(remote) => {
                return Self::fetched(name, remote, freshness, planning);
            }
            JwksSource::Discovery(discovery) => {
                let issuer = Issuer::plan(name, &raw.issuer, discovery, freshness, planning)?;
                return Some(Self::Issuer(Box::new(issuer)));
            }
            JwksSource::Inline(set) => (KeySet::new(set), String::new()),
            JwksSource::File(file) => {
                let text = planning.read(file);
                let set = text.and_then(|text| KeySet::parse(text.as_bytes()));
                (set, format!("`{}`: ", file.display()))
            }
        };
        if let Some(refresh) = &raw.refresh {
            let problem =
                "only keys that are fetched are refreshed; a file is read when it changes";
            planning.errors.push(refresh, problem);
        }
        let usable = set.and_then(|set| {
            let usable = |algorithm| accepted.contains(algorithm);
            match set.iter().any(|key| key.algorithms.iter().any(usable)) {
                true => Ok(set),
                false => {
                    Err("no key in it verifies signatures with an accepted algorithm".to_owned())
                }
            }
        });
        usable
            .map_err(|problem| planning.errors.push(&raw.jwks, format!("{file}{problem}")))
            .ok()
            .map(Self::Here)
    }

    fn fetched(
        name: &str,
        remote: &HttpService,
        freshness: Freshness,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let fetcher = planning.fetcher(remote, HttpService::MAX_SIZE)?;
        let kept = format!("keys {name} {}", remote.encode().unwrap_or_default());
        let keys = planning.kept(kept, Followed::<KeySet>::default);
        let hold = keys.value().is_none().then(|| {
            let what = format!("the keys of `{name}` from {}", fetcher.url());
            planning.gate.hold(what)
        });
        let follower = freshness.follower(name, hold, planning);
        let fetch = FetchKeys::new(fetcher);
        planning.run(Box::pin(keys.clone().follow(fetch, follower)));
        Some(Self::Fetched(keys, freshness))
    }

    fn look<R>(&self, look: impl FnOnce(Option<&KeySet>) -> R) -> R {
        match self {
            Self::Here(keys) => look(Some(keys)),
            Self::Fetched(keys, _) => look(keys.value().as_deref()),
            Self::Issuer(issuer) => issuer.with_keys(look),
        }
    }

    /// Has them fetched again since one is missing, if that is possible and was not done lately.
    async fn renewed(&self) -> bool {
        match self {
            Self::Here(_) => false,
            Self::Fetched(keys, freshness) => freshness.renewed(keys).await,
            Self::Issuer(issuer) => issuer.renewed().await,
        }
    }
}

/// Claims, each once: parsers differ in which one of several they take.
struct Claims(Map<String, Value>);

impl<'de> de::Deserialize<'de> for Claims {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("claims")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = Map::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if claims.insert(name, value).is_some() {
                        return Err(de::Error::custom("a claim stands there twice"));
                    }
                }
                Ok(Claims(claims))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

pub(super) const ASYMMETRIC: &[Algorithm] = &[
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
