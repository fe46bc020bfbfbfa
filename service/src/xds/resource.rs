//! Resources, their types, updates of them and what becomes of an update.

use std::{collections::BTreeSet, fmt};

use prost_types::Any;

/// One type of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceType {
    type_url: &'static str,
    absence: Absence,
}

/// What it means that a resource is not in a response that has the state of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Absence {
    /// It is gone.
    Removal,
    /// Nothing: a response may have only some of those that were asked for.
    Nothing,
}

impl ResourceType {
    /// `envoy.config.cluster.v3.Cluster` (CDS).
    pub const CLUSTER: Self = Self::whole("type.googleapis.com/envoy.config.cluster.v3.Cluster");
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS), by the name of the cluster.
    pub const CLUSTER_LOAD_ASSIGNMENT: Self =
        Self::partial("type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment");
    /// `envoy.config.listener.v3.Listener` (LDS).
    pub const LISTENER: Self = Self::whole("type.googleapis.com/envoy.config.listener.v3.Listener");
    /// `envoy.config.route.v3.RouteConfiguration` (RDS).
    pub const ROUTE_CONFIGURATION: Self =
        Self::partial("type.googleapis.com/envoy.config.route.v3.RouteConfiguration");

    /// A type of which each response that has the state of the world has all resources.
    ///
    /// `type_url` is `type.googleapis.com/` and the full name of a message whose first field, in
    /// number, is its name.
    pub const fn whole(type_url: &'static str) -> Self {
        Self {
            type_url,
            absence: Absence::Removal,
        }
    }

    /// A type of which a response may have only some of the resources that were asked for.
    pub const fn partial(type_url: &'static str) -> Self {
        Self {
            type_url,
            absence: Absence::Nothing,
        }
    }

    /// What the protocol calls it.
    pub const fn type_url(self) -> &'static str {
        self.type_url
    }

    /// The last part of the message's name (`Cluster`).
    pub fn name(self) -> &'static str {
        self.type_url.rsplit(['.', '/']).next().unwrap_or_default()
    }

    pub(super) const fn absence(self) -> Absence {
        self.absence
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is asked for of one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything that there is.
    All,
    /// These. While there are none, nothing is asked.
    Named(BTreeSet<String>),
}

/// One resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Its version; of the world's state, that of the response.
    pub version: String,
    /// What it is, of the type that was asked for.
    pub content: Any,
}

/// What a server says about the resources of one type. It has to be
/// [answered](super::AdsClient::answer).
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The type.
    pub resource_type: ResourceType,
    /// The version of the response, for people.
    pub version: String,
    /// Resources that are new or others than before, each once and all of them wanted. Of the
    /// world's state these are all that the response has, changed or not.
    pub resources: Vec<Resource>,
    /// Names of those that are gone. Of the world's state these are the ones that were in force and
    /// are missing, for types whose responses have everything. A server that tells changes also
    /// says so of a resource that was asked for and does not exist.
    pub removed: Vec<String>,
    /// Names the response.
    pub(super) nonce: String,
    /// The stream that it came on, by its number.
    pub(super) stream: u64,
}

/// What became of an [`Update`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// All of it is in force.
    Accepted,
    /// These resources are not; the others and the removals are. None at all is the same as
    /// [`Answer::Accepted`].
    Partly(Vec<Refusal>),
    /// Nothing of it is, removals neither, for this reason.
    Refused(String),
}

/// Why one resource was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the resource.
    pub name: String,
    /// What is wrong, with the path of the field.
    pub reason: String,
}

impl Answer {
    /// All reasons, one a line; `None` when nothing is refused.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Accepted => None,
            Self::Partly(refusals) if refusals.is_empty() => None,
            Self::Partly(refusals) => {
                let lines = refusals
                    .iter()
                    .map(|refusal| format!("{}: {}", refusal.name, refusal.reason));
                Some(lines.collect::<Vec<_>>().join("\n"))
            }
            Self::Refused(reason) => Some(reason.clone()),
        }
    }
}
