//! Windows of the calendar.

use std::fmt;

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime};

use super::{Unit, Window};

/// How far a place's clocks are ahead of UTC. There is no daylight saving time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct UtcOffset {
    minutes: i16,
}

impl UtcOffset {
    /// UTC itself.
    pub const UTC: Self = Self { minutes: 0 };

    /// The offset in a text like `+02:00`, `-03:30` or `UTC`; no place is more than 14 hours off.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "UTC" || text == "Z" {
            return Some(Self::UTC);
        }
        let (sign, rest) = match text.strip_prefix('+') {
            Some(rest) => (1, rest),
            None => (-1, text.strip_prefix('-')?),
        };
        let two_digits = |text: &str| {
            let whole = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            whole.then(|| text.parse::<i16>().ok()).flatten()
        };
        let (hours, minutes) = rest.split_once(':')?;
        let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
        let total = hours * 60 + minutes;
        (minutes < 60 && total <= 14 * 60).then_some(Self {
            minutes: sign * total,
        })
    }

    fn seconds(self) -> i64 {
        i64::from(self.minutes) * 60
    }
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.minutes < 0 { '-' } else { '+' };
        let minutes = self.minutes.unsigned_abs();
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

/// The day, the week from Monday, the month or the year that holds the second `now`, where clocks
/// are `offset` ahead of UTC. `None` for shorter units, which the calendar has no say in, and for
/// times beyond the calendar.
pub(crate) fn window(now: u64, unit: Unit, offset: UtcOffset) -> Option<Window> {
    let local = i64::try_from(now).ok()?.checked_add(offset.seconds())?;
    let today = DateTime::from_timestamp(local, 0)?.date_naive();
    let (first, next) = match unit {
        Unit::Second | Unit::Minute | Unit::Hour => return None,
        Unit::Day => (today, today.checked_add_days(Days::new(1))?),
        Unit::Week => {
            let passed = today.weekday().num_days_from_monday();
            let monday = today.checked_sub_days(Days::new(passed.into()))?;
            (monday, monday.checked_add_days(Days::new(7))?)
        }
        Unit::Month => {
            let first = today.with_day(1)?;
            (first, first.checked_add_months(Months::new(1))?)
        }
        Unit::Year => (
            NaiveDate::from_yo_opt(today.year(), 1)?,
            NaiveDate::from_yo_opt(today.year().checked_add(1)?, 1)?,
        ),
    };
    let second = |date: NaiveDate| {
        let midnight = date.and_time(NaiveTime::MIN).and_utc().timestamp();
        // The first window of all may have begun before the epoch.
        u64::try_from(midnight.saturating_sub(offset.seconds()).max(0)).ok()
    };
    let (start, end) = (second(first)?, second(next)?);
    Some(Window {
        start,
        length: end.checked_sub(start)?.max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> u64 {
        let time = DateTime::parse_from_rfc3339(time).unwrap();
        u64::try_from(time.timestamp()).unwrap()
    }

    #[test]
    fn windows_are_those_of_the_calendar() {
        // now, unit, offset, start, end
        let table = [
            (
                "2024-02-29T12:00:00Z",
                Unit::Day,
                "UTC",
                "2024-02-29T00:00:00Z",
                "2024-03-01T00:00:00Z",
            ),
            (
                "2024-02-29T12:00:00Z",
                Unit::Month,
                "UTC",
                "2024-02-01T00:00:00Z",
                "2024-03-01T00:00:00Z",
            ),
            (
                "2024-02-29T12:00:00Z",
                Unit::Year,
                "UTC",
                "2024-01-01T00:00:00Z",
                "2025-01-01T00:00:00Z",
            ),
            // A Thursday; weeks begin on Monday.
            (
                "2024-02-29T12:00:00Z",
                Unit::Week,
                "UTC",
                "2024-02-26T00:00:00Z",
                "2024-03-04T00:00:00Z",
            ),
            (
                "2024-03-03T23:59:59Z",
                Unit::Week,
                "UTC",
                "2024-02-26T00:00:00Z",
                "2024-03-04T00:00:00Z",
            ),
            (
                "2024-03-04T00:00:00Z",
                Unit::Week,
                "UTC",
                "2024-03-04T00:00:00Z",
                "2024-03-11T00:00:00Z",
            ),
            // It is tomorrow already in the east, and still yesterday in the west.
            (
                "2024-02-29T22:30:00Z",
                Unit::Month,
                "+02:00",
                "2024-03-01T00:00:00+02:00",
                "2024-04-01T00:00:00+02:00",
            ),
            (
                "2024-03-01T03:00:00Z",
                Unit::Day,
                "-03:30",
                "2024-02-29T00:00:00-03:30",
                "2024-03-01T00:00:00-03:30",
            ),
            (
                "2024-12-31T23:00:00Z",
                Unit::Year,
                "+01:00",
                "2025-01-01T00:00:00+01:00",
                "2026-01-01T00:00:00+01:00",
            ),
        ];
        for (now, unit, offset, start, end) in table {
            let offset = UtcOffset::parse(offset).unwrap();
            let window = window(at(now), unit, offset).unwrap();
            assert_eq!(
                (window.start, window.end()),
                (at(start), at(end)),
                "{now} {unit:?}"
            );
        }
        assert_eq!(
            window(at("2024-02-29T12:00:00Z"), Unit::Hour, UtcOffset::UTC),
            None
        );
    }

    #[test]
    fn offsets_are_written_with_hours_and_minutes() {
        for text in ["+02:00", "-03:30", "+00:00", "+14:00", "-11:00"] {
            assert_eq!(UtcOffset::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(UtcOffset::parse("UTC"), Some(UtcOffset::UTC));
        assert_eq!(UtcOffset::parse("Z"), Some(UtcOffset::UTC));
        for text in [
            "",
            "+2",
            "+2:00",
            "02:00",
            "+02:60",
            "+15:00",
            "+1a:00",
            "Europe/Berlin",
            "+é:00",
        ] {
            assert_eq!(UtcOffset::parse(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_second_is_in_its_window(now in 0_u64..10_000_000_000, minutes in -840_i16..=840) {
            for unit in [Unit::Day, Unit::Week, Unit::Month, Unit::Year] {
                let window = window(now, unit, UtcOffset { minutes }).unwrap();
                proptest::prop_assert!(window.start <= now && now < window.end());
            }
        }

        #[test]
        fn no_time_is_a_panic(now: u64, minutes in -840_i16..=840) {
            let _ = window(now, Unit::Year, UtcOffset { minutes });
        }
    }
}
