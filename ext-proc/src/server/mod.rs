//! Write a processor: the framework.
//!
//! Implement [`Processor`] and hand it to [`run`], [`serve`] or [`routes`]. A proxy decides which
//! parts of an exchange it shows and how (`processing_mode`); the same code works in every mode.
//!
//! ```no_run
//! use attache_ext_proc::server::{Processor, RequestHead, Result, run};
//!
//! #[derive(Clone)]
//! struct AddHeader;
//!
//! impl Processor for AddHeader {
//!     async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
//!         Ok(request.headers.insert("x-seen", "yes")?)
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run(AddHeader)
//! }
//! ```
//!
//! - [`Processor`]: one async method for each part of an exchange.
//! - [`RequestHead`], [`ResponseHead`], [`Trailers`], [`Headers`], [`Body`]: what they are given.
//! - [`Immediate`]: an answer instead of the upstream's.
//! - [`Server`]: how a processor is served: deadlines, and what failures mean.
//! - [`session`]: the typed wire below, for what the trait cannot say.
//! - [`tower`]: middleware made for HTTP servers, run as a processor.

mod body;
mod changes;
mod drain;
mod exchange;
mod guard;
mod head;
mod headers;
mod immediate;
mod metrics;
mod processor;
mod rules;
mod runner;
mod serve;
pub mod session;
pub mod tower;
mod transport;

#[cfg(test)]
mod tests;

pub use attache_service::{standalone::ServeError, trace::Trace};
pub use body::{Body, BodyError};
pub use changes::Changes;
pub use exchange::{Exchange, MetadataError, Outgoing};
pub use head::{RequestHead, ResponseHead, Trailers};
pub use headers::{HeaderError, Headers, IntoName};
pub use immediate::{Immediate, IntoStatus};
pub use processor::{Processor, Result, Stop};
pub use rules::ProxySettings;
pub use runner::OnFailure;
pub use serve::{Server, routes, run, serve};
