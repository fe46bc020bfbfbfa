//! Built-in functions of which the engine's own give other answers than Open Policy Agent's, or
//! take more memory than a request may cost.

use std::{cell::RefCell, collections::HashMap, fmt::Write as _, net::IpAddr};

use chrono::DateTime;
use ipnet::{IpNet, Ipv4Net};
use regex::Regex;
use regorus::{Engine, Value};

use super::json;

/// The value of a call; `None` when it has none. The error ends the evaluation.
type Answer = Result<Option<Value>, String>;

type Function = fn(&[Value]) -> Answer;

/// Name, number of arguments, function.
const FUNCTIONS: &[(&str, u8, Function)] = &[
    ("bits.lsh", 2, shift_left),
    ("glob.match", 3, glob),
    ("indexof", 2, indexof),
    ("internal.member_2", 2, member),
    ("internal.member_3", 3, member_at),
    ("json.is_valid", 1, is_json),
    ("json.marshal", 1, marshal),
    ("json.unmarshal", 1, unmarshal),
    ("lower", 1, lower),
    ("net.cidr_contains", 2, cidr_contains),
    ("numbers.range", 2, range),
    ("object.subset", 2, subset),
    ("regex.find_all_string_submatch_n", 3, find_submatches),
    ("regex.find_n", 3, find),
    ("regex.match", 2, matches),
    ("regex.replace", 3, replace),
    ("regex.split", 2, split),
    ("sprintf", 2, sprintf),
    ("strings.count", 2, count),
    ("strings.replace_n", 2, replace_n),
    ("time.parse_rfc3339_ns", 1, parse_time),
    ("to_number", 1, to_number),
    ("upper", 1, upper),
];

/// Puts them in the place of the engine's own.
pub(super) fn add(engine: &mut Engine) -> Result<(), String> {
    for (name, arity, function) in FUNCTIONS {
        let call = move |arguments: Vec<Value>| {
            let answer = function(&arguments).map_err(|problem| {
                // The engine's own error type, of which it keeps the text.
                serde::de::value::Error::from(Problem(format!("{name}: {problem}")))
            });
            Ok(answer?.unwrap_or(Value::Undefined))
        };
        let added = engine.add_extension((*name).to_owned(), *arity, Box::new(call));
        added.map_err(|error| error.to_string())?;
    }
    Ok(())
}

struct Problem(String);

impl From<Problem> for serde::de::value::Error {
    fn from(problem: Problem) -> Self {
        serde::de::Error::custom(problem.0)
    }
}

fn text(value: &Value) -> Option<&str> {
    value.as_string().ok().map(AsRef::as_ref)
}

fn texts(values: &[Value]) -> Option<(&str, &str)> {
    match values {
        [one, other] => Some((text(one)?, text(other)?)),
        _ => None,
    }
}

fn number(number: usize) -> Value {
    Value::from(number as u64)
}

// Membership

fn member(arguments: &[Value]) -> Answer {
    let [value, of] = arguments else {
        return Ok(None);
    };
    Ok(Some(Value::from(match of {
        Value::Array(items) => items.iter().any(|item| item == value),
        Value::Set(items) => items.contains(value),
        Value::Object(fields) => fields.iter().any(|(_, field)| field == value),
        _ => false,
    })))
}

fn member_at(arguments: &[Value]) -> Answer {
    let [key, value, of] = arguments else {
        return Ok(None);
    };
    Ok(Some(Value::from(match of {
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.any(|(index, item)| item == value && number(index) == *key)
        }
        Value::Set(items) => key == value && items.contains(value),
        Value::Object(fields) => fields.get(key) == Some(value),
        _ => false,
    })))
}

fn subset(arguments: &[Value]) -> Answer {
    let [of, part] = arguments else {
        return Ok(None);
    };
    Ok(match (of, part) {
        (Value::Object(_), Value::Object(_)) => Some(Value::from(has_fields(of, part))),
        (Value::Set(of), Value::Set(part)) => {
            Some(Value::from(part.iter().all(|item| of.contains(item))))
        }
        (Value::Array(of), Value::Array(part)) => {
            let of: Vec<_> = of.iter().collect();
            let part: Vec<_> = part.iter().collect();
            let found = part.is_empty() || of.windows(part.len()).any(|some| some == part);
            Some(Value::from(found))
        }
        (Value::Array(of), Value::Set(part)) => {
            let found = part.iter().all(|item| of.iter().any(|one| one == item));
            Some(Value::from(found))
        }
        _ => None,
    })
}

