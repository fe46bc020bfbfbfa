//! SPIFFE IDs: `spiffe://trust-domain/path`.

use std::fmt;

/// Most bytes of a SPIFFE ID, and of its trust domain.
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a workload, as the SPIFFE ID specification has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId<'a> {
    trust_domain: &'a str,
    path: &'a str,
}

/// Not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// It does not begin with `spiffe://`.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// The trust domain is empty, too long, or has other characters.
    #[error("a trust domain has 1 to 255 characters of a-z, 0-9, `.`, `-` and `_`")]
    TrustDomain,
    /// A segment of the path is empty, `.`, `..`, or has other characters.
    #[error("a segment of the path is empty, `.` or `..`, or is not of letters, digits, `.-_`")]
    Path,
    /// It has more than 2048 bytes.
    #[error("a SPIFFE ID has at most 2048 bytes")]
    TooLong,
}

impl<'a> SpiffeId<'a> {
    /// Reads an ID. Exact: what the specification does not allow is refused, not mended.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(id: &'a str) -> Result<Self, SpiffeError> {
        if id.len() > MAX_ID {
            return Err(SpiffeError::TooLong);
        }
        let rest = id.strip_prefix("spiffe://").ok_or(SpiffeError::Scheme)?;
        let end = rest.find('/').unwrap_or(rest.len());
        let (trust_domain, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        let named = !trust_domain.is_empty() && trust_domain.len() <= MAX_TRUST_DOMAIN;
        if !named || !trust_domain.bytes().all(plain) {
            return Err(SpiffeError::TrustDomain);
        }
        let segment = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if !path.split('/').skip(1).all(segment) {
            return Err(SpiffeError::Path);
        }
        Ok(Self { trust_domain, path })
    }

    /// The trust domain, such as `example.org`.
    pub fn trust_domain(&self) -> &'a str {
        self.trust_domain
    }

    /// The path with its slash, such as `/ns/web/sa/front`; empty for the trust domain itself.
    pub fn path(&self) -> &'a str {
        self.path
    }
}

impl fmt::Display for SpiffeId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}{}", self.trust_domain, self.path)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_exact() {
        let long = format!("spiffe://{}", "a".repeat(256));
        let longer = format!("spiffe://a/{}", "a".repeat(2048));
        for (text, parts) in [
            (
                "spiffe://a.example/ns/b/sa/C_1",
                Ok(("a.example", "/ns/b/sa/C_1")),
            ),
            ("spiffe://a.example", Ok(("a.example", ""))),
            ("https://a.example", Err(SpiffeError::Scheme)),
            ("SPIFFE://a.example", Err(SpiffeError::Scheme)),
            ("spiffe:///a", Err(SpiffeError::TrustDomain)),
            ("spiffe://A.example", Err(SpiffeError::TrustDomain)),
            ("spiffe://a:80/b", Err(SpiffeError::TrustDomain)),
            ("spiffe://u@a/b", Err(SpiffeError::TrustDomain)),
            (&long, Err(SpiffeError::TrustDomain)),
            ("spiffe://a/", Err(SpiffeError::Path)),
            ("spiffe://a/b/", Err(SpiffeError::Path)),
            ("spiffe://a//b", Err(SpiffeError::Path)),
            ("spiffe://a/../b", Err(SpiffeError::Path)),
            ("spiffe://a/b%2fc", Err(SpiffeError::Path)),
            ("spiffe://a/b?c", Err(SpiffeError::Path)),
            (&longer, Err(SpiffeError::TooLong)),
        ] {
            let parsed = SpiffeId::parse(text);
            assert_eq!(
                parsed.map(|id| (id.trust_domain(), id.path())),
                parts,
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(spiffe://)?[a-z./%A]{0,12}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
