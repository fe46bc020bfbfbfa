//! HTTP services named by a URL, for what is fetched from them: keys, documents, policies.
//!
//! A [`Fetcher`] asks one service, with the settings of a [`Remote`]. It follows no redirects,
//! bounds time and size, and sends conditional requests ([RFC 9110 §13]) for what it has fetched
//! before:
//!
//! ```no_run
//! # async fn example(fetcher: attache_service::fetch::Fetcher)
//! # -> Result<(), attache_service::fetch::FetchError> {
//! use attache_service::fetch::{Fetched, Validators};
//!
//! let mut known = Validators::default();
//! match fetcher.fetch(&known).await? {
//!     Fetched::Document(document) => {
//!         // Once the document has proved to be what is wanted.
//!         known = document.validators;
//!     }
//!     Fetched::Same { .. } => {}
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [RFC 9110 §13]: https://www.rfc-editor.org/rfc/rfc9110#section-13

mod config;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request,
    uri::Scheme,
};

pub use config::{HttpService, Remote};

use crate::{
    Address, ChannelSettings, HttpClient, HttpError,
    channel::Target,
    tls::{ClientFiles, ClientTls, TlsError},
};

/// Why nothing was fetched. Queries of URLs are not shown.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that can be asked.
    #[error("`{url}`: {problem}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// TLS cannot be set up.
    #[error("{url}: {reason}")]
    Tls {
        /// What was to be asked.
        url: String,
        /// What is wrong.
        reason: Box<TlsError>,
    },
    /// No whole answer.
    #[error("{url}: {reason}")]
    NoAnswer {
        /// What was asked.
        url: String,
        /// What went wrong.
        reason: HttpError,
    },
    /// An answer, but not the document. Redirects are not followed.
    #[error("{url} answered {status}")]
    Status {
        /// What was asked.
        url: String,
        /// What it answered.
        status: StatusCode,
    },
}

/// What a server said a document can be known by: for conditional requests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
}

/// What came of a fetch.
#[derive(Debug, Clone)]
pub enum Fetched {
    /// What is known is still right.
    Same {
        /// How long, by `cache-control` and `age`; `None` when that is not said.
        fresh_for: Option<Duration>,
    },
    /// What there is.
    Document(Document),
}

/// A document as it was fetched.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its bytes.
    pub body: Bytes,
    /// To ask with again, once this document has been found good.
    pub validators: Validators,
    /// How long it is fresh, by `cache-control` and `age`; `None` when that is not said.
    pub fresh_for: Option<Duration>,
}

/// An HTTP service that can be asked. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Fetcher {
    client: HttpClient,
    url: Uri,
    /// Configured, such as `authorization`.
    headers: HeaderMap,
    timeout: Duration,
    max_size: usize,
    ca: Option<PathBuf>,
    tls: Option<ClientTls>,
    files: Vec<PathBuf>,
}

impl Fetcher {
    fn new(
        url: Uri,
        headers: HeaderMap,
        timeout: Duration,
        max_size: usize,
        ca: Option<PathBuf>,
        tls: Option<ClientTls>,
    ) -> Result<Self, FetchError> {
        let shown = Shown(&url).to_string();
        let problem = |problem| FetchError::Url {
            url: shown.clone(),
            problem,
        };
        let secure = url.scheme() == Some(&Scheme::HTTPS);
        let host = url.host().ok_or_else(|| problem("it has no host"))?;
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address: Address = format!("{host}:{port}")
            .parse()
            .map_err(|_| problem("its host is not valid"))?;
        let mut settings = ChannelSettings::new(host, vec![Target::Address(address)]);
        settings.connect_timeout = timeout;
        if secure {
            let tls = match &tls {
                Some(tls) => tls.clone(),
                None => client_tls(ca.clone()).map_err(|reason| FetchError::Tls {
                    url: shown.clone(),
                    reason: Box::new(reason),
                })?,
            };
            settings.tls = Some(tls);
        }
        Ok(Self {
            tls: settings.tls.clone().or(tls),
            client: HttpClient::new(settings, false),
            url,
            headers,
            timeout,
            max_size,
            files: ca.iter().cloned().collect(),
            ca,
        })
    }