/// Whether an object has the fields of another one, the objects in it too.
fn has_fields(of: &Value, part: &Value) -> bool {
    match (of, part) {
        (Value::Object(of), Value::Object(part)) => part.iter().all(|(name, part)| {
            let of = of.get(name);
            of.is_some_and(|of| match (of, part) {
                (Value::Object(_), Value::Object(_)) => has_fields(of, part),
                (Value::Set(of), Value::Set(part)) => part.iter().all(|item| of.contains(item)),
                (Value::Array(_), Value::Array(_)) => matches!(
                    subset(&[of.clone(), part.clone()]),
                    Ok(Some(Value::Bool(true)))
                ),
                _ => of == part,
            })
        }),
        _ => of == part,
    }
}

// Texts

fn upper(arguments: &[Value]) -> Answer {
    each_character(arguments, |c| match c {
        // What has no capital letter of its own stays.
        'ß' | 'ŉ' | 'ǰ' | '\u{fb00}'..='\u{fb06}' => Some(c),
        c => single(c.to_uppercase()),
    })
}

fn lower(arguments: &[Value]) -> Answer {
    each_character(arguments, |c| match c {
        'İ' => Some('i'),
        c => single(c.to_lowercase()),
    })
}

fn single(mut letters: impl Iterator<Item = char>) -> Option<char> {
    let first = letters.next();
    first.filter(|_| letters.next().is_none())
}

fn each_character(arguments: &[Value], change: impl Fn(char) -> Option<char>) -> Answer {
    let Some(text) = arguments.first().and_then(text) else {
        return Ok(None);
    };
    let changed: Option<String> = text.chars().map(change).collect();
    match changed {
        Some(text) => Ok(Some(Value::from(text))),
        None => Err("a letter has no single counterpart".to_owned()),
    }
}

fn indexof(arguments: &[Value]) -> Answer {
    let Some((text, part)) = texts(arguments).filter(|(_, part)| !part.is_empty()) else {
        return Ok(None);
    };
    Ok(Some(match text.find(part) {
        Some(at) => number(text.get(..at).unwrap_or_default().chars().count()),
        None => Value::from(-1i64),
    }))
}

fn count(arguments: &[Value]) -> Answer {
    let Some((text, part)) = texts(arguments) else {
        return Ok(None);
    };
    Ok(Some(number(text.matches(part).count())))
}

fn replace_n(arguments: &[Value]) -> Answer {
    let [Value::Object(changes), of] = arguments else {
        return Ok(None);
    };
    let pairs: Option<Vec<(&str, &str)>> = changes
        .iter()
        .map(|(from, to)| Some((text(from)?, text(to)?)))
        .collect();
    let (Some(pairs), Some(mut rest)) = (pairs, text(of)) else {
        return Ok(None);
    };
    if pairs.iter().any(|(from, _)| from.is_empty()) {
        return Err("nothing cannot be replaced".to_owned());
    }
    let mut replaced = String::new();
    while let Some(first) = rest.chars().next() {
        let found = pairs.iter().find_map(|(from, to)| {
            let rest = rest.strip_prefix(from)?;
            Some((*to, rest))
        });
        match found {
            Some((to, after)) => {
                replaced.push_str(to);
                rest = after;
            }
            None => {
                replaced.push(first);
                rest = rest.get(first.len_utf8()..).unwrap_or_default();
            }
        }
    }
    Ok(Some(Value::from(replaced)))
}

fn marshal(arguments: &[Value]) -> Answer {
    let Some(value) = arguments.first() else {
        return Ok(None);
    };
    let plain = serde_json::to_string(value).map_err(|error| error.to_string())?;
    let mut text = String::with_capacity(plain.len());
    for c in plain.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                write!(text, "\\u{:04x}", u32::from(c)).map_err(|error| error.to_string())?;
            }
            c => text.push(c),
        }
    }
    Ok(Some(Value::from(text)))
}

fn unmarshal(arguments: &[Value]) -> Answer {
    Ok(arguments.first().and_then(text).and_then(json::parse))
}

fn is_json(arguments: &[Value]) -> Answer {
    if arguments.first().and_then(text).is_none() {
        return Ok(None);
    }
    Ok(Some(Value::from(unmarshal(arguments)?.is_some())))
}

fn parse_time(arguments: &[Value]) -> Answer {
    let Some(text) = arguments.first().and_then(text) else {
        return Ok(None);
    };
    // RFC 3339 leaves more open than the reference takes.
    let strict = text.as_bytes().get(10) == Some(&b'T') && !text.ends_with('z');
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|_| strict);
    let nanos = time.and_then(|time| time.timestamp_nanos_opt());
    Ok(nanos.map(Value::from))
}

