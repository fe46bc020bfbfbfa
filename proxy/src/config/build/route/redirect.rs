//! Redirects.

use attache_filter::substitution::Substitution;
use attache_service::config::Errors;
use http::StatusCode;

use super::forward::format;
use crate::{
    config::{PathRedirect, Redirect, RedirectCode, SchemeChange},
    route::{PathChange, Redirect as RedirectPlan},
};

/// Compiles a redirect; faults are reported at their place.
pub(super) fn plan(raw: &Redirect, errors: &mut Errors) -> Option<RedirectPlan> {
    let mut plan = RedirectPlan {
        status: match raw.response_code {
            None | Some(RedirectCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Some(RedirectCode::Found) => StatusCode::FOUND,
            Some(RedirectCode::SeeOther) => StatusCode::SEE_OTHER,
            Some(RedirectCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Some(RedirectCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        },
        host: raw.host_redirect.clone(),
        port: raw.port_redirect,
        strip_query: raw.strip_query.unwrap_or(false),
        ..RedirectPlan::default()
    };
    match &raw.scheme {
        Some(SchemeChange::HttpsRedirect(true)) => plan.scheme = Some("https".to_owned()),
        Some(SchemeChange::SchemeRedirect(scheme)) => plan.scheme = Some(scheme.clone()),
        Some(SchemeChange::HttpsRedirect(false)) | None => {}
    }
    plan.path = match &raw.path {
        None => None,
        Some(PathRedirect::PathRedirect(path)) => Some(PathChange::Whole(path.clone())),
        Some(PathRedirect::PrefixRewrite(prefix)) => Some(PathChange::Prefix(prefix.clone())),
        Some(PathRedirect::RegexRewrite(regex)) => {
            Some(PathChange::Regex(Substitution::plan(regex, errors)?))
        }
        Some(PathRedirect::PathRewrite(text)) => Some(PathChange::Format(format(text, errors)?)),
    };
    Some(plan)
}
