//! External Processing (ext_proc), both ends.
//!
//! - [`server`]: write a processor, for Attaché's proxy, Envoy, or what is built on it.
//! - [`client`]: a `tower` layer that shows requests and responses to a processor.
//! - [`json`]: the messages as JSON, both ways.
//! - [`probe`]: play the proxy against any processor; record and replay exchanges.
//! - [`testing`]: try a processor without a proxy and without a socket.
//!
//! A processor, whole:
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
//! A service that asks a processor, as Envoy's filter would:
//!
//! ```
//! use std::{convert::Infallible, sync::Arc};
//!
//! use attache_ext_proc::client::{BodyMode, ExtProcLayer, Filter};
//! use attache_filter::{Body, Channels};
//! use attache_service::{Channel, ChannelSettings, Metrics, channel::Target};
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let processor = Target::Address("127.0.0.1:50051".parse()?);
//! let channel = Channel::new(ChannelSettings::new("processor", vec![processor]));
//! let channels: Channels = [channel].into_iter().collect();
//!
//! let mut filter = Filter::new("rewrite", "processor");
//! filter.modes.response_body = BodyMode::Streamed;
//! filter.failure_mode_allow = true;
//! let layer = ExtProcLayer::new(Arc::new(filter), &channels, &Metrics::default());
//!
//! let service = service_fn(|_: Request<Body>| async {
//!     Ok::<_, Infallible>(Response::new(Body::from("hello")))
//! });
//! let response = layer.layer(service).oneshot(Request::new(Body::empty())).await?;
//! // Nobody listens there, and failures are allowed: the answer passes.
//! assert_eq!(response.status(), 200);
//! # Ok(())
//! # }
//! ```

pub mod client;
pub mod json;
pub mod probe;
pub mod server;
pub mod testing;
