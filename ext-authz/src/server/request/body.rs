//! The body of a request, as far as the proxy shows it.

use std::sync::Once;

use attache_proto::auth::attribute_context::HttpRequest;
use serde::de::DeserializeOwned;

use super::CheckRequestView;

/// Says whether the body that a proxy attached was cut.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// The request body as far as the proxy shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Nothing is shown: the request has no body, or the proxy does not send it.
    Absent,
    /// All of it.
    Whole(&'a [u8]),
    /// The beginning of a longer one.
    Partial(&'a [u8]),
}

/// Why there is no value in a body.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// There is no body.
    #[error("the request has no body, or the proxy does not show it")]
    Absent,
    /// Only the beginning is there.
    #[error("the proxy shows only the beginning of the body")]
    Partial,
    /// It is not JSON, or not of the type that is wanted.
    #[error("the body is not the JSON that is wanted: {0}")]
    Json(#[from] serde_json::Error),
}

impl<'a> Body<'a> {
    /// All of it.
    ///
    /// # Errors
    /// When it is absent or cut.
    pub fn whole(self) -> Result<&'a [u8], BodyError> {
        match self {
            Self::Whole(data) => Ok(data),
            Self::Partial(_) => Err(BodyError::Partial),
            Self::Absent => Err(BodyError::Absent),
        }
    }

    /// The value that it is as JSON.
    ///
    /// # Errors
    /// When it is absent, cut, or something else.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, BodyError> {
        Ok(serde_json::from_slice(self.whole()?)?)
    }
}

/// Tells once that bodies are asked for and not shown.
static WITHHELD: Once = Once::new();

impl CheckRequestView {
    /// The body as far as it is shown. Needs `with_request_body` in the proxy's filter; when a
    /// request announces a body that is not shown, the log says so once.
    pub fn body(&self) -> Body<'_> {
        let Some(http) = self.http() else {
            return Body::Absent;
        };
        let data = shown(http);
        if data.is_empty() {
            if self.withholds_body() {
                WITHHELD.call_once(|| {
                    tracing::warn!(
                        "a request body is asked for, and the proxy does not show it: \
                         set with_request_body in its ext_authz filter"
                    );
                });
            }
            return Body::Absent;
        }
        let marked = self.header_lines(PARTIAL_BODY).next();
        let longer = usize::try_from(http.size).is_ok_and(|size| size > data.len());
        if marked == Some(b"true") || longer || http.size < 0 {
            Body::Partial(data)
        } else {
            Body::Whole(data)
        }
    }

    /// Whether the request has a body, by what is said of it, of which nothing is shown.
    pub fn withholds_body(&self) -> bool {
        let Some(http) = self.http() else {
            return false;
        };
        let announced = || match self.header("content-length") {
            Some(length) => length.trim().parse().is_ok_and(|length: u64| length > 0),
            None => self.has_header("transfer-encoding"),
        };
        shown(http).is_empty() && (http.size != 0 || announced())
    }
}

fn shown(http: &HttpRequest) -> &[u8] {
    if http.raw_body.is_empty() {
        http.body.as_bytes()
    } else {
        &http.raw_body
    }
}
