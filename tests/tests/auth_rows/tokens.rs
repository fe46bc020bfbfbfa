//! Tokens, signed and verified without the library that the auth service has for it.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

/// A key of an issuer.
pub(crate) struct Signer {
    id: String,
    key: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        }
    }

    /// The key set with nothing but this key.
    pub(crate) fn jwks(&self) -> String {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig",
            "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..65]),
        }] })
        .to_string()
    }

    /// `Bearer` and a token for the shop with these claims, good for ten minutes.
    pub(crate) fn bearer(&self, issuer: &str, mut claims: Value) -> String {
        claims["iss"] = issuer.into();
        claims["exp"] = (now() + 600).into();
        if claims["aud"].is_null() {
            claims["aud"] = "shop".into();
        }
        let header = json!({ "alg": "ES256", "kid": self.id });
        let part = |value: &Value| BASE64.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let random = SystemRandom::new();
        let signature = self.key.sign(&random, signed.as_bytes()).unwrap();
        format!("Bearer {signed}.{}", BASE64.encode(signature))
    }
}

pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

/// The claims of a token, if the key that it names is in this set and has signed it.
pub(crate) fn verified(token: &str, jwks: &str) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let bytes = |text: &str| BASE64.decode(text).ok();
    let header: Value = serde_json::from_slice(&bytes(header)?).ok()?;
    let set: Value = serde_json::from_str(jwks).ok()?;
    let mut keys = set["keys"].as_array()?.iter();
    let key = keys.find(|key| key["kid"] == header["kid"])?;
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(bytes(key[coordinate].as_str()?)?);
    }
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &bytes(signature)?).ok()?;
    serde_json::from_slice(&bytes(claims)?).ok()
}

#[test]
fn only_what_was_signed_is_verified() {
    let [signer, other] = ["a", "a"].map(Signer::new);
    let bearer = signer.bearer("https://issuer", json!({ "sub": "ada" }));
    let token = bearer.strip_prefix("Bearer ").unwrap();
    assert_eq!(verified(token, &signer.jwks()).unwrap()["sub"], "ada");
    assert_eq!(verified(token, &other.jwks()), None);
}
