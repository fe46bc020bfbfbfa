//! Where identities come from.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_filter::matcher::StringMatcher;
use attache_service::{
    config::{Located, Secret, json},
    config_enum, config_oneof, config_struct,
    fetch::Remote,
};

use super::{OidcLogin, PathMatch};

config_struct! {
    /// One way of learning who is calling.
    pub struct IdentitySource {
        /// Its name in rules, metrics and logs.
        pub name: Located<String>,
        /// Let the upstream see the credential. Default false: what a source takes for a
        /// credential (a header, a query parameter, a cookie) is removed from requests that are
        /// allowed, whichever source knew the caller.
        pub forward: Option<bool>,
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
        /// A token that its issuer is asked about.
        Introspection(Box<Introspection>) = "introspection",
        /// The certificate of a TLS connection.
        Mtls(Mtls) = "mtls",
        /// A name and a password (RFC 7617).
        Basic(Basic) = "basic",
        /// A request signed with a shared secret (RFC 9421, `hmac-sha256`).
        Hmac(HmacSignatures) = "hmac",
        /// Browsers that sign in.
        OidcLogin(Box<OidcLogin>) = "oidc_login",
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
        /// A file with more of them: lines of `<id> sha256:<hex>`, after which
        /// `expires=<RFC 3339>` and claims as `<name>=<value>` may follow; `#` begins a comment.
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
        /// When it ends to be good, such as `2027-01-31T00:00:00Z` (RFC 3339). Default: never.
        pub expires: Option<Located<String>>,
        /// More claims of its identity, for rules and headers.
        pub claims: BTreeMap<String, String>,
    }
}

config_struct! {
    /// Callers known by the certificate of their TLS connection with the proxy.
    pub struct Mtls {
        /// Who is accepted: whose certificate matches one of these.
        pub accept: Vec<Located<CertificateMatch>>,
        /// Authorities (PEM), one of which must have signed the certificate, which must be one
        /// of a client and valid. The proxy then has to show it (`include_peer_certificate`).
        /// Default: what the proxy has verified is believed.
        pub ca_file: Option<Located<PathBuf>>,
        /// Take the certificate from this header instead of the connection.
        pub x_forwarded_client_cert: Option<Located<ForwardedClientCert>>,
    }
}

config_oneof! {
    /// How a certificate has to be.
    pub enum CertificateMatch {
        /// Its only URI is a SPIFFE ID of this trust domain.
        Spiffe(SpiffeMatch) = "spiffe",
        /// One of its URIs.
        Uri(StringMatcher) = "uri",
        /// One of its DNS names: `example.com`, or `*.example.com` for names below it.
        Dns(String) = "dns",
        /// Its subject, as RFC 2253 writes it: `CN=ada,O=Acme`.
        Subject(StringMatcher) = "subject",
        /// Any certificate that the proxy, or `ca_file`, accepts.
        Any(AnyCertificate) = "any",
    }
}

config_struct! {
    /// All certificates; has no settings.
    pub struct AnyCertificate {}
}

config_struct! {
    /// SPIFFE IDs.
    pub struct SpiffeMatch {
        /// The trust domain, such as `example.org`.
        pub trust_domain: Located<String>,
        /// Paths of the IDs, such as `{ prefix: /ns/prod }`. Default: all.
        pub paths: Vec<Located<PathMatch>>,
    }
}

config_struct! {
    /// The header `x-forwarded-client-cert`, in which proxies tell of client certificates.
    pub struct ForwardedClientCert {
        /// Must be `true`, and says so: the proxy that asks never passes on what clients write
        /// into this header (Envoy's `forward_client_cert_details` is neither `FORWARD_ONLY` nor
        /// `ALWAYS_FORWARD_ONLY`, or only proxies can reach it). Else anybody could be anyone.
        pub proxy_strips_it_from_clients: bool,
        /// How many proxies behind the one that counts add an element of their own. Default 0:
        /// the last element counts. Those before can be made up by whoever sent them.
        pub trusted_hops: Option<u32>,
    }
}

config_struct! {
    /// Names and passwords in `authorization: Basic` (RFC 7617).
    pub struct Basic {
        /// A file as Apache's `htpasswd -B` writes it: lines of `<name>:<hash>`, with hashes of
        /// bcrypt (`$2y$`, `$2b$`) or Argon2id (`$argon2id$`). Other hashes are refused.
        pub htpasswd_file: Located<PathBuf>,
        /// What browsers call the place that asks for the password. Default: the source's name.
        pub realm: Option<Located<String>>,
        /// How long a pair that was right is believed without hashing it again. Default 5 min.
        pub cache_ttl: Option<Duration>,
        /// Right pairs to remember, as keyed hashes. Default 10000; 0 hashes each time.
        pub cache_size: Option<u32>,
    }
}

