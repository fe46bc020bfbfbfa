//! Values by name.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

/// So many names are compared one by one, which is faster than hashing.
const FEW: usize = 4;

/// Values by name, in the order in which they came.
#[derive(Debug)]
pub(super) struct Names<V> {
    entries: Vec<(Box<str>, V)>,
    /// Positions in `entries`.
    positions: HashTable<usize>,
    hasher: RandomState,
}

impl<V> Default for Names<V> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            positions: HashTable::new(),
            hasher: RandomState::default(),
        }
    }
}

impl<V> Names<V> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of this name.
    #[inline]
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        if self.entries.len() <= FEW {
            let entry = self.entries.iter().find(|(other, _)| **other == *name);
            return entry.map(|(_, value)| value);
        }
        self.at(self.position(name)?)
    }

    /// The value that came after so many others.
    #[inline]
    pub(super) fn at(&self, position: usize) -> Option<&V> {
        self.entries.get(position).map(|(_, value)| value)
    }

    /// The value of this name, to be changed.
    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        let at = self.position(name)?;
        self.entries.get_mut(at).map(|(_, value)| value)
    }

    /// Adds a value; false when there is one of this name already.
    pub(super) fn insert(&mut self, name: &str, value: V) -> bool {
        if self.position(name).is_some() {
            return false;
        }
        let Self {
            entries,
            positions,
            hasher,
        } = self;
        let hash = |at: &usize| {
            let entry = entries.get(*at);
            entry.map_or(0, |(name, _)| hasher.hash_one(&**name))
        };
        positions.insert_unique(hasher.hash_one(name), entries.len(), hash);
        entries.push((name.into(), value));
        true
    }

    /// All of them, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.entries.iter().map(|(name, value)| (&**name, value))
    }

    fn position(&self, name: &str) -> Option<usize> {
        let is = |at: &usize| matches!(self.entries.get(*at), Some((other, _)) if **other == *name);
        self.positions.find(self.hasher.hash_one(name), is).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_names_have_their_values() {
        let mut names = Names::default();
        for number in 0..40 {
            let name = format!("name{number}");
            assert_eq!(names.get(&name), None);
            assert!(names.insert(&name, 500));
            assert!(!names.insert(&name, 1000));
            *names.get_mut(&name).unwrap() = number;
            for earlier in 0..=number {
                assert_eq!(names.get(&format!("name{earlier}")), Some(&earlier));
            }
        }
        assert_eq!(names.get("name"), None);
        assert_eq!((names.at(39), names.at(40)), (Some(&39), None));
        assert_eq!(names.iter().last(), Some(("name39", &39)));
    }
}
