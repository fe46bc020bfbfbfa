//! What a response says beside the statuses: headers and dynamic metadata, both off by default.

use std::collections::{BTreeMap, btree_map::Entry};

use attache_proto::{
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::RateLimitOverride},
    core::HeaderValue,
    ratelimit::{
        RateLimitRequest,
        rate_limit_response::{Code, DescriptorStatus},
    },
    types::RateLimitUnit,
};
use prost_types::{ListValue, Struct, Value, value::Kind};

/// What responses say beside the statuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers {
    /// Headers about the limit that is nearest. Default: none.
    pub headers: Option<ResponseHeaders>,
    /// The request, and the `metadata` of the rules that it passed, as dynamic metadata. Default
    /// false.
    pub dynamic_metadata: bool,
}

/// Names of the headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHeaders {
    /// The limit. Default `RateLimit-Limit`.
    pub limit: String,
    /// Hits left. Default `RateLimit-Remaining`.
    pub remaining: String,
    /// Seconds until the counter starts anew. Default `RateLimit-Reset`.
    pub reset: String,
}

impl Default for ResponseHeaders {
    fn default() -> Self {
        Self {
            limit: "RateLimit-Limit".to_owned(),
            remaining: "RateLimit-Remaining".to_owned(),
            reset: "RateLimit-Reset".to_owned(),
        }
    }
}

impl ResponseHeaders {
    /// The headers about the nearest of these statuses; none when no limit applies.
    ///
    /// The nearest is the first with the least hits left, unless rules that refuse are over: then
    /// the last of those. `quota` says of which statuses a rule is a quota, which refuses only
    /// together with the others.
    pub(super) fn of(
        &self,
        statuses: &[DescriptorStatus],
        quota: impl Fn(usize) -> bool,
    ) -> Vec<HeaderValue> {
        let limited = statuses
            .iter()
            .enumerate()
            .filter(|(_, status)| status.current_limit.is_some());
        let over = limited
            .clone()
            .rfind(|(number, status)| status.code() == Code::OverLimit && !quota(*number));
        let nearest = over.or_else(|| limited.min_by_key(|(_, status)| status.limit_remaining));
        let Some((_, status)) = nearest else {
            return Vec::new();
        };
        let header = |key: &str, value: String| HeaderValue {
            key: key.to_owned(),
            value,
            ..HeaderValue::default()
        };
        let limit = status.current_limit.as_ref();
        let limit = limit.map_or(0, |limit| limit.requests_per_unit);
        let reset = status.duration_until_reset.as_ref();
        let reset = reset.map_or(0, |reset| reset.seconds);
        vec![
            header(&self.limit, limit.to_string()),
            header(&self.remaining, status.limit_remaining.to_string()),
            header(&self.reset, reset.to_string()),
        ]
    }
}

/// The dynamic metadata of a response: what was asked, and under `metadata` what `passed`, the
/// rules that were not over, say of themselves. Where they disagree the first has it.
pub(super) fn dynamic_metadata<'m>(
    request: &RateLimitRequest,
    passed: impl Iterator<Item = &'m Struct>,
) -> Struct {
    let mut metadata = BTreeMap::new();
    for rule in passed {
        merge(&mut metadata, rule);
    }
    let descriptors = request.descriptors.iter().map(descriptor).collect();
    let mut fields = BTreeMap::from([
        ("domain".to_owned(), text(request.domain.clone())),
        ("descriptors".to_owned(), list(descriptors)),
    ]);
    if request.hits_addend != 0 {
        fields.insert("hitsAddend".to_owned(), number(request.hits_addend.into()));
    }
    if !metadata.is_empty() {
        let metadata = Struct { fields: metadata };
        fields.insert("metadata".to_owned(), structure(metadata));
    }
    Struct { fields }
}

fn merge(into: &mut BTreeMap<String, Value>, from: &Struct) {
    for (key, value) in &from.fields {
        match into.entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(value.clone());
            }
            Entry::Occupied(mut entry) => {
                if let (Some(Kind::StructValue(known)), Some(Kind::StructValue(more))) =
                    (&mut entry.get_mut().kind, &value.kind)
                {
                    merge(&mut known.fields, more);
                }
            }
        }
    }
}

fn descriptor(descriptor: &RateLimitDescriptor) -> Value {
    let entries = descriptor.entries.iter();
    let entries = entries.map(|entry| text(format!("{}={}", entry.key, entry.value)));
    let mut fields = BTreeMap::from([("entries".to_owned(), list(entries.collect()))]);
    if let Some(limit) = &descriptor.limit {
        fields.insert("limit".to_owned(), text(override_text(limit)));
    }
    if let Some(hits) = descriptor.hits_addend {
        fields.insert("hitsAddend".to_owned(), number(hits));
    }
    structure(Struct { fields })
}

