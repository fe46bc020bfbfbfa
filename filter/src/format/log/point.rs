//! The points in time of `%COMMON_DURATION%`.

use std::time::Instant;

use crate::format::Exchange;

/// A point in the time of an exchange, by Envoy's name.
///
/// | name | when |
/// |---|---|
/// | `DS_CX_BEG` | the client's connection was accepted |
/// | `DS_HS_BEG`, `DS_HS_END` | TLS on it was waited for, and stood |
/// | `DS_RX_BEG`, `DS_RX_HDR_END` | the head of the request had come: heads are read as a whole |
/// | `DS_RX_END` | the request had come to its end |
/// | `US_CX_BEG`, `US_CX_END` | the connection of the last attempt was begun, and stood, be it for this request or an earlier one |
/// | `US_HS_END` | TLS on it stood |
/// | `US_TX_BEG`, `US_TX_END` | the last attempt began to be sent, and had been to its end |
/// | `US_RX_BEG`, `US_RX_END` | the head of its answer came, and the end |
/// | `US_RX_BODY_BEG` | the first piece of the answer's body came |
/// | `DS_TX_BEG`, `DS_TX_END` | the head of the response went out, and the end |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::format) enum Point {
    Accepted,
    HandshakeBegun,
    HandshakeEnded,
    RequestBegun,
    RequestReceived,
    Connecting,
    Connected,
    Secured,
    Sending,
    Sent,
    Answered,
    Body,
    Received,
    Responding,
    Responded,
}

const NAMES: [(&str, Point); 16] = [
    ("DS_CX_BEG", Point::Accepted),
    ("DS_HS_BEG", Point::HandshakeBegun),
    ("DS_HS_END", Point::HandshakeEnded),
    ("DS_RX_BEG", Point::RequestBegun),
    ("DS_RX_HDR_END", Point::RequestBegun),
    ("DS_RX_END", Point::RequestReceived),
    ("US_CX_BEG", Point::Connecting),
    ("US_CX_END", Point::Connected),
    ("US_HS_END", Point::Secured),
    ("US_TX_BEG", Point::Sending),
    ("US_TX_END", Point::Sent),
    ("US_RX_BEG", Point::Answered),
    ("US_RX_BODY_BEG", Point::Body),
    ("US_RX_END", Point::Received),
    ("DS_TX_BEG", Point::Responding),
    ("DS_TX_END", Point::Responded),
];

impl Point {
    /// The point of this name.
    ///
    /// # Errors
    /// Where there is none, says which there are.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        if name == "DS_CX_END" {
            return Err(
                "`DS_CX_END` is not known: a line is written when its request is over, whatever \
                 becomes of the connection"
                    .to_owned(),
            );
        }
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, point)| *point).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!(
                "`{name}` is no point in time of `%COMMON_DURATION(from:to:unit)%`; there are {}",
                names.join(", ")
            )
        })
    }

    /// Whether it is kept only on demand.
    pub(super) fn is_kept(self) -> bool {
        !matches!(
            self,
            Self::RequestBegun | Self::RequestReceived | Self::Responded
        )
    }

    /// When that was, if it was.
    pub(super) fn of(self, exchange: &Exchange<'_>) -> Option<Instant> {
        let context = exchange.facts.context;
        let connection = &context.connection;
        let handshake = || connection.tls.as_ref()?.handshake;
        let times = || context.times();
        let upstream = || times().upstream;
        let after_begin = |after| context.started.checked_add(after);
        match self {
            Self::Accepted => connection.accepted,
            Self::HandshakeBegun => Some(handshake()?.begun),
            Self::HandshakeEnded => Some(handshake()?.ended),
            Self::RequestBegun => Some(context.started),
            Self::RequestReceived => after_begin(exchange.finished?.received?),
            Self::Connecting => Some(upstream().connection?.begun),
            Self::Connected => Some(upstream().connection?.connected),
            Self::Secured => upstream().connection?.secured,
            Self::Sending => upstream().sending,
            Self::Sent => upstream().sent,
            Self::Answered => upstream().answered,
            Self::Body => upstream().body,
            Self::Received => upstream().received,
            Self::Responding => times().responding,
            Self::Responded => {
                let finished = exchange.finished.filter(|finished| finished.complete);
                after_begin(finished?.duration)
            }
        }
    }
}
