//! The browser comes back from the provider (OpenID Connect Core 1.0, section 3.1.2.5).

use super::{
    Fault, Flow, Login, Origin, message, now, provider::code, redirect, seal, set_cookies,
};
use crate::{policy::check::Check, server::Deny};

impl Login {
    /// The answer to a browser that the provider sent back: the session's cookies, and the way to
    /// the page that it wanted.
    pub(super) async fn callback(&self, check: &Check<'_>) -> Deny {
        if check.method() != Some("GET") {
            return message(405, "Only a redirect of the provider leads here.\n")
                .header("allow", "GET");
        }
        let Some(state) = only(check, "state") else {
            return self.foreign("it has no state");
        };
        let (keys, names, now) = (&self.keys, self.names(check), now());
        let flow = Origin::of(check, self.scheme)
            .and_then(|origin| Flow::resume(check, keys, names, &state, &origin, now));
        let Some(flow) = flow else {
            return self.foreign("this browser asked for no such thing, or too long ago");
        };
        // What comes back is taken once.
        set_cookies(check, vec![names.forget(&names.flow(&state))]);
        match self.complete(check, &flow).await {
            Ok(lines) => {
                set_cookies(check, lines);
                self.counters.done.inc();
                redirect(302, &flow.origin.url(&flow.target)).reason("signed in")
            }
            Err(fault @ Fault::Unavailable(_)) => self.unavailable(&fault),
            Err(fault) => self.refused(&fault),
        }
    }

    /// The `set-cookie` lines of the session that a sign-in leads to.
    async fn complete(&self, check: &Check<'_>, flow: &Flow) -> Result<Vec<String>, Fault> {
        let endpoints = self.provider.endpoints()?;
        let issuer = only(check, "iss");
        if !self.provider.is_named(&endpoints, issuer.as_deref()) {
            return Err(Fault::Unsound("it comes from another provider"));
        }
        if let Some(error) = check.parameter("error").next() {
            return Err(Fault::Refused(code(&error)));
        }
        let given = only(check, "code").ok_or(Fault::Unsound("there is no code in it"))?;
        let no_randomness = || Fault::Unavailable("this machine has no randomness".to_owned());
        let id = seal::random().ok_or_else(no_randomness)?;
        let redirect_uri = flow.origin.url(&self.callback_path);
        let session = self
            .provider
            .begin(&endpoints, flow, &given, &redirect_uri, id);
        let mut session = session.await?;
        self.written(check, self.names(check), &mut session, now())
            .ok_or(Fault::Unsound(
                "it is too long for cookies; `claims` makes it shorter",
            ))
    }

    /// The answer to what no sign-in of this browser is waiting for.
    fn foreign(&self, reason: &'static str) -> Deny {
        self.counters.refused.inc();
        tracing::debug!(
            source = self.name,
            reason,
            "an answer of the provider is not taken"
        );
        let text = "This sign-in took too long, or did not begin in this browser. \
                    Go back to the page that you wanted to see.\n";
        message(400, text).reason("not signed in")
    }

    fn refused(&self, fault: &Fault) -> Deny {
        self.counters.refused.inc();
        tracing::warn!(source = self.name, %fault, "a sign-in failed");
        let text = match fault {
            Fault::Refused(code) => format!("You are not signed in: {code}.\n"),
            _ => "You are not signed in: the answer of the provider does not hold.\n".to_owned(),
        };
        message(403, &text).reason("not signed in")
    }
}

/// A parameter that must not be there twice.
fn only(check: &Check<'_>, name: &'static str) -> Option<String> {
    let mut values = check.parameter(name);
    let value = values.next()?.into_owned();
    values.next().is_none().then_some(value)
}
