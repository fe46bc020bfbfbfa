//! `rate_limits`, as written: Envoy's `config.route.v3.RateLimit`.

use attache_filter::metadata::MetadataKey;
use attache_service::{config::Located, config_enum, config_oneof, config_struct};

use super::Action;

config_struct! {
    /// How one descriptor is made of a request, in a filter or in its settings of a route.
    pub struct Policy {
        /// Each adds an entry, in this order. One that cannot makes the descriptor be left out.
        pub actions: Located<Vec<Action>>,
        /// How many hits a request is. Default 1.
        pub hits_addend: Option<Located<HitsAddend>>,
        /// The limit, instead of that of the service's rule.
        pub limit: Option<LimitOverride>,
        /// Ask when the exchange is over, not before: the answer changes nothing, and facts of the
        /// response count. Default false.
        pub apply_on_stream_done: Option<bool>,
        /// Whether this descriptor's limit shows in `x-ratelimit-*`. Default: as the filter says.
        pub x_ratelimit_option: Option<XRateLimitOption>,
    }
    elsewhere {
        "stage" => "Envoy takes it only in the `rate_limits` of a route or virtual host",
        "disable_key" => "Envoy takes it only in the `rate_limits` of a route or virtual host",
    }
}

config_struct! {
    /// How one descriptor is made of a request, in a route or virtual host.
    pub struct RoutePolicy {
        /// Each adds an entry, in this order. One that cannot makes the descriptor be left out.
        pub actions: Located<Vec<Action>>,
        /// Filters of this `stage` use it, 0 to 10. Default 0.
        pub stage: Option<Located<u32>>,
        /// Accepted for configurations written for Envoy, where it names a runtime key that can
        /// switch the policy off. There is no runtime here, and without the key the policy is on.
        pub disable_key: Option<String>,
        /// The limit, instead of that of the service's rule.
        pub limit: Option<LimitOverride>,
        /// Ask when the exchange is over, not before. Default false.
        pub apply_on_stream_done: Option<bool>,
        /// Whether this descriptor's limit shows in `x-ratelimit-*`. Default: as the filter says.
        pub x_ratelimit_option: Option<XRateLimitOption>,
    }
    elsewhere {
        "hits_addend" => "Envoy does nothing with it here: write the policy in `rate_limits` of the filter, or of its settings in `typed_per_filter_config`",
    }
}

config_enum! {
    /// Whether a descriptor's limit shows in `x-ratelimit-*`.
    #[derive(Default)]
    pub enum XRateLimitOption {
        /// As the filter says.
        #[default]
        Unspecified = "UNSPECIFIED",
        /// No.
        Off = "OFF",
        /// Yes.
        DraftVersion03 = "DRAFT_VERSION_03",
    }
}

config_struct! {
    /// Envoy's `RateLimit.HitsAddend`: one of `number` and `format`.
    pub struct HitsAddend {
        /// This many, at most 1,000,000,000. 0 only looks.
        pub number: Option<Located<u64>>,
        /// One formatter of [`attache_filter::format`]. When its value is no number from 0 to
        /// 1,000,000,000, the descriptor is left out.
        pub format: Option<Located<String>>,
        /// Give the hits back instead. Default false.
        pub is_negative_hits: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `RateLimit.Override`.
    pub struct LimitOverride {}
    oneof {
        /// Where the limit comes from.
        pub from: LimitSource,
    }
}

config_oneof! {
    /// Where the limit of a [`LimitOverride`] comes from.
    pub enum LimitSource {
        /// Dynamic metadata; while there is none, the service's rule counts.
        DynamicMetadata(DynamicMetadataLimit) = "dynamic_metadata",
        /// It is always this.
        RateLimit(StaticLimit) = "rate_limit",
    }
}

config_struct! {
    /// Envoy's `RateLimit.Override.DynamicMetadata`.
    pub struct DynamicMetadataLimit {
        /// Where the limit is: an object with the number `requests_per_unit` and the text `unit`.
        pub metadata_key: MetadataKey,
    }
}

config_struct! {
    /// A limit.
    pub struct StaticLimit {
        /// How many.
        pub requests_per_unit: u32,
        /// Per which time.
        pub unit: RateLimitUnit,
    }
}

config_enum! {
    /// Envoy's `type.v3.RateLimitUnit`.
    pub enum RateLimitUnit {
        /// 1 second.
        Second = "SECOND",
        /// 60 seconds.
        Minute = "MINUTE",
        /// 3,600 seconds.
        Hour = "HOUR",
        /// 86,400 seconds.
        Day = "DAY",
        /// 30 days.
        Month = "MONTH",
        /// 365 days.
        Year = "YEAR",
    }
    elsewhere {
        "UNKNOWN" => "a limit needs a unit",
        "WEEK" => "Envoy's overrides know no weeks",
    }
}

impl RateLimitUnit {
    /// The unit of this name.
    pub fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::Second,
            Self::Minute,
            Self::Hour,
            Self::Day,
            Self::Month,
            Self::Year,
        ];
        all.into_iter().find(|unit| unit.as_str() == name)
    }

    /// The unit's number on the wire.
    pub fn number(self) -> i32 {
        match self {
            Self::Second => 1,
            Self::Minute => 2,
            Self::Hour => 3,
            Self::Day => 4,
            Self::Month => 5,
            Self::Year => 6,
        }
    }
}
