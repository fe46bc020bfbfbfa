//! Headers as received, and the changes to them in the form that Envoy understands.

use std::{ops::Deref, sync::OnceLock};

use attache_proto::{core, ext_proc};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Envoy refuses mutations with more entries than this, by default.
const MAX_CHANGES: usize = 100;

/// A header change that Envoy would refuse or garble.
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
    /// The status does not fit a final response.
    #[error("{0} is not a final status")]
    Status(http::StatusCode),
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
    received: Vec<core::HeaderValue>,
    /// Made when somebody looks.
    map: OnceLock<HeaderMap>,
    changes: Changes,
}

impl Headers {
    pub(super) fn new(received: Vec<core::HeaderValue>) -> Self {
        Self {
            received,
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
        let (name, value) = checked(name, value)?;
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
        let (name, value) = checked(name, value)?;
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
        if let Some(map) = self.map.get_mut() {
            map.remove(&name);
        }
        self.changes.replace(name, None);
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

    /// A pseudo-header, as received.
    pub(super) fn pseudo(&self, name: &str) -> Option<&str> {
        let field = self.received.iter().find(|field| field.key == name)?;
        std::str::from_utf8(&field.raw_value).ok()
    }

    pub(super) fn set_pseudo(&mut self, name: &'static str, value: HeaderValue) {
        self.changes.pseudo(name, value);
    }

    pub(super) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    fn build(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.received.len());
        for field in &self.received {
            if let (Ok(name), Ok(value)) = (
                HeaderName::from_bytes(field.key.as_bytes()),
                HeaderValue::from_maybe_shared(field.raw_value.clone()),
            ) {
                map.append(name, value);
            }
        }
        self.changes.apply(&mut map);
        map
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
        let field = |(key, value): (&str, &str)| core::HeaderValue {
            key: key.to_ascii_lowercase(),
            raw_value: value.as_bytes().to_vec().into(),
            ..core::HeaderValue::default()
        };
        Self::new(fields.into_iter().map(field).collect())
    }
}

fn checked<V: TryInto<HeaderValue>>(
    name: impl IntoName,
    value: V,
) -> Result<(HeaderName, HeaderValue), HeaderError> {
    let name = name.into_name()?;
    if name == header::TRANSFER_ENCODING {
        return Err(HeaderError::TransferEncoding);
    }
    match value.try_into() {
        Ok(value) => Ok((name, value)),
        Err(_) => Err(HeaderError::Value(name.to_string())),
    }
}

/// Checked changes to headers, in a form that Envoy applies as meant.
///
/// Envoy removes first and sets afterwards, knows `append` but no other action, and reads only
/// `raw_value`. So each name has one entry here, with the values it shall have in the end.
#[derive(Debug, Default)]
pub struct Changes {
    entries: Vec<Change>,
    pseudo: Vec<(&'static str, HeaderValue)>,
}

#[derive(Debug)]
struct Change {
    name: HeaderName,
    /// The values replace those received, else they are added.
    replaces: bool,
    values: Vec<HeaderValue>,
}

/// More changes to one message than Envoy accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} header changes in one message; Envoy accepts {MAX_CHANGES}")]
pub struct TooManyChanges(usize);

impl Changes {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.pseudo.is_empty()
    }

    pub(super) fn replace(&mut self, name: HeaderName, value: Option<HeaderValue>) {
        let values = value.into_iter().collect();
        match self.entries.iter_mut().find(|change| change.name == name) {
            Some(change) => {
                change.replaces = true;
                change.values = values;
            }
            None => self.entries.push(Change {
                name,
                replaces: true,
                values,
            }),
        }
    }

    fn append(&mut self, name: HeaderName, value: HeaderValue) {
        match self.entries.iter_mut().find(|change| change.name == name) {
            Some(change) => change.values.push(value),
            None => self.entries.push(Change {
                name,
                replaces: false,
                values: vec![value],
            }),
        }
    }

    fn pseudo(&mut self, name: &'static str, value: HeaderValue) {
        self.pseudo.retain(|(present, _)| *present != name);
        self.pseudo.push((name, value));
    }

    /// Whether `name` is set or removed.
    pub(super) fn touches(&self, name: &HeaderName) -> bool {
        self.entries.iter().any(|change| change.name == *name)
    }

    /// The one value that `name` is set to.
    pub(super) fn value(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.entries
            .iter()
            .find(|change| change.name == *name)?
            .values
            .first()
    }

    fn apply(&self, map: &mut HeaderMap) {
        for change in &self.entries {
            if change.replaces {
                map.remove(&change.name);
            }
            for value in &change.values {
                map.append(&change.name, value.clone());
            }
        }
    }

    /// The message, or `None` when nothing is changed.
    ///
    /// # Errors
    /// When there are more changes than Envoy accepts.
    pub(super) fn into_mutation(self) -> Result<Option<ext_proc::HeaderMutation>, TooManyChanges> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut mutation = ext_proc::HeaderMutation::default();
        for (name, value) in self.pseudo {
            mutation.set_headers.push(option(name, value, false));
        }
        for change in self.entries {
            if change.replaces && change.values.is_empty() {
                mutation
                    .remove_headers
                    .push(change.name.as_str().to_owned());
            }
            for (value, first) in change.values.into_iter().zip((0..).map(|i| i == 0)) {
                let append = !(first && change.replaces);
                mutation
                    .set_headers
                    .push(option(change.name.as_str(), value, append));
            }
        }
        let count = mutation
            .set_headers
            .len()
            .max(mutation.remove_headers.len());
        if count > MAX_CHANGES {
            return Err(TooManyChanges(count));
        }
        Ok(Some(mutation))
    }
}

