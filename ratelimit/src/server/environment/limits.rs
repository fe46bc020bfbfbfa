//! How is counted and answered: `NEAR_LIMIT_RATIO`, `SHADOW_MODE`, `LIMIT_*_HEADER` and others.

use std::time::Duration;

use http::HeaderName;

use super::{
    super::answers::{Answers, ResponseHeaders},
    variables::Variables,
};

/// How is counted.
#[derive(Debug, Clone, PartialEq)]
pub struct Counting {
    /// From which share of a limit on hits count as near it. Default 0.8.
    pub near_limit_ratio: f32,
    /// Nothing is refused. Default false.
    pub shadow: bool,
    /// All rules are quotas: a request is refused when all of its descriptors are over. Default
    /// false.
    pub quota: bool,
    /// Files of the same domain add up. Default false: a domain twice is an error.
    pub merge_domains: bool,
    /// Hits that do not fit are not counted. Default false.
    pub rejected_are_free: bool,
    /// Counters outlive their window by a random time up to this. Default 300 s.
    pub expiry_jitter: Duration,
    /// Bytes for what is remembered of counters over their limit. Default 0: nothing is.
    pub local_cache_bytes: usize,
    /// Put before every key of a counter. Default empty.
    pub key_prefix: String,
}

impl Counting {
    pub(super) fn read(variables: &mut Variables<'_>) -> Self {
        Self {
            near_limit_ratio: near_limit_ratio(variables),
            shadow: variables.flag("SHADOW_MODE", false),
            quota: variables.flag("QUOTA_MODE", false),
            merge_domains: variables.flag("MERGE_DOMAIN_CONFIG", false),
            rejected_are_free: variables.flag("STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT", false),
            expiry_jitter: Duration::from_secs(
                variables
                    .number("EXPIRATION_JITTER_MAX_SECONDS", 300_u32)
                    .into(),
            ),
            local_cache_bytes: variables.number("LOCAL_CACHE_SIZE_IN_BYTES", 0),
            key_prefix: variables.text("CACHE_KEY_PREFIX", ""),
        }
    }
}

#[allow(clippy::cast_possible_truncation)]
fn near_limit_ratio(variables: &mut Variables<'_>) -> f32 {
    variables.share("NEAR_LIMIT_RATIO", 0.8) as f32
}

pub(super) fn answers(variables: &mut Variables<'_>) -> Answers {
    let mut name = |variable: &str, default: &str| {
        let text = variables.text(variable, default);
        if HeaderName::try_from(text.as_str()).is_err() {
            variables.refuse(variable, "not the name of a header");
        }
        text
    };
    let headers = ResponseHeaders {
        limit: name("LIMIT_LIMIT_HEADER", "RateLimit-Limit"),
        remaining: name("LIMIT_REMAINING_HEADER", "RateLimit-Remaining"),
        reset: name("LIMIT_RESET_HEADER", "RateLimit-Reset"),
    };
    Answers {
        headers: variables
            .flag("LIMIT_RESPONSE_HEADERS_ENABLED", false)
            .then_some(headers),
        dynamic_metadata: variables.flag("RESPONSE_DYNAMIC_METADATA", false),
    }
}
