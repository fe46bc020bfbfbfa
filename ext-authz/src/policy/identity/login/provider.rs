//! The provider: where browsers are sent, and what is asked of it directly (OpenID Connect Core
//! 1.0, RFC 6749).

use attache_service::{config::Hidden, fetch::Fetcher};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use jsonwebtoken::{Algorithm, Validation, decode_header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::{
    flow::Flow,
    id_token::{self, Expected},
    session::{Access, Session, now},
};
use crate::policy::{
    config::ClientAuthentication,
    identity::{
        issuer::{Issuer, Metadata},
        jwt::{self, Refusal},
    },
};

/// Longest error code of a provider that is taken over into logs and answers.
const MAX_CODE: usize = 40;

/// Why the provider did not give what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It said no (RFC 6749, section 5.2).
    #[error("the provider refused: {0}")]
    Refused(String),
    /// It did not answer, or with something that nothing can be made of.
    #[error("the provider is not available: {0}")]
    Unavailable(String),
    /// What it gave does not hold.
    #[error("the provider's answer does not hold: {0}")]
    Unsound(&'static str),
}

/// A client of a provider.
#[derive(Debug)]
pub(super) struct Provider {
    /// What the claim `iss` must be.
    pub(super) name: String,
    pub(super) issuer: Issuer,
    /// What ID tokens have to say of themselves, by algorithm.
    pub(super) validations: Vec<(Algorithm, Validation)>,
    pub(super) client_id: String,
    /// `None` for a public client.
    pub(super) secret: Option<(Hidden, ClientAuthentication)>,
    /// Parameters of the authorization request, encoded: `scope=…&prompt=…`.
    pub(super) parameters: String,
    pub(super) userinfo: bool,
    /// The claims to remember; empty for all.
    pub(super) claims: Vec<String>,
    /// Whether the access token is of use to anybody else.
    pub(super) keep_access_token: bool,
}

/// What a provider says of itself (OpenID Connect Discovery 1.0, section 3; RP-Initiated Logout
/// 1.0, section 2.1; RFC 9207).
#[derive(Debug)]
pub(super) struct Endpoints {
    authorization: String,
    token: Fetcher,
    userinfo: Option<Fetcher>,
    pub(super) end_session: Option<String>,
    /// Whether its answers always say who it is.
    names_itself: bool,
}

/// What the token endpoint gave, verified.
#[derive(Debug)]
struct Grant {
    /// `None` when a refresh brought no ID token.
    id_token: Option<(String, Map<String, Value>)>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

impl Provider {
    /// What the provider says of itself.
    ///
    /// # Errors
    /// When it has not been reached so far, or says nothing useful.
    pub(super) fn endpoints(&self) -> Result<Endpoints, Fault> {
        let known = self.issuer.provider();
        let known = known.ok_or_else(|| Fault::Unavailable("not discovered yet".to_owned()))?;
        Endpoints::read(&known.metadata, self.issuer.fetcher(), self.userinfo)
            .map_err(Fault::Unavailable)
    }

    /// The URL that a browser is sent to (OpenID Connect Core 1.0, section 3.1.2.1).
    pub(super) fn authorization_url(
        &self,
        endpoints: &Endpoints,
        flow: &Flow,
        redirect_uri: &str,
    ) -> String {
        let parameters = form(&[
            ("response_type", "code"),
            ("client_id", &self.client_id),
            ("redirect_uri", redirect_uri),
            ("state", &flow.state),
            ("nonce", &flow.nonce),
            ("code_challenge", &flow.challenge()),
            ("code_challenge_method", "S256"),
        ]);
        let parameters = format!("{parameters}&{}", self.parameters);
        with_query(&endpoints.authorization, &parameters)
    }

    /// Whether an answer that came through a browser is this provider's (RFC 9207).
    pub(super) fn is_named(&self, endpoints: &Endpoints, issuer: Option<&str>) -> bool {
        match issuer {
            Some(issuer) => issuer == self.name,
            None => !endpoints.names_itself,
        }
    }

    /// The session of the user who signed in.
    ///
    /// # Errors
    /// When the provider does not give what it takes.
    pub(super) async fn begin(
        &self,
        endpoints: &Endpoints,
        flow: &Flow,
        code: &str,
        redirect_uri: &str,
        id: String,
    ) -> Result<Session, Fault> {
        let parameters = [
            ("grant_type", "authorization_code"),
            ("code", code),
            ("redirect_uri", redirect_uri),
            ("code_verifier", &flow.verifier),
        ];
        let grant = self
            .grant(endpoints, &parameters, Some(&flow.nonce))
            .await?;
        let Some((id_token, claims)) = grant.id_token else {
            return Err(Fault::Unsound("there is no ID token in it"));
        };
        let claims = self
            .with_userinfo(endpoints, claims, grant.access_token.as_deref())
            .await?;
        let now = now();
        Ok(Session {
            id,
            began: now,
            seen: now,
            claims: id_token::about_the_user(claims, &self.claims),
            id_token: endpoints.end_session.is_some().then_some(id_token),
            access: grant.expires_in.map(|seconds| Access::new(now, seconds)),
            access_token: grant.access_token.filter(|_| self.keep_access_token),
            refresh_token: grant.refresh_token,
        })
    }

    /// The session with another access token, and with what the provider says of the user by now.
    ///
    /// # Errors
    /// When the provider does not give what it takes.
    pub(super) async fn refresh(&self, session: &Session) -> Result<Session, Fault> {
        let endpoints = self.endpoints()?;
        let token = session.refresh_token.as_deref().unwrap_or_default();
        let parameters = [("grant_type", "refresh_token"), ("refresh_token", token)];
        let grant = self.grant(&endpoints, &parameters, None).await?;
        let mut next = session.clone();
        let before = || session.claims.clone();
        let (id_token, claims) = match grant.id_token {
            // OpenID Connect Core 1.0, section 12.2.
            Some((_, claims)) if claims.get("sub") != session.claims.get("sub") => {
                return Err(Fault::Unsound("the ID token is for another user"));
            }
            Some((id_token, claims)) => (Some(id_token), claims),
            None => (None, before()),
        };
        let access_token = grant.access_token.as_deref();
        next.claims = match self.with_userinfo(&endpoints, claims, access_token).await {
            Ok(claims) => id_token::about_the_user(claims, &self.claims),
            // The refresh token may be used up: what it gave must not be lost.
            Err(Fault::Unavailable(reason)) => {
                tracing::warn!(reason, "claims of a session are not refreshed");
                before()
            }
            Err(fault) => return Err(fault),
        };
        if next.id_token.is_some() && id_token.is_some() {
            next.id_token = id_token;
        }
        let now = now();
        next.seen = now;
        next.access = grant.expires_in.map(|seconds| Access::new(now, seconds));
        next.access_token = grant.access_token.filter(|_| self.keep_access_token);
        if grant.refresh_token.is_some() {
            next.refresh_token = grant.refresh_token;
        }
        Ok(next)
    }

    async fn grant(
        &self,
        endpoints: &Endpoints,
        parameters: &[(&str, &str)],
        nonce: Option<&str>,
    ) -> Result<Grant, Fault> {
        let mut body = form(parameters);
        let mut request = endpoints.token.request(Method::POST);
        match &self.secret {
            Some((secret, ClientAuthentication::Basic)) => {
                // RFC 6749, section 2.3.1: both are encoded before they are joined.
                let pair = format!("{}:{}", encoded(&self.client_id), encoded(secret.reveal()));
                let basic = format!("Basic {}", BASE64_STANDARD.encode(pair));
                let basic = HeaderValue::try_from(basic);
                let mut basic = basic.map_err(|error| Fault::Unavailable(error.to_string()))?;
                basic.set_sensitive(true);
                request = request.header(header::AUTHORIZATION, basic);
            }
            Some((secret, ClientAuthentication::Post)) => {
                let client = [
                    ("client_id", self.client_id.as_str()),
                    ("client_secret", secret.reveal()),
                ];
                body = format!("{body}&{}", form(&client));
            }
            None => body = format!("{body}&{}", form(&[("client_id", &self.client_id)])),
        }
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        let request = request
            .header(header::CONTENT_TYPE, form)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| Fault::Unavailable(error.to_string()))?;
        let answer = endpoints.token.send(request).await;
        let (head, body) = answer
            .map_err(|error| Fault::Unavailable(error.to_string()))?
            .into_parts();
        let said: Option<Map<String, Value>> = serde_json::from_slice(&body).ok();
        let url = endpoints.token.url();
        match (head.status, said) {
            (StatusCode::OK, Some(said)) => self.granted(said, nonce).await,
            (StatusCode::OK, None) => Err(Fault::Unavailable(format!(
                "{url} answered something else than JSON"
            ))),
            (status, said) => {
                let error = said.as_ref().and_then(|said| said.get("error")?.as_str());
                Err(match error {
                    Some(error) if status.is_client_error() => Fault::Refused(code(error)),
                    _ => Fault::Unavailable(format!("{url} answered {status}")),
                })
            }
        }
    }

    async fn granted(
        &self,
        mut said: Map<String, Value>,
        nonce: Option<&str>,
    ) -> Result<Grant, Fault> {
        let mut text = |name: &str| match said.remove(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            _ => None,
        };
        let access_token = text("access_token");
        let refresh_token = text("refresh_token");
        let id_token = match text("id_token") {
            None => None,
            Some(token) => {
                let claims = self
                    .verified(&token, nonce, access_token.as_deref())
                    .await?;
                Some((token, claims))
            }
        };
        let bearer = text("token_type").is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"));
        // Written as text by some.
        let expires_in = said
            .get("expires_in")
            .and_then(|seconds| seconds.as_u64().or_else(|| seconds.as_str()?.parse().ok()));
        Ok(Grant {
            id_token,
            access_token: access_token.filter(|token| bearer && is_token(token)),
            refresh_token,
            expires_in,
        })
    }

    async fn verified(
        &self,
        token: &str,
        nonce: Option<&str>,
        access_token: Option<&str>,
    ) -> Result<Map<String, Value>, Fault> {
        let verify = || {
            let keys = self.issuer.provider();
            let keys = keys.as_ref().map(|known| &known.keys);
            jwt::verified(token, keys.ok_or(Refusal::NoKeys)?, &self.validations)
        };
        let mut verified = verify();
        if verified == Err(Refusal::UnknownKey) && self.issuer.renewed().await {
            verified = verify();
        }
        let claims = verified.map_err(|refusal| match refusal {
            Refusal::Bad(reason) => Fault::Unsound(reason),
            Refusal::UnknownKey => Fault::Unsound("unknown_key"),
            Refusal::NoKeys => Fault::Unavailable("its keys are not there".to_owned()),
        })?;
        let header = decode_header(token).map_err(|_| Fault::Unsound("malformed"))?;
        let expected = Expected {
            client_id: &self.client_id,
            nonce,
            access_token,
        };
        id_token::check(&claims, header.alg, expected).map_err(Fault::Unsound)?;
        Ok(claims)
    }

    /// Adds what the userinfo endpoint says, if it is asked; the ID token's claims win.
    async fn with_userinfo(
        &self,
        endpoints: &Endpoints,
        claims: Map<String, Value>,
        access_token: Option<&str>,
    ) -> Result<Map<String, Value>, Fault> {
        let Some(userinfo) = &endpoints.userinfo else {
            return Ok(claims);
        };
        let token = access_token.ok_or(Fault::Unsound("there is no access token in it"))?;
        let unavailable = |error: String| Fault::Unavailable(error);
        let request = userinfo
            .request(Method::GET)
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|error| unavailable(error.to_string()))?;
        let answer = userinfo.send(request).await;
        let answer = answer.map_err(|error| unavailable(error.to_string()))?;
        let url = userinfo.url();
        if answer.status() != StatusCode::OK {
            return Err(unavailable(format!("{url} answered {}", answer.status())));
        }
        let said: Map<String, Value> = serde_json::from_slice(answer.body())
            .map_err(|_| unavailable(format!("{url} answered something else than JSON")))?;
        // OpenID Connect Core 1.0, section 5.3.2.
        if said.get("sub") != claims.get("sub") {
            return Err(Fault::Unsound("the user info is another user's"));
        }
        let mut all = said;
        all.extend(claims);
        Ok(all)
    }

    /// The URL at which a browser signs out at the provider too; `None` when it has none.
    pub(super) fn end_session_url(
        &self,
        endpoints: &Endpoints,
        id_token: Option<&str>,
        back: Option<&str>,
    ) -> Option<String> {
        let mut parameters = vec![("client_id", self.client_id.as_str())];
        parameters.extend(id_token.map(|token| ("id_token_hint", token)));
        parameters.extend(back.map(|back| ("post_logout_redirect_uri", back)));
        Some(with_query(
            endpoints.end_session.as_ref()?,
            &form(&parameters),
        ))
    }
}

