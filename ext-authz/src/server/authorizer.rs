//! The trait that policy authors write, and the gRPC service around it.

use std::{fmt, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use attache_filter::BoxError;
use attache_proto::auth::{
    CheckRequest, CheckResponse,
    authorization_server::{Authorization, AuthorizationServer},
};
use futures_util::FutureExt as _;
use tokio::time::timeout;
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};

use super::{Decision, request::CheckRequestView};

/// Why a check came to no decision. Any error converts with `?`.
///
/// The reason goes to the log of this service; the caller only learns that the check failed.
pub struct CheckError(BoxError);

impl<E: Into<BoxError>> From<E> for CheckError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Decides whether requests may pass.
pub trait Authorizer: Send + Sync + 'static {
    /// Decides on one request.
    ///
    /// The future is dropped when the caller goes away or its deadline comes near.
    ///
    /// # Errors
    /// When no decision could be reached; the caller's failure mode then applies.
    fn check(
        &self,
        request: &CheckRequestView,
    ) -> impl Future<Output = Result<Decision, CheckError>> + Send;
}

impl<A: Authorizer> Authorizer for Arc<A> {
    fn check(
        &self,
        request: &CheckRequestView,
    ) -> impl Future<Output = Result<Decision, CheckError>> + Send {
        A::check(self, request)
    }
}

/// Largest check that is accepted, body included.
const MAX_MESSAGE: usize = 16 << 20;
/// Bound on a check whose caller gave no deadline.
const MAX_CHECK: Duration = Duration::from_secs(30);
/// What is kept of the caller's deadline to get the answer to it: a tenth, within these.
const MARGIN: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// Name of the gRPC service, for health checks.
pub const SERVICE_NAME: &str = "envoy.service.auth.v3.Authorization";

/// The gRPC routes of an authorizer, for [`Host`](attache_service::host::Host) or any tonic
/// server.
pub fn routes(authorizer: impl Authorizer) -> Routes {
    let service = AuthorizationServer::new(AuthorizerService::new(authorizer))
        .max_decoding_message_size(MAX_MESSAGE);
    Routes::new(service)
}

/// An [`Authorizer`] as the gRPC service `envoy.service.auth.v3.Authorization`.
#[derive(Debug, Clone)]
pub struct AuthorizerService<A>(A);

impl<A: Authorizer> AuthorizerService<A> {
    /// Wraps an authorizer.
    pub fn new(authorizer: A) -> Self {
        Self(authorizer)
    }

    /// Decides within `deadline`; everything but a well-formed decision is an error.
    pub(crate) async fn decide(
        &self,
        request: CheckRequest,
        deadline: Duration,
    ) -> Result<CheckResponse, Status> {
        let view = CheckRequestView::from(request);
        // Whatever state a panic leaves behind is the authorizer's own, as in any server.
        let check = AssertUnwindSafe(async { self.0.check(&view).await }).catch_unwind();
        let decision = match timeout(deadline, check).await {
            Ok(Ok(Ok(decision))) => decision,
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "a check failed");
                return Err(Status::unavailable("the authorizer failed"));
            }
            Ok(Err(_panic)) => {
                tracing::error!("the authorizer panicked");
                return Err(Status::internal("the authorizer failed"));
            }
            Err(_elapsed) => {
                tracing::warn!(?deadline, "a check took too long");
                return Err(Status::deadline_exceeded("the authorizer took too long"));
            }
        };
        decision.into_response(&view).map_err(|error| {
            tracing::error!(%error, "a decision cannot be sent");
            Status::internal("the authorizer's decision cannot be sent")
        })
    }
}

#[tonic::async_trait]
impl<A: Authorizer> Authorization for AuthorizerService<A> {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let deadline = deadline(request.metadata());
        self.decide(request.into_inner(), deadline)
            .await
            .map(Response::new)
    }
}

/// The caller's timeout less a margin for the way back.
fn deadline(metadata: &MetadataMap) -> Duration {
    let given = metadata
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(grpc_timeout);
    match given {
        Some(given) => {
            let margin = (given / 10).clamp(MARGIN.0, MARGIN.1);
            given.saturating_sub(margin).min(MAX_CHECK)
        }
        None => MAX_CHECK,
    }
}

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    struct Fails;
    impl Authorizer for Fails {
        async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
            match request.path() {
                Some("/error") => Err("the database password is hunter2")?,
                Some("/panic") => panic!("no such thing"),
                Some("/slow") => std::future::pending().await,
                Some("/malformed") => Ok(Decision::allow().set("x-a", "a\r\nb").into()),
                _ => Ok(Decision::allow().into()),
            }
        }
    }

    async fn code(path: &str) -> Result<i32, Code> {
        let request = crate::testing::request(
            &http::Request::builder()
                .uri(format!("http://h{path}"))
                .body(())
                .unwrap(),
        );
        let service = AuthorizerService::new(Fails);
        let answer = service.decide(request, Duration::from_millis(100)).await;
        answer.map(|r| r.status.unwrap().code).map_err(|status| {
            assert!(!status.message().contains("hunter2"));
            status.code()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_goes_wrong_is_an_error_and_never_a_decision() {
        assert_eq!(code("/").await, Ok(0));
        assert_eq!(code("/error").await, Err(Code::Unavailable));
        assert_eq!(code("/panic").await, Err(Code::Internal));
        assert_eq!(code("/slow").await, Err(Code::DeadlineExceeded));
        assert_eq!(code("/malformed").await, Err(Code::Internal));
    }

    #[test]
    fn the_service_is_named_as_in_the_protocol() {
        use tonic::server::NamedService;
        type Service = AuthorizationServer<AuthorizerService<Fails>>;
        assert_eq!(Service::NAME, SERVICE_NAME);
    }

    #[test]
    fn deadlines_leave_time_for_the_answer() {
        for (text, expected) in [
            ("200m", Duration::from_millis(180)),
            ("10S", Duration::from_millis(9_950)),
            ("5000u", Duration::from_millis(4)),
            ("500u", Duration::ZERO),
            ("99999999H", MAX_CHECK),
            ("123456789S", MAX_CHECK),
            ("soon", MAX_CHECK),
            ("é", MAX_CHECK),
            ("", MAX_CHECK),
        ] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = text.parse() {
                metadata.insert("grpc-timeout", value);
            }
            assert_eq!(deadline(&metadata), expected, "{text}");
        }
    }
}
