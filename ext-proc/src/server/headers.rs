//! Headers as received, and the changes to them.

use std::{ops::Deref, sync::OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{changes::Changes, rules::Rules, session::Fieldset};

/// A header change that Envoy would refuse, ignore or garble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The name is not a header name.
    #[error("`{0}` is not a valid header name")]
    Name(String),
    /// The value has bytes that no header value may have.
    #[error("the value for `{0}` is not a valid header value")]
    Value(String),
    /// The framing of a message is the proxy's business.
    #[error("`transfer-encoding` cannot be set: the proxy frames the message")]
    TransferEncoding,
    /// The length is kept right by itself.
    #[error("`content-length` cannot be set: it is kept right by itself")]
    ContentLength,
    /// The status does not fit a final response.
    #[error("{0} is not a final status")]
    Status(http::StatusCode),
    /// The proxy does not let processors change it.
    #[error(
        "the proxy refuses changes of `{name}` unless its `mutation_rules` have `{unless}`; \
         if they do, say so with `Server::assume`"
    )]
    Refused {
        /// The header or pseudo-header.
        name: String,
        /// The setting that allows it.
        unless: &'static str,
    },
    /// No proxy lets it be removed.
    #[error("`host` cannot be removed")]
    Host,
    /// More changes in one reply than the proxy accepts.
    #[error("{changes} header changes in one reply; the proxy accepts {limit}")]
    TooManyChanges {
        /// How many there are.
        changes: usize,
        /// [`ProxySettings::max_headers`](super::ProxySettings::max_headers).
        limit: usize,
    },
    /// More headers in the end than the proxy accepts.
    #[error("the message would have {count} headers; the proxy accepts {limit}")]
    TooManyHeaders {
        /// How many there would be.
        count: usize,
        /// [`ProxySettings::max_headers`](super::ProxySettings::max_headers).
        limit: usize,
    },
    /// More bytes of headers in the end than the proxy accepts.
    #[error("the message would have {bytes} bytes of headers; the proxy accepts {limit}")]
    TooLarge {
        /// How many there would be.
        bytes: usize,
        /// [`ProxySettings::max_header_bytes`](super::ProxySettings::max_header_bytes).
        limit: usize,
    },
}

/// A header name, or what can become one.
pub trait IntoName {
    /// The name.
    ///
    /// # Errors
    /// When it is not a valid header name.
    fn into_name(self) -> Result<HeaderName, HeaderError>;
}

impl IntoName for HeaderName {
    fn into_name(self) -> Result<HeaderName, HeaderError> {
        Ok(self)
    }
}

impl IntoName for &str {
    fn into_name(self) -> Result<HeaderName, HeaderError> {
        HeaderName::from_bytes(self.as_bytes()).map_err(|_| HeaderError::Name(self.to_owned()))
    }
}

/// The headers of a message: read like an [`http::HeaderMap`], and changes are recorded.
///
/// What is read shows the changes made before. Pseudo-headers (`:path`) are not in it.
///
/// ```
/// # use attache_ext_proc::server::Headers;
/// let mut headers = Headers::from_iter([("accept", "*/*")]);
/// headers.insert("x-a", "1")?;
/// headers.insert_if_absent("accept", "text/html")?;
/// assert_eq!(headers["x-a"], "1");
/// assert_eq!(headers["accept"], "*/*");
/// # Ok::<(), attache_ext_proc::server::HeaderError>(())
/// ```
#[derive(Debug, Default)]
pub struct Headers {
    received: Fieldset,
    /// Made when somebody looks.
    map: OnceLock<Box<HeaderMap>>,
    changes: Changes,
    rules: Rules,
}

impl Headers {
    pub(super) fn new(received: Fieldset, rules: Rules) -> Self {
        Self {
            received,
            rules,
            ..Self::default()
        }
    }

    /// Replaces all values of `name`, or adds it.
    ///
    /// # Errors
    /// When Envoy would refuse the name or the value.
    pub fn insert<V>(&mut self, name: impl IntoName, value: V) -> Result<(), HeaderError>
    where
        V: TryInto<HeaderValue>,
    {
        let (name, value) = self.checked(name, value)?;
        if let Some(map) = self.map.get_mut() {
            map.insert(&name, value.clone());
        }
        self.changes.replace(name, Some(value));
        Ok(())
    }

    /// Adds a value to those that `name` has.
    ///
    /// # Errors
    /// When Envoy would refuse the name or the value.
    pub fn append<V>(&mut self, name: impl IntoName, value: V) -> Result<(), HeaderError>
    where
        V: TryInto<HeaderValue>,
    {
        let (name, value) = self.checked(name, value)?;
        if let Some(map) = self.map.get_mut() {
            map.append(&name, value.clone());
        }
        self.changes.append(name, value);
        Ok(())
    }

    /// Adds `name` unless it is there.
    ///
    /// # Errors
    /// When Envoy would refuse the name or the value.
    pub fn insert_if_absent<V>(&mut self, name: impl IntoName, value: V) -> Result<(), HeaderError>
    where
        V: TryInto<HeaderValue>,
    {
        let name = name.into_name()?;
        if self.contains_key(&name) {
            return Ok(());
        }
        self.insert(name, value)
    }

