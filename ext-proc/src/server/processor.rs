//! The everyday trait.

use std::future::Future;

use super::{
    body::Body,
    head::{RequestHead, ResponseHead, Trailers},
    immediate::Immediate,
};

/// Why a handler does not let the exchange go on.
#[derive(Debug)]
pub enum Stop {
    /// The caller gets this answer.
    Respond(Box<Immediate>),
    /// The handler failed; what that means is the server's setting
    /// ([`Server::on_failure`](super::Server::on_failure)).
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Immediate> for Stop {
    fn from(immediate: Immediate) -> Self {
        Self::Respond(Box::new(immediate))
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

/// What a handler gives: `?` turns any error into a failure, and an [`Immediate`] into the
/// answer.
pub type Result<T = ()> = std::result::Result<T, Stop>;

/// What is done to an exchange: one method for each part that a proxy may show, all of which let
/// it pass unless written.
///
/// A value belongs to one exchange, so its fields are the exchange's state: what
/// `request_headers` notes, `response_body` finds. The server makes a value for each exchange by
/// cloning the one it was given. Methods never run at the same time, but the parts of the two
/// directions may come interleaved: an upstream can answer while a request is being sent. So the
/// body methods are called with each piece, and keep in fields what they carry over.
///
/// ```
/// use attache_ext_proc::server::{Processor, RequestHead, ResponseHead, Result};
///
/// #[derive(Clone, Default)]
/// struct Echo {
///     path: String,
/// }
///
/// impl Processor for Echo {
///     async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
///         self.path = request.path().to_owned();
///         Ok(())
///     }
///
///     async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
///         response.headers.insert("x-path", self.path.as_str())?;
///         Ok(())
///     }
/// }
/// ```
pub trait Processor: Send + 'static {
    /// The head of the request.
    fn request_headers(
        &mut self,
        request: &mut RequestHead,
    ) -> impl Future<Output = Result> + Send {
        let _ = request;
        async { Ok(()) }
    }

    /// A piece of the request's body; in BUFFERED mode all of it.
    fn request_body(&mut self, body: &mut Body<'_>) -> impl Future<Output = Result> + Send {
        let _ = body;
        async { Ok(()) }
    }

    /// The trailers of the request, if it has any.
    fn request_trailers(&mut self, trailers: &mut Trailers) -> impl Future<Output = Result> + Send {
        let _ = trailers;
        async { Ok(()) }
    }

    /// The head of the response.
    fn response_headers(
        &mut self,
        response: &mut ResponseHead,
    ) -> impl Future<Output = Result> + Send {
        let _ = response;
        async { Ok(()) }
    }

    /// A piece of the response's body; in BUFFERED mode all of it.
    fn response_body(&mut self, body: &mut Body<'_>) -> impl Future<Output = Result> + Send {
        let _ = body;
        async { Ok(()) }
    }

    /// The trailers of the response, if it has any.
    fn response_trailers(
        &mut self,
        trailers: &mut Trailers,
    ) -> impl Future<Output = Result> + Send {
        let _ = trailers;
        async { Ok(()) }
    }
}
