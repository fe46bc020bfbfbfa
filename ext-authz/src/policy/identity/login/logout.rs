//! The browser signs out (OpenID Connect RP-Initiated Logout 1.0).

use super::{Login, Origin, message, redirect, set_cookies};
use crate::{policy::check::Check, server::Deny};

impl Login {
    /// The answer to a browser that signs out: its session's cookies go, and it is sent to the
    /// provider to sign out there too, if that is possible.
    pub(super) fn logout(&self, check: &Check<'_>) -> Deny {
        if !matches!(check.method(), Some("GET" | "POST")) {
            return message(405, "Open this page to sign out.\n").header("allow", "GET, POST");
        }
        // No other site may sign anybody out; browsers say where a request comes from.
        if check.header("sec-fetch-site").as_deref() == Some("cross-site") {
            return message(403, "Sign out on the site itself.\n")
                .reason("sign-out by another site");
        }
        let names = self.names(check);
        let session = names
            .read(check)
            .and_then(|sealed| self.open(names, &sealed));
        set_cookies(check, names.clear(check));
        let id_token = session.and_then(|session| {
            self.ended.insert(session.id, ());
            session.id_token
        });
        self.counters.signed_out.inc();
        let back = self.after_logout.as_deref().and_then(|path| {
            let origin = Origin::of(check, self.scheme)?;
            Some(origin.url(path))
        });
        // Whether or not the provider can be reached, the session here is over.
        let endpoints = self.provider.endpoints().ok();
        let provider = endpoints.and_then(|endpoints| {
            let (id_token, back) = (id_token.as_deref(), back.as_deref());
            self.provider.end_session_url(&endpoints, id_token, back)
        });
        match provider.or(back) {
            Some(url) => redirect(303, &url).reason("signed out"),
            None => message(200, "You are signed out.\n").reason("signed out"),
        }
    }
}
