//! What a counter's new value means: over or not, what remains, and what statistics grow by.

/// How far a limit may be used before hits count as near it.
const NEAR_RATIO: f32 = 0.8;

/// What one descriptor of one request adds to the statistics of its rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All hits.
    pub total: u64,
    /// Hits beyond the limit.
    pub over: u64,
    /// Hits in the last fifth of the limit.
    pub near: u64,
    /// Hits of descriptors within the limit.
    pub within: u64,
}

/// The verdict on one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// The counter is beyond the limit.
    pub over: bool,
    /// Hits left in the window; 0 when over.
    pub remaining: u32,
    /// Growth of the statistics.
    pub tally: Tally,
}

/// Judges a counter that stands at `after` once `addend` hits were added.
///
/// Rejected hits stay counted; the part of them that still fitted counts as near the limit.
pub fn judge(limit: u32, after: u64, addend: u64) -> Judgement {
    let before = after.saturating_sub(addend);
    let near_from = near_threshold(limit);
    let top = u64::from(limit);
    let mut tally = Tally {
        total: addend,
        ..Tally::default()
    };
    if after > top {
        if before >= top {
            tally.over = addend;
        } else {
            tally.over = after - top;
            tally.near = top - before.max(near_from);
        }
    } else {
        tally.within = addend;
        if after > near_from {
            tally.near = if before >= near_from {
                addend
            } else {
                after - near_from
            };
        }
    }
    Judgement {
        over: after > top,
        // Not beyond u32, since the limit is not.
        remaining: u32::try_from(top.saturating_sub(after)).unwrap_or(u32::MAX),
        tally,
    }
}

/// The reference computes this in 32-bit floats; so do we, to agree on every limit.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn near_threshold(limit: u32) -> u64 {
    ((limit as f32) * NEAR_RATIO).floor() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let judgement = judge(limit, after, addend);
            let tally = Tally {
                total: addend,
                over: over_limit,
                near,
                within,
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
            let tally = judge(20, after, 1).tally;
            sum.over += tally.over;
            sum.near += tally.near;
            sum.within += tally.within;
        }
        assert_eq!((sum.over, sum.near, sum.within), (5, 4, 20));
    }

    proptest::proptest! {
        #[test]
        fn every_hit_is_within_or_over_and_nothing_overflows(limit: u32, after: u64, addend: u64) {
            let judgement = judge(limit, after, addend);
            let tally = judgement.tally;
            proptest::prop_assert_eq!(judgement.over, after > u64::from(limit));
            proptest::prop_assert!(tally.near <= addend.max(u64::from(limit)));
            if !judgement.over {
                proptest::prop_assert_eq!(tally.within, addend);
            }
        }
    }
}
