//! Points in the time of an exchange, kept where the access log asks for them.

use std::time::Instant;

/// When an exchange had come how far, beyond its beginning and its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Of the last attempt to have an answer of an upstream.
    pub upstream: UpstreamTimes,
    /// The head of the response went out to the client.
    pub responding: Option<Instant>,
}

/// When an attempt to have an answer of an upstream had come how far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UpstreamTimes {
    /// The making of the connection, once there is one.
    pub connection: Option<UpstreamConnection>,
    /// The request began to go out.
    pub sending: Option<Instant>,
    /// The request had gone out to its end.
    pub sent: Option<Instant>,
    /// The head of the answer had come.
    pub answered: Option<Instant>,
    /// The first piece of its body had come.
    pub body: Option<Instant>,
    /// The answer had come to its end.
    pub received: Option<Instant>,
}

/// When a connection to an upstream was made. Others may have used it before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamConnection {
    /// Connecting began.
    pub begun: Instant,
    /// The transport below TLS stood.
    pub connected: Instant,
    /// TLS stood, where there is TLS.
    pub secured: Option<Instant>,
}

/// When TLS was agreed on with a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// It was waited for.
    pub begun: Instant,
    /// It stood.
    pub ended: Instant,
}
