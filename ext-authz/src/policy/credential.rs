//! Where in a request a credential is.

use std::borrow::Cow;

use attache_service::config::{Errors, Located};
use http::HeaderName;

use super::config::{Part, Place};
use crate::server::CheckRequestView;

/// A place to look for a credential, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spot {
    Header { name: String, scheme: String },
    Query(String),
    Cookie(String),
}

impl Spot {
    /// The places as configured, or the default.
    pub(super) fn plan(raw: &[Located<Place>], default: Self, errors: &mut Errors) -> Vec<Self> {
        if raw.is_empty() {
            return vec![default];
        }
        raw.iter()
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
            .collect()
    }

    /// The credential, if there is one here.
    pub(super) fn find<'a>(&'a self, request: &'a CheckRequestView) -> Option<Cow<'a, str>> {
        let found = match self {
            Self::Header { name, scheme } => {
                let value = request.header(name)?;
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
            Self::Query(name) => request.query_values(name).next()?,
            Self::Cookie(name) => request.cookie(name)?.into(),
        };
        (!found.is_empty()).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn credentials_are_found_where_they_are_said_to_be() {
        let request = crate::testing::view(
            &Request::get("http://h/p?key=a%2Bb&empty=")
                .header("authorization", "bearer  abc")
                .header("x-api-key", "k1")
                .header("cookie", "t=c1; u=2")
                .body(())
                .unwrap(),
        );
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
            (Spot::Cookie("t".into()), Some("c1")),
        ] {
            assert_eq!(spot.find(&request).as_deref(), expected, "{spot:?}");
        }
    }
}
