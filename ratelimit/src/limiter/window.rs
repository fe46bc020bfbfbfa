//! Fixed windows, aligned to the Unix epoch.

use std::num::NonZeroU32;

use attache_proto::ratelimit::rate_limit_response::rate_limit::Unit as ProtoUnit;

/// The unit that a limit counts over.
///
/// Every unit has a fixed length and starts at multiples of it since the Unix epoch, as in the
/// reference service: a week starts on Thursday 00:00 UTC, a month is 30 days and a year 365.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// 1 second.
    Second,
    /// 60 seconds.
    Minute,
    /// 3,600 seconds.
    Hour,
    /// 86,400 seconds.
    Day,
    /// 604,800 seconds.
    Week,
    /// 2,592,000 seconds (30 days).
    Month,
    /// 31,536,000 seconds (365 days).
    Year,
}

impl Unit {
    const ALL: [Self; 7] = [
        Self::Second,
        Self::Minute,
        Self::Hour,
        Self::Day,
        Self::Week,
        Self::Month,
        Self::Year,
    ];

    /// Its name: `minute`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
        }
    }

    /// The unit of this name, whatever the case of its letters.
    pub fn parse(name: &str) -> Option<Self> {
        let mut units = Self::ALL.into_iter();
        units.find(|unit| unit.name().eq_ignore_ascii_case(name))
    }

    /// The unit of a number on the wire: `RateLimitResponse.RateLimit.Unit`, of which
    /// `envoy.type.v3.RateLimitUnit` is a part.
    pub fn from_wire(number: i32) -> Option<Self> {
        match ProtoUnit::try_from(number).ok()? {
            ProtoUnit::Unknown => None,
            ProtoUnit::Second => Some(Self::Second),
            ProtoUnit::Minute => Some(Self::Minute),
            ProtoUnit::Hour => Some(Self::Hour),
            ProtoUnit::Day => Some(Self::Day),
            ProtoUnit::Week => Some(Self::Week),
            ProtoUnit::Month => Some(Self::Month),
            ProtoUnit::Year => Some(Self::Year),
        }
    }

    /// The name on the wire.
    pub fn wire_name(self) -> &'static str {
        ProtoUnit::try_from(self.to_wire()).map_or("UNKNOWN", |unit| unit.as_str_name())
    }

    /// The number on the wire.
    pub fn to_wire(self) -> i32 {
        let unit = match self {
            Self::Second => ProtoUnit::Second,
            Self::Minute => ProtoUnit::Minute,
            Self::Hour => ProtoUnit::Hour,
            Self::Day => ProtoUnit::Day,
            Self::Week => ProtoUnit::Week,
            Self::Month => ProtoUnit::Month,
            Self::Year => ProtoUnit::Year,
        };
        unit.into()
    }

    /// The unit's length in seconds.
    pub fn seconds(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 604_800,
            Self::Month => 2_592_000,
            Self::Year => 31_536_000,
        }
    }

    /// The length of a window of `multiplier` units, in seconds.
    pub fn window_seconds(self, multiplier: NonZeroU32) -> u64 {
        self.seconds() * u64::from(multiplier.get())
    }
}

/// One window: the span of time that a counter counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// First second, in Unix time.
    pub start: u64,
    /// Length in seconds; at least 1.
    pub length: u64,
}

impl Window {
    /// The window of `length` seconds (0 counts as 1) that holds the second `now`.
    pub fn at(now: u64, length: u64) -> Self {
        let length = length.max(1);
        Self {
            start: now - now % length,
            length,
        }
    }

    /// Whole seconds from `now`, which is in the window, until the next one: from 1 to the window's
    /// length.
    pub fn resets_in(self, now: u64) -> u64 {
        self.end().saturating_sub(now).clamp(1, self.length.max(1))
    }

    /// The first second after the window.
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_to_the_epoch() {
        let table = [
            (Unit::Second, 1_000_000, 1),
            (Unit::Minute, 999_960, 20),
            (Unit::Hour, 997_200, 800),
            (Unit::Day, 950_400, 36_800),
            (Unit::Week, 604_800, 209_600),
            (Unit::Month, 0, 1_592_000),
            (Unit::Year, 0, 30_536_000),
        ];
        for (unit, start, resets_in) in table {
            let window = Window::at(1_000_000, unit.seconds());
            assert_eq!(window.start, start, "{unit:?}");
            assert_eq!(window.resets_in(1_000_000), resets_in, "{unit:?}");
        }
    }

    #[test]
    fn the_last_second_of_a_window_resets_in_one() {
        assert_eq!(Window::at(119, 60).resets_in(119), 1);
        assert_eq!(Window::at(120, 60).resets_in(120), 60);
    }

    #[test]
    fn units_are_read_in_any_case_and_only_by_full_name() {
        assert_eq!(Unit::parse("MiNuTe"), Some(Unit::Minute));
        assert_eq!(Unit::parse("week"), Some(Unit::Week));
        for bad in ["", "unknown", "foo", "minutes", " day"] {
            assert_eq!(Unit::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn wire_numbers_go_both_ways() {
        for number in 1..=7 {
            let unit = Unit::from_wire(number).unwrap();
            assert_eq!(unit.to_wire(), number);
        }
        assert_eq!(Unit::from_wire(0), None);
        assert_eq!(Unit::from_wire(8), None);
    }
}
