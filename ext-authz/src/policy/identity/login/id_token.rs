//! What an ID token has to say beside being signed by its issuer and in time (OpenID Connect Core
//! 1.0, sections 3.1.3.7 and 3.1.3.8).

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{self, SHA256, SHA384, SHA512},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

/// Claims about the token, not about the user.
const OF_THE_TOKEN: &[&str] = &[
    "aud", "azp", "exp", "iat", "nbf", "jti", "nonce", "at_hash", "c_hash", "s_hash",
];

/// What a token is compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected<'a> {
    pub(super) client_id: &'a str,
    /// `None` for tokens that come with a refresh.
    pub(super) nonce: Option<&'a str>,
    pub(super) access_token: Option<&'a str>,
}

/// Whether the claims of a verified token are as expected.
///
/// # Errors
/// What is wrong, for the log.
pub(super) fn check(
    claims: &Map<String, Value>,
    algorithm: Algorithm,
    expected: Expected<'_>,
) -> Result<(), &'static str> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let several = match claims.get("aud") {
        Some(Value::String(one)) if one == expected.client_id => false,
        Some(Value::Array(list)) if list.iter().any(|one| one == expected.client_id) => {
            list.len() > 1
        }
        _ => return Err("the ID token is for another client"),
    };
    let party = claims.get("azp");
    if party.map_or(several, |party| party != expected.client_id) {
        return Err("the ID token was given to another client");
    }
    if text("sub").is_none_or(str::is_empty) {
        return Err("the ID token names no user");
    }
    if let Some(nonce) = expected.nonce {
        let given = text("nonce").unwrap_or_default();
        if verify_slices_are_equal(given.as_bytes(), nonce.as_bytes()).is_err() {
            return Err("the ID token is not for this sign-in");
        }
    }
    if let (Some(hash), Some(token)) = (claims.get("at_hash"), expected.access_token)
        && half_hash(algorithm, token).is_none_or(|half| *hash != half)
    {
        return Err("the access token is not that of the ID token");
    }
    Ok(())
}

/// The left half of a token's hash, by the algorithm that signed the ID token.
fn half_hash(algorithm: Algorithm, token: &str) -> Option<String> {
    use Algorithm::{
        ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
    };
    let with = match algorithm {
        RS256 | PS256 | ES256 | HS256 => &SHA256,
        RS384 | PS384 | ES384 | HS384 => &SHA384,
        RS512 | PS512 | HS512 | EdDSA => &SHA512,
        _ => return None,
    };
    let hash = digest::digest(with, token.as_bytes());
    let half = hash.as_ref().get(..hash.as_ref().len() / 2)?;
    Some(B64.encode(half))
}

/// What the claims say about the user, all of it or what is wanted beside `iss` and `sub`.
pub(super) fn about_the_user(
    mut claims: Map<String, Value>,
    wanted: &[String],
) -> Map<String, Value> {
    claims.retain(|name, _| {
        let always = matches!(name.as_str(), "iss" | "sub");
        let chosen = wanted.is_empty() || wanted.contains(name);
        always || (chosen && !OF_THE_TOKEN.contains(&name.as_str()))
    });
    claims
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EXPECTED: Expected<'_> = Expected {
        client_id: "shop",
        nonce: Some("n"),
        access_token: Some("jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"),
    };

    fn checked(changes: Value) -> Result<(), &'static str> {
        let mut claims = json!({ "aud": "shop", "sub": "ada", "nonce": "n" });
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        check(claims.as_object().unwrap(), Algorithm::RS256, EXPECTED)
    }

    #[test]
    fn tokens_are_for_this_client_this_user_and_this_sign_in() {
        for (changes, fine) in [
            (json!({}), true),
            (json!({ "aud": ["shop"] }), true),
            (json!({ "aud": ["shop", "other"], "azp": "shop" }), true),
            // OpenID Connect Core 1.0, appendix A.3.
            (json!({ "at_hash": "77QmUPtjPfzWtF2AnpK9RQ" }), true),
            (json!({ "aud": ["shop", "other"] }), false),
            (json!({ "aud": ["shop", "other"], "azp": "other" }), false),
            (json!({ "azp": "other" }), false),
            (json!({ "azp": 1 }), false),
            (json!({ "aud": "other" }), false),
            (json!({ "aud": [] }), false),
            (json!({ "aud": null }), false),
            (json!({ "sub": "" }), false),
            (json!({ "sub": 7 }), false),
            (json!({ "nonce": "m" }), false),
            (json!({ "nonce": null }), false),
            (json!({ "at_hash": "77QmUPtjPfzWtF2AnpK9RA" }), false),
            (json!({ "at_hash": 1 }), false),
        ] {
            assert_eq!(checked(changes.clone()).is_ok(), fine, "{changes}");
        }
    }

    #[test]
    fn what_is_remembered_is_about_the_user() {
        let claims = json!({
            "iss": "i", "sub": "ada", "aud": "shop", "exp": 1, "nonce": "n", "email": "a@b", "n": 1,
        });
        let claims = claims.as_object().unwrap();
        let keep = |wanted: &[&str]| {
            let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
            Value::Object(about_the_user(claims.clone(), &wanted))
        };
        assert_eq!(
            keep(&[]),
            json!({ "iss": "i", "sub": "ada", "email": "a@b", "n": 1 })
        );
        assert_eq!(
            keep(&["email", "exp"]),
            json!({ "iss": "i", "sub": "ada", "email": "a@b" })
        );
    }
}
