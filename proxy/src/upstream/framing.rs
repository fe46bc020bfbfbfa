//! Where the body of an upstream's response ends, when its head says it in two ways or in one that
//! nobody knows. Who reads it otherwise than we do takes a part of the body for the next response.

use http::{HeaderMap, StatusCode, header};

/// The head of a response does not say where its body ends (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ambiguous {
    /// Both fields say it.
    #[error("the response has `content-length` and `transfer-encoding`")]
    Twice,
    /// Chunks are the only coding that we read.
    #[error("the response has a `transfer-encoding` other than `chunked`")]
    Coding,
    /// Neither 1xx nor 204 has a body (RFC 9110 §15.2, §15.3.5).
    #[error("the response has a body, which its status forbids")]
    Bodiless,
}

/// What is wrong with the head of an HTTP/1 response.
pub(super) fn check(status: StatusCode, headers: &HeaderMap) -> Result<(), Ambiguous> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        let length = headers.get(header::CONTENT_LENGTH);
        let empty = length.is_none_or(|length| length.as_bytes() == b"0");
        return match coding.is_none() && empty {
            true => Ok(()),
            false => Err(Ambiguous::Bodiless),
        };
    }
    let Some(coding) = coding else { return Ok(()) };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
        return Err(Ambiguous::Coding);
    }
    match headers.contains_key(header::CONTENT_LENGTH) {
        true => Err(Ambiguous::Twice),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_ends_in_one_way_that_we_know() {
        let table: [(u16, &[(&'static str, &'static str)], _); 13] = [
            (200, &[], Ok(())),
            (200, &[("content-length", "3")], Ok(())),
            (200, &[("transfer-encoding", "chunked")], Ok(())),
            (200, &[("transfer-encoding", "Chunked")], Ok(())),
            (
                200,
                &[("transfer-encoding", "chunked"), ("content-length", "0")],
                Err(Ambiguous::Twice),
            ),
            (
                304,
                &[("transfer-encoding", "chunked"), ("content-length", "3")],
                Err(Ambiguous::Twice),
            ),
            (
                200,
                &[("transfer-encoding", "gzip, chunked")],
                Err(Ambiguous::Coding),
            ),
            (
                200,
                &[("transfer-encoding", "xchunked")],
                Err(Ambiguous::Coding),
            ),
            (
                200,
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                Err(Ambiguous::Coding),
            ),
            (204, &[], Ok(())),
            (204, &[("content-length", "0")], Ok(())),
            (204, &[("content-length", "3")], Err(Ambiguous::Bodiless)),
            (
                101,
                &[("transfer-encoding", "chunked")],
                Err(Ambiguous::Bodiless),
            ),
        ];
        for (status, fields, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, http::HeaderValue::from_static(value));
            }
            let status = StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(check(status, &headers), expected, "{status} {fields:?}");
        }
    }
}