/// In protobuf's text format.
fn override_text(limit: &RateLimitOverride) -> String {
    let mut parts = Vec::new();
    if limit.requests_per_unit != 0 {
        parts.push(format!("requests_per_unit:{}", limit.requests_per_unit));
    }
    if limit.unit != 0 {
        parts.push(match RateLimitUnit::try_from(limit.unit) {
            Ok(unit) => format!("unit:{}", unit.as_str_name()),
            Err(_) => format!("unit:{}", limit.unit),
        });
    }
    parts.join(" ")
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

fn text(text: String) -> Value {
    value(Kind::StringValue(text))
}

/// JSON numbers are floats; larger ones lose their last digits, as they do in the reference.
#[allow(clippy::cast_precision_loss)]
fn number(number: u64) -> Value {
    value(Kind::NumberValue(number as f64))
}

fn list(values: Vec<Value>) -> Value {
    value(Kind::ListValue(ListValue { values }))
}

fn structure(fields: Struct) -> Value {
    value(Kind::StructValue(fields))
}

#[cfg(test)]
mod tests {
    use attache_proto::ratelimit::rate_limit_response::RateLimit;

    use super::*;
    use crate::limiter::descriptor as entries;

    fn status(code: Code, limit: Option<u32>, remaining: u32, reset: i64) -> DescriptorStatus {
        DescriptorStatus {
            code: code.into(),
            current_limit: limit.map(|requests_per_unit| RateLimit {
                requests_per_unit,
                ..RateLimit::default()
            }),
            limit_remaining: remaining,
            duration_until_reset: limit.map(|_| prost_types::Duration {
                seconds: reset,
                nanos: 0,
            }),
            ..DescriptorStatus::default()
        }
    }

    fn values(statuses: &[DescriptorStatus], quota: &[usize]) -> Vec<(String, String)> {
        let headers = ResponseHeaders::default().of(statuses, |number| quota.contains(&number));
        headers
            .into_iter()
            .map(|header| (header.key, header.value))
            .collect()
    }

    #[test]
    fn headers_are_about_the_limit_that_is_nearest() {
        let none = status(Code::Ok, None, 0, 0);
        let unlimited = status(Code::Ok, None, u32::MAX, 0);
        let five = status(Code::Ok, Some(10), 5, 58);
        let three = status(Code::Ok, Some(20), 3, 7);
        let over = status(Code::OverLimit, Some(30), 0, 9);
        let last = status(Code::OverLimit, Some(40), 0, 11);
        let expect = |statuses: &[DescriptorStatus], quota: &[usize], limit: &str| {
            let values = values(statuses, quota);
            assert_eq!(values.first().map(|(_, value)| value.as_str()), Some(limit));
        };
        expect(&[none.clone(), five.clone(), unlimited.clone()], &[], "10");
        expect(&[five.clone(), three.clone()], &[], "20");
        expect(&[over.clone(), three.clone()], &[], "30");
        expect(&[over.clone(), last.clone(), five.clone()], &[], "40");
        expect(&[over.clone(), last.clone()], &[1], "30");
        // A quota that is over counts by what is left: nothing.
        expect(&[five, over], &[1], "30");
        assert!(values(&[none, unlimited], &[]).is_empty());
        assert_eq!(
            values(&[three], &[]),
            [
                ("RateLimit-Limit".to_owned(), "20".to_owned()),
                ("RateLimit-Remaining".to_owned(), "3".to_owned()),
                ("RateLimit-Reset".to_owned(), "7".to_owned())
            ]
        );
    }

    #[test]
    fn metadata_tells_what_was_asked() {
        let mut limited = entries([("a", "1")]);
        limited.hits_addend = Some(3);
        limited.limit = Some(RateLimitOverride {
            requests_per_unit: 5,
            unit: RateLimitUnit::Minute.into(),
            ..RateLimitOverride::default()
        });
        let request = RateLimitRequest {
            domain: "d".to_owned(),
            descriptors: vec![entries([("k", "v"), ("l", "")]), limited],
            hits_addend: 2,
        };
        let found = dynamic_metadata(&request, std::iter::empty());
        let first = structure(Struct {
            fields: BTreeMap::from([(
                "entries".to_owned(),
                list(vec![text("k=v".into()), text("l=".into())]),
            )]),
        });
        let second = structure(Struct {
            fields: BTreeMap::from([
                ("entries".to_owned(), list(vec![text("a=1".into())])),
                (
                    "limit".to_owned(),
                    text("requests_per_unit:5 unit:MINUTE".into()),
                ),
                ("hitsAddend".to_owned(), number(3)),
            ]),
        });
        let expected = Struct {
            fields: BTreeMap::from([
                ("domain".to_owned(), text("d".into())),
                ("descriptors".to_owned(), list(vec![first, second])),
                ("hitsAddend".to_owned(), number(2)),
            ]),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn metadata_of_rules_is_merged_and_the_first_wins() {
        let of = |pairs: Vec<(&str, Value)>| Struct {
            fields: pairs
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        };
        let first = of(vec![
            ("a", text("1".into())),
            ("deep", structure(of(vec![("x", number(1))]))),
        ]);
        let second = of(vec![
            ("a", text("2".into())),
            ("b", text("3".into())),
            (
                "deep",
                structure(of(vec![("x", number(2)), ("y", number(3))])),
            ),
        ]);
        let request = RateLimitRequest::default();
        let found = dynamic_metadata(&request, [&first, &second].into_iter());
        let expected = structure(of(vec![
            ("a", text("1".into())),
            ("b", text("3".into())),
            (
                "deep",
                structure(of(vec![("x", number(1)), ("y", number(3))])),
            ),
        ]));
        assert_eq!(found.fields["metadata"], expected);
    }
}
