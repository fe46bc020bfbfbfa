//! Decisions on signed tokens: one caller, one policy, said to OPA in Rego and to ours in rules.
//!
//! The token is signed with ES256 and the policy holds the key; allowed is who reads, has the
//! role `user` and a token for `shop`, and the upstream learns the name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{net::SocketAddr, time::SystemTime};

use anyhow::Context;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use crate::ours;

const ISSUER: &str = "https://login.example.com";
const KEY: &str = "bench";

/// A token, and the key that it was signed with.
pub(crate) struct Token {
    /// As it stands behind `Bearer`.
    pub(crate) text: String,
    keys: Value,
}

impl Token {
    /// A token that holds for an hour.
    pub(crate) fn new() -> anyhow::Result<Token> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let part = |value: Value| BASE64.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": KEY, "typ": "JWT" });
        let claims = json!({
            "iss": ISSUER,
            "aud": ["shop"],
            "sub": "alice",
            "exp": now.as_secs() + 3600,
            "roles": ["user", "buyer"],
        });
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes())?;
        // An uncompressed point: 4, x, y.
        let point = key.public_key().as_ref();
        let (x, y) = (point.get(1..33), point.get(33..65));
        let keys = json!({ "keys": [{
            "kty": "EC", "crv": "P-256", "kid": KEY, "use": "sig", "alg": "ES256",
            "x": BASE64.encode(x.context("a short key")?),
            "y": BASE64.encode(y.context("a short key")?),
        }] });
        Ok(Token {
            text: format!("{signed}.{}", BASE64.encode(signature)),
            keys,
        })
    }

    /// The command that runs our auth service, its configuration in `folder`. Unless it
    /// `remembers` verified tokens, it verifies each time.
    pub(crate) fn ours(
        &self,
        program: &Path,
        listen: SocketAddr,
        folder: &Path,
        remembers: bool,
    ) -> anyhow::Result<Command> {
        let cache_size = if remembers { 10_000 } else { 0 };
        let config = json!({
            "identity": [{
                "name": "users",
                "jwt": {
                    "issuer": ISSUER,
                    "audiences": ["shop"],
                    "jwks": self.keys,
                    "cache_size": cache_size,
                },
            }],
            "rules": [{
                "action": "allow",
                "methods": ["GET", "HEAD"],
                "paths": [{ "prefix": "/small" }],
                "claims": { "roles": "user" },
            }],
            "upstream_headers": { "x-auth-user": { "claim": "sub" } },
        });
        let file = folder.join(format!("tokens-{cache_size}.yaml"));
        std::fs::write(&file, config.to_string())?;
        Ok(ours::service(program, "ext-authz", &file, listen))
    }

    /// The command that runs OPA with its plugin for Envoy, its policy in `folder`.
    pub(crate) fn opa(
        &self,
        program: &Path,
        listen: SocketAddr,
        folder: &Path,
    ) -> anyhow::Result<Command> {
        let policy = folder.join("policy.rego");
        std::fs::write(&policy, include_str!("../config/tokens.rego"))?;
        let data: PathBuf = folder.join("data.json");
        // The key set is text to OPA's token functions.
        let settings = json!({ "settings": { "issuer": ISSUER, "keys": self.keys.to_string() } });
        std::fs::write(&data, settings.to_string())?;
        let mut command = Command::new(program);
        command
            .args(["run", "--server", "--log-level=error"])
            .arg("--disable-telemetry")
            .args(["--addr=127.0.0.1:0", "--diagnostic-addr=127.0.0.1:0"])
            .arg(format!("--set=plugins.envoy_ext_authz_grpc.addr={listen}"))
            .arg("--set=plugins.envoy_ext_authz_grpc.path=bench/authz/decision")
            .args([policy, data]);
        Ok(command)
    }
}