impl Endpoints {
    fn read(metadata: &Metadata, fetcher: &Fetcher, userinfo: bool) -> Result<Self, String> {
        fn need<'a>(name: &str, url: &'a Option<String>) -> Result<&'a str, String> {
            url.as_deref().ok_or_else(|| format!("it has no `{name}`"))
        }
        let beside = |url: &str| fetcher.beside(url).map_err(|error| error.to_string());
        // Browsers are sent there; nothing else than a web page may be.
        let page = |url: &str| match beside(url) {
            Ok(_) if url.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(url.to_owned()),
            Ok(_) => Err(format!("`{}` is no URL", url.escape_default())),
            Err(problem) => Err(problem),
        };
        let userinfo = match userinfo {
            true => Some(beside(need(
                "userinfo_endpoint",
                &metadata.userinfo_endpoint,
            )?)?),
            false => None,
        };
        Ok(Self {
            authorization: page(need(
                "authorization_endpoint",
                &metadata.authorization_endpoint,
            )?)?,
            token: beside(need("token_endpoint", &metadata.token_endpoint)?)?,
            userinfo,
            end_session: metadata
                .end_session_endpoint
                .as_deref()
                .map(page)
                .transpose()?,
            names_itself: metadata.authorization_response_iss_parameter_supported,
        })
    }
}

