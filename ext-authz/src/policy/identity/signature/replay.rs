//! What has been taken already, so that it is not taken twice.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use super::Hash;

/// Signatures that have been taken and are young enough to be tried again. It outlives the
/// policy: reading settings anew must not let anything pass a second time.
#[derive(Debug, Default)]
pub(super) struct Replays(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    taken: HashSet<Hash>,
    /// The same, by the second after which they need not be remembered.
    ends: BTreeSet<(i64, Hash)>,
}

/// What a memory says of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not seen before; remembered.
    Taken,
    Seen,
    /// As many as may be are remembered, and none can be forgotten yet.
    Full,
}

impl Replays {
    /// Takes what has this hash, once until `end`. Times are seconds since 1970.
    pub(super) fn take(&self, hash: Hash, end: i64, now: i64, capacity: usize) -> Admission {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(&(old, hash)) = memory.ends.first()
            && old < now
        {
            memory.ends.pop_first();
            memory.taken.remove(&hash);
        }
        if memory.taken.contains(&hash) {
            return Admission::Seen;
        }
        if memory.taken.len() >= capacity {
            return Admission::Full;
        }
        memory.taken.insert(hash);
        memory.ends.insert((end, hash));
        Admission::Taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_not_taken_again_until_it_has_ended() {
        let replays = Replays::default();
        assert_eq!(replays.take([1; 32], 10, 0, 9), Admission::Taken);
        assert_eq!(replays.take([1; 32], 10, 10, 9), Admission::Seen);
        assert_eq!(replays.take([2; 32], 10, 10, 9), Admission::Taken);
        assert_eq!(replays.take([1; 32], 30, 11, 9), Admission::Taken);
    }

    #[test]
    fn a_full_memory_refuses_and_forgets_nothing_early() {
        let replays = Replays::default();
        assert_eq!(replays.take([1; 32], 10, 0, 2), Admission::Taken);
        assert_eq!(replays.take([2; 32], 20, 0, 2), Admission::Taken);
        assert_eq!(replays.take([3; 32], 20, 5, 2), Admission::Full);
        assert_eq!(replays.take([1; 32], 10, 5, 2), Admission::Seen);
        assert_eq!(replays.take([3; 32], 20, 11, 2), Admission::Taken);
        assert_eq!(replays.take([2; 32], 20, 11, 2), Admission::Seen);
    }
}
