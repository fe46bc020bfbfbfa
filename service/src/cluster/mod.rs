//! Clusters: groups of endpoints that serve the same, and the choice among them.
//!
//! [`Endpoints`] is the set of a cluster, one for the whole process: sources replace it, checks
//! and outlier detection mark its members. A [`Balancer`] belongs to one worker and one client; it
//! follows the set and picks an endpoint for each request.

mod balance;
pub mod breakers;
mod connect;
mod ejection;
mod endpoint;
mod endpoints;
mod ewma;
mod file;
mod guards;
pub mod health;
pub mod outlier;
mod rendezvous;
mod room;
mod source;
mod stats;

pub use balance::{Balance, Balancer, InFlight, LbPolicy, Local};
pub use connect::{Io, Opened, jittered};
pub use ejection::Outliers;
pub use endpoint::{Described, Endpoint, Trouble};
pub use endpoints::{Endpoints, Member};
pub use file::{EndpointConfig, HealthStatus, WrittenEndpoint};
pub use guards::Guards;
pub use rendezvous::hash;
pub use room::{Room, Rooms};
pub use source::{Dns, DnsType, LookupFamily, Named, Resolver, Source};
pub use stats::{ClusterSnapshot, EndpointSnapshot, TroubleSnapshot};
