//! `content-digest` (RFC 9530) and the body.

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, SHA512, digest},
};

use super::fields::{Bare, Item, Member, dictionary};
use crate::server::{Body, CheckRequestView};

/// Whether a request has a body, or may have one that nobody shows.
pub(super) fn has_body(request: &CheckRequestView) -> bool {
    if request.body() != Body::Absent || request.has_header("transfer-encoding") {
        return true;
    }
    match request.header("content-length") {
        Some(length) => length != "0",
        // Without a length, HTTP/2 still may have a body; these methods do not expect one.
        None => !matches!(
            request.method(),
            Some("GET" | "HEAD" | "OPTIONS" | "DELETE" | "TRACE" | "CONNECT")
        ),
    }
}

/// Compares the digest with the body. Errors are reasons for the log.
pub(super) fn verify(request: &CheckRequestView, allow_unseen: bool) -> Result<(), &'static str> {
    let field = request
        .header("content-digest")
        .ok_or("missing_component")?;
    let body = match request.body() {
        Body::Whole(body) => body,
        Body::Absent => &[],
        Body::Partial(_) if allow_unseen => return Ok(()),
        Body::Partial(_) => return Err("body_not_shown"),
    };
    let mut known = false;
    for (algorithm, member) in dictionary(&field).map_err(|_| "malformed_digest")? {
        let algorithm = match algorithm.as_str() {
            "sha-256" => &SHA256,
            "sha-512" => &SHA512,
            // RFC 9530 §2: others are left aside.
            _ => continue,
        };
        let Member::Item(Item {
            bare: Bare::Bytes(told),
            ..
        }) = member
        else {
            return Err("malformed_digest");
        };
        known = true;
        if verify_slices_are_equal(&told, digest(algorithm, body).as_ref()).is_err() {
            return match request.body() {
                Body::Absent if allow_unseen => Ok(()),
                Body::Absent if has_body(request) => Err("body_not_shown"),
                _ => Err("wrong_digest"),
            };
        }
    }
    known.then_some(()).ok_or("unknown_digest")
}