config_struct! {
    /// Requests signed with secrets that caller and service share: HTTP Message Signatures
    /// (RFC 9421) with `hmac-sha256`.
    pub struct HmacSignatures {
        /// A file with the secrets: lines of `<keyid> <base64 of 32 bytes or more>`, after which
        /// `expires=<RFC 3339>` and claims as `<name>=<value>` may follow; `#` begins a comment.
        pub keys_file: Located<PathBuf>,
        /// What a signature has to cover: names of headers and derived components.
        /// `content-digest` has to be covered by requests with a body only. Default: `@method`,
        /// `@authority`, `@path`, `@query`, `content-digest`.
        pub components: Vec<Located<String>>,
        /// How old a signature may be; for as long it is remembered, so that it is taken once.
        /// Default 5 min, at most 1 h.
        pub max_age: Option<Located<Duration>>,
        /// How far ahead of ours the clock of a signer may be. Default 30 s, at most 5 min.
        pub clock_skew: Option<Located<Duration>>,
        /// Refuse signatures without a `nonce`. Default false: then the signature itself must
        /// not come twice, and two equal requests within a second count as one.
        pub require_nonce: Option<bool>,
        /// Signatures to remember. When so many are young enough to be used again, further ones
        /// are refused. Default 100000.
        pub replay_memory: Option<Located<u32>>,
        /// Believe a covered `content-digest` although the proxy does not show the whole body:
        /// the upstream compares them. Default false: such requests are refused.
        pub allow_unseen_body: Option<bool>,
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
        /// How fresh fetched keys are kept.
        pub refresh: Option<Located<Refresh>>,
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
        /// At a URL.
        Url(Remote) = "jwks_url",
        /// Where the issuer says, by OpenID Connect Discovery.
        Discovery(Discovery) = "discovery",
    }
}

config_struct! {
    /// Where an issuer describes itself. `{}` is what OpenID Connect Discovery says: below the
    /// issuer, at `/.well-known/openid-configuration`.
    #[derive(Default)]
    pub struct Discovery {
        /// Another URL of the description.
        pub url: Option<Located<String>>,
        /// Authorities of the server: a PEM file. Left out, those of the system.
        pub ca: Option<Located<PathBuf>>,
        /// Bound on a whole exchange. Default 5 s.
        pub timeout: Option<Located<Duration>>,
    }
}

config_struct! {
    /// How fresh fetched keys are kept. A set that cannot be fetched anew stays in use.
    #[derive(Default)]
    pub struct Refresh {
        /// Time between fetches; `cache-control` can make it shorter, down to 30 s. Default
        /// 5 min.
        pub interval: Option<Located<Duration>>,
        /// Keys that could not be fetched anew for longer are dropped. Default: they are kept.
        pub max_age: Option<Located<Duration>>,
        /// A token with an unknown key has the keys fetched at once, at most this often. Default
        /// 30 s.
        pub unknown_key_interval: Option<Located<Duration>>,
        /// How long such a token's check waits for that. Default 0.5 s.
        pub unknown_key_wait: Option<Located<Duration>>,
    }
}

config_struct! {
    /// Tokens that their issuer is asked about (RFC 7662).
    pub struct Introspection {
        /// Where to ask.
        pub endpoint: Located<Remote>,
        /// Who we are there.
        pub client_id: String,
        /// And how we prove it.
        pub client_secret: Located<Secret>,
        /// How both are sent. Default `client_secret_basic`.
        pub client_authentication: Option<ClientAuthentication>,
        /// Where in the request the token is. Default: `authorization: Bearer`.
        pub from: Vec<Located<Place>>,
        /// What the answer's `iss` must be. Default: anything.
        pub issuer: Option<String>,
        /// What the answer's `aud` must contain, one of them. Default: anything.
        pub audiences: Vec<String>,
        /// How long an answer about a good token counts, at most until its `exp`. Default 30 s;
        /// 0 s asks each time.
        pub ttl: Option<Located<Duration>>,
        /// How long an answer about any other token counts. Default 5 s.
        pub negative_ttl: Option<Located<Duration>>,
        /// Answers to remember. Default 10000.
        pub cache_size: Option<u32>,
        /// Tokens asked about at a time; further ones fail. Default 100.
        pub max_pending: Option<u32>,
    }
}

config_enum! {
    /// How an OAuth client proves who it is (RFC 6749 §2.3.1).
    #[derive(Default)]
    pub enum ClientAuthentication {
        /// In the header `authorization`.
        #[default]
        Basic = "client_secret_basic",
        /// In the form that is posted.
        Post = "client_secret_post",
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
