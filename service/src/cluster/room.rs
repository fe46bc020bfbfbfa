//! The connections of one client to one endpoint, within `max_connections`.

use std::sync::Arc;

use super::breakers::{Breakers, Permit, Resource};

/// Counts the connections of one client to one endpoint.
#[derive(Debug, Default)]
pub struct Rooms(Arc<()>);

/// A connection's place within the limits, given back when dropped.
#[derive(Debug)]
pub struct Room {
    _permit: Option<Permit>,
    /// Counts the connections of the client.
    _open: Arc<()>,
}

impl Rooms {
    /// Room for one connection more. Who has none has it always: those to other endpoints and of
    /// other workers may never become free.
    pub fn take(&self, breakers: &Breakers) -> Option<Room> {
        let permit = breakers.try_acquire(Resource::Connections);
        let alone = Arc::strong_count(&self.0) == 1;
        (permit.is_some() || alone).then(|| self.with(permit))
    }

    /// The same for a connection that is there in any case: it counts while there is room.
    pub fn take_anyway(&self, breakers: &Breakers) -> Room {
        self.with(breakers.try_acquire(Resource::Connections))
    }

    fn with(&self, permit: Option<Permit>) -> Room {
        Room {
            _permit: permit,
            _open: self.0.clone(),
        }
    }
}
