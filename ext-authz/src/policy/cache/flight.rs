//! One check decides for all that are like it and come meanwhile.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{KeptDecision, Key, Shape};
use crate::policy::check::Check;

/// What the others wait for.
type Landing = watch::Receiver<Option<Arc<Landed>>>;

/// The decisions that are being made.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, Landing>>);

/// Whether somebody else is deciding already.
pub(super) enum Boarding<'c> {
    First(Flight<'c>),
    Under(Landing),
}

/// A decision being made; dropped without landing, it leaves the others to try themselves.
pub(super) struct Flight<'c> {
    flights: &'c Flights,
    key: Key,
    lands: watch::Sender<Option<Arc<Landed>>>,
}

/// A decision just made.
pub(super) struct Landed {
    pub(super) shape: Arc<Shape>,
    /// `None` when it is for nobody else.
    pub(super) key: Option<Key>,
    pub(super) result: Result<Arc<KeptDecision>, Arc<str>>,
}

impl Landed {
    /// The result, if the request is alike in all that the decision looked at.
    pub(super) fn good_for(
        &self,
        check: &Check<'_>,
        revision: u64,
    ) -> Option<Result<Arc<KeptDecision>, Arc<str>>> {
        let key = self.key?;
        let same = self.shape.key(check, revision) == Some(key);
        same.then(|| self.result.clone())
    }
}

impl Flights {
    pub(super) fn board(&self, key: Key) -> Boarding<'_> {
        match self.lock().entry(key) {
            Entry::Occupied(under) => Boarding::Under(under.get().clone()),
            Entry::Vacant(vacant) => {
                let (lands, landing) = watch::channel(None);
                vacant.insert(landing);
                Boarding::First(Flight {
                    flights: self,
                    key,
                    lands,
                })
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Landing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight<'_> {
    pub(super) fn land(self, landed: Landed) {
        self.lands.send_replace(Some(Arc::new(landed)));
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}
