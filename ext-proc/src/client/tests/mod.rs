//! The layer between a caller and an upstream, with a scripted processor over an embedded channel.

mod bodies;
mod extras;
mod failures;
mod headers;
mod life;
mod modes;
mod observe;
mod support;
