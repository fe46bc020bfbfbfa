//! What a counter's new value means: over or not, what remains, and what statistics grow by.

use crate::store::{Reading, Source};

/// What one descriptor of one request adds to the statistics of its rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All hits.
    pub total: u64,
    /// Hits beyond the limit.
    pub over: u64,
    /// Hits in the last part of the limit.
    pub near: u64,
    /// Hits of descriptors within the limit.
    pub within: u64,
    /// Those of `over` that nothing was refused for, since the rule is in shadow mode.
    pub shadow: u64,
    /// Those of `over` that the store was not asked about.
    pub over_with_local_cache: u64,
}

/// How far a limit may be used before hits count as near it: a part of it, by default 0.8.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearLimitRatio(pub f32);

impl Default for NearLimitRatio {
    fn default() -> Self {
        Self(0.8)
    }
}

impl NearLimitRatio {
    /// The count that all hits beyond are near `limit`.
    ///
    /// The reference computes this in 32-bit floats and rounds down; so do we, to agree on every
    /// limit.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    fn threshold(self, limit: u32) -> u64 {
        ((limit as f32) * self.0) as u64
    }
}

/// The verdict on one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The counter is beyond the limit.
    pub over: bool,
    /// Hits left; 0 when over, unless the hits were too many and so were not counted.
    pub remaining: u32,
    /// Growth of the statistics.
    pub tally: Tally,
}

/// Judges what became of `addend` hits on a counter that may go up to `capacity`.
#[inline]
pub fn judge(capacity: u32, addend: u64, reading: &Reading, near: NearLimitRatio) -> Judgement {
    let top = u64::from(capacity);
    if reading.source == Source::OverLimitCache {
        return Judgement {
            over: true,
            remaining: 0,
            tally: Tally {
                total: addend,
                over: addend,
                over_with_local_cache: addend,
                ..Tally::default()
            },
        };
    }
    let over = reading.after > top;
    let mut tally = Tally {
        total: addend,
        ..Tally::default()
    };
    if reading.charged {
        count(&mut tally, top, near.threshold(capacity), reading.after);
    } else if over {
        // None of them was counted, so none of them was near the limit either.
        tally.over = addend;
    }
    let counted = if reading.charged {
        reading.after
    } else {
        reading.before
    };
    Judgement {
        over,
        // Not beyond u32, since the capacity is not.
        remaining: u32::try_from(top.saturating_sub(counted)).unwrap_or(u32::MAX),
        tally,
    }
}

/// Shares hits that were counted out to the statistics. Those of a descriptor that is over stay
/// counted; the part of them that still fitted counts as near the limit.
#[inline]
fn count(tally: &mut Tally, top: u64, near_from: u64, after: u64) {
    let addend = tally.total;
    let before = after.saturating_sub(addend);
    if after > top {
        if before >= top {
            tally.over = addend;
        } else {
            tally.over = after - top;
            tally.near = top.saturating_sub(before.max(near_from));
        }
        return;
    }
    tally.within = addend;
    if after > near_from {
        tally.near = if before >= near_from {
            addend
        } else {
            after - near_from
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge_count(limit: u32, after: u64, addend: u64) -> Judgement {
        let reading = Reading::of_store(after.saturating_sub(addend), after, 1);
        judge(limit, addend, &reading, NearLimitRatio::default())
    }

    #[test]
    fn verdicts_and_statistics_follow_the_reference() {
        // limit, after, addend -> over, remaining, over_limit, near_limit, within_limit
        let table = [
            (20, 5, 3, false, 15, 0, 0, 3),
            (8, 7, 2, false, 1, 0, 1, 2),
            (20, 19, 3, false, 1, 0, 3, 3),
            (20, 22, 3, true, 0, 2, 1, 0),
            (20, 22, 7, true, 0, 2, 4, 0),
            (10, 30, 3, true, 0, 3, 0, 0),
            (15, 11, 1, false, 4, 0, 0, 1),
            (15, 13, 1, false, 2, 0, 1, 1),
            (15, 16, 1, true, 0, 1, 0, 0),
            (1, 1, 1, false, 0, 0, 1, 1),
            (0, 1, 1, true, 0, 1, 0, 0),
            // Looking without adding.
            (0, 0, 0, false, 0, 0, 0, 0),
            (1, 2, 0, true, 0, 0, 0, 0),
            (1, 0, 0, false, 1, 0, 0, 0),
            (u32::MAX, 1, 1, false, u32::MAX - 1, 0, 0, 1),
        ];
        for (limit, after, addend, over, remaining, over_limit, near, within) in table {
            let judgement = judge_count(limit, after, addend);
            let tally = Tally {
                total: addend,
                over: over_limit,
                near,
                within,
                ..Tally::default()
            };
            let expected = Judgement {
                over,
                remaining,
                tally,
            };
            assert_eq!(judgement, expected, "{limit} {after} {addend}");
        }
    }

    #[test]
    fn twenty_five_single_hits_on_twenty() {
        let mut sum = Tally::default();
        for after in 1..=25 {
            let tally = judge_count(20, after, 1).tally;
            sum.over += tally.over;
            sum.near += tally.near;
            sum.within += tally.within;
        }
        assert_eq!((sum.over, sum.near, sum.within), (5, 4, 20));
    }

    #[test]
    fn where_near_begins_can_be_set() {
        let reading = Reading::of_store(5, 6, 1);
        let near = |ratio| judge(10, 1, &reading, NearLimitRatio(ratio)).tally.near;
        assert_eq!((near(0.8), near(0.5)), (0, 1));
    }

    #[test]
    fn hits_that_were_not_counted_leave_what_there_was() {
        let reading = Reading {
            charged: false,
            ..Reading::of_store(8, 13, 1)
        };
        let judgement = judge(10, 5, &reading, NearLimitRatio::default());
        assert_eq!((judgement.over, judgement.remaining), (true, 2));
        assert_eq!((judgement.tally.over, judgement.tally.near), (5, 0));

        // They would have fitted; others of the request did not.
        let reading = Reading {
            charged: false,
            ..Reading::of_store(2, 7, 1)
        };
        let judgement = judge(10, 5, &reading, NearLimitRatio::default());
        assert_eq!((judgement.over, judgement.remaining), (false, 8));
        assert_eq!((judgement.tally.over, judgement.tally.within), (0, 0));
    }

    #[test]
    fn what_is_remembered_to_be_over_is_over() {
        let reading = Reading {
            source: Source::OverLimitCache,
            ..Reading::of_store(0, 0, 1)
        };
        let judgement = judge(10, 3, &reading, NearLimitRatio::default());
        assert_eq!((judgement.over, judgement.remaining), (true, 0));
        assert_eq!(judgement.tally.over, 3);
        assert_eq!(judgement.tally.over_with_local_cache, 3);
    }

    proptest::proptest! {
        #[test]
        fn every_hit_is_within_or_over_and_nothing_overflows(limit: u32, after: u64, addend: u64) {
            let judgement = judge_count(limit, after, addend);
            let tally = judgement.tally;
            proptest::prop_assert_eq!(judgement.over, after > u64::from(limit));
            proptest::prop_assert!(tally.near <= addend.max(u64::from(limit)));
            if !judgement.over {
                proptest::prop_assert_eq!(tally.within, addend);
            }
        }
    }
}
