//! A sign-in as configured, checked.

use std::{path::PathBuf, sync::Arc, time::Duration};

use attache_service::config::{Errors, Located, Secret};
use jsonwebtoken::{Algorithm, Validation};
use quick_cache::sync::Cache;

use super::{
    Counters, Login,
    cookie::Names,
    provider::{Provider, form},
    refresh::Refreshes,
    seal::Keys,
    session::Lifetime,
};
use crate::policy::{
    config::{self, ClientAuthentication, OidcLogin},
    identity::{
        issuer::Issuer,
        jwt::{ASYMMETRIC, validations},
        refresh::Freshness,
    },
    planning::Planning,
};

/// Sessions known to be over; the oldest make room.
const MAX_ENDED: usize = 10_000;
/// Tolerance for clocks that differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// Parameters of the authorization request that are not for the configuration to set.
const OURS: &[&str] = &[
    "response_type",
    "response_mode",
    "client_id",
    "redirect_uri",
    "scope",
    "state",
    "nonce",
    "code_challenge",
    "code_challenge_method",
    "request",
    "request_uri",
];

impl Login {
    /// `None` when it cannot be used; why, is reported.
    pub(in crate::policy::identity) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &OidcLogin,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let errors = &mut *planning.errors;
        let callback_path = path(&raw.callback_path, "/oauth2/callback", errors);
        let logout_path = path(&raw.logout_path, "/oauth2/logout", errors);
        if callback_path == logout_path
            && let Some(written) = raw.logout_path.as_ref().or(raw.callback_path.as_ref())
        {
            errors.push(written, "`callback_path` and `logout_path` must differ");
        }
        let after_logout = raw
            .after_logout
            .as_ref()
            .map(|_| path(&raw.after_logout, "/", errors));
        let cookie = cookie_name(&raw.session, errors);
        let lifetime = lifetime(&raw.session, errors);
        if raw.client_id.is_empty() {
            errors.push(&raw.client_id, "a client has an identifier");
        }
        let parameters = parameters(raw, errors);
        let method = raw
            .client_authentication
            .as_ref()
            .map(|method| method.value);
        let secret = raw.client_secret.as_ref().map(|secret| secret.read(errors));
        if let (Some(method), None) = (&raw.client_authentication, &raw.client_secret) {
            errors.push(
                method,
                "there is no `client_secret` to show to the provider",
            );
        }
        let secret = match secret {
            Some(secret) => Some((secret?, method.unwrap_or(ClientAuthentication::Basic))),
            None => None,
        };
        if let Some(file) = raw.client_secret.as_ref().and_then(Secret::file) {
            planning.watch(&file);
        }
        let keys = keys(&raw.session.keys_file, planning);
        let discovery = raw.discovery.clone().unwrap_or_default();
        let freshness = Freshness::plan(None, planning.errors);
        let issuer = Issuer::plan(name, &raw.issuer, &discovery, freshness, planning);
        let (keys, issuer) = (keys?, issuer?);
        let known = |what| {
            format!(
                "{what} {} {} {}",
                name.value, raw.issuer.value, raw.client_id.value
            )
        };
        let refreshes = planning.kept(known("refreshes"), Refreshes::default);
        let ended = planning.kept(known("ended sessions"), || Cache::new(MAX_ENDED));
        let name = &name.value;
        let counter = |result| {
            let labels = [("source", name.as_str()), ("result", result)];
            let help = "Sign-ins of browsers by their result.";
            planning
                .metrics
                .counter("attache_auth_sign_ins", help, &labels)
        };
        let refresh = |result| {
            let labels = [("source", name.as_str()), ("result", result)];
            let help = "Sessions whose access token was to be replaced, by result.";
            planning
                .metrics
                .counter("attache_auth_session_refreshes", help, &labels)
        };
        let counters = Counters {
            begun: counter("begun"),
            done: counter("done"),
            refused: counter("refused"),
            failed: counter("failed"),
            signed_out: counter("signed_out"),
            refreshed: refresh("done"),
            refresh_over: refresh("over"),
            refresh_failed: refresh("failed"),
        };
        let forward_access_token = raw.forward_access_token.unwrap_or(false);
        Some(Self {
            source,
            name: name.clone(),
            provider: Arc::new(Provider {
                name: raw.issuer.value.clone(),
                validations: validations(ASYMMETRIC, &validation(raw)),
                issuer,
                client_id: raw.client_id.value.clone(),
                secret,
                parameters,
                userinfo: raw.userinfo.unwrap_or(false),
                claims: raw.claims.clone(),
                keep_access_token: forward_access_token,
            }),
            callback_path,
            logout_path,
            after_logout,
            scheme: raw.scheme,
            keys,
            https: Names::new(&cookie, true),
            http: Names::new(&cookie, false),
            cookie,
            lifetime,
            forward_access_token,
            refreshes,
            ended,
            counters,
        })
    }
}

