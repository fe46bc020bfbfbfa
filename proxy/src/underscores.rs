//! Headers whose names have underscores (Envoy's `headers_with_underscores_action`).
//!
//! What gives headers to programs as variables, such as CGI, makes the same of `x_user` as of
//! `x-user`: a client could send by the one name what policies look for under the other.

use http::{HeaderMap, HeaderName};

/// What becomes of requests with such headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Underscores {
    /// They pass.
    #[default]
    Allow,
    /// They are refused with 400.
    RejectRequest,
    /// They pass without these headers.
    DropHeader,
}

impl Underscores {
    /// Looks at a request's headers; false when it is to be refused.
    pub(crate) fn let_in(self, headers: &mut HeaderMap) -> bool {
        let has = |name: &&HeaderName| name.as_str().contains('_');
        match self {
            Self::Allow => true,
            Self::RejectRequest => !headers.keys().any(|name| has(&name)),
            Self::DropHeader => {
                let names: Vec<HeaderName> = headers.keys().filter(has).cloned().collect();
                for name in names {
                    headers.remove(name);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_pass_or_are_dropped_or_refuse_the_request() {
        for (action, let_in, left) in [
            (Underscores::Allow, true, &["x-a", "x_a", "x_b"][..]),
            (Underscores::RejectRequest, false, &["x-a", "x_a", "x_b"]),
            (Underscores::DropHeader, true, &["x-a"]),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-a", "1"), ("x_a", "2"), ("x_a", "3"), ("x_b", "4")] {
                headers.append(name, value.parse().unwrap());
            }
            assert_eq!(action.let_in(&mut headers), let_in, "{action:?}");
            let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, left, "{action:?}");
        }
        let mut plain = HeaderMap::new();
        assert!(Underscores::RejectRequest.let_in(&mut plain));
    }
}
