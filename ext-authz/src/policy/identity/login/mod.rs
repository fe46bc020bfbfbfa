//! Sign-in of browsers at an OpenID provider, remembered in sealed cookies.
//!
//! A page asked for without a session is answered with a redirect to the provider
//! ([`Login::sign_in`]). The provider sends the browser back to the callback path, which no rule
//! and no upstream sees: the check itself answers it, with the session's cookies and a redirect to
//! the page ([`callback`]). From then on the cookies say who is calling ([`Login::identify`]).

mod callback;
mod cookie;
mod flow;
mod id_token;
mod logout;
mod origin;
mod plan;
mod provider;
mod refresh;
mod seal;
mod session;
mod signed_in;

use std::sync::Arc;

use attache_service::metrics::Counter;
use quick_cache::sync::Cache;
use serde_json::Value;

use self::{
    cookie::Names,
    flow::Flow,
    origin::Origin,
    provider::{Fault, Provider},
    refresh::{Outcome, Refreshes},
    seal::Keys,
    session::{Lifetime, Session, State, now, time},
};
use super::{Found, Identity};
use crate::{
    policy::{check::Check, config::Scheme},
    server::{Decision, Deny},
};

pub(in crate::policy) use cookie::is_session_cookie;
pub(in crate::policy) use signed_in::SignedIn;

/// How long a session whose access token could not be replaced is used before that is tried again.
const RETRY_AFTER: u64 = 5;

/// Browsers that sign in at one provider.
#[derive(Debug)]
pub(super) struct Login {
    source: usize,
    name: String,
    provider: Arc<Provider>,
    callback_path: String,
    logout_path: String,
    after_logout: Option<String>,
    /// The scheme that browsers use, if it is not the request's.
    scheme: Option<Scheme>,
    keys: Keys,
    /// Name of the cookies, without the prefix that HTTPS gives them.
    cookie: String,
    https: Names,
    http: Names,
    lifetime: Lifetime,
    forward_access_token: bool,
    refreshes: Arc<Refreshes>,
    /// Sessions whose users signed out: a response under way may still bring their cookies back.
    ended: Arc<Cache<String, ()>>,
    counters: Counters,
}

#[derive(Debug, Clone)]
struct Counters {
    begun: Counter,
    done: Counter,
    refused: Counter,
    failed: Counter,
    signed_out: Counter,
    refreshed: Counter,
    refresh_over: Counter,
    refresh_failed: Counter,
}

impl Login {
    /// Who signed in; or the answer to a browser that comes back from the provider or signs out.
    pub(super) async fn identify(&self, check: &Check<'_>) -> Found {
        let path = check.path();
        if path == Some(&self.callback_path) {
            return answer(check, self.callback(check).await);
        }
        if path == Some(&self.logout_path) {
            return answer(check, self.logout(check));
        }
        let names = self.names(check);
        let Some(sealed) = names.read(check) else {
            return Found::Nothing;
        };
        let Some(session) = self.open(names, &sealed) else {
            self.forget(check, names);
            return Found::Bad("unreadable_session");
        };
        if self.ended.get(&session.id).is_some() {
            self.forget(check, names);
            return Found::Nothing;
        }
        let now = now();
        match self
            .lifetime
            .state(&session, self.forward_access_token, now)
        {
            State::Over => Found::Nothing,
            State::Holds(until) => self.known(check, session, until),
            State::Idle => self.renewed(check, names, session, now),
            State::Stale { usable } => match self.refreshed(&session).await {
                Outcome::Fresh(fresh) => self.renewed(check, names, (*fresh).clone(), now),
                Outcome::Over => {
                    self.forget(check, names);
                    Found::Nothing
                }
                Outcome::Failed(_) if usable => {
                    self.known(check, session, now.saturating_add(RETRY_AFTER))
                }
                Outcome::Failed(reason) => Found::Failed(reason),
            },
        }
    }

    /// A session that holds until something has to be looked at again.
    fn known(&self, check: &Check<'_>, session: Session, until: u64) -> Found {
        check.holds_until(time(until));
        let end = self.lifetime.end(&session);
        check.holds_while(|| SignedIn::new(&self.ended, &session.id));
        if self.forward_access_token {
            let mut effects = check.effects();
            match session.access_token {
                Some(token) => effects.set("authorization", format!("Bearer {token}")),
                // One that the client made up is not that of the session.
                None => effects.remove("authorization"),
            }
        }
        Found::Good(Arc::new(Identity {
            source: self.source,
            claims: Value::Object(session.claims),
            until: Some(time(end)),
        }))
    }

    /// A session of which the browser gets a new copy.
    fn renewed(&self, check: &Check<'_>, names: &Names, mut session: Session, now: u64) -> Found {
        session.seen = now;
        match self.written(check, names, &mut session, now) {
            Some(lines) => set_cookies(check, lines),
            // The old copy is good for a while.
            None => tracing::warn!(source = self.name, "a session is too long for cookies"),
        }
        // The new copy is for the browser that sent the old one, and for once.
        check.holds_once();
        self.known(check, session, now)
    }

