//! A service that is fetched from, as it is written.

use std::{collections::BTreeMap, ops::Deref, path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{FetchError, Fetcher, parse};
use crate::{
    config::{ConfigValue, Errors, Located, Node, Schemas, Secret, Size, json},
    config_struct,
    tls::TlsError,
};

/// Bound on a whole exchange when none is given.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More patience than this keeps what waits from noticing that nothing comes.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

config_struct! {
    /// An HTTP service.
    pub struct HttpService {
        /// Its URL, `https://` or `http://`. Redirects are not followed.
        pub url: Located<String>,
        /// Authorities of the server: a PEM file. Left out, those of the system.
        pub ca: Option<Located<PathBuf>>,
        /// Headers of each request by their names, such as `authorization`.
        pub headers: BTreeMap<String, Located<Secret>>,
        /// Bound on a whole exchange, from connecting to the end of the answer. Default 5 s.
        pub timeout: Option<Located<Duration>>,
        /// Largest answer, in bytes. Default 1 MiB, unless said otherwise where it is used.
        pub max_size: Option<Size>,
    }
}

/// An [`HttpService`] that may be written as its URL alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Remote(pub HttpService);

impl Deref for Remote {
    type Target = HttpService;

    fn deref(&self) -> &HttpService {
        &self.0
    }
}

impl ConfigValue for Remote {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        if node.as_map().is_some() {
            return HttpService::decode(node, errors).map(Self);
        }
        let url = Located::decode(node, errors)?;
        Some(Self(HttpService::at(url)))
    }

    fn encode(&self) -> Option<json::Value> {
        self.0.encode()
    }

    fn schema(schemas: &mut Schemas) -> json::Value {
        let service = HttpService::schema(schemas);
        json::json!({ "anyOf": [{ "type": "string" }, service] })
    }
}

impl HttpService {
    /// Largest answer when nothing else is said: 1 MiB.
    pub const MAX_SIZE: Size = Size(1 << 20);

    /// A service with default settings.
    pub fn at(url: Located<String>) -> Self {
        Self {
            url,
            ca: None,
            headers: BTreeMap::new(),
            timeout: None,
            max_size: None,
        }
    }

    /// Checks the settings and reads the files. `max_size` bounds answers where the settings do
    /// not. The files that count are in [`Fetcher::files`].
    pub fn plan(&self, max_size: Size, errors: &mut Errors) -> Option<Fetcher> {
        let timeout = self.timeout.as_ref().map_or(TIMEOUT, |timeout| {
            if timeout.value.is_zero() || timeout.value > MAX_TIMEOUT {
                errors.push(timeout, "expected more than 0 s and at most 5 min");
            }
            timeout.value
        });
        let (headers, files) = self.headers(errors);
        let url = parse(&self.url)
            .map_err(|problem| errors.push(&self.url, format!("`{}`: {problem}", self.url.value)))
            .ok()?;
        let max_size = self.max_size.unwrap_or(max_size).as_usize();
        let ca = self.ca.as_ref().map(Located::resolved);
        match Fetcher::new(url, headers, timeout, max_size, ca, None) {
            Ok(mut fetcher) => {
                fetcher.files.extend(files);
                Some(fetcher)
            }
            Err(error) => {
                match (&self.ca, &error) {
                    (Some(ca), FetchError::Tls { reason, .. }) if is_about_a_file(reason) => {
                        errors.push(ca, reason.to_string());
                    }
                    _ => errors.push(&self.url, error.to_string()),
                }
                None
            }
        }
    }

    fn headers(&self, errors: &mut Errors) -> (HeaderMap, Vec<PathBuf>) {
        let mut headers = HeaderMap::new();
        let mut files = Vec::new();
        for (name, secret) in &self.headers {
            files.extend(secret.file());
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                errors.push(secret, format!("`{name}` is not a header name"));
                continue;
            };
            let Some(text) = secret.read(errors) else {
                continue;
            };
            match HeaderValue::from_str(text.reveal()) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    headers.insert(header, value);
                }
                Err(_) => errors.push(secret, format!("not a value that `{name}` can have")),
            }
        }
        (headers, files)
    }
}

fn is_about_a_file(error: &TlsError) -> bool {
    error.path().is_some()
}
