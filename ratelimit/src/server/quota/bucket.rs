//! What a bucket is called, and which rule it has.

use std::sync::Arc;

use attache_proto::{
    common_ratelimit::RateLimitDescriptor,
    rate_limit_quota::{BucketId, rate_limit_quota_usage_reports::BucketQuotaUsage},
};

use crate::limiter::descriptor;

/// Pairs that a bucket may have, and their octets together: more are refused, since they are kept
/// for as long as somebody reports them.
const MOST_PAIRS: usize = 32;
const MOST_OCTETS: usize = 4096;

/// A bucket of a domain. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BucketKey {
    pub(super) domain: Arc<str>,
    /// Sorted by key: on the wire they have no order.
    pairs: Arc<[(String, String)]>,
}

/// What a proxy let through since its last report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) allowed: u64,
    /// Whole seconds that it is spread over; 0 when it is not known.
    pub(super) seconds: u64,
}

/// Why a report cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a usage report has no bucket_id")]
    NoBucket,
    #[error("a bucket_id has more than {MOST_PAIRS} pairs or {MOST_OCTETS} octets")]
    TooLarge,
}

impl BucketKey {
    pub(super) fn read(domain: &Arc<str>, id: Option<&BucketId>) -> Result<Self, Malformed> {
        let pairs = id.map(|id| &id.bucket).filter(|pairs| !pairs.is_empty());
        let pairs = pairs.ok_or(Malformed::NoBucket)?;
        let octets: usize = pairs
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if pairs.len() > MOST_PAIRS || octets > MOST_OCTETS {
            return Err(Malformed::TooLarge);
        }
        Ok(Self {
            domain: domain.clone(),
            // The map is sorted.
            pairs: pairs
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }

    pub(super) fn to_wire(&self) -> BucketId {
        BucketId {
            bucket: self.pairs.iter().cloned().collect(),
        }
    }

    /// The descriptor whose rule is the bucket's: its pairs as entries, sorted by key.
    pub(super) fn descriptor(&self, hits: u64) -> RateLimitDescriptor {
        let pairs = self.pairs.iter();
        RateLimitDescriptor {
            hits_addend: Some(hits),
            ..descriptor(pairs.map(|(key, value)| (key.as_str(), value.as_str())))
        }
    }
}

impl Usage {
    pub(super) fn read(usage: &BucketQuotaUsage) -> Self {
        let seconds = usage.time_elapsed.as_ref().map(|elapsed| elapsed.seconds);
        Self {
            allowed: usage.num_requests_allowed,
            seconds: seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or_default(),
        }
    }

    /// The part of it that belongs to the last `seconds`, as if it had been even; rounded up.
    pub(super) fn within(self, seconds: u64) -> u64 {
        if self.seconds <= seconds {
            return self.allowed;
        }
        let part = u128::from(self.allowed) * u128::from(seconds);
        let part = part.div_ceil(u128::from(self.seconds.max(1)));
        u64::try_from(part).unwrap_or(self.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(pairs: &[(&str, &str)]) -> BucketId {
        BucketId {
            bucket: pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn buckets_have_no_order_and_their_descriptors_are_sorted_by_key() {
        let domain = Arc::from("shop");
        let one = BucketKey::read(&domain, Some(&id(&[("user", "a"), ("route", "b")]))).unwrap();
        let other = BucketKey::read(&domain, Some(&id(&[("route", "b"), ("user", "a")]))).unwrap();
        assert_eq!(one, other);
        let entries: Vec<_> = one
            .descriptor(7)
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(entries, [pair("route", "b"), pair("user", "a")]);
        assert_eq!(one.descriptor(7).hits_addend, Some(7));
        assert_eq!(one.to_wire(), id(&[("user", "a"), ("route", "b")]));
    }

    #[test]
    fn what_is_no_bucket_is_refused() {
        let domain = Arc::from("shop");
        for (bucket, expected) in [
            (None, Malformed::NoBucket),
            (Some(id(&[])), Malformed::NoBucket),
            (Some(id(&[("k", &"v".repeat(5000))])), Malformed::TooLarge),
        ] {
            let read = BucketKey::read(&domain, bucket.as_ref());
            assert_eq!(read, Err(expected));
        }
    }

    #[test]
    fn usage_belongs_to_the_windows_it_was_in() {
        let usage = |allowed, seconds| Usage { allowed, seconds };
        assert_eq!(usage(50, 5).within(1), 10);
        assert_eq!(usage(50, 5).within(60), 50);
        assert_eq!(usage(51, 5).within(1), 11);
        assert_eq!(usage(50, 0).within(0), 50);
        assert_eq!(usage(50, 5).within(0), 0);
        assert_eq!(usage(u64::MAX, 2).within(1), u64::MAX / 2 + 1);
    }
}
