//! Where in a request a credential is.

use std::borrow::Cow;

use attache_service::config::Located;
use http::HeaderName;

use crate::policy::{
    check::{Check, Read},
    config::{Part, Place},
    planning::Planning,
};

/// A place to look for a credential, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum Spot {
    Header { name: String, scheme: String },
    Query(String),
    Cookie(String),
}

impl Spot {
    /// The places as configured, or the default; what is there is never logged.
    pub(super) fn plan(
        raw: &[Located<Place>],
        default: Self,
        planning: &mut Planning<'_>,
    ) -> Vec<Self> {
        let errors = &mut *planning.errors;
        let mut spots: Vec<Self> = raw
            .iter()
            .filter_map(|place| {
                let scheme = place.scheme.clone().unwrap_or_default();
                if !scheme.is_empty() && !matches!(place.part, Part::Header(_)) {
                    errors.push(place, "only a header's value has a `scheme` in front of it");
                }
                match &place.part {
                    Part::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                        Ok(name) => Some(Self::Header {
                            name: name.as_str().to_owned(),
                            scheme: scheme.trim().to_owned(),
                        }),
                        Err(_) => {
                            errors.push(place, format!("`{name}` is not a header name"));
                            None
                        }
                    },
                    Part::Query(name) => Some(Self::Query(name.clone())),
                    Part::Cookie(name) => Some(Self::Cookie(name.clone())),
                }
            })
            .collect();
        if raw.is_empty() {
            spots.push(default);
        }
        for spot in &spots {
            planning.credential(match spot {
                Self::Header { name, .. } => Read::Header(name.clone()),
                Self::Query(name) => Read::Parameter(name.clone()),
                Self::Cookie(name) => Read::Cookie(name.clone()),
            });
        }
        spots
    }

    /// The credential, if there is one here.
    pub(super) fn find<'a>(&'a self, check: &Check<'a>) -> Option<Cow<'a, str>> {
        let found = match self {
            Self::Header { name, scheme } => {
                let value = check.header(name)?;
                if scheme.is_empty() {
                    value
                } else {
                    let (given, rest) = value.trim().split_once(' ')?;
                    if !given.eq_ignore_ascii_case(scheme) {
                        return None;
                    }
                    Cow::Owned(rest.trim().to_owned())
                }
            }
            Self::Query(name) => joined(check.parameter(name))?,
            Self::Cookie(name) => joined(check.cookie(name).map(Cow::Borrowed))?,
        };
        (!found.is_empty()).then_some(found)
    }
}

/// Several values, joined as repeated headers are: which of them counts, different programs see
/// differently, so none does.
fn joined<'a>(mut values: impl Iterator<Item = Cow<'a, str>>) -> Option<Cow<'a, str>> {
    let first = values.next()?;
    Some(values.fold(first, |before, value| format!("{before},{value}").into()))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::policy::{explain::Trail, path::Reading};

    #[test]
    fn credentials_are_found_where_they_are_said_to_be() {
        let view = crate::testing::view(
            &Request::get("http://h/p?key=a%2Bb&empty=&twice=a&twice=b")
                .header("authorization", "bearer  abc")
                .header("x-api-key", "k1")
                .header("cookie", "t=c1; u=2; w=a; w=b")
                .body(())
                .unwrap(),
        );
        let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        let header = |name: &str, scheme: &str| Spot::Header {
            name: name.into(),
            scheme: scheme.into(),
        };
        for (spot, expected) in [
            (header("authorization", "Bearer"), Some("abc")),
            (header("authorization", "Basic"), None),
            (header("x-api-key", ""), Some("k1")),
            (header("x-api-key", "Bearer"), None),
            (header("x-none", ""), None),
            (Spot::Query("key".into()), Some("a+b")),
            (Spot::Query("empty".into()), None),
            (Spot::Query("twice".into()), Some("a,b")),
            (Spot::Cookie("t".into()), Some("c1")),
            (Spot::Cookie("w".into()), Some("a,b")),
        ] {
            assert_eq!(spot.find(&check).as_deref(), expected, "{spot:?}");
        }
    }
}
