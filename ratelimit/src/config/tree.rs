//! Rules as they were written, from whatever source: what becomes [`Rules`](super::Rules) once it
//! has been checked.

use std::{num::NonZeroU32, sync::Arc};

use attache_service::config::{Located, Span};
use prost_types::Struct;

use crate::{
    limiter::UtcOffset,
    store::{Charging, Outage, Rejected, Sharing},
};

/// One file or resource: a domain and its descriptors.
#[derive(Debug, Clone, Default)]
pub struct Domain {
    /// Where it stands.
    pub at: Span,
    /// What requests call it.
    pub domain: String,
    /// Whether the descriptors of a request are charged together. The reference has no such field.
    pub charging: Option<Located<Charging>>,
    /// What holds for limits that do not say otherwise. The reference has no such field.
    pub defaults: Option<Located<Defaults>>,
    /// The descriptors of its first level.
    pub descriptors: Vec<Descriptor>,
}

/// A descriptor, with all below it.
#[derive(Debug, Clone, Default)]
pub struct Descriptor {
    /// Where it stands.
    pub at: Span,
    /// The key of its entry.
    pub key: String,
    /// The value of its entry; empty for any that no sibling has. `*` stands for any text.
    pub value: String,
    /// What applies to requests that end here.
    pub rate_limit: Option<RateLimit>,
    /// Being over the limit is counted and does not refuse a request.
    pub shadow_mode: bool,
    /// A request is only refused when all of its quotas are used up.
    pub quota_mode: bool,
    /// Statistics are kept for each value of each level.
    pub detailed_metric: bool,
    /// Statistics are kept for each value of this level.
    pub value_to_metric: bool,
    /// All values that the wildcard matches share one counter.
    pub share_threshold: bool,
    /// Given to callers with requests that the limit lets pass.
    pub metadata: Option<Arc<Struct>>,
    /// The descriptors of the level below.
    pub descriptors: Vec<Descriptor>,
}

/// A `rate_limit`.
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Where it stands.
    pub at: Span,
    /// The name of a unit, in letters of any case.
    pub unit: Located<String>,
    /// Hits that one window allows.
    pub requests_per_unit: u32,
    /// Nothing is counted.
    pub unlimited: bool,
    /// What others replace it by; may be empty.
    pub name: String,
    /// Names of limits that do not apply where this one does.
    pub replaces: Vec<Located<String>>,
    /// What the reference has no fields for.
    pub extension: Extension,
}

/// What a limit may say that the reference has no fields for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extension {
    /// How many units long the window is.
    pub unit_multiplier: Option<Located<NonZeroU32>>,
    /// How hits are counted over time.
    pub algorithm: Option<Located<AlgorithmName>>,
    /// Tokens that a bucket holds.
    pub burst: Option<Located<NonZeroU32>>,
    /// The clocks that calendar windows begin by.
    pub time_zone: Option<Located<UtcOffset>>,
    /// What becomes of hits that do not fit.
    pub rejected: Option<Located<Rejected>>,
    /// How instances share the limit.
    pub sharing: Option<Located<Sharing>>,
    /// What happens while the store is away.
    pub on_store_outage: Option<Located<Outage>>,
}

/// The name of an [`Algorithm`](super::Algorithm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlgorithmName {
    /// `fixed_window`
    FixedWindow,
    /// `calendar_window`
    CalendarWindow,
    /// `sliding_window`
    SlidingWindow,
    /// `token_bucket`
    TokenBucket,
}

/// What holds for the limits of a domain that do not say otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defaults {
    /// The clocks that calendar windows begin by.
    pub time_zone: Option<UtcOffset>,
    /// What becomes of hits that do not fit into a window.
    pub rejected: Option<Rejected>,
    /// How instances share a limit.
    pub sharing: Option<Sharing>,
    /// What happens while the store is away.
    pub on_store_outage: Option<Outage>,
}
