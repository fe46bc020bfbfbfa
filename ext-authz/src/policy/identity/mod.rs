//! Who is calling: the sources that can tell.

mod basic;
mod claims;
mod credential;
mod introspection;
mod issuer;
mod jwks;
mod jwt;
mod key_file;
mod keys;
mod login;
mod mtls;
mod refresh;
mod refusals;
mod signature;

use std::{sync::Arc, time::SystemTime};

use attache_service::{config::Located, metrics::Counter};
use serde_json::{Map, Value};

use super::{
    check::Check,
    config::{IdentityKind, IdentitySource},
    explain::Stage,
    planning::Planning,
};
use crate::server::{Decision, Deny};

pub(super) use claims::{claim, header_text, says};
pub(super) use credential::Spot;
pub(super) use keys::sha256;
pub(super) use login::{SignedIn, is_session_cookie};

/// An identity: which source vouches for it, and what it says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Identity {
    /// Index of the source.
    pub(super) source: usize,
    /// A JSON object.
    pub(super) claims: Value,
    /// When it ends by itself, such as a token's `exp`.
    pub(super) until: Option<SystemTime>,
}

impl Identity {
    /// Someone known by a name, which is the claim `sub`.
    fn named(
        source: usize,
        name: &str,
        mut claims: Map<String, Value>,
        until: Option<SystemTime>,
    ) -> Self {
        claims.insert("sub".to_owned(), name.into());
        Self {
            source,
            claims: Value::Object(claims),
            until,
        }
    }

    /// Whether it has not ended yet.
    fn holds(&self) -> bool {
        self.until.is_none_or(|until| SystemTime::now() < until)
    }
}

/// What a source finds in a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// No credential of its kind.
    Nothing,
    /// A credential that does not hold; the reason is for the log.
    Bad(&'static str),
    /// The source cannot tell at the moment; the reason is for the log.
    Failed(String),
    /// Someone.
    Good(Arc<Identity>),
    /// Not a request to decide on, but one to the source itself, and this is its answer.
    Answer(Box<Decision>),
}

/// Who a request comes from.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Someone with a credential that holds.
    Known(Arc<Identity>),
    /// Someone without any credential, let in by the anonymous source of this index.
    Anonymous(usize),
    /// Nobody that any source vouches for.
    Unknown,
}

impl Caller {
    /// Index of the source that vouches for it.
    pub(super) fn source(&self) -> Option<usize> {
        match self {
            Self::Known(identity) => Some(identity.source),
            Self::Anonymous(source) => Some(*source),
            Self::Unknown => None,
        }
    }

    /// The claims, of someone with a credential.
    pub(super) fn claims(&self) -> Option<&Value> {
        match self {
            Self::Known(identity) => Some(&identity.claims),
            Self::Anonymous(_) | Self::Unknown => None,
        }
    }
}

/// How asking the sources ended.
pub(super) enum Identified {
    Caller(Caller),
    /// The one of this index has an answer of its own.
    Answer(usize, Box<Decision>),
    /// One cannot tell, and none after it knew the caller.
    Failed(String),
}

/// An identity source.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: String,
    kind: Kind,
    forward: bool,
    refused: refusals::Refusals,
    failed: Counter,
}

#[derive(Debug)]
enum Kind {
    Keys(keys::Keys),
    Tokens(Box<jwt::Tokens>),
    Introspection(Box<introspection::Introspection>),
    Certificates(Box<mtls::Certificates>),
    Passwords(Box<basic::Passwords>),
    Signatures(Box<signature::Signatures>),
    Login(Box<login::Login>),
    Anonymous,
}

impl Source {
    /// `None` when it cannot be used; why, is reported.
    pub(super) fn plan(
        index: usize,
        raw: &Located<IdentitySource>,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let name = &raw.name;
        let kind = match &raw.kind {
            IdentityKind::ApiKey(raw) => Kind::Keys(keys::Keys::plan(index, name, raw, planning)),
            IdentityKind::Jwt(raw) => {
                Kind::Tokens(Box::new(jwt::Tokens::plan(index, name, raw, planning)?))
            }
            IdentityKind::Introspection(raw) => {
                let planned = introspection::Introspection::plan(index, name, raw, planning)?;
                Kind::Introspection(Box::new(planned))
            }
            IdentityKind::Mtls(raw) => {
                let planned = mtls::Certificates::plan(index, name, raw, planning)?;
                Kind::Certificates(Box::new(planned))
            }
            IdentityKind::Basic(raw) => Kind::Passwords(Box::new(basic::Passwords::plan(
                index, name, raw, planning,
            )?)),
            IdentityKind::Hmac(raw) => {
                let planned = signature::Signatures::plan(index, name, raw, planning)?;
                Kind::Signatures(Box::new(planned))
            }
            IdentityKind::OidcLogin(raw) => {
                Kind::Login(Box::new(login::Login::plan(index, name, raw, planning)?))
            }
            IdentityKind::Anonymous(_) => Kind::Anonymous,
        };
        let labels = [("source", name.as_str())];
        let counter = |metric, help| planning.metrics.counter(metric, help, &labels);
        Some(Self {
            name: name.value.clone(),
            kind,
            refused: refusals::Refusals::new(name, planning.metrics),
            forward: raw.forward.unwrap_or(false),
            failed: counter(
                "attache_auth_identity_failures",
                "Checks in which a source could not tell who is calling.",
            ),
        })
    }

