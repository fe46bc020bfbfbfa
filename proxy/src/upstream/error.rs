//! Why an upstream gave no answer.

use std::{io, time::Duration};

use attache_service::cluster::breakers::Overflow;

use super::framing::Ambiguous;

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    /// No connection could be made in time.
    #[error("not connected within {0:?}")]
    ConnectTimeout(Duration),
    /// The cluster's circuit breakers let no more through.
    #[error(transparent)]
    Overflow(#[from] Overflow),
    /// Nobody can tell where the response ends.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// The connection ended or broke the protocol before a response.
    #[error("{0}")]
    Reset(#[source] hyper::Error),
}

impl UpstreamError {
    /// Why no connection could be made, where the transport says.
    pub(crate) fn connect_failure(&self) -> Option<String> {
        match self {
            Self::Connect(error) => Some(error.to_string()),
            Self::ConnectTimeout(_) | Self::Overflow(_) | Self::Ambiguous(_) | Self::Reset(_) => {
                None
            }
        }
    }
}
