//! A JSON Web Key Set (RFC 7517), ready to verify with.

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde_json::Value;

/// More keys than any issuer rotates through; a token without `kid` is tried with all.
const MAX_KEYS: usize = 100;

/// One key with all it takes to verify.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    /// Checks of claims, and the algorithms of this key alone.
    pub(super) validation: Validation,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Symmetric keys are secrets.
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The usable keys of a set. Keys for other purposes, of unknown types or for algorithms that
/// are not accepted are left out, as RFC 7517 wants.
///
/// # Errors
/// When it is no key set, or nothing in it is usable.
pub(super) fn keys(
    set: &Value,
    accepted: &[Algorithm],
    validation: &Validation,
) -> Result<Vec<Key>, String> {
    let listed = set
        .get("keys")
        .and_then(Value::as_array)
        .ok_or("not a key set: it needs a list `keys`")?;
    if listed.len() > MAX_KEYS {
        return Err(format!("{} keys are more than {MAX_KEYS}", listed.len()));
    }
    let usable: Vec<Key> = listed
        .iter()
        .filter_map(|key| {
            let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
            if !matches!(
                jwk.common.public_key_use,
                None | Some(PublicKeyUse::Signature)
            ) {
                return None;
            }
            let mut algorithms = algorithms(&jwk);
            algorithms.retain(|algorithm| accepted.contains(algorithm));
            let decoding = DecodingKey::from_jwk(&jwk).ok()?;
            (!algorithms.is_empty()).then(|| Key {
                id: jwk.common.key_id,
                key: decoding,
                validation: Validation {
                    algorithms,
                    ..validation.clone()
                },
            })
        })
        .collect();
    if usable.is_empty() {
        return Err("no key in it verifies signatures with an accepted algorithm".to_owned());
    }
    Ok(usable)
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
