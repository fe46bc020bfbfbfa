//! What every long-running part of Attaché shares.
//!
//! - [`admin`]: health, readiness, metrics and configuration over HTTP, for operators.
//! - [`address`]: where a service listens or is reached (`host:port`, `unix:path`).
//! - [`channel`]: the gRPC client: one HTTP/2 connection per worker and endpoint.
//! - [`cluster`]: the endpoints of a cluster, and the choice among them.
//! - [`config`]: reading, checking and printing configuration files.
//! - [`fetch`]: HTTP services named by a URL, for what is fetched from them.
//! - [`handover`]: giving the listening sockets to the process that comes after us.
//! - [`host`]: the gRPC server: workers, health, reflection, drain.
//! - [`http_client`]: the HTTP client of policies that are asked over plain HTTP.
//! - [`http_server`]: a small HTTP server for probes, metrics and debug pages.
//! - [`listen`]: listening sockets, TCP and Unix.
//! - [`metrics`]: Prometheus counters, gauges and histograms.
//! - [`notify`]: telling systemd how we are.
//! - [`probe`]: what the probes of policy services have in common.
//! - [`shutdown`]: the handle that ends everything, by signal or by hand.
//! - [`standalone`]: a program that is one service: command line, logs, admin page.
//! - [`telemetry`]: logs, as text or JSON lines.
//! - [`time`]: times as they are written.
//! - [`tls`]: certificates and TLS settings of clients and servers.
//! - [`trace`]: the trace that a call belongs to, and the spans sent to a collector.
//! - [`unary`]: gRPC methods with one request and one answer, served with little ado.
//! - [`xds`]: a client of control planes, which send configuration.

pub mod address;
pub mod admin;
pub mod channel;
pub mod cluster;
pub mod config;
pub mod fetch;
mod gather;
pub mod handover;
pub mod host;
pub mod http_client;
pub mod http_server;
pub mod listen;
pub mod metrics;
pub mod notify;
mod pacing;
pub mod probe;
pub mod shutdown;
pub mod standalone;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod trace;
pub mod unary;
pub mod xds;

pub use address::Address;
pub use channel::{Channel, ChannelSettings, GrpcStream, Method};
pub use host::{Health, Host};
pub use http_client::{HttpClient, HttpError};
pub use metrics::Metrics;
pub use shutdown::Shutdown;
pub use unary::{Unary, UnaryMethod};

#[cfg(test)]
mod testing;
