//! The status of a descriptor in short form.
//!
//! - `ok 19 of 20/minute`, `over 0 of 1/day (name)`: code, what remains, the limit, its name
//! - `none`: no rule applies; `unlimited`: one without a limit does
//! - `ok 19..0 of 20/minute`: of a step that is repeated, 19 the first time and 0 the last

use serde_json::Value;

/// The lengths of all windows in seconds, by their units.
pub const UNITS: [(&str, u64); 7] = [
    ("second", 1),
    ("minute", 60),
    ("hour", 3600),
    ("day", 86_400),
    ("week", 604_800),
    ("month", 2_592_000),
    ("year", 31_536_000),
];

/// A status that was answered, in short form.
pub fn shown(status: &Value) -> String {
    let code = match status["code"].as_str() {
        Some("OK") => "ok",
        Some("OVER_LIMIT") => "over",
        _ => "unknown",
    };
    let remaining = status["limit_remaining"].as_u64().unwrap_or_default();
    let timed = !status["duration_until_reset"].is_null();
    let limit = &status["current_limit"];
    if limit.is_null() {
        let odd = if timed { " with a reset" } else { "" };
        return match (code, remaining, timed) {
            ("ok", 0, false) => "none".to_owned(),
            ("ok", most, false) if most == u64::from(u32::MAX) => "unlimited".to_owned(),
            _ => format!("{code} {remaining} of nothing{odd}"),
        };
    }
    let requests = limit["requests_per_unit"].as_u64().unwrap_or_default();
    let unit = limit["unit"].as_str().unwrap_or("unknown").to_lowercase();
    let name = limit["name"].as_str();
    let name = name.map_or(String::new(), |name| format!(" ({name})"));
    let odd = if timed { "" } else { " without a reset" };
    format!("{code} {remaining} of {requests}/{unit}{name}{odd}")
}

/// The status that is expected the `nth` of so many `times`.
pub fn nth(expected: &str, nth: u64, times: u64) -> Result<String, String> {
    let Some((before, after)) = expected.split_once("..") else {
        return Ok(expected.to_owned());
    };
    let digits = before.rfind(|c: char| !c.is_ascii_digit());
    let digits = digits.map_or(0, |last| last + 1);
    let end = after.find(|c: char| !c.is_ascii_digit());
    let end = end.unwrap_or(after.len());
    let bounds = (before[digits..].parse::<u64>(), after[..end].parse::<u64>());
    let (Ok(first), Ok(last)) = bounds else {
        return Err(format!("`{expected}` has a range without bounds"));
    };
    if first.checked_sub(times - 1) != Some(last) {
        return Err(format!("`{expected}` does not count down in {times} steps"));
    }
    let (head, tail) = (&before[..digits], &after[end..]);
    Ok(format!("{head}{}{tail}", first - nth))
}

/// What is wrong with the time until the reset, if a limit applies: it is the rest of a window
/// that is as old as the Unix epoch says, on a clock that went from `before` to `after`
/// (seconds) while the call was under way.
pub fn late(status: &Value, before: u64, after: u64) -> Option<String> {
    let unit = status["current_limit"]["unit"].as_str()?.to_lowercase();
    let (_, length) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    let seen = status["duration_until_reset"].as_str()?;
    let rest = |now: u64| length - now % length;
    let possible: Vec<String> = (before..=after)
        .map(|now| format!("{}s", rest(now)))
        .collect();
    (!possible.iter().any(|rest| rest == seen)).then(|| {
        format!(
            "the window ends in {seen}, and should in {}",
            possible.join(" or ")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn statuses_are_shown_in_short() {
        let limit = json!({ "requests_per_unit": 20, "unit": "MINUTE" });
        let ok = json!({
            "code": "OK", "current_limit": limit, "limit_remaining": 19, "duration_until_reset": "7s",
        });
        assert_eq!(shown(&ok), "ok 19 of 20/minute");
        let named = json!({ "requests_per_unit": 1, "unit": "DAY", "name": "n" });
        let over = json!({ "code": "OVER_LIMIT", "current_limit": named });
        assert_eq!(shown(&over), "over 0 of 1/day (n) without a reset");
        assert_eq!(shown(&json!({ "code": "OK" })), "none");
        let unlimited = json!({ "code": "OK", "limit_remaining": u32::MAX });
        assert_eq!(shown(&unlimited), "unlimited");
    }

    #[test]
    fn a_range_counts_down() {
        let at = |n| nth("ok 2..0 of 3/day (n)", n, 3);
        assert_eq!(at(0).unwrap(), "ok 2 of 3/day (n)");
        assert_eq!(at(2).unwrap(), "ok 0 of 3/day (n)");
        assert!(nth("ok 2..0 of 3/day", 0, 2).is_err());
    }

    #[test]
    fn windows_are_aligned_to_the_epoch() {
        let of = |unit: &str, rest: &str| json!({ "current_limit": { "unit": unit }, "duration_until_reset": rest });
        for (unit, rest) in [
            ("SECOND", 1),
            ("MINUTE", 20),
            ("HOUR", 800),
            ("DAY", 36_800),
            ("WEEK", 209_600),
            ("MONTH", 1_592_000),
            ("YEAR", 30_536_000),
        ] {
            let right = of(unit, &format!("{rest}s"));
            assert_eq!(late(&right, 1_000_000, 1_000_000), None, "{unit}");
            let wrong = of(unit, &format!("{}s", rest + 1));
            assert!(late(&wrong, 1_000_000, 1_000_000).is_some(), "{unit}");
        }
    }
}