// Numbers

/// Longest list of numbers.
const MAX_RANGE: u64 = 100_000;

fn to_number(arguments: &[Value]) -> Answer {
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

fn range(arguments: &[Value]) -> Answer {
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

fn shift_left(arguments: &[Value]) -> Answer {
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

// Networks

fn cidr_contains(arguments: &[Value]) -> Answer {
    let Some((network, other)) = texts(arguments) else {
        return Ok(None);
    };
    let Some(network) = net(network) else {
        return Ok(None);
    };
    let other = match other.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address.to_canonical())),
        Err(_) => net(other),
    };
    Ok(other.map(|other| Value::from(network.contains(&other))))
}

/// A network; one of IPv4 written as IPv6 is the one that it stands for.
fn net(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().ok()?;
    if let (IpAddr::V4(address), Some(length)) = (
        net.trunc().addr().to_canonical(),
        net.prefix_len().checked_sub(96),
    ) && matches!(net, IpNet::V6(_))
    {
        return Ipv4Net::new(address, length).ok().map(IpNet::V4);
    }
    Some(net)
}

// Patterns

/// Patterns kept by each thread; as many as policies have, and a bound for the rest.
const MAX_PATTERNS: usize = 256;

thread_local! {
    static PATTERNS: RefCell<HashMap<String, Regex>> = RefCell::default();
}

fn pattern(text: &str) -> Result<Regex, String> {
    compiled(text, || translated(text))
}

/// The pattern that is kept as `key`.
fn compiled(key: &str, pattern: impl FnOnce() -> Result<String, String>) -> Result<Regex, String> {
    PATTERNS.with_borrow_mut(|patterns| {
        if let Some(regex) = patterns.get(key) {
            return Ok(regex.clone());
        }
        let regex = pattern()
            .and_then(|text| Regex::new(&text).map_err(|error| error.to_string()))
            .map_err(|problem| format!("the pattern `{key}` cannot be used: {problem}"))?;
        if patterns.len() >= MAX_PATTERNS {
            patterns.clear();
        }
        patterns.insert(key.to_owned(), regex.clone());
        Ok(regex)
    })
}

fn glob(arguments: &[Value]) -> Answer {
    let [glob, delimiters, of] = arguments else {
        return Ok(None);
    };
    let (Some(glob), Some(of)) = (text(glob), text(of)) else {
        return Ok(None);
    };
    let mut separators = String::new();
    match delimiters {
        Value::Null => {}
        Value::Array(delimiters) if delimiters.is_empty() => separators.push('.'),
        Value::Array(delimiters) => {
            for delimiter in delimiters.iter() {
                let delimiter = text(delimiter).and_then(|text| single(text.chars()));
                separators.push(delimiter.ok_or("a delimiter is one character")?);
            }
        }
        _ => return Ok(None),
    }
    // No pattern has a null character in it.
    let key = format!("{glob}\0{separators}");
    let regex = compiled(&key, || glob_pattern(glob, &separators))?;
    Ok(Some(Value::from(regex.is_match(of))))
}

