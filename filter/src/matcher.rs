//! Envoy's matchers for strings, headers and addresses: as configured, and compiled.

use std::net::IpAddr;

use attache_service::config::{Errors, Located};
use attache_service::{config_oneof, config_struct};
use http::HeaderMap;
use ipnet::IpNet;
use regex::Regex;

use crate::head::MessageHead;

config_struct! {
    /// Envoy's `type.matcher.v3.RegexMatcher`: a regular expression that must match the whole text.
    pub struct RegexMatcher {
        /// The expression, in RE2's syntax as far as Rust's `regex` shares it.
        pub regex: String,
    }
    elsewhere {
        "google_re2" => "there is one regular expression engine, so nothing to choose",
    }
}

config_oneof! {
    /// How a [`StringMatcher`] compares.
    pub enum StringPattern {
        /// The whole text is equal.
        Exact(String) = "exact",
        /// The text starts with this.
        Prefix(String) = "prefix",
        /// The text ends with this.
        Suffix(String) = "suffix",
        /// The text contains this.
        Contains(String) = "contains",
        /// The whole text matches a regular expression.
        SafeRegex(Located<RegexMatcher>) = "safe_regex",
    }
    elsewhere {
        "custom" => "custom matchers are extensions of Envoy's own process",
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.StringMatcher`.
    pub struct StringMatcher {
        /// Compare without regard to ASCII case (not for `safe_regex`). Default false.
        pub ignore_case: Option<bool>,
    }
    oneof {
        /// How to compare.
        pub pattern: StringPattern,
    }
}

config_struct! {
    /// Envoy's `type.matcher.v3.ListStringMatcher`: matches when one of the patterns does.
    pub struct ListStringMatcher {
        /// At least one pattern.
        pub patterns: Vec<StringMatcher>,
    }
}

config_struct! {
    /// Envoy's `type.v3.Int64Range`: from `start` (inclusive) to `end` (exclusive).
    pub struct Int64Range {
        /// First number in the range.
        pub start: i64,
        /// First number after the range.
        pub end: i64,
    }
}

config_oneof! {
    /// How a [`HeaderMatcher`] compares the header's value.
    pub enum HeaderMatch {
        /// The value matches.
        StringMatch(StringMatcher) = "string_match",
        /// The header is present (true) or absent (false).
        PresentMatch(bool) = "present_match",
        /// The value is a whole number in the range.
        RangeMatch(Int64Range) = "range_match",
        /// The value is equal (Envoy's deprecated form of `string_match`).
        ExactMatch(String) = "exact_match",
        /// The value starts with this (deprecated in Envoy).
        PrefixMatch(String) = "prefix_match",
        /// The value ends with this (deprecated in Envoy).
        SuffixMatch(String) = "suffix_match",
        /// The value contains this (deprecated in Envoy).
        ContainsMatch(String) = "contains_match",
        /// The whole value matches (deprecated in Envoy).
        SafeRegexMatch(Located<RegexMatcher>) = "safe_regex_match",
    }
}

config_struct! {
    /// Envoy's `config.route.v3.HeaderMatcher`.
    pub struct HeaderMatcher {
        /// Name of the header; pseudo-headers such as `:method` are allowed.
        pub name: String,
        /// Turn the result round. Default false.
        pub invert_match: Option<bool>,
        /// Treat an absent header as an empty value. Default false.
        pub treat_missing_header_as_empty: Option<bool>,
    }
    oneof {
        /// What its value must be; present when left out.
        pub matches: Option<HeaderMatch>,
    }
}

config_struct! {
    /// Envoy's `config.route.v3.QueryParameterMatcher`.
    pub struct QueryParameterMatcher {
        /// The parameter's name.
        pub name: String,
    }
    oneof {
        /// What its value must be; present when left out.
        pub matches: Option<QueryParameterMatch>,
    }
}

config_oneof! {
    /// How a [`QueryParameterMatcher`] compares the parameter's value.
    pub enum QueryParameterMatch {
        /// The value matches.
        StringMatch(StringMatcher) = "string_match",
        /// The parameter is present (true) or absent (false).
        PresentMatch(bool) = "present_match",
    }
}

config_struct! {
    /// Envoy's `config.route.v3.CookieMatcher`.
    pub struct CookieMatcher {
        /// The cookie's name.
        pub name: Located<String>,
        /// What its value must be.
        pub string_match: StringMatcher,
        /// Turn the result round. Default false.
        pub invert_match: Option<bool>,
    }
}

config_struct! {
    /// Envoy's `config.core.v3.CidrRange`.
    pub struct CidrRange {
        /// An IPv4 or IPv6 address.
        pub address_prefix: Located<String>,
        /// Length of the network part in bits. Default 0.
        pub prefix_len: Option<u8>,
    }
}

/// A regular expression that must match the whole text.
///
/// # Errors
/// When the expression is invalid; the message shows where.
pub fn full_match(expression: &str) -> Result<Regex, regex::Error> {
    Regex::new(&format!("^(?:{expression})$"))
}

/// A compiled [`StringMatcher`].
#[derive(Debug, Clone)]
pub struct TextMatcher {
    pattern: Pattern,
    ignore_case: bool,
}

#[derive(Debug, Clone)]
enum Pattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
}

impl TextMatcher {
    /// Compiles a matcher; a bad expression is reported at its place.
    pub fn plan(raw: &StringMatcher, errors: &mut Errors) -> Option<Self> {
        let ignore_case = raw.ignore_case.unwrap_or(false);
        let fold = |text: &String| {
            if ignore_case {
                text.to_ascii_lowercase()
            } else {
                text.clone()
            }
        };
        let pattern = match &raw.pattern {
            StringPattern::Exact(text) => Pattern::Exact(fold(text)),
            StringPattern::Prefix(text) => Pattern::Prefix(fold(text)),
            StringPattern::Suffix(text) => Pattern::Suffix(fold(text)),
            StringPattern::Contains(text) => Pattern::Contains(fold(text)),
            StringPattern::SafeRegex(regex) => Pattern::Regex(plan_regex(regex, errors)?),
        };
        Some(Self {
            pattern,
            ignore_case,
        })
    }

    /// Matches this text alone.
    pub fn exact(text: &str) -> Self {
        Self {
            pattern: Pattern::Exact(text.to_owned()),
            ignore_case: false,
        }
    }

    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let folded;
        let text = if self.ignore_case && text.bytes().any(|b| b.is_ascii_uppercase()) {
            folded = text.to_ascii_lowercase();
            &folded
        } else {
            text
        };
        match &self.pattern {
            Pattern::Exact(pattern) => text == pattern,
            Pattern::Prefix(pattern) => text.starts_with(pattern.as_str()),
            Pattern::Suffix(pattern) => text.ends_with(pattern.as_str()),
            Pattern::Contains(pattern) => text.contains(pattern.as_str()),
            Pattern::Regex(regex) => regex.is_match(text),
        }
    }
}

/// A compiled [`ListStringMatcher`].
#[derive(Debug, Clone, Default)]
pub struct TextMatchers(Vec<TextMatcher>);

impl TextMatchers {
    /// Compiles the list; Envoy wants at least one pattern in it.
    pub fn plan(raw: &Located<ListStringMatcher>, errors: &mut Errors) -> Self {
        if raw.value.patterns.is_empty() {
            errors.push(raw, "`patterns` needs at least one pattern");
        }
        Self(
            raw.value
                .patterns
                .iter()
                .filter_map(|p| TextMatcher::plan(p, errors))
                .collect(),
        )
    }

    /// These patterns and `more`.
    #[must_use]
    pub fn with(mut self, more: impl IntoIterator<Item = TextMatcher>) -> Self {
        self.0.extend(more);
        self
    }

    /// Whether one of the patterns matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.iter().any(|matcher| matcher.matches(text))
    }
}

/// Which headers a policy service is shown: allowed and disallowed names.
#[derive(Debug, Clone, Default)]
pub struct ForwardedHeaders {
    /// Names to show; everything when absent.
    pub allowed: Option<TextMatchers>,
    /// Names to hide, even when allowed.
    pub disallowed: Option<TextMatchers>,
}

impl ForwardedHeaders {
    /// Whether the header `name` (lower case, pseudo-headers too) is shown.
    pub fn shows(&self, name: &str) -> bool {
        !self.disallowed.as_ref().is_some_and(|m| m.matches(name))
            && self.allowed.as_ref().is_none_or(|m| m.matches(name))
    }

    /// Whether everything is shown, so that no name needs to be looked at.
    pub fn shows_all(&self) -> bool {
        self.allowed.is_none() && self.disallowed.is_none()
    }
}

/// A compiled [`HeaderMatcher`].
#[derive(Debug, Clone)]
pub struct FieldMatcher {
    name: String,
    matches: FieldMatch,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug, Clone)]
enum FieldMatch {
    Present(bool),
    Text(TextMatcher),
    Range(i64, i64),
}

impl FieldMatcher {
    /// Compiles a matcher; bad expressions are reported at their place.
    pub fn plan(raw: &HeaderMatcher, errors: &mut Errors) -> Option<Self> {
        let text = |pattern| {
            FieldMatch::Text(TextMatcher {
                pattern,
                ignore_case: false,
            })
        };
        let matches = match &raw.matches {
            None => FieldMatch::Present(true),
            Some(HeaderMatch::PresentMatch(present)) => FieldMatch::Present(*present),
            Some(HeaderMatch::StringMatch(m)) => FieldMatch::Text(TextMatcher::plan(m, errors)?),
            Some(HeaderMatch::RangeMatch(range)) => FieldMatch::Range(range.start, range.end),
            Some(HeaderMatch::ExactMatch(p)) => text(Pattern::Exact(p.clone())),
            Some(HeaderMatch::PrefixMatch(p)) => text(Pattern::Prefix(p.clone())),
            Some(HeaderMatch::SuffixMatch(p)) => text(Pattern::Suffix(p.clone())),
            Some(HeaderMatch::ContainsMatch(p)) => text(Pattern::Contains(p.clone())),
            Some(HeaderMatch::SafeRegexMatch(regex)) => {
                text(Pattern::Regex(plan_regex(regex, errors)?))
            }
        };
        Some(Self {
            name: raw.name.to_ascii_lowercase(),
            matches,
            invert: raw.invert_match.unwrap_or(false),
            missing_is_empty: raw.treat_missing_header_as_empty.unwrap_or(false),
        })
    }

    /// Whether the head matches. Repeated headers are compared joined by commas, as Envoy does.
    pub fn matches(&self, head: &impl MessageHead) -> bool {
        let value = if self.name.starts_with(':') || self.name == "host" {
            head.pseudo(&self.name).map(|value| value.into_owned())
        } else {
            joined(head.headers(), &self.name)
        };
        if let FieldMatch::Present(present) = self.matches {
            let is_present = value.is_some() || self.missing_is_empty;
            return (is_present == present) != self.invert;
        }
        let value = match value {
            Some(value) => value,
            None if self.missing_is_empty => String::new(),
            // An absent header never matches a value, and inverting does not make it match.
            None => return false,
        };
        let matched = match &self.matches {
            FieldMatch::Text(matcher) => matcher.matches(&value),
            FieldMatch::Range(start, end) => value
                .parse::<i64>()
                .is_ok_and(|number| (*start..*end).contains(&number)),
            FieldMatch::Present(_) => true,
        };
        matched != self.invert
    }
}

/// All values of a header joined by commas; bytes that are not UTF-8 are replaced.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = headers.get_all(name).iter();
    let mut text = String::from_utf8_lossy(values.next()?.as_bytes()).into_owned();
    for value in values {
        text.push(',');
        text.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    Some(text)
}

impl CidrRange {
    /// The network; a bad address or length is reported at its place.
    pub fn plan(&self, errors: &mut Errors) -> Option<IpNet> {
        let text = &self.address_prefix.value;
        let Ok(address) = text.parse::<IpAddr>() else {
            errors.push(
                &self.address_prefix,
                format!("`{text}` is not an IP address"),
            );
            return None;
        };
        let length = self.prefix_len.unwrap_or(0);
        match IpNet::new(address, length) {
            Ok(network) => Some(network),
            Err(_) => {
                errors.push(
                    &self.address_prefix,
                    format!("`prefix_len: {length}` is too long for `{text}`"),
                );
                None
            }
        }
    }
}

fn plan_regex(raw: &Located<RegexMatcher>, errors: &mut Errors) -> Option<Regex> {
    full_match(&raw.regex)
        .map_err(|error| errors.push(raw, error.to_string()))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Request};

    fn text(pattern: Pattern, ignore_case: bool) -> TextMatcher {
        TextMatcher {
            pattern,
            ignore_case,
        }
    }

    #[test]
    fn string_patterns_compare_as_named() {
        for (matcher, yes, no) in [
            (text(Pattern::Exact("abc".into()), false), "abc", "abcd"),
            (text(Pattern::Prefix("ab".into()), false), "abc", "cab"),
            (text(Pattern::Suffix("bc".into()), false), "abc", "bca"),
            (text(Pattern::Contains("b".into()), false), "abc", "acd"),
            (
                text(Pattern::Regex(full_match("a|b+").unwrap()), false),
                "bb",
                "ab",
            ),
            (text(Pattern::Exact("abc".into()), true), "aBC", "abd"),
            (text(Pattern::Exact("abc".into()), false), "abc", "ABC"),
        ] {
            assert!(matcher.matches(yes), "{matcher:?} {yes}");
            assert!(!matcher.matches(no), "{matcher:?} {no}");
        }
    }

    #[test]
    fn hidden_names_stay_hidden_even_when_allowed() {
        let list = |names: &[&str]| {
            Some(TextMatchers(
                names
                    .iter()
                    .map(|n| text(Pattern::Prefix((*n).into()), false))
                    .collect(),
            ))
        };
        let headers = ForwardedHeaders {
            allowed: list(&["x-", ":path"]),
            disallowed: list(&["x-secret"]),
        };
        assert!(headers.shows("x-a") && headers.shows(":path"));
        assert!(!headers.shows("x-secret") && !headers.shows("accept"));
        assert!(ForwardedHeaders::default().shows_all());
    }

    #[test]
    fn header_matchers_see_pseudo_headers_repeated_values_and_absence() {
        let mut request = Request::builder()
            .method("POST")
            .uri("http://h/p")
            .body(())
            .unwrap();
        request
            .headers_mut()
            .append("x-a", HeaderValue::from_static("1"));
        request
            .headers_mut()
            .append("x-a", HeaderValue::from_static("2"));
        request
            .headers_mut()
            .append("x-n", HeaderValue::from_static("7"));
        let (parts, ()) = request.into_parts();
        let matcher = |name: &str, matches, invert, missing_is_empty| FieldMatcher {
            name: name.to_owned(),
            matches,
            invert,
            missing_is_empty,
        };
        let exact = |v: &str| FieldMatch::Text(text(Pattern::Exact(v.to_owned()), false));
        for (matcher, expected) in [
            (matcher(":method", exact("POST"), false, false), true),
            (matcher("x-a", exact("1,2"), false, false), true),
            (
                matcher("x-a", FieldMatch::Present(true), false, false),
                true,
            ),
            (
                matcher("x-b", FieldMatch::Present(false), false, false),
                true,
            ),
            (matcher("x-b", exact("1"), true, false), false),
            (matcher("x-b", exact(""), false, true), true),
            (matcher("x-a", exact("1"), true, false), true),
            (matcher("x-n", FieldMatch::Range(0, 8), false, false), true),
            (matcher("x-n", FieldMatch::Range(0, 7), false, false), false),
        ] {
            assert_eq!(matcher.matches(&parts), expected, "{matcher:?}");
        }
    }

    #[test]
    fn networks_hold_their_addresses_and_faults_are_located() {
        use attache_service::config::Document;
        let plan = |text: &str| {
            let (range, mut errors) = Document::parse("c.yaml", text)
                .unwrap()
                .decode_partly::<CidrRange>();
            let network = range.and_then(|range| range.plan(&mut errors));
            (network, errors.to_string())
        };
        let (network, _) = plan("{ address_prefix: 10.1.0.0, prefix_len: 16 }");
        let network = network.unwrap();
        assert!(network.contains(&"10.1.255.9".parse::<IpAddr>().unwrap()));
        assert!(!network.contains(&"10.2.0.1".parse::<IpAddr>().unwrap()));
        for (text, fault) in [
            (
                "{ address_prefix: ten, prefix_len: 8 }",
                "c.yaml:1:19: `ten` is not an IP address",
            ),
            (
                "{ address_prefix: 10.0.0.0, prefix_len: 33 }",
                "`prefix_len: 33` is too long",
            ),
        ] {
            let (network, errors) = plan(text);
            assert!(network.is_none() && errors.contains(fault), "{errors}");
        }
    }
}
