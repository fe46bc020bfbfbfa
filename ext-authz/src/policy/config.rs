//! The auth service's settings as they are written.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_service::{
    config::{ConfigValue, Errors, Located, Node, Schemas, json},
    config_enum, config_oneof, config_struct,
};

config_struct! {
    /// Who is calling, and may they?
    pub struct AuthConfig {
        /// Where identities come from, in the order in which they are asked.
        pub identity: Vec<Located<IdentitySource>>,
        /// What is allowed; the first rule that matches decides, without one it is denied.
        pub rules: Vec<Located<Rule>>,
        /// Headers that the upstream gets. Copies that the client sent are always removed.
        pub upstream_headers: BTreeMap<String, Located<HeaderSource>>,
        /// Headers that the client gets with allowed requests, replacing the upstream's.
        pub client_headers: BTreeMap<String, Located<HeaderSource>>,
        /// The answer to requests without an identity. Default: 401 with `www-authenticate`.
        pub unauthenticated: Option<Located<Reply>>,
        /// The answer to requests that are denied. Default: 403.
        pub denied: Option<Located<Reply>>,
        /// How ambiguous paths are read. Default: they are refused.
        pub paths: Option<PathRules>,
    }
}

config_struct! {
    /// One way of learning who is calling.
    pub struct IdentitySource {
        /// Its name in rules, metrics and logs.
        pub name: Located<String>,
    }
    oneof {
        /// The way.
        pub kind: IdentityKind,
    }
}

config_oneof! {
    /// The ways of learning who is calling.
    pub enum IdentityKind {
        /// A secret that the caller knows.
        ApiKey(ApiKeys) = "api_key",
        /// A signed JSON web token.
        Jwt(Box<Jwt>) = "jwt",
        /// Everybody who presents no credential.
        Anonymous(Anonymous) = "anonymous",
    }
}

config_struct! {
    /// Anonymous access; has no settings.
    pub struct Anonymous {}
}

config_struct! {
    /// API keys. Only their SHA-256 hashes are kept.
    pub struct ApiKeys {
        /// Where in the request the key is. Default: the header `x-api-key`.
        pub from: Vec<Located<Place>>,
        /// The keys.
        pub keys: Vec<Located<ApiKey>>,
        /// A file with more of them: lines of `<id> sha256:<hex>`; `#` begins a comment.
        pub keys_file: Option<Located<PathBuf>>,
    }
}

config_struct! {
    /// One API key.
    pub struct ApiKey {
        /// Whose it is; the claim `sub` of its identity.
        pub id: String,
        /// `sha256:` and the hash of the key in hex: `printf %s "$KEY" | sha256sum`.
        pub hash: Located<String>,
        /// More claims of its identity, for rules and headers.
        pub claims: BTreeMap<String, String>,
    }
}

config_struct! {
    /// JSON web tokens of one issuer.
    pub struct Jwt {
        /// What the claim `iss` must be.
        pub issuer: Located<String>,
        /// What the claim `aud` must contain, one of them.
        pub audiences: Vec<String>,
        /// Accept tokens for any audience. Default false.
        pub any_audience: Option<bool>,
        /// Where in the request the token is. Default: `authorization: Bearer`.
        pub from: Vec<Located<Place>>,
        /// Signature algorithms to accept. Default: all but the symmetric `HS*`. Which of them a
        /// key takes is given by its `alg`, else by its type.
        pub algorithms: Vec<Algorithm>,
        /// Tolerance for clocks that differ. Default 30 s, at most 1 h.
        pub leeway: Option<Located<Duration>>,
        /// Verified tokens to remember. Default 10000; 0 verifies each time.
        pub cache_size: Option<u32>,
    }
    oneof {
        /// The issuer's keys.
        pub jwks: Located<JwksSource>,
    }
}

config_oneof! {
    /// Where a key set (RFC 7517) is.
    pub enum JwksSource {
        /// In a file, read again when it changes.
        File(PathBuf) = "jwks_file",
        /// Here.
        Inline(json::Value) = "jwks",
    }
}

config_enum! {
    /// Signature algorithms (RFC 7518).
    pub enum Algorithm {
        /// RSA PKCS#1 v1.5 with SHA-256.
        Rs256 = "RS256",
        /// RSA PKCS#1 v1.5 with SHA-384.
        Rs384 = "RS384",
        /// RSA PKCS#1 v1.5 with SHA-512.
        Rs512 = "RS512",
        /// RSA PSS with SHA-256.
        Ps256 = "PS256",
        /// RSA PSS with SHA-384.
        Ps384 = "PS384",
        /// RSA PSS with SHA-512.
        Ps512 = "PS512",
        /// ECDSA with P-256 and SHA-256.
        Es256 = "ES256",
        /// ECDSA with P-384 and SHA-384.
        Es384 = "ES384",
        /// Ed25519.
        EdDsa = "EdDSA",
        /// HMAC with SHA-256.
        Hs256 = "HS256",
        /// HMAC with SHA-384.
        Hs384 = "HS384",
        /// HMAC with SHA-512.
        Hs512 = "HS512",
    }
    elsewhere {
        "none" => "tokens without a signature prove nothing",
        "ES512" => "P-521 is not supported",
    }
}