/// A glob as a regular expression. `*` and `?` stand for what is no separator, `**` for all.
fn glob_pattern(glob: &str, separators: &str) -> Result<String, String> {
    let other = match separators {
        "" => ".".to_owned(),
        separators => {
            let escaped = separators
                .chars()
                .map(|c| format!("\\x{{{:x}}}", u32::from(c)));
            format!("[^{}]", escaped.collect::<String>())
        }
    };
    let mut out = String::from("(?s)^");
    let mut depth = 0usize;
    let mut chars = glob.chars().peekable();
    while let Some(c) = chars.next() {
        // Versions of the reference differ in both.
        if c == '?' || depth > 0 && matches!(c, '*' | '[' | '{') {
            return Err(format!("`{c}` cannot stand there"));
        }
        match c {
            '*' => {
                let mut all = false;
                while chars.next_if_eq(&'*').is_some() {
                    all = true;
                }
                out.push_str(if all { "." } else { &other });
                out.push('*');
            }
            '{' => {
                depth = depth.saturating_add(1);
                out.push_str("(?:");
            }
            '}' if depth > 0 => {
                depth = depth.saturating_sub(1);
                out.push(')');
            }
            ',' if depth > 0 => out.push('|'),
            '[' => {
                out.push_str(if chars.next_if_eq(&'!').is_some() {
                    "[^"
                } else {
                    "["
                });
                loop {
                    match chars.next().ok_or("`[` is not closed")? {
                        ']' => break,
                        '-' => out.push('-'),
                        '\\' => {
                            let c = chars.next().ok_or("it ends with `\\`")?;
                            out.push_str(&format!("\\x{{{:x}}}", u32::from(c)));
                        }
                        c => out.push_str(&format!("\\x{{{:x}}}", u32::from(c))),
                    }
                }
                out.push(']');
            }
            '\\' => {
                let c = chars.next().ok_or("it ends with `\\`")?;
                out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
            }
            c => out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    if depth > 0 {
        return Err("`{` is not closed".to_owned());
    }
    out.push('$');
    Ok(out)
}

/// A pattern of RE2 in the words of our library, where some of them mean more than ASCII.
fn translated(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut class = false;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => {
                let escaped = chars.next().ok_or("it ends with `\\`")?;
                match (escaped, class) {
                    ('d', false) => out.push_str("[0-9]"),
                    ('w', false) => out.push_str("[0-9A-Za-z_]"),
                    ('s', false) => out.push_str(r"[\t\n\f\r ]"),
                    ('d', true) => out.push_str("0-9"),
                    ('w', true) => out.push_str("0-9A-Za-z_"),
                    ('s', true) => out.push_str(r"\t\n\f\r "),
                    ('D', _) => out.push_str("[^0-9]"),
                    ('W', _) => out.push_str("[^0-9A-Za-z_]"),
                    ('S', _) => out.push_str(r"[^\t\n\f\r ]"),
                    ('b', false) => out.push_str(r"(?-u:\b)"),
                    ('B' | 'Q' | 'E' | 'C' | 'u' | 'U' | '<' | '>', _) => {
                        return Err(format!("there is no `\\{escaped}` here"));
                    }
                    _ => out.extend(['\\', escaped]),
                }
            }
            ('[', false) => {
                class = true;
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                if chars.next_if_eq(&']').is_some() {
                    out.push_str(r"\]");
                }
            }
            ('[', true) if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ('[' | '&' | '~', true) => out.extend(['\\', c]),
            ('-', true) if chars.peek() == Some(&'-') => {
                return Err("there is no `--` here".to_owned());
            }
            (']', true) => {
                class = false;
                out.push(']');
            }
            ('(', false) if chars.next_if_eq(&'?').is_some() => {
                out.push_str("(?");
                let flags = chars.peek().copied();
                if flags.is_some_and(|flag| "xuR".contains(flag)) {
                    return Err("there is no such flag here".to_owned());
                }
            }
            (c, _) => out.push(c),
        }
    }
    Ok(out)
}

fn matches(arguments: &[Value]) -> Answer {
    let Some((regex, text)) = texts(arguments) else {
        return Ok(None);
    };
    Ok(Some(Value::from(pattern(regex)?.is_match(text))))
}

fn replace(arguments: &[Value]) -> Answer {
    let [of, regex, with] = arguments else {
        return Ok(None);
    };
    let (Some(of), Some(regex), Some(with)) = (text(of), text(regex), text(with)) else {
        return Ok(None);
    };
    let replaced = pattern(regex)?.replace_all(of, with);
    Ok(Some(Value::from(replaced.as_ref())))
}

fn split(arguments: &[Value]) -> Answer {
    let Some((regex, text)) = texts(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    if regex.is_match("") {
        return Err("the pattern matches nothing at all".to_owned());
    }
    Ok(Some(Value::from(
        regex.split(text).map(Value::from).collect::<Vec<_>>(),
    )))
}

/// Pattern, text and how many are wanted.
fn search(arguments: &[Value]) -> Option<(&str, &str, usize)> {
    let [regex, of, most] = arguments else {
        return None;
    };
    let most = usize::try_from(most.as_i64().ok()?).unwrap_or(usize::MAX);
    Some((text(regex)?, text(of)?, most))
}

fn find(arguments: &[Value]) -> Answer {
    let Some((regex, text, most)) = search(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    let found = regex.find_iter(text).take(most);
    let found = found.map(|found| Value::from(found.as_str()));
    Ok(Some(Value::from(found.collect::<Vec<_>>())))
}

fn find_submatches(arguments: &[Value]) -> Answer {
    let Some((regex, text, most)) = search(arguments) else {
        return Ok(None);
    };
    let regex = pattern(regex)?;
    let found = regex.captures_iter(text).take(most).map(|groups| {
        let groups = groups.iter();
        let groups = groups.map(|group| Value::from(group.map_or("", |group| group.as_str())));
        Value::from(groups.collect::<Vec<_>>())
    });
    Ok(Some(Value::from(found.collect::<Vec<_>>())))
}

// Formats

/// What formats see of a value: numbers and texts as such, all else as it is written in Rego.
enum Argument {
    Integer(i128),
    Float(f64),
    Text(String),
}

impl Argument {
    fn of(value: &Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text.as_ref().to_owned()),
            Value::Number(_) => match (value.as_i128(), value.as_f64()) {
                (Ok(number), _) => Self::Integer(number),
                (Err(_), Ok(number)) => Self::Float(number),
                _ => Self::Text(value.to_string()),
            },
            other => Self::Text(written(other)),
        }
    }
}

