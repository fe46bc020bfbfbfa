//! Pages that a program adds to its admin endpoint.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{Method, StatusCode};
use percent_encoding::percent_decode_str;

/// A page of the program, at one path.
#[derive(Clone)]
pub struct Page {
    pub(super) method: PageMethod,
    pub(super) path: &'static str,
    pub(super) about: &'static str,
    answer: Answerer,
}

type Answerer =
    Arc<dyn Fn(Query) -> Pin<Box<dyn Future<Output = PageAnswer> + Send>> + Send + Sync>;

/// How a page is asked for.
///
/// What changes something is asked for with POST or DELETE, and never by a page of another site:
/// browsers say where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageMethod {
    /// It only reads.
    Get,
    /// It changes something.
    Post,
    /// It removes something.
    Delete,
}

/// The methods that only read.
pub(super) const READS: &str = "GET, HEAD";

/// What a page says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageAnswer {
    /// The status.
    pub status: StatusCode,
    /// Such as `application/json`.
    pub content_type: &'static str,
    /// The whole text.
    pub text: String,
}

/// The parameters of a request: `?name=value&…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Page {
    /// A page at `path`.
    pub fn new<F, A>(method: PageMethod, path: &'static str, answer: F) -> Self
    where
        F: Fn(Query) -> A + Send + Sync + 'static,
        A: Future<Output = PageAnswer> + Send + 'static,
    {
        Self {
            method,
            path,
            about: "",
            answer: Arc::new(move |query| Box::pin(answer(query))),
        }
    }

    /// Says in a few words what it is for, for the list of pages.
    #[must_use]
    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(super) async fn answer(&self, query: Option<&str>) -> PageAnswer {
        (self.answer)(Query::parse(query.unwrap_or_default())).await
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("method", &self.method)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl PageMethod {
    pub(super) fn takes(self, method: &Method) -> bool {
        match self {
            Self::Get => matches!(*method, Method::GET | Method::HEAD),
            Self::Post => *method == Method::POST,
            Self::Delete => *method == Method::DELETE,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Get => READS,
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

impl PageAnswer {
    /// 200 with JSON.
    pub fn json(text: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            text,
        }
    }

    /// 200 with plain text.
    pub fn text(text: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: crate::http_server::TEXT,
            text,
        }
    }

    /// A refusal or failure, with the reason.
    pub fn failure(status: StatusCode, reason: impl fmt::Display) -> Self {
        Self {
            status,
            content_type: crate::http_server::TEXT,
            text: format!("{reason}\n"),
        }
    }
}

impl Query {
    /// Reads `name=value&…`. Bytes that are no UTF-8 become replacement characters.
    pub fn parse(text: &str) -> Self {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        pairs.find_map(|(known, value)| (known == name).then_some(value.as_str()))
    }

    /// All values of this name, in their order.
    pub fn all<'q>(&'q self, name: &'q str) -> impl Iterator<Item = &'q str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first name that is none of these.
    pub fn unknown(&self, known: &[&str]) -> Option<&str> {
        let mut names = self.0.iter().map(|(name, _)| name.as_str());
        names.find(|name| !known.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_may_repeat() {
        let query = Query::parse("key=a%20b&key=c+d&flag&=x&");
        assert_eq!(query.all("key").collect::<Vec<_>>(), ["a b", "c d"]);
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("none"), None);
        assert_eq!(query.unknown(&["key", "flag", ""]), None);
        assert_eq!(query.unknown(&["key"]), Some("flag"));
    }
}
