//! Fingerprints of requests, as far as a decision looked at them.

use std::{collections::BTreeSet, fmt};

use aws_lc_rs::hmac;

use crate::policy::check::{Check, Read};

/// What tells requests apart: 256 bits under a key of this process, so nobody can make two
/// requests meet, and it says nothing of the values.
pub(super) type Key = [u8; 32];

/// A fingerprint in the making. Lengths tell values from their neighbours.
pub(in crate::policy) struct Fingerprint(hmac::Context);

impl Fingerprint {
    /// Adds a value that may be absent, which is not the same as empty.
    pub(in crate::policy) fn value(&mut self, value: Option<impl AsRef<[u8]>>) {
        self.values(value);
    }

    /// Adds any number of values.
    pub(in crate::policy) fn values<V: AsRef<[u8]>>(
        &mut self,
        values: impl IntoIterator<Item = V>,
    ) {
        for value in values {
            let value = value.as_ref();
            self.0.update(&(value.len() as u64).to_le_bytes());
            self.0.update(value);
        }
        // The end: no value is that long.
        self.0.update(&u64::MAX.to_le_bytes());
    }

    fn finish(self) -> Key {
        let mut key = Key::default();
        for (to, from) in key.iter_mut().zip(self.0.sign().as_ref()) {
            *to = *from;
        }
        key
    }
}

/// The parts of a request that a decision looks at.
pub(super) struct Shape {
    reads: BTreeSet<Read>,
    /// Has the names of the parts in it, so that the same values of other parts are another key.
    start: hmac::Context,
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reads.fmt(f)
    }
}

impl Shape {
    pub(super) fn new(reads: BTreeSet<Read>, secret: &hmac::Key) -> Self {
        let mut start = Fingerprint(hmac::Context::with_key(secret));
        start.values(reads.iter().map(Read::to_string));
        Self {
            reads,
            start: start.0,
        }
    }

    pub(super) fn reads(&self) -> &BTreeSet<Read> {
        &self.reads
    }

    /// The key of a request at a revision of what decisions rest on; `None` when it is like no
    /// other.
    pub(super) fn key(&self, check: &Check<'_>, revision: u64) -> Option<Key> {
        let mut print = Fingerprint(self.start.clone());
        print.0.update(&revision.to_le_bytes());
        for part in &self.reads {
            if !check.print(part, &mut print) {
                return None;
            }
        }
        Some(print.finish())
    }
}
