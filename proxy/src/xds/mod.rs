//! Listeners, routes, clusters and endpoints from a control plane (xDS).
//!
//! - `plan`: which control plane, as the file says.
//! - `control`: the loop: an update comes in, is brought into force or refused, and answered.
//! - `state`: what was said, and what of it is in use.
//! - `resource`: a resource as a part of our configuration; `message` is its JSON shape.
//! - `filters`: the names of policies.
//! - `cache`: the last good resources in a file.
//!
//! A resource goes the way of `attache import envoy` and then that of the file: nothing that the
//! proxy cannot do comes into force, and the reason names the field. Each update makes one plan,
//! but for endpoints, which are replaced where they are.

mod cache;
mod control;
mod filters;
mod message;
pub mod plan;
mod resource;
mod state;

pub use attache_service::xds::AdsStatus;
pub use control::{ControlPlane, Event, XdsError};
pub use plan::XdsPlan;
