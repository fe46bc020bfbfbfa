//! What the proxy's own answers look like.

use attache_filter::matcher::FieldMatcher;
use attache_service::config::Errors;
use http::StatusCode;

use super::{
    access_log::{comparison, flags},
    route::{body_format, data},
};
use crate::{
    config::{LocalReplyConfig, ReplyCondition, ReplyFilter, ResponseMapper},
    local_reply::{Condition, LocalReplies, Mapper},
    route::HeaderChanges,
};

/// Bytes of a body that an answer is given.
const MOST_BODY: usize = 64 << 10;

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
        ReplyCondition::StatusCodeFilter(raw) => Condition::Status(comparison(raw)),
        ReplyCondition::HeaderFilter(header) => {
            Condition::Header(Box::new(FieldMatcher::plan(&header.header, errors)?))
        }
        ReplyCondition::ResponseFlagFilter(raw) => Condition::Flags(flags(raw, errors)),
    })
}