    /// The URL, without its query.
    pub fn url(&self) -> impl fmt::Display + '_ {
        Shown(&self.url)
    }

    /// The files that it was made of. What changes in them counts for fetchers made later.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Bound on a whole exchange.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A fetcher with the same settings for another URL, one that a document of this service
    /// names. Configured headers go along to the same scheme, host and port only.
    ///
    /// # Errors
    /// When it is no URL, or plain `http` where this one is `https`.
    pub fn beside(&self, url: &str) -> Result<Self, FetchError> {
        let uri = parse(url).map_err(|problem| FetchError::Url {
            url: url.to_owned(),
            problem,
        })?;
        if self.url.scheme() == Some(&Scheme::HTTPS) && uri.scheme() == Some(&Scheme::HTTP) {
            return Err(FetchError::Url {
                url: Shown(&uri).to_string(),
                problem: "plain `http`, named by what came over `https`",
            });
        }
        if uri.scheme() == self.url.scheme() && uri.authority() == self.url.authority() {
            return Ok(Self {
                url: uri,
                ..self.clone()
            });
        }
        let (ca, tls) = (self.ca.clone(), self.tls.clone());
        Self::new(uri, HeaderMap::new(), self.timeout, self.max_size, ca, tls)
    }

    /// A request for the URL, to be completed and given to [`Fetcher::send`].
    pub fn request(&self, method: Method) -> request::Builder {
        Request::builder().method(method).uri(self.url.clone())
    }

    /// Sends a request and reads its whole answer, whatever its status. Of the request's URI only
    /// path and query count. Configured headers replace those of the request.
    ///
    /// # Errors
    /// When there is no whole answer, in time and within the bound on its size.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let (mut parts, body) = request.into_parts();
        let mut uri = self.url.clone().into_parts();
        if let Some(path) = parts.uri.path_and_query() {
            uri.path_and_query = Some(path.clone());
        }
        // All three parts are there, so it cannot fail.
        parts.uri = Uri::from_parts(uri).unwrap_or_else(|_| self.url.clone());
        for (name, value) in &self.headers {
            parts.headers.insert(name, value.clone());
        }
        let request = Request::from_parts(parts, body);
        let sent = self.client.request(request, self.timeout, self.max_size);
        sent.await.map_err(|reason| FetchError::NoAnswer {
            url: self.url().to_string(),
            reason,
        })
    }

    /// Gets the document, unless it is still the one that `known` describes.
    ///
    /// # Errors
    /// When there is no answer, or another one than 200, or 304 to a conditional request.
    pub async fn fetch(&self, known: &Validators) -> Result<Fetched, FetchError> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        if let Some(etag) = &known.etag {
            headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        if let Some(date) = &known.last_modified {
            headers.insert(header::IF_MODIFIED_SINCE, date.clone());
        }
        let conditional = *known != Validators::default();
        let (parts, body) = self.send(request).await?.into_parts();
        let fresh_for = fresh_for(&parts.headers);
        match parts.status {
            StatusCode::OK => Ok(Fetched::Document(Document {
                body,
                validators: Validators {
                    etag: parts.headers.get(header::ETAG).cloned(),
                    last_modified: parts.headers.get(header::LAST_MODIFIED).cloned(),
                },
                fresh_for,
            })),
            StatusCode::NOT_MODIFIED if conditional => Ok(Fetched::Same { fresh_for }),
            status => Err(FetchError::Status {
                url: self.url().to_string(),
                status,
            }),
        }
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher")
            .field("url", &self.url().to_string())
            .finish_non_exhaustive()
    }
}

/// A URL without its query, which may be secret.
struct Shown<'a>(&'a Uri);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let authority = self
            .0
            .authority()
            .map_or("", |authority| authority.as_str());
        write!(f, "{scheme}://{authority}{}", self.0.path())
    }
}

fn client_tls(ca: Option<PathBuf>) -> Result<ClientTls, TlsError> {
    ClientTls::load(ClientFiles {
        ca,
        alpn: vec!["http/1.1".to_owned()],
        ..ClientFiles::default()
    })
}

/// A whole `http` or `https` URL.
fn parse(url: &str) -> Result<Uri, &'static str> {
    if url.contains('#') {
        return Err("a URL that is fetched has no `#`");
    }
    let uri: Uri = url.parse().map_err(|_| "not a URL")?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("expected `http://` or `https://`");
    }
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("user and password belong in `headers`")
        }
        Some(authority) if !authority.host().is_empty() => Ok(uri),
        _ => Err("it has no host"),
    }
}

/// How long an answer is fresh (RFC 9111 §4.2), as far as `cache-control` says so.
fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let seconds = |text: &str| text.trim().trim_matches('"').parse::<u64>().ok();
    let mut fresh = None;
    for line in headers.get_all(header::CACHE_CONTROL) {
        for directive in line.to_str().ok()?.split(',') {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            let name = name.trim();
            if name.eq_ignore_ascii_case("no-store") || name.eq_ignore_ascii_case("no-cache") {
                return Some(Duration::ZERO);
            }
            if name.eq_ignore_ascii_case("max-age") {
                fresh = seconds(value);
            }
        }
    }
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok());
    let age = age.and_then(seconds).unwrap_or_default();
    fresh.map(|fresh| Duration::from_secs(fresh.saturating_sub(age)))
}
