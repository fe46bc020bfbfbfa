//! What upstream and client are told.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_service::{
    config::{Located, json},
    config_oneof, config_struct,
};

config_oneof! {
    /// Where a header's value comes from.
    pub enum HeaderSource {
        /// A claim of the identity; lists are joined with commas.
        Claim(String) = "claim",
        /// The name of the identity source.
        Source(Empty) = "source",
        /// Always the same.
        Value(String) = "value",
        /// An expression (CEL). Without a value, as when something that it names is not there,
        /// it is as with an absent claim.
        Expression(String) = "expression",
    }
}

config_oneof! {
    /// Where a value comes from.
    pub enum ValueSource {
        /// A claim of the identity.
        Claim(String) = "claim",
        /// The name of the identity source.
        Source(Empty) = "source",
        /// Always the same.
        Value(json::Value) = "value",
        /// An expression (CEL). Without a value, as when something that it names is not there,
        /// it is as with an absent claim.
        Expression(String) = "expression",
    }
}

config_struct! {
    /// Nothing to say.
    pub struct Empty {}
}

config_struct! {
    /// An answer to the client.
    pub struct Reply {
        /// HTTP status, 200 to 599. Default with `redirect`: 302.
        pub status: Option<u16>,
        /// Text of the body.
        pub body: Option<String>,
        /// Headers.
        pub headers: BTreeMap<String, String>,
        /// Where to send the client instead (`location`). Expressions (CEL) in braces are filled
        /// in, percent-encoded: `https://login.example.com/?to={request.path}`. A brace is written
        /// twice.
        pub redirect: Option<Located<String>>,
    }
}

config_struct! {
    /// A token of ours that tells the upstream who is calling, signed with ES256. It replaces
    /// what the client sent in its header.
    pub struct Wristband {
        /// The claim `iss`.
        pub issuer: Located<String>,
        /// The header. Default `x-wristband`.
        pub header: Option<Located<String>>,
        /// The claim `aud`. Default: none.
        pub audience: Option<String>,
        /// How long a token holds. Default 60 s, at most 1 h.
        pub ttl: Option<Located<Duration>>,
        /// Private keys (PEM, PKCS #8, P-256). The first signs; all are in the key set, so that
        /// a next one is known before it signs.
        pub keys: Vec<Located<PathBuf>>,
        /// More claims. Default: all of the identity but those that are about the token itself
        /// (`iss`, `aud`, `exp`, `nbf`, `iat`, `jti`, ...).
        pub claims: BTreeMap<String, Located<ValueSource>>,
        /// The path at which the key set is answered to everybody who comes through the proxy.
        /// Default `/.well-known/wristband/jwks.json`.
        pub jwks_path: Option<Located<String>>,
    }
}