/// A value as it is written in Rego.
fn written(value: &Value) -> String {
    let all = |items: Vec<String>| items.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", all(items.iter().map(written).collect())),
        Value::Set(items) if items.is_empty() => "set()".to_owned(),
        Value::Set(items) => format!("{{{}}}", all(items.iter().map(written).collect())),
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields =
                fields.map(|(name, value)| format!("{}: {}", written(name), written(value)));
            format!("{{{}}}", all(fields.collect()))
        }
        other => other.to_string(),
    }
}

fn sprintf(arguments: &[Value]) -> Answer {
    let [format, Value::Array(values)] = arguments else {
        return Ok(None);
    };
    let Some(format) = text(format) else {
        return Ok(None);
    };
    let mut values = values.iter();
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut left, mut zero) = (false, false);
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '0')) {
            match flag {
                '-' => left = true,
                _ => zero = true,
            }
        }
        let width = digits(&mut chars)?.unwrap_or(0);
        let precision = match chars.next_if_eq(&'.') {
            Some(_) => Some(digits(&mut chars)?.unwrap_or(0)),
            None => None,
        };
        let verb = chars.next().ok_or("the format ends with `%`")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values
            .next()
            .ok_or("the format has more places than there are values")?;
        let said = formatted(&Argument::of(value), verb, precision)?;
        let missing = width.saturating_sub(said.chars().count());
        match (left, zero) {
            (true, _) => {
                out.push_str(&said);
                out.extend(std::iter::repeat_n(' ', missing));
            }
            (false, true) => {
                let (sign, digits) = match said.strip_prefix('-') {
                    Some(digits) => ("-", digits),
                    None => ("", said.as_str()),
                };
                out.push_str(sign);
                out.extend(std::iter::repeat_n('0', missing));
                out.push_str(digits);
            }
            (false, false) => {
                out.extend(std::iter::repeat_n(' ', missing));
                out.push_str(&said);
            }
        }
    }
    if values.next().is_some() {
        return Err("there are more values than the format has places".to_owned());
    }
    Ok(Some(Value::from(out)))
}

/// A width or precision; bounded, since so is memory.
fn digits(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut number = None;
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        let digit = digit.to_digit(10).unwrap_or(0) as usize;
        let longer = number.unwrap_or(0usize) * 10 + digit;
        if longer > 1000 {
            return Err("a width in the format is too large".to_owned());
        }
        number = Some(longer);
    }
    Ok(number)
}

fn formatted(value: &Argument, verb: char, precision: Option<usize>) -> Result<String, String> {
    if precision.is_some() && !matches!((value, verb), (Argument::Float(_), 'f')) {
        return Err(format!("there is no precision for `%{verb}` here"));
    }
    Ok(match (value, verb) {
        (Argument::Integer(number), 'd' | 'v') => number.to_string(),
        (Argument::Integer(number), 'x' | 'X' | 'o' | 'b') => {
            let sign = if *number < 0 { "-" } else { "" };
            let number = number.unsigned_abs();
            match verb {
                'x' => format!("{sign}{number:x}"),
                'X' => format!("{sign}{number:X}"),
                'o' => format!("{sign}{number:o}"),
                _ => format!("{sign}{number:b}"),
            }
        }
        (Argument::Float(number), 'f') => format!("{number:.*}", precision.unwrap_or(6)),
        (Argument::Float(number), 'v') if (1e-4..1e21).contains(&number.abs()) => {
            number.to_string()
        }
        (Argument::Text(text), 's' | 'v') => text.clone(),
        _ => return Err(format!("there is no `%{verb}` for such a value here")),
    })
}
