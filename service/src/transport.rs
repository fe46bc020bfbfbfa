//! What carries HTTP.

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways. What speaks HTTP takes them in a box: made for each transport by itself, the
/// code of both versions of HTTP would be in the program five times.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
