//! The changes of a route to an answer of its policies.

use std::sync::Arc;

use attache_filter::{Body, RequestContext};
use http::{Response, request};

use crate::route::RouteEntry;

/// The changes of the route have been made; an extension of the response.
#[derive(Clone, Copy)]
pub(super) struct Changed;

/// What has to be known to make the changes of a route to an answer of its policies.
pub(crate) struct Late {
    entry: Arc<RouteEntry>,
    asked: Option<Box<request::Parts>>,
}

impl Late {
    /// Nothing where the route changes no responses.
    pub(crate) fn of(entry: Option<&Arc<RouteEntry>>, parts: &request::Parts) -> Option<Self> {
        let entry = entry?;
        let changes = entry.changes.as_deref()?;
        let asked = || Box::new(parts.clone());
        (!changes.response.is_empty()).then(|| Self {
            entry: entry.clone(),
            asked: changes.remembers_request().then(asked),
        })
    }

    /// Makes the changes, unless the router has made them, the response came from an upstream or
    /// the request has another route by then.
    pub(crate) fn change(&self, response: &mut Response<Body>, context: &RequestContext) {
        let made = response.extensions().get::<Changed>().is_some();
        let upstream = context.details().is_none_or(|at| at == "via_upstream");
        let route = context.route();
        let same = route.is_some_and(|route| Arc::ptr_eq(&route, &self.entry.route));
        if made || upstream || !same {
            return;
        }
        if let Some(changes) = &self.entry.changes {
            let (mut parts, body) = std::mem::take(response).into_parts();
            changes.response(&mut parts, self.asked.as_deref(), context);
            *response = Response::from_parts(parts, body);
        }
    }
}
