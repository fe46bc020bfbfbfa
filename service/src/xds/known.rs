//! What is remembered of one type, from one response and stream to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    refusal::Repeats,
    resource::{Answer, Resource, ResourceType, Update, Wanted},
};

/// What is wanted of one type, and what is in force.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) resource_type: ResourceType,
    pub(super) wanted: Wanted,
    /// The resources in force and their versions; of those that another source has brought, the
    /// version is empty.
    pub(super) in_force: BTreeMap<String, String>,
    /// Most resources that may be in force.
    max: usize,
    repeats: Repeats,
}

/// The refusal of a response, and how long to wait before it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reason: String,
    pub(super) pause: Duration,
}

impl Known {
    pub(super) fn new(resource_type: ResourceType, wanted: Wanted, max: usize) -> Self {
        Self {
            resource_type,
            wanted,
            in_force: BTreeMap::new(),
            max,
            repeats: Repeats::default(),
        }
    }

    /// Whether there is anything to ask.
    pub(super) fn asks(&self) -> bool {
        match &self.wanted {
            Wanted::All => true,
            Wanted::Named(names) => !names.is_empty(),
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        match &self.wanted {
            Wanted::All => true,
            Wanted::Named(names) => names.contains(name),
        }
    }

    /// The names to ask for; none asks for everything.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.wanted {
            Wanted::All => Vec::new(),
            Wanted::Named(names) => names.iter().cloned().collect(),
        }
    }

    /// Wants these from here on, and forgets the others; the names of before. `None` when nothing
    /// changes, or everything is wanted anyway.
    pub(super) fn want(&mut self, names: BTreeSet<String>) -> Option<BTreeSet<String>> {
        let Wanted::Named(wanted) = &mut self.wanted else {
            return None;
        };
        if *wanted == names {
            return None;
        }
        self.in_force.retain(|name, _| names.contains(name));
        Some(std::mem::replace(wanted, names))
    }

    /// Brought by another source.
    pub(super) fn resume(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.in_force.entry(name).or_default();
        }
    }

    /// Whether these resources may come into force.
    pub(super) fn check(&self, resources: &[Resource], removed: &[String]) -> Result<(), String> {
        let mut seen: BTreeSet<&str> = removed.iter().map(String::as_str).collect();
        let mut count = self.in_force.len();
        for resource in resources {
            let name = &*resource.name;
            if !seen.insert(name) {
                return Err(format!("{name}: the resource is there more than once"));
            }
            if !self.in_force.contains_key(name) {
                count = count.saturating_add(1);
            }
        }
        let gone = removed
            .iter()
            .filter(|name| self.in_force.contains_key(*name));
        let count = count.saturating_sub(gone.count());
        match count > self.max {
            true => Err(format!("{count} resources; {} are allowed", self.max)),
            false => Ok(()),
        }
    }

    /// Remembers what an answer has brought into force; the refusal, if it is one.
    pub(super) fn settle(&mut self, update: &Update, answer: &Answer) -> Option<Refused> {
        let refused: BTreeSet<&str> = match answer {
            Answer::Refused(reason) => return Some(self.refuse(&update.version, reason.clone())),
            Answer::Accepted => BTreeSet::new(),
            Answer::Partly(refusals) => refusals.iter().map(|one| &*one.name).collect(),
        };
        for name in &update.removed {
            self.in_force.remove(name);
        }
        for resource in &update.resources {
            // It may be unwanted by now.
            if !refused.contains(&*resource.name) && self.wants(&resource.name) {
                let version = resource.version.clone();
                self.in_force.insert(resource.name.clone(), version);
            }
        }
        match answer.reason() {
            Some(reason) => Some(self.refuse(&update.version, reason)),
            None => {
                self.repeats.end();
                None
            }
        }
    }

    pub(super) fn refuse(&mut self, version: &str, reason: String) -> Refused {
        let pause = self.repeats.pause(version, &reason);
        Refused { reason, pause }
    }
}
