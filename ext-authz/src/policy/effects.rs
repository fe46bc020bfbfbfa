//! What the stages of a pipeline do to a request and to its response, beside the decision.

use crate::server::{Allow, Deny};

/// Changes that a decision takes along.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// `None` is for headers that the upstream does not get.
    upstream: Vec<(String, Option<String>)>,
    cookies: Vec<String>,
}

impl Effects {
    /// Sets a header that the upstream gets, whatever the client sent.
    pub(super) fn set(&mut self, name: &str, value: String) {
        self.upstream.push((name.to_owned(), Some(value)));
    }

    /// Keeps a header from the upstream, whatever the client sent.
    pub(super) fn remove(&mut self, name: &str) {
        self.upstream.push((name.to_owned(), None));
    }

    /// Adds a `set-cookie` line to the response, be it the upstream's or a denial.
    pub(super) fn set_cookie(&mut self, line: String) {
        self.cookies.push(line);
    }

    /// Adds them to an allowed request; they win over what has been said of the same headers.
    pub(super) fn of_allowed(self, allow: Allow) -> Allow {
        let allow = self
            .upstream
            .into_iter()
            .fold(allow, |allow, (name, value)| {
                let allow = allow.take_back(&name);
                match value {
                    Some(value) => allow.set(name, value),
                    None => allow.remove(name),
                }
            });
        let cookies = self.cookies.into_iter();
        cookies.fold(allow, |allow, line| allow.response_add("set-cookie", line))
    }

    pub(super) fn of_denied(self, deny: Deny) -> Deny {
        let cookies = self.cookies.into_iter();
        cookies.fold(deny, |deny, line| deny.header("set-cookie", line))
    }
}