/// Everything but what RFC 3986 leaves unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// Parameters as a form or a query.
pub(super) fn form(parameters: &[(&str, &str)]) -> String {
    let pairs = parameters.iter();
    let pairs: Vec<_> = pairs
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    pairs.join("&")
}

fn with_query(url: &str, query: &str) -> String {
    match url.contains('?') {
        true => format!("{url}&{query}"),
        false => format!("{url}?{query}"),
    }
}

/// An error code of OAuth 2.0, without what could harm logs and pages.
pub(super) fn code(error: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    error.chars().filter(plain).take(MAX_CODE).collect()
}

/// Whether it can be sent as a bearer token (RFC 6750, section 2.1).
fn is_token(token: &str) -> bool {
    token.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded_and_joined_to_what_a_url_has() {
        let query = form(&[("a", "b c&d=é"), ("e", "")]);
        assert_eq!(query, "a=b%20c%26d%3D%C3%A9&e=");
        assert_eq!(with_query("https://a/b", "c=d"), "https://a/b?c=d");
        assert_eq!(with_query("https://a/b?x=y", "c=d"), "https://a/b?x=y&c=d");
    }

    #[test]
    fn error_codes_are_short_and_plain() {
        assert_eq!(code("access_denied"), "access_denied");
        assert_eq!(code("<script>\r\n"), "script");
        assert_eq!(code(&"a".repeat(100)).len(), MAX_CODE);
    }
}