    /// What may have to ask others is boxed, so that checks need no room for what they do not do.
    async fn identify(&self, check: &Check<'_>) -> Found {
        match &self.kind {
            Kind::Keys(keys) => keys.identify(check),
            Kind::Tokens(tokens) => tokens.identify(check).await,
            Kind::Introspection(asked) => Box::pin(asked.identify(check)).await,
            Kind::Certificates(certificates) => certificates.identify(check),
            Kind::Passwords(passwords) => Box::pin(passwords.identify(check)).await,
            Kind::Signatures(signatures) => signatures.identify(check),
            Kind::Login(login) => Box::pin(login.identify(check)).await,
            Kind::Anonymous => Found::Nothing,
        }
    }

    /// What RFC 9110 wants a 401 to say: how to do better.
    pub(super) fn challenge(&self) -> Option<&str> {
        match &self.kind {
            Kind::Keys(_) => Some("ApiKey"),
            Kind::Tokens(_) | Kind::Introspection(_) => Some("Bearer"),
            Kind::Passwords(passwords) => Some(passwords.challenge()),
            Kind::Signatures(_) => Some("Signature"),
            Kind::Login(_) => Some("Cookie"),
            // Headers cannot ask for a certificate.
            Kind::Certificates(_) | Kind::Anonymous => None,
        }
    }

    /// Where the secrets are that the upstream is not to see.
    pub(super) fn hidden(&self) -> &[Spot] {
        match &self.kind {
            _ if self.forward => &[],
            Kind::Keys(keys) => keys.spots(),
            Kind::Tokens(tokens) => tokens.spots(),
            Kind::Introspection(asked) => asked.spots(),
            Kind::Passwords(passwords) => passwords.spots(),
            // Nothing that certificates and signatures tell could be used again.
            Kind::Certificates(_) | Kind::Signatures(_) | Kind::Login(_) | Kind::Anonymous => &[],
        }
    }

    /// This source's own answer to a caller whom no source knows: where to sign in.
    pub(super) fn sign_in(&self, check: &Check<'_>) -> Option<Deny> {
        match &self.kind {
            Kind::Login(login) => login.sign_in(check),
            _ => None,
        }
    }

    /// The name of the cookies that only this source has to know: see [`is_session_cookie`].
    pub(super) fn session_cookie(&self) -> Option<&str> {
        match &self.kind {
            Kind::Login(login) => Some(login.cookie_name()),
            _ => None,
        }
    }
}

/// Asks the sources with these indices in order. A credential that does not hold is no reason to
/// stop, since another source may know it, but it rules out anonymous access; so does a source
/// that cannot tell.
pub(super) async fn identify(sources: &[Source], order: &[usize], check: &Check<'_>) -> Identified {
    let mut bad = false;
    let mut failure = None;
    for &index in order {
        let Some(source) = sources.get(index) else {
            continue;
        };
        if matches!(source.kind, Kind::Anonymous) {
            if bad || failure.is_some() {
                continue;
            }
            check.note(Stage::Identity, &source.name, || "anonymous".to_owned());
            return Identified::Caller(Caller::Anonymous(index));
        }
        let name = [("attache.identity.source", source.name.as_str())];
        let asking = source.identify(check);
        match check.span().waits("identity", &name, asking).await {
            Found::Nothing => {
                check.note(Stage::Identity, &source.name, || "no credential".to_owned());
            }
            Found::Bad(reason) => {
                source.refused.count(reason);
                tracing::debug!(source = source.name, reason, "credential refused");
                check.note(Stage::Identity, &source.name, || {
                    format!("credential refused: {reason}")
                });
                bad = true;
            }
            Found::Failed(reason) => {
                source.failed.inc();
                tracing::warn!(source = source.name, reason, "cannot tell who is calling");
                check.note(Stage::Identity, &source.name, || {
                    format!("cannot tell: {reason}")
                });
                failure.get_or_insert(reason);
            }
            Found::Good(identity) => {
                check.note(Stage::Identity, &source.name, || "known".to_owned());
                if let Some(until) = identity.until {
                    check.holds_until(until);
                }
                return Identified::Caller(Caller::Known(identity));
            }
            Found::Answer(answer) => {
                check.note(Stage::Identity, &source.name, || "answers".to_owned());
                return Identified::Answer(index, answer);
            }
        }
    }
    match failure {
        Some(reason) => Identified::Failed(reason),
        None => Identified::Caller(Caller::Unknown),
    }
}