fn option(key: &str, value: HeaderValue, append: bool) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: key.to_owned(),
            // Values are shared where they can be, copied where `http` does not give them away.
            raw_value: bytes::Bytes::copy_from_slice(value.as_bytes()),
            ..core::HeaderValue::default()
        }),
        append: append.then_some(true),
        ..core::HeaderValueOption::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(headers: &mut Headers) -> (Vec<(String, String, bool)>, Vec<String>) {
        let mutation = headers
            .take_changes()
            .into_mutation()
            .unwrap()
            .unwrap_or_default();
        let set = mutation.set_headers.into_iter().map(|option| {
            let header = option.header.unwrap();
            assert_eq!(header.value, "");
            let value = String::from_utf8(header.raw_value.to_vec()).unwrap();
            (header.key, value, option.append.unwrap_or(false))
        });
        (set.collect(), mutation.remove_headers)
    }

    fn entry(key: &str, value: &str, append: bool) -> (String, String, bool) {
        (key.to_owned(), value.to_owned(), append)
    }

    #[test]
    fn the_last_change_of_a_name_counts() {
        let mut headers = Headers::from_iter([("x-a", "0"), ("x-b", "0")]);
        headers.insert("X-A", "1").unwrap();
        headers.remove("x-a").unwrap();
        headers.remove("x-b").unwrap();
        headers.append("x-b", "1").unwrap();
        headers.append("x-b", "2").unwrap();
        headers.append("x-c", "3").unwrap();

        assert!(!headers.contains_key("x-a"));
        assert_eq!(
            headers.get_all("x-b").iter().collect::<Vec<_>>(),
            ["1", "2"]
        );
        let (set, removed) = entries(&mut headers);
        let expected = [
            entry("x-b", "1", false),
            entry("x-b", "2", true),
            entry("x-c", "3", true),
        ];
        assert_eq!(set, expected);
        assert_eq!(removed, ["x-a"]);
    }

    #[test]
    fn conditional_changes_look_at_what_was_received() {
        let mut headers = Headers::from_iter([("x-a", "0")]);
        headers.insert_if_absent("x-a", "1").unwrap();
        headers.insert_if_absent("x-b", "1").unwrap();
        headers.replace("x-a", "2").unwrap();
        headers.replace("x-c", "2").unwrap();
        let (set, _) = entries(&mut headers);
        assert_eq!(set, [entry("x-b", "1", false), entry("x-a", "2", false)]);
    }

    #[test]
    fn json_is_known_by_its_content_type() {
        for (kind, is_json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", true),
            ("application/jsonp", false),
            ("text/plain", false),
        ] {
            assert_eq!(
                Headers::from_iter([("content-type", kind)]).is_json(),
                is_json,
                "{kind}"
            );
        }
        assert!(!Headers::default().is_json());
    }

    #[test]
    fn what_envoy_would_refuse_is_refused_at_once() {
        let mut headers = Headers::default();
        assert_eq!(
            headers.insert("x v", "1"),
            Err(HeaderError::Name("x v".into()))
        );
        assert_eq!(headers.insert("", "1"), Err(HeaderError::Name("".into())));
        assert_eq!(
            headers.insert("x-a", "a\nb"),
            Err(HeaderError::Value("x-a".into()))
        );
        assert_eq!(
            headers.append("Transfer-Encoding", "chunked"),
            Err(HeaderError::TransferEncoding)
        );
        for n in 0..101 {
            headers.insert(format!("x-{n}").as_str(), "1").unwrap();
        }
        assert_eq!(
            headers.take_changes().into_mutation(),
            Err(TooManyChanges(101))
        );
    }

    proptest::proptest! {
        /// What the author sees is what the client ends up with.
        #[test]
        fn the_view_is_what_envoy_makes_of_the_mutation(
            operations in proptest::collection::vec((0u8..3, 0usize..3, "[a-z]{1,3}"), 0..12),
        ) {
            let received = [("x-a", "0"), ("x-b", "0"), ("x-b", "1")];
            let mut headers = Headers::from_iter(received);
            for (operation, name, value) in &operations {
                let name = ["x-a", "x-b", "x-c"][*name];
                match operation {
                    0 => headers.insert(name, value.as_str()).unwrap(),
                    1 => headers.append(name, value.as_str()).unwrap(),
                    _ => headers.remove(name).unwrap(),
                }
            }
            let view = headers.clone();
            let mutation = headers.take_changes().into_mutation().unwrap().unwrap_or_default();

            let mut applied = Headers::from_iter(received).clone();
            for name in &mutation.remove_headers {
                applied.remove(name);
            }
            for option in &mutation.set_headers {
                let header = option.header.as_ref().unwrap();
                let name = HeaderName::from_bytes(header.key.as_bytes()).unwrap();
                let value = HeaderValue::from_bytes(&header.raw_value).unwrap();
                if option.append == Some(true) {
                    applied.append(name, value);
                } else {
                    applied.insert(name, value);
                }
            }
            for name in ["x-a", "x-b", "x-c"] {
                let of = |map: &HeaderMap| map.get_all(name).iter().cloned().collect::<Vec<_>>();
                assert_eq!(of(&view), of(&applied), "{operations:?}");
            }
        }
    }
}
