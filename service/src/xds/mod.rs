//! Configuration from a control plane: a client of the aggregated discovery service (xDS).
//!
//! - `client`: the client, with its account for operators.
//! - `discovery`: the subscription that it keeps over streams.
//! - `resource`: resources, updates of them, and answers.
//! - `settings`: which server, who we are, and which variant of the protocol.
//! - `retry`: the pauses between attempts.
//! - `status`: what operators see.
//! - `sotw`, `delta`: what is said in the two variants, without a stream; `variant` is what they
//!   have in common, `known` what they remember, `refusal` how they refuse.
//!
//! One stream carries all types. Each response is given to the user as an [`Update`] and answered
//! when the user knows whether it holds: it is acknowledged, or refused with the reasons, and what
//! was in force before stays. When a stream is lost, the next one says what is in force, so that
//! nothing comes twice; while there is none, everything stays as it is.
//!
//! | | state of the world | changes (delta) |
//! |---|---|---|
//! | a resource is gone | it is missing, for listeners and clusters; endpoints and routes never are | it is said |
//! | on a new stream | the version accepted last, unless a wanted name is not in force | the versions of what is in force |
//! | names change | the whole list | what is added and what is not wanted any more |
//! | no names yet | nothing is asked | nothing is asked |
//!
//! Bounds: one response by `max_message_size` of the channel, the resources in force of one type
//! by [`AdsSettings::max_resources`], the reasons of a refusal by 4096 bytes.

mod client;
mod delta;
mod discovery;
mod known;
mod refusal;
mod resource;
mod retry;
mod settings;
mod sotw;
mod status;
mod variant;

pub use client::AdsClient;
pub use discovery::{Discovery, Event, RefusedUpdate};
pub use resource::{Answer, Refusal, Resource, ResourceType, Update, Wanted};
pub use retry::{Reached, Retry};
pub use settings::{AdsSettings, NodeIdentity, Protocol};
pub use status::{AdsStatus, RefusedResponse, TypeStatus};
