//! Headers whose values are secrets: the live page shows that they are there, and no more.

use std::{
    collections::{BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
};

/// Headers whose values are never shown unless the configuration says so.
pub const MASKED: [&str; 5] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
];

/// The headers whose values are not shown.
#[derive(Debug, Clone)]
pub struct Masks {
    names: BTreeSet<String>,
    /// Marks equal values, in a way that says nothing of what they are.
    marks: RandomState,
}

impl Default for Masks {
    fn default() -> Self {
        Self::of(MASKED)
    }
}

impl Masks {
    /// These names, in lower case.
    pub fn of<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            marks: RandomState::new(),
        }
    }

    /// Whether the values of this header are left out.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Four digits, the same for the same value as long as this process keeps its configuration.
    pub(super) fn mark(&self, value: &[u8]) -> String {
        format!("{:04x}", self.marks.hash_one(value) & 0xffff)
    }
}