config_struct! {
    /// Where in a request a credential is.
    pub struct Place {
        /// What stands before it in a header, such as `Bearer`; then case does not count, and a
        /// space follows.
        pub scheme: Option<String>,
    }
    oneof {
        /// The part of the request.
        pub part: Part,
    }
}

config_oneof! {
    /// A part of the request that can hold a credential.
    pub enum Part {
        /// A header.
        Header(String) = "header",
        /// A query parameter. It will show in logs.
        Query(String) = "query",
        /// A cookie.
        Cookie(String) = "cookie",
    }
}

config_enum! {
    /// What a rule decides.
    pub enum Action {
        /// Let the request pass.
        Allow = "allow",
        /// Do not.
        Deny = "deny",
    }
}

config_struct! {
    /// A rule. All that is given must match; what is a list, with one of its items.
    pub struct Rule {
        /// Its name in logs.
        pub name: Option<String>,
        /// What it decides.
        pub action: Action,
        /// Methods.
        pub methods: Vec<String>,
        /// Paths, decoded and without the query.
        pub paths: Vec<Located<PathMatch>>,
        /// Host names without port: `example.com`, or `*.example.com` for names below it.
        pub hosts: Vec<String>,
        /// Identity sources by name. Default: for `allow` all but the anonymous ones, for `deny`
        /// everybody.
        pub identity: Vec<Located<String>>,
        /// Claims of the identity and what they are or, for lists, contain. Dots lead into maps.
        pub claims: BTreeMap<String, Wanted>,
        /// Addresses or networks (`10.0.0.0/8`) of the proxy's peer.
        pub sources: Vec<Located<String>>,
        /// For `deny`: the answer, instead of the general one.
        pub response: Option<Located<Reply>>,
    }
}

config_oneof! {
    /// How a path is compared.
    pub enum PathMatch {
        /// All of it.
        Exact(String) = "exact",
        /// Whole segments at its beginning: `/admin` is the beginning of `/admin/x`, not of
        /// `/administration`.
        Prefix(String) = "prefix",
        /// A regular expression that all of it matches.
        Regex(String) = "regex",
    }
}

config_oneof! {
    /// Where a header's value comes from.
    pub enum HeaderSource {
        /// A claim of the identity; lists are joined with commas.
        Claim(String) = "claim",
        /// The name of the identity source.
        Source(Empty) = "source",
        /// Always the same.
        Value(String) = "value",
    }
}

config_struct! {
    /// Nothing to say.
    pub struct Empty {}
}

config_struct! {
    /// An answer to the client.
    pub struct Reply {
        /// HTTP status, 200 to 599.
        pub status: Option<u16>,
        /// Text of the body.
        pub body: Option<String>,
        /// Headers.
        pub headers: BTreeMap<String, String>,
    }
}

config_struct! {
    /// How ambiguous paths are read. What is false makes such paths an error, 400.
    pub struct PathRules {
        /// Read `//` as `/`. Only when the proxy or the application does so too. Default false.
        pub merge_slashes: Option<bool>,
        /// Follow `.` and `..`. Only when the proxy or the application does so too. Default false.
        pub resolve_dots: Option<bool>,
        /// Take `%2F` for an ordinary character that separates nothing. Default false.
        pub allow_encoded_slash: Option<bool>,
        /// Take `;` for an ordinary character. Default false.
        pub allow_semicolon: Option<bool>,
    }
}

/// One text or a list of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted(pub Vec<String>);

impl ConfigValue for Wanted {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        match node.as_seq() {
            Some(items) => {
                let texts = items.iter().map(|item| String::decode(item, errors));
                texts.collect::<Option<_>>().map(Self)
            }
            None => String::decode(node, errors).map(|text| Self(vec![text])),
        }
    }

    fn encode(&self) -> Option<json::Value> {
        Some(self.0.clone().into())
    }

    fn schema(_schemas: &mut Schemas) -> json::Value {
        json::json!({
            "type": ["string", "number", "boolean", "array"],
            "items": { "type": ["string", "number", "boolean"] },
        })
    }
}
