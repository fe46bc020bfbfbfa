//! How long a check may take.

use std::time::Duration;

use http::HeaderMap;

/// What is kept of the caller's deadline to get the answer to it: a tenth, within these.
const MARGIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// The caller's timeout less a margin for the way back, at most `most`.
pub(super) fn deadline(headers: &HeaderMap, most: Duration) -> Duration {
    let given = headers
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(grpc_timeout);
    match given {
        Some(given) => {
            let margin = (given / 10).clamp(MARGIN.0, MARGIN.1);
            given.saturating_sub(margin).min(most)
        }
        None => most,
    }
}

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_leave_time_for_the_answer() {
        let most = Duration::from_secs(30);
        for (text, expected) in [
            ("200m", Duration::from_millis(180)),
            ("10S", Duration::from_millis(9_950)),
            ("5000u", Duration::from_millis(4)),
            ("500u", Duration::ZERO),
            ("99999999H", most),
            ("123456789S", most),
            ("soon", most),
            ("é", most),
            ("", most),
        ] {
            let mut headers = HeaderMap::new();
            if let Ok(value) = text.parse() {
                headers.insert("grpc-timeout", value);
            }
            assert_eq!(deadline(&headers, most), expected, "{text}");
        }
    }
}