    async fn refreshed(&self, session: &Session) -> Outcome {
        let refresh = || {
            let (provider, session) = (self.provider.clone(), session.clone());
            let counters = self.counters.clone();
            let source = self.name.clone();
            async move {
                match provider.refresh(&session).await {
                    Ok(session) => {
                        counters.refreshed.inc();
                        Outcome::Fresh(Arc::new(session))
                    }
                    // RFC 6749, section 5.2: expired, revoked or used up.
                    Err(Fault::Refused(code)) if code == "invalid_grant" => {
                        counters.refresh_over.inc();
                        Outcome::Over
                    }
                    Err(fault) => {
                        counters.refresh_failed.inc();
                        tracing::warn!(source, %fault, "a session cannot be refreshed");
                        Outcome::Failed(fault.to_string())
                    }
                }
            }
        };
        self.refreshes.join(session, refresh).await
    }

    /// Sends a browser that asks for a page to the provider. `None` for anything else: an answer
    /// to a script or to a form must not be somebody's login page.
    pub(super) fn sign_in(&self, check: &Check<'_>) -> Option<Deny> {
        if !is_navigation(check) {
            return None;
        }
        // Each has a state of its own.
        check.holds_once();
        let origin = Origin::of(check, self.scheme)?;
        let endpoints = match self.provider.endpoints() {
            Ok(endpoints) => endpoints,
            Err(fault) => return Some(self.unavailable(&fault)),
        };
        let target = origin::target(check.request().path_and_query().unwrap_or_default());
        let redirect_uri = origin.url(&self.callback_path);
        let flow = Flow::begin(origin, target, now())?;
        let lines = flow.remember(check, &self.keys, self.names(check))?;
        let url = self
            .provider
            .authorization_url(&endpoints, &flow, &redirect_uri);
        self.counters.begun.inc();
        set_cookies(check, lines);
        Some(redirect(302, &url).reason("signing in"))
    }

    /// Name of the cookies, for [`is_session_cookie`].
    pub(super) fn cookie_name(&self) -> &str {
        &self.cookie
    }

    /// The names of the cookies under the scheme that the browser uses.
    fn names(&self, check: &Check<'_>) -> &Names {
        let secure = match self.scheme {
            Some(scheme) => scheme == Scheme::Https,
            None => check.scheme() == Some("https"),
        };
        if secure { &self.https } else { &self.http }
    }

    fn open(&self, names: &Names, sealed: &str) -> Option<Session> {
        Session::open(&self.keys, &self.purpose(names), sealed)
    }

    /// The `set-cookie` lines for a session. When it is too long, it goes without the ID token,
    /// which only spares the user a question of the provider when signing out.
    fn written(
        &self,
        check: &Check<'_>,
        names: &Names,
        session: &mut Session,
        now: u64,
    ) -> Option<Vec<String>> {
        let purpose = self.purpose(names);
        let left = self.lifetime.left(session, now);
        let write =
            |session: &Session| names.write(check, &session.seal(&self.keys, &purpose)?, left);
        write(session).or_else(|| {
            session.id_token.take()?;
            write(session)
        })
    }

    /// What a session is sealed for: this client of this provider, under this name.
    fn purpose(&self, names: &Names) -> String {
        let (issuer, client) = (&self.provider.name, &self.provider.client_id);
        format!("session {} {issuer} {client}", names.session)
    }

    fn forget(&self, check: &Check<'_>, names: &Names) {
        let lines = names.clear(check);
        set_cookies(check, lines);
        check.holds_once();
    }

    fn unavailable(&self, fault: &Fault) -> Deny {
        self.counters.failed.inc();
        tracing::warn!(source = self.name, %fault, "nobody can sign in");
        message(
            503,
            "Signing in is not possible at the moment. Try again later.\n",
        )
    }
}

/// Whether a browser wants to show the answer as a page.
fn is_navigation(check: &Check<'_>) -> bool {
    let says = |name: &str, wanted: &str| check.header(name).is_none_or(|value| value == wanted);
    let accept = check.header("accept");
    matches!(check.method(), Some("GET" | "HEAD"))
        && says("sec-fetch-mode", "navigate")
        && accept.is_some_and(|accept| accept.contains("text/html"))
        && check.header("x-requested-with").is_none()
}

fn set_cookies(check: &Check<'_>, lines: Vec<String>) {
    let mut effects = check.effects();
    for line in lines {
        effects.set_cookie(line);
    }
}

/// An answer to a request that is for the source itself, with the cookies that were set.
fn answer(check: &Check<'_>, deny: Deny) -> Found {
    check.holds_once();
    let decision: Decision = check.take_effects().of_denied(deny).into();
    Found::Answer(Box::new(decision))
}

/// An answer that nobody may keep.
fn plain(status: u16) -> Deny {
    Decision::deny(status).header("cache-control", "no-store")
}

fn redirect(status: u16, url: &str) -> Deny {
    plain(status)
        .header("location", url)
        .header("referrer-policy", "no-referrer")
}

fn message(status: u16, text: &str) -> Deny {
    plain(status)
        .header("content-type", "text/plain; charset=utf-8")
        .header("x-content-type-options", "nosniff")
        .body(text)
}
