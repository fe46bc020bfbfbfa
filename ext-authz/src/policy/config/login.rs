//! Sign-in of browsers.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use attache_service::{
    config::{Located, Secret},
    config_enum, config_struct,
};

use super::{ClientAuthentication, Discovery};

config_struct! {
    /// Sign-in of browsers at an OpenID provider (OpenID Connect Core 1.0, authorization code flow
    /// with PKCE), remembered in encrypted cookies.
    pub struct OidcLogin {
        /// The provider: what the claim `iss` must be.
        pub issuer: Located<String>,
        /// Where the provider describes itself. Default: below `issuer`, as OpenID Connect
        /// Discovery says.
        pub discovery: Option<Discovery>,
        /// The client's identifier at the provider; what `aud` must contain.
        pub client_id: Located<String>,
        /// The client's secret. Without one the client is a public one.
        pub client_secret: Option<Secret>,
        /// How the secret is shown to the provider. Default `client_secret_basic`.
        pub client_authentication: Option<Located<ClientAuthentication>>,
        /// Scopes to ask for beside `openid`. Default: `profile` and `email`. Most providers give
        /// refresh tokens for `offline_access` only.
        pub scopes: Option<Vec<String>>,
        /// More parameters of the authorization request, such as `prompt` or `acr_values`.
        pub authorization_parameters: BTreeMap<String, Located<String>>,
        /// Where the provider sends browsers back to; to be registered there as a redirect URI,
        /// with scheme and host. Default `/oauth2/callback`.
        pub callback_path: Option<Located<String>>,
        /// Where browsers go to sign out. Default `/oauth2/logout`.
        pub logout_path: Option<Located<String>>,
        /// The path that browsers see after they signed out; to be registered at the provider as
        /// a post logout redirect URI. Default: the provider's page, or a line of text.
        pub after_logout: Option<Located<String>>,
        /// The scheme that browsers use, when a proxy in front changes it. Default: the request's.
        pub scheme: Option<Scheme>,
        /// Also ask the provider's `userinfo_endpoint` for claims. Default false.
        pub userinfo: Option<bool>,
        /// The claims to remember beside `iss` and `sub`. Default: all.
        pub claims: Vec<String>,
        /// Give the upstream the access token, as `authorization: Bearer`. Default false.
        pub forward_access_token: Option<bool>,
        /// How long a browser stays signed in, and where that is written.
        pub session: Session,
    }
}

config_struct! {
    /// Sessions, kept in cookies.
    pub struct Session {
        /// A file with the keys that encrypt them: one a line, 32 bytes in base64
        /// (`openssl rand -base64 32`). The first encrypts, all decrypt.
        pub keys_file: Located<PathBuf>,
        /// Name of the cookies; over HTTPS `__Host-` stands before it. Default `attache_session`.
        pub cookie: Option<Located<String>>,
        /// How long a session lasts at most. Default 12 h.
        pub lifetime: Option<Located<Duration>>,
        /// How long a session lasts without a request; 0 for as long as `lifetime`. Default 1 h.
        pub idle_timeout: Option<Located<Duration>>,
    }
}

config_enum! {
    /// The scheme of a URL.
    pub enum Scheme {
        /// Plain HTTP.
        Http = "http",
        /// HTTP over TLS.
        Https = "https",
    }
}
