//! The endpoints of one cluster: a set that is replaced as a whole.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio_util::task::AbortOnDropHandle;

use super::endpoint::{Common, Described, Endpoint};

/// The endpoints of a cluster, one set for the whole process.
///
/// Sources replace it, balancers follow it. Endpoints that stay are the same ones afterwards, and
/// so keep their health, and everything that workers hold for them.
pub struct Endpoints {
    name: Arc<str>,
    common: Arc<Common>,
    members: ArcSwap<Vec<Member>>,
    replacing: Mutex<()>,
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// An endpoint in a set.
#[derive(Debug, Clone)]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests, relative to the others; at least 1.
    pub weight: u32,
}

impl Endpoints {
    /// The endpoints of the cluster `name`.
    pub fn new<D: Into<Described>>(
        name: impl Into<Arc<str>>,
        described: impl IntoIterator<Item = D>,
    ) -> Arc<Self> {
        let this = Self {
            name: name.into(),
            common: Arc::default(),
            members: ArcSwap::default(),
            replacing: Mutex::default(),
            tasks: Mutex::default(),
        };
        this.replace(described.into_iter().map(Into::into).collect());
        Arc::new(this)
    }

    /// The cluster's name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The endpoints now.
    pub fn members(&self) -> Arc<Vec<Member>> {
        self.members.load_full()
    }

    /// Changes whenever the set or the health of a member does.
    pub fn version(&self) -> u64 {
        self.common.version()
    }

    /// Waits until the set or the health of a member is another than at `version`.
    pub async fn changed(&self, version: u64) -> u64 {
        self.changes().since(version).await
    }

    /// What tells of changes without holding the endpoints.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.common.clone())
    }

    /// Replaces the set. An endpoint named twice is there once, with the last weight.
    pub fn replace(&self, described: Vec<Described>) {
        let _one_at_a_time = self
            .replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.members.load_full();
        let mut members: Vec<Member> = Vec::with_capacity(described.len());
        for described in &described {
            let weight = described.weight.max(1);
            let is = |member: &&mut Member| member.endpoint.is(described);
            if let Some(twice) = members.iter_mut().find(is) {
                twice.weight = weight;
                continue;
            }
            let known = before.iter().find(|member| member.endpoint.is(described));
            let endpoint = match known {
                Some(member) => member.endpoint.clone(),
                None => Arc::new(Endpoint::new(described, self.common.clone())),
            };
            endpoint.update(described);
            members.push(Member { endpoint, weight });
        }
        let same = |(a, b): (&Member, &Member)| {
            Arc::ptr_eq(&a.endpoint, &b.endpoint) && a.weight == b.weight
        };
        if members.len() == before.len() && members.iter().zip(before.iter()).all(same) {
            return;
        }
        self.members.store(Arc::new(members));
        self.common.raise();
    }

    /// An endpoint that is not in the set, counted with the cluster.
    pub fn outside(&self, described: &Described) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(described, self.common.clone()))
    }

    pub(super) fn common(&self) -> &Common {
        &self.common
    }

    /// Runs `task` as long as these endpoints are in use: a source, or a health check. It must
    /// not hold them itself.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn attach(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(task);
    }
}

/// Tells of changes to a set and to the health of its members.
pub(super) struct Changes(Arc<Common>);

impl Changes {
    /// The version now.
    pub(super) fn now(&self) -> u64 {
        self.0.version()
    }

    /// Waits until there is another version than this.
    pub(super) async fn since(&self, version: u64) -> u64 {
        loop {
            let changed = self.0.changed.notified();
            let now = self.now();
            if now != version {
                return now;
            }
            changed.await;
        }
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints")
            .field("name", &self.name)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}
