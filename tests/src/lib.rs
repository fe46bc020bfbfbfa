//! The harness of the end-to-end tests.
//!
//! One scenario says in YAML what the filters are set to, what the policy
//! service and the origin answer, what the client sends, and what each of
//! them sees. It runs through real Envoy and through our proxy; both must
//! show what is written, and the same as each other.
//!
//! - [`scenario`]: the format; [`text`]: how bytes are written in it
//! - [`message`]: protobuf messages as plain values
//! - [`board`]: what was seen so far, and waiting for it
//! - [`service`] and [`script`]: the scripted policy service
//! - [`origin`]: the scripted origin
//! - [`client`]: the client, HTTP/1.1 and HTTP/2
//! - [`h1`]: HTTP/1.1 byte for byte; [`frames`]: HTTP/2 frame by frame
//! - [`envoy_config`] and [`envoy`]: the scenario as an Envoy bootstrap, and
//!   the process that runs it
//! - [`ours`]: the scenario as our configuration, and our proxy
//! - [`browser`]: a real browser
//! - [`proxies`]: both proxies side by side, for tests that are no scenarios
//! - [`tls`]: certificates, and TLS between client and proxy
//! - [`processors`]: the example processors in other languages
//! - [`noise`]: what is not compared, and why
//! - [`expect`]: the comparison
//! - [`run`]: one scenario from start to verdict
//! - [`discovery`]: a control plane (xDS) that says what a test says
//! - [`control_plane`]: a real one, made of go-control-plane
//! - [`ratelimit_service`]: scenarios of the rate limit service, beside its reference

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod board;
pub mod browser;
pub mod client;
pub mod control_plane;
pub mod discovery;
pub mod envoy;
pub mod envoy_config;
pub mod expect;
#[path = "../../proxy/tests/support/frames.rs"]
#[allow(missing_docs, reason = "shared with the tests of the proxy")]
pub mod frames;
pub mod h1;
pub mod left_out;
pub mod message;
pub mod noise;
pub mod origin;
pub mod ours;
pub mod processors;
pub mod proxies;
pub mod ratelimit_service;
pub mod run;
pub mod scenario;
pub mod script;
pub mod service;
pub mod text;
pub mod tls;

/// Far longer than anything is waited for.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
