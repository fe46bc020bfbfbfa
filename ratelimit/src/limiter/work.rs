//! What a request needs on the way to its decision, used again by the next one.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroU32,
};

use attache_proto::{common_ratelimit::RateLimitDescriptor, ratelimit::RateLimitRequest};

use super::{
    Decision, Hits, Unit, UnixTime,
    engine::Modes,
    pending::{Charged, Pending, Scope},
};
use crate::{
    config::Limit,
    store::{Amount, Batch, Charging, Reading, key::KeyText},
};

/// Spare ones that a thread keeps, for requests that wait for the store at the same time.
const SPARE: usize = 64;

/// Larger ones are not kept.
const LARGEST: usize = 16 * 1024;

thread_local! {
    // In boxes, since they are handed around: that moves one word.
    #[allow(clippy::vec_box)]
    static SPARES: RefCell<Vec<Box<Work>>> = const { RefCell::new(Vec::new()) };
    static KEY: Cell<KeyText> = const { Cell::new(KeyText::EMPTY) };
}

/// Lends this thread's room for the key of a counter that is charged alone.
#[inline]
pub(super) fn with_key<T>(work: impl FnOnce(&mut KeyText) -> T) -> T {
    let mut key = KEY.take();
    let result = work(&mut key);
    if key.footprint() <= LARGEST {
        KEY.set(key);
    }
    result
}

/// The descriptors of one request, their charges, and what becomes of those.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) batch: Batch,
    pub(super) pending: Vec<Pending>,
    pub(super) readings: Vec<Reading>,
}

impl Work {
    /// An empty one.
    pub(super) fn take(now: UnixTime, charging: Charging) -> Box<Self> {
        let spare = SPARES.with_borrow_mut(Vec::pop);
        let mut work = spare.unwrap_or_else(|| {
            Box::new(Self {
                batch: Batch::new(now),
                pending: Vec::new(),
                readings: Vec::new(),
            })
        });
        work.batch.restart(now, charging);
        work
    }

    /// Keeps it for the next request.
    pub(super) fn put_back(mut self: Box<Self>) {
        let lists = self.pending.capacity() * size_of::<Pending>()
            + self.readings.capacity() * size_of::<Reading>();
        if lists + self.batch.footprint() > LARGEST {
            return;
        }
        self.pending.clear();
        self.readings.clear();
        SPARES.with_borrow_mut(|spares| {
            if spares.len() < SPARE {
                spares.push(self);
            }
        });
    }

    /// Looks up every descriptor and puts the counters to charge into the batch.
    pub(super) fn prepare(&mut self, scope: Scope<'_>, request: &RateLimitRequest) {
        let Self { batch, pending, .. } = self;
        let replaced = replaced(scope, request, batch.keys());
        for descriptor in &request.descriptors {
            let entries = entries(descriptor);
            let amount = amount(descriptor, request.hits_addend);
            let now = batch.now();
            let found = match limit_of_request(descriptor) {
                Some(limit) => scope.by_limit(entries, limit, amount, batch.keys(), now),
                None => scope.by_rule(entries, amount, &replaced, batch.keys(), now),
            };
            if let Some(charged) = found.charged() {
                batch.charge(charged.terms, charged.amount);
            }
            pending.push(found);
        }
    }

    /// The batch without the charges of rules in shadow mode, which must not keep those of other
    /// rules from being carried out, and these charges; `None` when nothing is to be kept apart.
    pub(super) fn without_shadow(&self) -> Option<(Batch, Batch)> {
        let charged = || self.pending.iter().filter_map(Pending::charged);
        if self.batch.charging() == Charging::Each || !charged().any(Charged::shadow) {
            return None;
        }
        let shadow: Vec<bool> = charged().map(Charged::shadow).collect();
        let is_shadow = |number: usize| shadow.get(number).copied().unwrap_or_default();
        let mut shadows = self.batch.part(is_shadow);
        shadows.set_charging(Charging::Each);
        Some((self.batch.part(|number| !is_shadow(number)), shadows))
    }

    /// Puts the readings of both parts in the order of the batch.
    pub(super) fn join(&mut self, binding: Vec<Reading>, shadows: Vec<Reading>) {
        let (mut binding, mut shadows) = (binding.into_iter(), shadows.into_iter());
        let charged = self.pending.iter().filter_map(Pending::charged);
        self.readings.extend(charged.filter_map(|charged| {
            if charged.shadow() {
                shadows.next()
            } else {
                binding.next()
            }
        }));
    }

    /// What becomes of the request.
    pub(super) fn decide(mut self: Box<Self>, modes: &Modes) -> Decision {
        let mut readings = self.readings.drain(..);
        let descriptors = self
            .pending
            .drain(..)
            .map(|pending| pending.decide(modes, || readings.next()))
            .collect();
        drop(readings);
        self.put_back();
        Decision::of(descriptors, true, modes.shadow)
    }

    /// What the request counts.
    pub(super) fn into_hits(self) -> Vec<Hits> {
        let pending = self.pending.into_iter();
        pending.filter_map(Pending::into_hits).collect()
    }
}

/// The names of rules that do not apply, since a rule replaces them that also applies.
fn replaced<'r>(scope: Scope<'r>, request: &RateLimitRequest, keys: &mut KeyText) -> Vec<&'r str> {
    if !scope.domain.has_replacing_rules() {
        return Vec::new();
    }
    let descriptors = request.descriptors.iter();
    descriptors
        .filter(|descriptor| limit_of_request(descriptor).is_none())
        .filter_map(|descriptor| {
            let found = scope.look_up(entries(descriptor), keys).rule();
            scope.rules.get(found?)
        })
        .flat_map(|rule| rule.replaces.iter().map(|name| &**name))
        .collect()
}

fn entries(descriptor: &RateLimitDescriptor) -> impl Iterator<Item = (&str, &str)> + Clone {
    let entries = descriptor.entries.iter();
    entries.map(|entry| (entry.key.as_str(), entry.value.as_str()))
}

/// The limit that a descriptor brings itself. One with a unit that does not exist is passed over.
fn limit_of_request(descriptor: &RateLimitDescriptor) -> Option<Limit> {
    let limit = descriptor.limit.as_ref()?;
    let mut planned = Limit::new(limit.requests_per_unit, Unit::from_wire(limit.unit)?);
    if let Some(multiplier) = limit.unit_multiplier.and_then(NonZeroU32::new) {
        planned.unit_multiplier = multiplier;
    }
    Some(planned)
}

/// The descriptor's own number of hits, else the request's, of which 0 means 1.
fn amount(descriptor: &RateLimitDescriptor, of_request: u32) -> Amount {
    let hits = match descriptor.hits_addend {
        // Limits are 32 bits wide, so more hits than that are over any limit all the same.
        Some(hits) => u32::try_from(hits).unwrap_or(u32::MAX),
        None => of_request.max(1),
    };
    if descriptor.is_negative_hits {
        Amount::Refund(hits)
    } else {
        Amount::Add(hits)
    }
}
