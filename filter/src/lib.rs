//! What the three policy clients share, so that none of it is written three times.
//!
//! A policy client is a `tower` layer: request head and body in, either on to the inner service
//! or a local answer; on the way back, response head and body out. This crate holds the parts
//! that do not depend on which policy is asked.

pub mod attributes;
pub mod body;
pub mod buffer;
pub mod call_metadata;
pub mod calls;
pub mod changes;
pub mod channels;
pub mod context;
pub mod expression;
pub mod format;
pub mod fraction;
pub mod grpc_service;
pub mod head;
pub mod header_option;
pub mod http_uri;
pub mod json;
pub mod matcher;
pub mod metadata;
pub mod metadata_matcher;
pub mod mutation;
pub mod on_failure;
pub mod reply;
pub mod retry;
pub mod substitution;
pub mod tap;

pub use body::{Body, BoxError};
pub use call_metadata::CallMetadata;
pub use channels::Channels;
pub use context::{ConnectionInfo, FilterConfigs, RequestContext, Route};
pub use head::MessageHead;
pub use reply::LocalReply;
