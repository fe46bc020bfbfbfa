//! Why an upstream gave no answer.

use std::{io, time::Duration};

/// Why no response came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(#[from] io::Error),
    /// No connection could be made in time.
    #[error("not connected within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection ended or broke the protocol before a response.
    #[error("{0}")]
    Reset(#[source] hyper::Error),
}
