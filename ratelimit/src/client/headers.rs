//! Headers that a service adds.

use attache_proto::core;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers from a service's answer. Those that are not valid, and those that delimit or route the
/// message, are left out: a service that sends them must not break it. (Envoy passes a second
/// `content-length` on, joins a second `host` and `:path` to the first, and answers 503 itself
/// when a value is not valid.)
pub fn from_service(fields: &[core::HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let Ok(name) = HeaderName::from_bytes(field.key.as_bytes()) else {
            continue;
        };
        let protected = [
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
            header::UPGRADE,
            header::TE,
            header::TRAILER,
            header::HOST,
        ];
        if protected.contains(&name) {
            continue;
        }
        let value = if field.raw_value.is_empty() {
            HeaderValue::from_str(&field.value)
        } else {
            HeaderValue::from_maybe_shared(field.raw_value.clone())
        };
        if let Ok(value) = value {
            headers.append(name, value);
        }
    }
    headers
}

/// Appends all of `more`; a `content-type` replaces the one that is there, since there can only
/// be one. (Envoy joins the two with a comma unless the reply is its own.)
pub fn append_all(headers: &mut HeaderMap, more: &HeaderMap) {
    for (name, value) in more {
        if name == header::CONTENT_TYPE {
            headers.insert(name, value.clone());
        } else {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(key: &str, value: &str, raw: &'static [u8]) -> core::HeaderValue {
        core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: raw.into(),
        }
    }

    #[test]
    fn a_service_adds_headers_but_cannot_break_the_message() {
        let headers = from_service(&[
            field("X-A", "1", b""),
            field("x-a", "2", b""),
            field("x-b", "text", b"raw \xe9"),
            field("content-length", "7", b""),
            field("Transfer-Encoding", "chunked", b""),
            field("host", "evil", b""),
            field(":path", "/evil", b""),
            field("x-bad", "a\r\nb: c", b""),
            field("bad name", "1", b""),
        ]);
        let seen: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        assert_eq!(
            seen,
            [
                ("x-a", &b"1"[..]),
                ("x-a", &b"2"[..]),
                ("x-b", &b"raw \xe9"[..])
            ]
        );
    }
}
