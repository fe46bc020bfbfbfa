//! Picking the route of a request, and what a route says.
//!
//! The rules are Envoy's (`config.route.v3`): an exact domain wins over `*.suffix`, that over
//! `prefix.*`, that over `*`, longer ones first; within a virtual host the order of the routes
//! decides. Ports in `host` are ignored, as with `ignore_port_in_host_matching`.

mod changes;
mod direct_response;
mod entry;
mod forward;
mod hash_policy;
mod matches;
mod mirror;
mod redirect;
mod rewrite;
mod split;
mod table;

pub use changes::{Changes, HeaderChanges};
pub use direct_response::{BodyFormat, DirectResponse};
pub use entry::{Action, RouteEntry};
pub use forward::{DEFAULT_IDLE_TIMEOUT, DEFAULT_TIMEOUT, Forward};
pub use hash_policy::HashPolicy;
pub use matches::{PathMatch, RouteMatch, Test};
pub use mirror::{Mirror, MirrorHost};
pub use redirect::{PathChange, Redirect};
pub(crate) use rewrite::append_forwarded_host;
pub use rewrite::{HostRewrite, PathRewrite};
pub use split::{Choice, Split};
pub use table::{RouteTable, Rule, VirtualHost};

pub use crate::internal_redirect::InternalRedirect;
