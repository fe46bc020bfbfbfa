//! A token of ours that tells the upstream who is calling.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Map, Value, json};

use super::{
    check::Check,
    config,
    facts::Facts,
    identity::sha256,
    path::{Reading, canonical},
    planning::Planning,
    response::{Source, settable},
};
use crate::server::Decision;

const TTL: Duration = Duration::from_secs(60);
const MAX_TTL: Duration = Duration::from_secs(3600);
const HEADER: &str = "x-wristband";
const JWKS_PATH: &str = "/.well-known/wristband/jwks.json";
/// How long a key set may be kept by those who fetch it.
const JWKS_MAX_AGE: &str = "max-age=300";
/// Claims of a token about itself: those of the caller's token say nothing about ours.
const ABOUT_ITSELF: [&str; 11] = [
    "iss", "aud", "exp", "nbf", "iat", "jti", "nonce", "at_hash", "c_hash", "azp", "cnf",
];

/// The signer of such tokens.
pub(super) struct Wristband {
    header: String,
    issuer: String,
    audience: Option<String>,
    ttl: Duration,
    claims: Vec<(String, Source)>,
    key: EcdsaKeyPair,
    /// The first part of each token, encoded.
    head: String,
    jwks_path: String,
    jwks: String,
}

impl std::fmt::Debug for Wristband {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wristband")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

impl Wristband {
    /// `None` when it cannot be used; why, is reported.
    pub(super) fn plan(raw: &config::Wristband, planning: &mut Planning<'_>) -> Option<Self> {
        let mut keys = Vec::new();
        for file in &raw.keys {
            let Some(pem) = planning.read_located(file) else {
                continue;
            };
            match Key::read(&pem) {
                Ok(key) => keys.push(key),
                Err(problem) => {
                    let problem = format!("`{}`: {problem}", file.display());
                    planning.errors.push(file, problem);
                }
            }
        }
        let errors = &mut *planning.errors;
        if raw.keys.is_empty() {
            errors.push(&raw.issuer, "a wristband needs `keys` to be signed with");
        }
        let ttl = raw.ttl.as_ref().map_or(TTL, |ttl| {
            if ttl.value < Duration::from_secs(1) || ttl.value > MAX_TTL {
                errors.push(ttl, "expected from 1 s to 1 h");
            }
            ttl.value
        });
        let header = raw.header.as_ref().map_or_else(
            || HEADER.to_owned(),
            |name| match settable(name) {
                Ok(name) => name,
                Err(problem) => {
                    errors.push(name, problem);
                    HEADER.to_owned()
                }
            },
        );
        let jwks_path = raw.jwks_path.as_ref().map_or(JWKS_PATH, |path| {
            let plain = !path.contains(['?', '#', '%'])
                && canonical(path, Reading::default()).is_ok_and(|read| read == path.as_str());
            if !plain || !path.starts_with('/') {
                errors.push(path, "expected a plain path that starts with a slash");
            }
            path
        });
        let claims = raw.claims.iter().map(|(name, source)| {
            if ABOUT_ITSELF.contains(&name.as_str()) {
                errors.push(source, format!("`{name}` is about the token itself"));
            }
            (name.clone(), Source::of_value(source, errors))
        });
        let claims = claims.collect();
        let jwks = json!({ "keys": keys.iter().map(Key::public).collect::<Vec<_>>() });
        let mut keys = keys.into_iter();
        let key = keys.next()?;
        let head = json!({ "alg": "ES256", "kid": key.id, "typ": "JWT" });
        Some(Self {
            header,
            issuer: raw.issuer.value.clone(),
            audience: raw.audience.clone(),
            ttl,
            claims,
            head: BASE64.encode(head.to_string()),
            key: key.pair,
            jwks_path: jwks_path.to_owned(),
            jwks: jwks.to_string(),
        })
    }

    /// The header that the token is in; a client's own must not get through.
    pub(super) fn header(&self) -> &str {
        &self.header
    }

    /// The answer to a request for the key set.
    pub(super) fn answer(&self, check: &Check<'_>) -> Option<Decision> {
        let asked = check.path() == Some(&self.jwks_path);
        if !asked || !matches!(check.method(), Some("GET" | "HEAD")) {
            return None;
        }
        let answer = Decision::deny(200)
            .header("content-type", "application/jwk-set+json")
            .header("cache-control", JWKS_MAX_AGE)
            .body(&self.jwks)
            .reason("key set of wristbands");
        Some(answer.into())
    }

    /// A token for the caller; `None` for somebody without an identity.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub(super) fn token(&self, facts: &Facts<'_>) -> Result<Option<String>, String> {
        let Some(known) = facts.caller.claims() else {
            return Ok(None);
        };
        let mut claims = Map::new();
        if self.claims.is_empty() {
            let said = known.as_object().into_iter().flatten();
            let said = said.filter(|(name, _)| !ABOUT_ITSELF.contains(&name.as_str()));
            claims.extend(said.map(|(name, value)| (name.clone(), value.clone())));
        } else {
            let sub = known.get("sub").cloned();
            claims.extend(sub.map(|sub| ("sub".to_owned(), sub)));
            for (name, source) in &self.claims {
                claims.extend(source.value(facts).map(|value| (name.clone(), value)));
            }
        }
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        claims.insert("iss".to_owned(), self.issuer.as_str().into());
        claims.insert("iat".to_owned(), seconds.into());
        let expires = seconds.saturating_add(self.ttl.as_secs());
        claims.insert("exp".to_owned(), expires.into());
        if let Some(audience) = &self.audience {
            claims.insert("aud".to_owned(), audience.as_str().into());
        }
        // A decision that is kept must not hand out tokens that are about to expire.
        facts.check.holds_until(now + self.ttl / 2);
        let claims = BASE64.encode(Value::Object(claims).to_string());
        let signed = format!("{}.{claims}", self.head);
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|_| "the wristband cannot be signed")?;
        Ok(Some(format!("{signed}.{}", BASE64.encode(signature))))
    }
}

/// A key that signs.
struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    fn read(pem: &str) -> Result<Self, String> {
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "no private key in PEM form (PKCS #8)")?;
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.secret_pkcs8_der(),
        )
        .map_err(|_| {
            "not a P-256 key; `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256` \
             makes one"
        })?;
        // Derived from the key itself, so that it is the same everywhere.
        let hash = sha256(pair.public_key().as_ref());
        let id = BASE64.encode(hash.get(..12).unwrap_or(&hash));
        Ok(Self { id, pair })
    }

    /// RFC 7517.
    fn public(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let part = |range| BASE64.encode(point.get::<std::ops::Range<usize>>(range).unwrap_or(&[]));
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id,
            "x": part(1..33), "y": part(33..65),
        })
    }
}
