//! Numbers.

use regorus::Value;

use super::{Answer, json::unmarshal, number};

/// Longest list of numbers.
const MAX_RANGE: u64 = 100_000;

pub(super) fn to_number(arguments: &[Value]) -> Answer {
    Ok(match arguments {
        [Value::Null | Value::Bool(false)] => Some(number(0)),
        [Value::Bool(true)] => Some(number(1)),
        [given @ Value::Number(_)] => Some(given.clone()),
        [Value::String(_)] => {
            unmarshal(arguments)?.filter(|value| matches!(value, Value::Number(_)))
        }
        _ => None,
    })
}

/// Both numbers, if they are whole. The error is for those that are too large.
fn whole(arguments: &[Value]) -> Result<Option<(i64, i64)>, String> {
    let [one @ Value::Number(_), other @ Value::Number(_)] = arguments else {
        return Ok(None);
    };
    match (one.as_i64(), other.as_i64()) {
        (Ok(one), Ok(other)) => Ok(Some((one, other))),
        _ => Err("the numbers are too large, or not whole".to_owned()),
    }
}

pub(super) fn range(arguments: &[Value]) -> Answer {
    let Some((from, to)) = whole(arguments)? else {
        return Ok(None);
    };
    if from.abs_diff(to) >= MAX_RANGE {
        return Err(format!("there are more than {MAX_RANGE} numbers"));
    }
    let numbers: Vec<Value> = match from <= to {
        true => (from..=to).map(Value::from).collect(),
        false => (to..=from).rev().map(Value::from).collect(),
    };
    Ok(Some(Value::from(numbers)))
}

pub(super) fn shift_left(arguments: &[Value]) -> Answer {
    let Some((value, by)) = whole(arguments)? else {
        return Ok(None);
    };
    let Ok(by) = u32::try_from(by) else {
        return Ok(None);
    };
    let factor = 1i64.checked_shl(by).filter(|factor| *factor > 0);
    let shifted = factor.and_then(|factor| value.checked_mul(factor));
    match shifted {
        Some(shifted) => Ok(Some(Value::from(shifted))),
        None if value == 0 => Ok(Some(number(0))),
        None => Err("the result is too large".to_owned()),
    }
}
