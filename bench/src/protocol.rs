//! What clients speak to a proxy.

use std::fmt;

/// A version of HTTP, with or without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, known in advance.
    Http2,
    /// HTTP/1.1 over TLS.
    Tls1,
    /// HTTP/2 over TLS.
    Tls2,
}

impl Protocol {
    /// All of them.
    pub(crate) const ALL: [Protocol; 4] = [
        Protocol::Http1,
        Protocol::Tls1,
        Protocol::Http2,
        Protocol::Tls2,
    ];

    /// Whether requests share the connection.
    pub(crate) fn shares(self) -> bool {
        matches!(self, Protocol::Http2 | Protocol::Tls2)
    }

    /// Its name in TLS, for those that speak that.
    pub(crate) fn alpn(self) -> Option<&'static str> {
        match self {
            Protocol::Http1 | Protocol::Http2 => None,
            Protocol::Tls1 => Some("http/1.1"),
            Protocol::Tls2 => Some("h2"),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Http1 => "h1",
            Protocol::Http2 => "h2",
            Protocol::Tls1 => "TLS h1",
            Protocol::Tls2 => "TLS h2",
        })
    }
}
