//! What the proxy's own answers look like.

use attache_filter::{context::ResponseFlag, matcher::FieldMatcher};
use attache_service::config::Errors;
use http::StatusCode;

use super::route::{body_format, data};
use crate::{
    config::{LocalReplyConfig, ReplyCondition, ReplyFilter, ReplyOp, ResponseMapper},
    local_reply::{Condition, LocalReplies, Mapper},
    route::HeaderChanges,
};

/// Bytes of a body that an answer is given.
const MOST_BODY: usize = 64 << 10;

/// The flags that there are.
const FLAGS: [ResponseFlag; 14] = [
    ResponseFlag::UnauthorizedExternalService,
    ResponseFlag::RateLimited,
    ResponseFlag::RateLimitServiceError,
    ResponseFlag::NoRouteFound,
    ResponseFlag::NoClusterFound,
    ResponseFlag::NoHealthyUpstream,
    ResponseFlag::UpstreamConnectionFailure,
    ResponseFlag::UpstreamConnectionTermination,
    ResponseFlag::UpstreamRequestTimeout,
    ResponseFlag::UpstreamRetryLimitExceeded,
    ResponseFlag::UpstreamOverflow,
    ResponseFlag::StreamIdleTimeout,
    ResponseFlag::DownstreamConnectionTermination,
    ResponseFlag::DownstreamProtocolError,
];

/// Compiles what answers look like; faults are reported at their place.
pub(super) fn plan(raw: &LocalReplyConfig, errors: &mut Errors) -> Option<LocalReplies> {
    let mappers = raw.mappers.iter();
    let mappers: Vec<_> = mappers.map(|mapper| self::mapper(mapper, errors)).collect();
    let format = match &raw.body_format {
        Some(format) => Some(body_format(format, errors)?),
        None => None,
    };
    Some(LocalReplies {
        mappers: mappers.into_iter().collect::<Option<_>>()?,
        format,
    })
}

fn mapper(raw: &ResponseMapper, errors: &mut Errors) -> Option<Mapper> {
    let status = match &raw.status_code {
        Some(code) => match StatusCode::from_u16(code.value) {
            Ok(status) if (200..600).contains(&code.value) => Some(status),
            _ => {
                errors.push(code, format!("`{}` is not between 200 and 599", code.value));
                return None;
            }
        },
        None => None,
    };
    let body = match &raw.body {
        Some(source) => Some(data(source, MOST_BODY, errors)?),
        None => None,
    };
    let format = match &raw.body_format_override {
        Some(format) => Some(body_format(format, errors)?),
        None => None,
    };
    Some(Mapper {
        condition: condition(&raw.filter, errors)?,
        status,
        body,
        format,
        headers: HeaderChanges::plan(&raw.headers_to_add, &[], errors),
    })
}

fn condition(raw: &ReplyFilter, errors: &mut Errors) -> Option<Condition> {
    let mut all = |filters: &[ReplyFilter]| {
        let planned: Vec<_> = filters.iter().map(|one| condition(one, errors)).collect();
        planned.into_iter().collect::<Option<Vec<_>>>()
    };
    Some(match &raw.condition {
        ReplyCondition::AndFilter(filters) => Condition::All(all(&filters.filters)?),
        ReplyCondition::OrFilter(filters) => Condition::Any(all(&filters.filters)?),
        ReplyCondition::StatusCodeFilter(status) => {
            let with = status.comparison.value.default_value;
            match status.comparison.op.unwrap_or_default() {
                ReplyOp::Eq => Condition::Equal(with),
                ReplyOp::Ne => Condition::NotEqual(with),
                ReplyOp::Ge => Condition::AtLeast(with),
                ReplyOp::Le => Condition::AtMost(with),
            }
        }
        ReplyCondition::HeaderFilter(header) => {
            Condition::Header(Box::new(FieldMatcher::plan(&header.header, errors)?))
        }
        ReplyCondition::ResponseFlagFilter(raw) => {
            let mut flags = Vec::new();
            for name in &raw.flags {
                let mut known = FLAGS.into_iter();
                match known.find(|flag| flag.short() == name.value) {
                    Some(flag) => flags.push(flag),
                    None => errors.unknown_name(
                        name,
                        "response flag",
                        FLAGS.iter().map(|flag| flag.short()),
                    ),
                }
            }
            Condition::Flags(flags)
        }
    })
}