    /// Replaces the values of `name` if it is there.
    ///
    /// # Errors
    /// When Envoy would refuse the name or the value.
    pub fn replace<V>(&mut self, name: impl IntoName, value: V) -> Result<(), HeaderError>
    where
        V: TryInto<HeaderValue>,
    {
        let name = name.into_name()?;
        if self.contains_key(&name) {
            return self.insert(name, value);
        }
        Ok(())
    }

    /// Removes all values of `name`.
    ///
    /// # Errors
    /// When the name is not valid.
    pub fn remove(&mut self, name: impl IntoName) -> Result<(), HeaderError> {
        let name = name.into_name()?;
        if name == header::HOST {
            return Err(HeaderError::Host);
        }
        self.allowed(name.as_str())?;
        if let Some(map) = self.map.get_mut() {
            map.remove(&name);
        }
        self.changes.replace(name, None);
        Ok(())
    }

    /// Changes what is needed for the headers to be those of `wanted`, pseudo-headers aside.
    /// `content-length` and `transfer-encoding` are left to the proxy.
    ///
    /// # Errors
    /// When the proxy would refuse one of the changes.
    pub fn assign(&mut self, wanted: &HeaderMap) -> Result<(), HeaderError> {
        let framing = |name: &HeaderName| {
            *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING
        };
        let gone: Vec<_> = self
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in gone.into_iter().filter(|name| !framing(name)) {
            self.remove(name)?;
        }
        for name in wanted.keys().filter(|name| !framing(name)) {
            if self.get_all(name).iter().eq(wanted.get_all(name)) {
                continue;
            }
            for (index, value) in wanted.get_all(name).iter().enumerate() {
                match index {
                    0 => self.insert(name.clone(), value.clone())?,
                    _ => self.append(name.clone(), value.clone())?,
                }
            }
        }
        Ok(())
    }

    /// Whether the content type is JSON: `application/json`, or any with the suffix `+json`.
    pub fn is_json(&self) -> bool {
        let kind = self
            .get(header::CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        let kind = kind
            .and_then(|kind| kind.split(';').next())
            .unwrap_or_default();
        let kind = kind.trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    }

    /// A pseudo-header (`:path`), as received; `None` when the proxy does not show it.
    pub fn pseudo(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.received.get(name)?).ok()
    }

    /// Changes a pseudo-header, checked already.
    ///
    /// # Errors
    /// When the proxy refuses that.
    pub(super) fn set_pseudo(
        &mut self,
        name: &'static str,
        value: HeaderValue,
    ) -> Result<(), HeaderError> {
        self.allowed(name)?;
        self.changes.pseudo(name, value);
        Ok(())
    }

    /// As [`Headers::set_pseudo`], whatever the rules are.
    pub(super) fn force_pseudo(&mut self, name: &'static str, value: HeaderValue) {
        self.changes.pseudo(name, value);
    }

    /// The changes so far, for a reply; none are left.
    ///
    /// # Errors
    /// When there are more than the proxy accepts.
    pub fn take_changes(&mut self) -> Result<Changes, HeaderError> {
        let changes = std::mem::take(&mut self.changes);
        changes.check(&self.received, self.rules)?;
        Ok(changes)
    }

    /// Whether a `content-length` was received.
    pub(super) fn had_length(&self) -> bool {
        self.received.get(header::CONTENT_LENGTH.as_str()).is_some()
    }

    /// Whether the body is said to end with trailers.
    pub(super) fn announces_trailers(&self) -> bool {
        let grpc = |value: &[u8]| value.starts_with(b"application/grpc");
        self.received.iter().any(|(name, value)| {
            name == header::TRAILER.as_str() || name == header::CONTENT_TYPE.as_str() && grpc(value)
        })
    }

    /// Removes the length, which no longer holds.
    pub(super) fn remove_length(&mut self) {
        self.changes.replace(header::CONTENT_LENGTH, None);
    }

    fn allowed(&self, name: &str) -> Result<(), HeaderError> {
        let unless = match name {
            "host" | ":authority" | ":method" | ":scheme" if !self.rules.allow_all_routing => {
                "allow_all_routing"
            }
            _ if name.starts_with("x-envoy") && !self.rules.allow_envoy => "allow_envoy",
            _ => return Ok(()),
        };
        Err(HeaderError::Refused {
            name: name.to_owned(),
            unless,
        })
    }

    fn checked<V: TryInto<HeaderValue>>(
        &self,
        name: impl IntoName,
        value: V,
    ) -> Result<(HeaderName, HeaderValue), HeaderError> {
        let name = name.into_name()?;
        if name == header::TRANSFER_ENCODING {
            return Err(HeaderError::TransferEncoding);
        }
        if name == header::CONTENT_LENGTH {
            return Err(HeaderError::ContentLength);
        }
        self.allowed(name.as_str())?;
        match value.try_into() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(HeaderError::Value(name.to_string())),
        }
    }

    fn build(&self) -> Box<HeaderMap> {
        let mut map = HeaderMap::with_capacity(self.received.count());
        for (name, value) in self.received.iter() {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(name.as_bytes()),
                HeaderValue::from_maybe_shared(self.received.share(value)),
            ) {
                map.append(name, value);
            }
        }
        self.changes.apply(&mut map);
        Box::new(map)
    }
}

/// Reading is that of the map.
impl Deref for Headers {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| self.build())
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(fields: I) -> Self {
        let fields = fields.into_iter();
        let received = Fieldset::encode(fields.map(|(name, value)| (name, value.as_bytes())));
        Self::new(received, Rules::default())
    }
}

#[cfg(test)]
mod tests;
