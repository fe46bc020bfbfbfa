//! A JSON Web Key Set (RFC 7517), ready to verify with.

use std::sync::Arc;

use attache_service::fetch::{Fetched, Fetcher, Validators};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde_json::Value;

use super::keys::{Hash, sha256};
use crate::policy::follow::{Brought, Fetch};

/// More keys than any issuer rotates through; a token without `kid` is tried with all.
const MAX_KEYS: usize = 100;

/// The usable keys of a set. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::policy) struct KeySet {
    keys: Arc<[Key]>,
    revision: Hash,
}

/// One key with all it takes to verify.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    /// What it verifies; never empty.
    pub(super) algorithms: Vec<Algorithm>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Symmetric keys are secrets.
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl KeySet {
    /// Reads a set as it is in a file or answer.
    ///
    /// # Errors
    /// When it is no key set, or nothing in it is usable.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set = serde_json::from_slice(text).map_err(|error| format!("not JSON: {error}"))?;
        Self::new(&set)
    }

    /// The usable keys of a set. Keys for other purposes, of unknown types or for algorithms
    /// that are not supported are left out, as RFC 7517 wants.
    ///
    /// # Errors
    /// When it is no key set, or nothing in it is usable.
    pub(super) fn new(set: &Value) -> Result<Self, String> {
        let listed = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or("not a key set: it needs a list `keys`")?;
        if listed.len() > MAX_KEYS {
            return Err(format!("{} keys are more than {MAX_KEYS}", listed.len()));
        }
        let keys: Arc<[Key]> = listed.iter().filter_map(Key::read).collect();
        if keys.is_empty() {
            return Err("no key in it verifies signatures with a supported algorithm".to_owned());
        }
        let revision = sha256(set.to_string().as_bytes());
        Ok(Self { keys, revision })
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Key> {
        self.keys.iter()
    }

    /// The same for the same keys only.
    pub(super) fn revision(&self) -> Hash {
        self.revision
    }
}

impl Key {
    fn read(key: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
        let to_verify = matches!(
            jwk.common.public_key_use,
            None | Some(PublicKeyUse::Signature)
        );
        let algorithms = algorithms(&jwk);
        if !to_verify || algorithms.is_empty() {
            return None;
        }
        Some(Self {
            key: DecodingKey::from_jwk(&jwk).ok()?,
            id: jwk.common.key_id,
            algorithms,
        })
    }
}

/// What a key may verify: its `alg` if it has one, else what its type allows.
fn algorithms(jwk: &Jwk) -> Vec<Algorithm> {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let by_type: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[ES256],
            EllipticCurve::P384 => &[ES384],
            _ => &[],
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
        AlgorithmParameters::OctetKey(_) => &[HS256, HS384, HS512],
        _ => &[],
    };
    let own = jwk.common.key_algorithm.map(|own| own.to_string());
    by_type
        .iter()
        .copied()
        .filter(|algorithm| match &own {
            Some(own) => own.parse() == Ok(*algorithm),
            None => true,
        })
        .collect()
}

/// Fetches a key set from its URL.
pub(super) struct FetchKeys {
    fetcher: Fetcher,
    known: Validators,
}

impl FetchKeys {
    pub(super) fn new(fetcher: Fetcher) -> Self {
        Self {
            fetcher,
            known: Validators::default(),
        }
    }
}

impl Fetch for FetchKeys {
    type Value = KeySet;

    async fn fetch(&mut self, current: Option<&KeySet>) -> Result<Brought<KeySet>, String> {
        if current.is_none() {
            self.known = Validators::default();
        }
        let fetched = self.fetcher.fetch(&self.known).await;
        match fetched.map_err(|error| error.to_string())? {
            Fetched::Same { fresh_for } => Ok(Brought {
                value: None,
                fresh_for,
            }),
            Fetched::Document(document) => {
                let set = KeySet::parse(&document.body)
                    .map_err(|problem| format!("{}: {problem}", self.fetcher.url()))?;
                self.known = document.validators;
                let same = current.is_some_and(|current| current.revision() == set.revision());
                Ok(Brought {
                    value: (!same).then_some(set),
                    fresh_for: document.fresh_for,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn symmetric(changes: &[(&str, &str)]) -> Value {
        let mut key = json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "a" });
        for (name, value) in changes {
            key[*name] = (*value).into();
        }
        key
    }

    #[test]
    fn keys_that_cannot_verify_are_left_out() {
        let set = json!({ "keys": [
            symmetric(&[("alg", "HS256")]),
            symmetric(&[("use", "enc")]),
            symmetric(&[("kty", "AKP")]),
            symmetric(&[("alg", "RS256")]),
            "no key",
        ]});
        let set = KeySet::new(&set).unwrap();
        let algorithms: Vec<_> = set.iter().map(|key| key.algorithms.clone()).collect();
        assert_eq!(algorithms, [[Algorithm::HS256]]);
    }

    #[test]
    fn what_is_no_usable_set_is_an_error() {
        let many: Vec<Value> = (0..101).map(|_| symmetric(&[])).collect();
        for (set, said) in [
            ("<html>".to_owned(), "not JSON"),
            ("{}".to_owned(), "not a key set"),
            ("{ \"keys\": [] }".to_owned(), "no key in it"),
            (json!({ "keys": many }).to_string(), "101 keys"),
        ] {
            let error = KeySet::parse(set.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_revision_changes_with_the_keys_and_not_with_white_space() {
        let parse = |text: &str| KeySet::parse(text.as_bytes()).unwrap().revision();
        let text = json!({ "keys": [symmetric(&[])] }).to_string();
        let other = json!({ "keys": [symmetric(&[("k", "b3RoZXI")])] }).to_string();
        assert_eq!(parse(&text), parse(&text.replace(':', " : ")));
        assert_ne!(parse(&text), parse(&other));
    }
}
