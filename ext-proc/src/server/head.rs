//! Heads and trailers as a processor sees them.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use super::{
    exchange::Exchange,
    headers::{HeaderError, Headers},
    session::{Modes, ModesRefused},
};

/// What a handler leaves of a head.
pub(super) struct Given {
    pub(super) headers: Headers,
    pub(super) exchange: Exchange,
    pub(super) new_body: Option<Bytes>,
    pub(super) modes: Option<Modes>,
}

/// The head of a request.
///
/// Which pseudo-headers may be changed is the proxy's to say (`mutation_rules`): by default the
/// path only. A changed path or header does not change the route by itself, see
/// [`RequestHead::clear_route_cache`].
#[derive(Debug)]
pub struct RequestHead {
    /// The headers.
    pub headers: Headers,
    /// What is known of the exchange; dynamic metadata goes out through it.
    pub exchange: Exchange,
    end_of_stream: bool,
    pub(super) clear_route_cache: bool,
    new_body: Option<Bytes>,
    modes: Option<Modes>,
    overrides: Option<ModesRefused>,
}

impl RequestHead {
    pub(super) fn new(
        headers: Headers,
        end_of_stream: bool,
        exchange: Exchange,
        overrides: Option<ModesRefused>,
    ) -> Self {
        Self {
            headers,
            exchange,
            end_of_stream,
            clear_route_cache: false,
            new_body: None,
            modes: None,
            overrides,
        }
    }

    pub(super) fn given(self) -> Given {
        Given {
            headers: self.headers,
            exchange: self.exchange,
            new_body: self.new_body,
            modes: self.modes,
        }
    }

    /// Changes what is shown of the rest of the exchange.
    ///
    /// # Errors
    /// When the proxy would ignore the wish.
    pub fn override_modes(&mut self, modes: Modes) -> Result<(), ModesRefused> {
        match self.overrides {
            Some(refused) => Err(refused),
            None => {
                self.modes = Some(modes);
                Ok(())
            }
        }
    }

    /// `:method`, as received; empty when the proxy does not show it.
    pub fn method(&self) -> &str {
        self.headers.pseudo(":method").unwrap_or_default()
    }

    /// `:path` with the query, as received; empty when the proxy does not show it.
    pub fn path(&self) -> &str {
        self.headers.pseudo(":path").unwrap_or_default()
    }

    /// `:authority`, as received; empty when the proxy does not show it.
    pub fn authority(&self) -> &str {
        self.headers.pseudo(":authority").unwrap_or_default()
    }

    /// `:scheme`, as received; empty when the proxy does not show it.
    pub fn scheme(&self) -> &str {
        self.headers.pseudo(":scheme").unwrap_or_default()
    }

    /// Neither body nor trailers follow.
    pub fn is_end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// Changes the path with its query.
    ///
    /// # Errors
    /// When it does not start with a slash or is no valid path.
    pub fn set_path(&mut self, path: &str) -> Result<(), HeaderError> {
        let refused = || HeaderError::Value(":path".to_owned());
        if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
            return Err(refused());
        }
        let value = HeaderValue::from_str(path).map_err(|_| refused())?;
        self.headers.set_pseudo(":path", value)
    }

    /// Changes the method. The proxy must allow it (`allow_all_routing`), unless the body was
    /// replaced before.
    ///
    /// # Errors
    /// When it is no valid method, or the proxy would refuse it.
    pub fn set_method(&mut self, method: &str) -> Result<(), HeaderError> {
        let refused = || HeaderError::Value(":method".to_owned());
        http::Method::from_bytes(method.as_bytes()).map_err(|_| refused())?;
        let value = HeaderValue::from_str(method).map_err(|_| refused())?;
        if self.new_body.is_some() {
            self.headers.force_pseudo(":method", value);
            return Ok(());
        }
        self.headers.set_pseudo(":method", value)
    }

    /// Changes the authority (host); the proxy must allow it (`allow_all_routing`).
    ///
    /// # Errors
    /// When it is no valid authority, or the proxy would refuse it.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), HeaderError> {
        let refused = || HeaderError::Value(":authority".to_owned());
        authority
            .parse::<http::uri::Authority>()
            .map_err(|_| refused())?;
        let value = HeaderValue::from_str(authority).map_err(|_| refused())?;
        self.headers.set_pseudo(":authority", value)
    }

    /// Has the proxy pick the route again, by what the request is after these changes.
    pub fn clear_route_cache(&mut self) {
        self.clear_route_cache = true;
    }

    /// Gives the request this body instead of its own, which is not shown any more.
    pub fn replace_body(&mut self, body: impl Into<Bytes>) {
        self.new_body = Some(body.into());
    }
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// The headers.
    pub headers: Headers,
    /// What is known of the exchange; dynamic metadata goes out through it.
    pub exchange: Exchange,
    end_of_stream: bool,
    new_body: Option<Bytes>,
    modes: Option<Modes>,
    overrides: Option<ModesRefused>,
}

impl ResponseHead {
    pub(super) fn new(
        headers: Headers,
        end_of_stream: bool,
        exchange: Exchange,
        overrides: Option<ModesRefused>,
    ) -> Self {
        Self {
            headers,
            exchange,
            end_of_stream,
            new_body: None,
            modes: None,
            overrides,
        }
    }

    pub(super) fn given(self) -> Given {
        Given {
            headers: self.headers,
            exchange: self.exchange,
            new_body: self.new_body,
            modes: self.modes,
        }
    }

    /// Changes what is shown of the rest of the exchange.
    ///
    /// # Errors
    /// When the proxy would ignore the wish.
    pub fn override_modes(&mut self, modes: Modes) -> Result<(), ModesRefused> {
        match self.overrides {
            Some(refused) => Err(refused),
            None => {
                self.modes = Some(modes);
                Ok(())
            }
        }
    }

    /// The status, as received; `None` when the proxy does not show it.
    pub fn status(&self) -> Option<StatusCode> {
        self.headers.pseudo(":status")?.parse().ok()
    }

    /// Neither body nor trailers follow.
    pub fn is_end_of_stream(&self) -> bool {
        self.end_of_stream
    }

    /// Changes the status.
    ///
    /// # Errors
    /// When it is not that of a final response (200 and above).
    pub fn set_status(&mut self, status: StatusCode) -> Result<(), HeaderError> {
        if status.is_informational() {
            return Err(HeaderError::Status(status));
        }
        self.headers
            .set_pseudo(":status", HeaderValue::from(status.as_u16()))
    }

    /// Gives the response this body instead of its own, which is not shown any more.
    pub fn replace_body(&mut self, body: impl Into<Bytes>) {
        self.new_body = Some(body.into());
    }
}

/// The trailers of a message.
#[derive(Debug)]
pub struct Trailers {
    /// The trailers.
    pub headers: Headers,
    /// What is known of the exchange; dynamic metadata goes out through it.
    pub exchange: Exchange,
}

impl Trailers {
    pub(super) fn new(headers: Headers, exchange: Exchange) -> Self {
        Self { headers, exchange }
    }
}
