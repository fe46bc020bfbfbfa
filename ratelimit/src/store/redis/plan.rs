//! Charges as commands, and answers as readings.

use std::fmt::Write as _;

use super::{
    command::{
        Add, Answer, Charged, Command, ScriptAction, ScriptCharge, ScriptMeter, ScriptTerms,
    },
    settings::{KeyFormat, RedisSettings},
};
use crate::store::{Amount, Batch, Charge, Meter, Reading, Rejected};

/// The command for a charge that does not depend on others.
pub(super) fn command(key: &str, charge: &Charge, settings: &RedisSettings) -> Command {
    let terms = &charge.terms;
    match (terms.meter, terms.rejected, charge.amount) {
        (Meter::FixedWindow(window), Rejected::Counted, Amount::Add(hits)) => Command::Add(Add {
            key: name(key, charge, settings),
            hits,
            lifetime: lifetime(window.length, settings),
        }),
        _ => Command::Charge(ScriptCharge {
            together: false,
            keys: vec![name(key, charge, settings)],
            terms: vec![script_terms(charge, settings)],
        }),
    }
}

/// What a script is told of a charge.
pub(super) fn script_terms(charge: &Charge, settings: &RedisSettings) -> ScriptTerms {
    let terms = &charge.terms;
    let (meter, span) = match terms.meter {
        Meter::FixedWindow(window) => (ScriptMeter::Fixed, window.length),
        Meter::SlidingWindow(window) => (ScriptMeter::Sliding, window.length),
        Meter::TokenBucket { period, .. } => (ScriptMeter::Bucket, period),
    };
    let (hits, action) = match (charge.amount, terms.rejected) {
        (Amount::Refund(hits), _) => (hits, ScriptAction::GiveBack),
        (Amount::Add(hits), Rejected::Counted) => (hits, ScriptAction::Count),
        (Amount::Add(hits), Rejected::Free) => (hits, ScriptAction::CountIfFits),
    };
    ScriptTerms {
        meter,
        limit: terms.limit,
        capacity: terms.capacity(),
        span: span.max(1),
        hits,
        action,
        lifetime: lifetime(span, settings),
    }
}

/// The key as it stands in Redis. Those of fixed windows are the reference service's; the others
/// end in the meter and its length.
pub(super) fn name(key: &str, charge: &Charge, settings: &RedisSettings) -> String {
    // Room for what follows the key.
    let mut name = String::with_capacity(settings.key_prefix.len() + key.len() + 20);
    // Writing to a String cannot fail.
    let _ = match charge.terms.meter {
        Meter::FixedWindow(window) => {
            Batch::write_key(&mut name, &settings.key_prefix, key, window);
            match settings.key_format {
                KeyFormat::Reference => Ok(()),
                KeyFormat::WithLength => write!(name, "_{}s", window.length),
            }
        }
        Meter::SlidingWindow(window) => {
            write!(
                name,
                "{}{key}sliding_{}s",
                settings.key_prefix, window.length
            )
        }
        Meter::TokenBucket { period, .. } => {
            write!(name, "{}{key}bucket_{period}s", settings.key_prefix)
        }
    };
    name
}

fn lifetime(length: u64, settings: &RedisSettings) -> u64 {
    let jitter = settings.expiry_jitter.as_secs();
    let more = match jitter {
        0 => 0,
        _ => rand::random_range(0..=jitter),
    };
    length.saturating_add(more).max(1)
}

/// What the answer to [`command`] says.
pub(super) fn reading(batch: &Batch, charge: &Charge, answer: &Answer) -> Option<Reading> {
    match answer {
        Answer::Count(after) => {
            let Amount::Add(hits) = charge.amount else {
                return None;
            };
            let before = after.saturating_sub(hits.into());
            Some(Reading::of_store(before, *after, resets_in(batch, charge)))
        }
        Answer::Charged(charged) => Some(reading_of_script(batch, charge, *charged.first()?)),
    }
}

/// What the answer of a script says of one of its charges.
pub(super) fn reading_of_script(batch: &Batch, charge: &Charge, charged: Charged) -> Reading {
    Reading {
        charged: charged.charged,
        ..Reading::of_store(
            charged.before,
            charged.after,
            match charged.resets_in {
                0 => resets_in(batch, charge),
                seconds => seconds,
            },
        )
    }
}

fn resets_in(batch: &Batch, charge: &Charge) -> u64 {
    match charge.terms.meter {
        Meter::FixedWindow(window) => window.resets_in(batch.now().seconds()),
        Meter::SlidingWindow(_) | Meter::TokenBucket { .. } => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limiter::{UnixTime, Window},
        store::Terms,
    };

    fn names(meter: Meter, format: KeyFormat) -> String {
        let mut settings = RedisSettings::parse("redis://h").unwrap();
        settings.key_prefix = "prefix:".to_owned();
        settings.key_format = format;
        let mut batch = Batch::new(UnixTime::from_seconds(1234));
        batch.begin("d");
        batch.entry("k", "v");
        let terms = Terms {
            meter,
            ..Terms::fixed_window(Window::at(1234, 60), 1)
        };
        batch.charge(terms, Amount::Add(1));
        let (key, charge) = batch.iter().next().unwrap();
        name(key, charge, &settings)
    }

    #[test]
    fn keys_tell_meters_apart_and_those_of_windows_are_the_references() {
        let window = Window::at(1234, 60);
        let bucket = Meter::TokenBucket {
            period: 60,
            burst: 9,
        };
        for (meter, format, expected) in [
            (
                Meter::FixedWindow(window),
                KeyFormat::Reference,
                "prefix:d_k_v_1200",
            ),
            (
                Meter::FixedWindow(window),
                KeyFormat::WithLength,
                "prefix:d_k_v_1200_60s",
            ),
            (
                Meter::SlidingWindow(window),
                KeyFormat::Reference,
                "prefix:d_k_v_sliding_60s",
            ),
            (bucket, KeyFormat::Reference, "prefix:d_k_v_bucket_60s"),
        ] {
            assert_eq!(names(meter, format), expected);
        }
    }
}
