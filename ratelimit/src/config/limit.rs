//! A limit, and how hits are counted against it.

use std::{fmt, num::NonZeroU32};

use crate::{
    limiter::{Unit, UnixTime, UtcOffset, Window, calendar},
    store::{Meter, Outage, Rejected, Sharing, Terms},
};

/// How many hits fit into a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Hits that one span allows; 0 allows none.
    pub requests_per_unit: u32,
    /// The unit of the span.
    pub unit: Unit,
    /// How many units long the span is. Default: 1.
    pub unit_multiplier: NonZeroU32,
    /// How hits are counted over time. Default: fixed windows, as in the reference service.
    pub algorithm: Algorithm,
    /// What the store does besides counting.
    pub policy: Policy,
}

/// How hits are counted over time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// From 0 in each window. Windows are aligned to the Unix epoch.
    #[default]
    FixedWindow,
    /// From 0 in each day, week (from Monday), month or year of the calendar.
    CalendarWindow(UtcOffset),
    /// In a window that ends now.
    SlidingWindow,
    /// In a bucket that holds `burst` tokens and gets the limit's number of them in each span,
    /// evenly.
    TokenBucket {
        /// Tokens that the bucket holds.
        burst: u32,
    },
}

impl Algorithm {
    /// Whether it counts by parts of seconds; if not, it is enough to know the second.
    pub(super) fn splits_seconds(self) -> bool {
        match self {
            Self::FixedWindow | Self::CalendarWindow(_) => false,
            Self::SlidingWindow | Self::TokenBucket { .. } => true,
        }
    }
}

/// What the store does besides counting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// What becomes of hits that do not fit. Default: they stay counted.
    pub rejected: Rejected,
    /// How instances share the limit. Default: the store decides each hit.
    pub sharing: Sharing,
    /// What happens while the store is away. Default: requests get an error.
    pub on_store_outage: Outage,
}

/// No span is longer: 100 years, in seconds.
pub(crate) const LONGEST: u64 = 100 * 31_536_000;

impl Limit {
    /// A limit of `requests_per_unit` in each `unit`, counted as in the reference service.
    pub fn new(requests_per_unit: u32, unit: Unit) -> Self {
        Self {
            requests_per_unit,
            unit,
            unit_multiplier: NonZeroU32::MIN,
            algorithm: Algorithm::default(),
            policy: Policy::default(),
        }
    }

    /// The length of a span in seconds, at most 100 years. Days, weeks, months and years of the
    /// calendar are as long as they happen to be.
    #[inline]
    pub fn window_seconds(&self) -> u64 {
        self.unit.window_seconds(self.unit_multiplier).min(LONGEST)
    }

    /// How hits at `now` are counted.
    #[inline]
    pub fn terms(&self, now: UnixTime) -> Terms {
        let length = self.window_seconds();
        let window = || Window::at(now.seconds(), length);
        Terms {
            meter: match self.algorithm {
                Algorithm::FixedWindow => Meter::FixedWindow(window()),
                Algorithm::CalendarWindow(offset) => Meter::FixedWindow(
                    calendar::window(now.seconds(), self.unit, offset).unwrap_or_else(window),
                ),
                Algorithm::SlidingWindow => Meter::SlidingWindow(window()),
                Algorithm::TokenBucket { burst } => Meter::TokenBucket {
                    period: length,
                    burst,
                },
            },
            limit: self.requests_per_unit,
            rejected: self.policy.rejected,
            sharing: self.policy.sharing,
            outage: self.policy.on_store_outage,
        }
    }
}

/// For people: `60 per 5 minutes, token bucket of 100`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.unit.name();
        match self.unit_multiplier.get() {
            1 => write!(f, "{} per {unit}", self.requests_per_unit)?,
            many => write!(f, "{} per {many} {unit}s", self.requests_per_unit)?,
        }
        match self.algorithm {
            Algorithm::FixedWindow => {}
            Algorithm::CalendarWindow(offset) => write!(f, " of the calendar at {offset}")?,
            Algorithm::SlidingWindow => f.write_str(", sliding window")?,
            Algorithm::TokenBucket { burst } => write!(f, ", token bucket of {burst}")?,
        }
        if self.policy.rejected == Rejected::Free {
            f.write_str(", rejected hits are free")?;
        }
        if self.policy.sharing == Sharing::Leased {
            f.write_str(", leased")?;
        }
        match self.policy.on_store_outage {
            Outage::Fail => Ok(()),
            Outage::Open => f.write_str(", open while the store is away"),
            Outage::Closed => f.write_str(", closed while the store is away"),
            Outage::LocalShare => f.write_str(", a local share while the store is away"),
        }
    }
}
