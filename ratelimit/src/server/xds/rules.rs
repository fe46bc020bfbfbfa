//! Resources as rules, and why they are refused.

use attache_proto::ratelimit_config::RateLimitConfig;
use attache_service::{
    config::Errors,
    xds::{Answer, ResourceType, Update},
};
use prost::Message as _;

/// What resources are called.
pub(super) const RULES: ResourceType =
    ResourceType::whole("type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig");

/// Applies all resources of a response, or none.
pub(super) fn apply(
    update: &Update,
    apply: &mut impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>,
) -> Answer {
    let resources = update.resources.iter().map(|resource| {
        RateLimitConfig::decode(&*resource.content.value)
            .map_err(|error| format!("a resource cannot be read: {error}"))
    });
    let resources: Result<Vec<_>, _> = resources.collect();
    let applied =
        resources.and_then(|resources| apply(&resources).map_err(|errors| reason(&errors)));
    match applied {
        Ok(()) => Answer::Accepted,
        Err(reason) => Answer::Refused(reason),
    }
}

/// All errors, one a line, each as the reference service has it: without a place, which a
/// resource does not have for its author.
fn reason(errors: &Errors) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| match error.file() {
            Some(name) => format!("{name}: {}", error.message()),
            None => error.message().to_owned(),
        })
        .collect();
    lines.join("\n")
}