/// What ID tokens have to say of themselves.
fn validation(raw: &OidcLogin) -> Validation {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.leeway = LEEWAY.as_secs();
    validation.validate_nbf = true;
    validation.set_issuer(&[&raw.issuer.value]);
    validation.set_audience(&[&raw.client_id.value]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    validation
}

/// A path that needs no reading: what is compared with it is decoded.
fn path(raw: &Option<Located<String>>, default: &str, errors: &mut Errors) -> String {
    let Some(raw) = raw else {
        return default.to_owned();
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let clear = raw.starts_with('/') && raw.bytes().all(plain);
    if !clear || raw.contains("//") || raw.split('/').any(|part| matches!(part, "." | "..")) {
        let problem = "expected a path of plain segments, such as `/oauth2/callback`";
        errors.push(raw, problem);
    }
    raw.value.clone()
}

fn cookie_name(raw: &config::Session, errors: &mut Errors) -> String {
    let Some(name) = &raw.cookie else {
        return "attache_session".to_owned();
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        let problem = "expected 1 to 64 letters, digits, `-` and `_`";
        errors.push(name, problem);
    } else if name.starts_with("__") {
        errors.push(name, "`__Host-` is put before it where browsers take it");
    }
    name.value.clone()
}

fn lifetime(raw: &config::Session, errors: &mut Errors) -> Lifetime {
    let whole = raw
        .lifetime
        .as_ref()
        .map_or(Duration::from_secs(12 * 3600), |whole| {
            if whole.as_secs() == 0 {
                errors.push(whole, "expected a second at least");
            }
            whole.value
        });
    let idle = match &raw.idle_timeout {
        None => Some(Duration::from_secs(3600)),
        Some(idle) if idle.is_zero() => None,
        Some(idle) => {
            if idle.as_secs() == 0 {
                errors.push(idle, "expected a second at least, or 0");
            }
            Some(idle.value)
        }
    };
    Lifetime { whole, idle }
}

/// The parameters of the authorization request that are always the same.
fn parameters(raw: &OidcLogin, errors: &mut Errors) -> String {
    let default = || vec!["profile".to_owned(), "email".to_owned()];
    let mut scopes = raw.scopes.clone().unwrap_or_else(default);
    scopes.retain(|scope| scope != "openid");
    scopes.insert(0, "openid".to_owned());
    let scope = scopes.join(" ");
    let mut pairs = vec![("scope", scope.as_str())];
    for (name, value) in &raw.authorization_parameters {
        if OURS.contains(&name.as_str()) {
            errors.push(value, format!("`{name}` is set by the sign-in itself"));
        }
        pairs.push((name, value));
    }
    form(&pairs)
}

fn keys(file: &Located<PathBuf>, planning: &mut Planning<'_>) -> Option<Keys> {
    let text = planning.read_located(file)?;
    let keys = Keys::parse(&text);
    keys.map_err(|problem| {
        let problem = format!("`{}`: {problem}", file.display());
        planning.errors.push(file, problem);
    })
    .ok()
}
