//! What can be wrong with an answer: codes, what Envoy makes of each, what helps.

/// One thing that is wrong, or worth knowing, about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub code: Code,
    /// What the service did, in one sentence.
    pub did: String,
}

attache_service::probe_codes! {
    RpcDenial "rpc-error-as-denial" Violation:
        "Envoy takes any status of the call but OK as a failed check: it answers status_on_error (403), without your body and headers, and with failure_mode_allow it lets the request pass.";
        "Let the call succeed; deny with a status in CheckResponse and denied_response."
    RpcError "rpc-error" Violation:
        "Envoy takes it as a failed check: it answers status_on_error (403 by default), and with failure_mode_allow it lets the request pass.";
        "Answer every check; say that no decision was reached with a non-zero status and error_response."
    NoAnswer "no-answer" Violation:
        "Envoy gives up when the timeout of grpc_service (200 ms by default) has passed, answers status_on_error, and with failure_mode_allow lets the request pass.";
        "Answer before the deadline that the call brings (grpc-timeout), with an error_response if need be."
    LateAnswer "late-answer" Violation:
        "Envoy has given up by then: the client got status_on_error, or with failure_mode_allow the request has passed.";
        "Answer faster, raise the timeout of grpc_service, or answer with an error_response before the deadline that the call brings."
    NotReadable "unreadable-answer" Violation:
        "Envoy takes it as a failed check.";
        "Send a CheckResponse of envoy.service.auth.v3."
    DeadAfterCancel "dead-after-cancel" Violation:
        "A client who goes away is everyday life: Envoy cancels the call and expects the next one to work.";
        "Let a cancelled call end by itself."
    EmptyAllows "empty-answer-allows" Violation:
        "An absent status reads as 0, and that is OK: Envoy lets the request pass.";
        "Set status in every answer; build answers where none can be left out."
    StatusMissing "status-missing" Note:
        "An absent status reads as 0, and that is OK: Envoy lets the request pass.";
        "Set status to 0, so that an allowing answer is one on purpose."
    DenialAllows "denial-with-status-ok" Violation:
        "Envoy ignores denied_response when status is 0, and lets the request pass.";
        "Set status.code to 7 (PERMISSION_DENIED) or 16 (UNAUTHENTICATED) with denied_response."
    ErrorAllows "error-with-status-ok" Violation:
        "Envoy ignores error_response when status is 0, and lets the request pass.";
        "Set status.code to 14 (UNAVAILABLE) or 13 (INTERNAL) with error_response."
    OkIgnored "ok-response-with-denial" Warning:
        "Envoy ignores ok_response when status is not 0, and answers 403 without body.";
        "Send denied_response with a denial."
    BareDenial "denial-without-response" Note:
        "Envoy answers 403 without body.";
        "Send denied_response to say more."
    WaitsForever "informational-status" Hang:
        "Envoy sends it on, and the client waits for the final response, which never comes.";
        "Use a status from 200 to 599."
    BadStatus "status-out-of-range" Violation:
        "Envoy does not check it and writes a status line that clients cannot read.";
        "Use a status from 200 to 599."
    ErrorStatus "error-status-of-success" Warning:
        "The client takes a failed check for a success.";
        "Use a status from 400 to 599 in error_response, or none for the filter's status_on_error."
    DeniedOk "denial-of-success" Note:
        "The client gets the denial as a success; the request does not reach the upstream.";
        "Fine for a page of your own; otherwise use a status from 400 on."
    BodyForbidden "body-of-bodyless-status" Violation:
        "Envoy sends the body all the same: the client takes it for the next response.";
        "Leave the body out with 204 and 304."
    LongMessage "long-grpc-message" Warning:
        "gRPC clients get the body as the header grpc-message, and many accept no more than 8 KiB of headers.";
        "Keep denials of gRPC requests short."
    EmptyName "empty-header-name" Violation:
        "Envoy does not check it, not even with validate_mutations: the upstream gets a line without a name.";
        "Leave the entry out."
    BadName "invalid-header-name" Violation:
        "Envoy answers 503 when it writes the request upstream, or 500 with validate_mutations; in an answer to the client it writes the name as it is.";
        "Send only letters, digits and `-_.` in names."
    BadValue "invalid-header-value" Violation:
        "In an answer to the client a line break splits the response; in a request Envoy answers 503, or 500 with validate_mutations.";
        "Send no line breaks or other control characters; encode what comes from outside."
    RawValue "raw-value-ignored" Violation:
        "Envoy reads value only: the header is set to an empty value.";
        "Put the text into value and leave raw_value unset."
    NoHeader "entry-without-header" Warning:
        "An entry without a header has an empty name.";
        "Leave the entry out."
    ActionIgnored "append-action-ignored" Warning:
        "In request headers Envoy 1.40 ignores append_action: without `append` every entry replaces all lines of its header, or adds it.";
        "Set `append: false` to replace, `append: true` to join to what is there."
    ActionWrong "append-action-has-wrong-effect" Violation:
        "In request headers Envoy 1.40 ignores append_action; for this request the outcome is not the one asked for.";
        "Decide by the headers in the check whether to set the header at all; set `append: false` to replace."
    LastWins "repeated-header-overwritten" Violation:
        "Each entry without `append: true` replaces the one before: only the last value reaches the upstream.";
        "Set `append: false` on the first and `append: true` on the others, or send one entry with the values joined by commas."
    AppendToAbsent "append-to-absent-header" Violation:
        "Envoy appends only to a header that is there: this one is lost.";
        "Use `append: false` where the request does not have the header."
    AppendToPseudo "append-to-pseudo-header" Violation:
        "Envoy joins the value with a comma, which makes another path, method or authority of it.";
        "Set it whole, with `append: false`."
    DeniedAppend "append-in-denied-header" Violation:
        "Envoy drops entries with `append: true` from answers to the client.";
        "Leave `append` unset; repeated names become several lines."
    UnknownAction "unknown-append-action" Violation:
        "Envoy drops the entry of a response header and replaces a request header all the same; with validate_mutations it answers 500.";
        "Use a value that the enum has."
    Framing "framing-header-set" Violation:
        "Envoy lets it through and breaks the framing: one side waits for bytes that do not come, or takes the rest for another message.";
        "Leave content-length, transfer-encoding and connection headers to the proxy."
    StatusSet "response-status-set" Warning:
        "Envoy overwrites the status of the upstream's response, whatever its body says.";
        "Deny with a status instead."
    NoEffect "header-without-effect" Warning:
        "Envoy sets these itself in its answers, and drops yours.";
        "Leave :status, content-length, transfer-encoding, connection and server out of denied_response."
    RemoveIgnored "removal-ignored" Warning:
        "Envoy does not remove host and names that begin with a colon.";
        "Set another value instead."
    SetAndRemoved "set-and-removed" Warning:
        "Envoy removes last: what is set is gone.";
        "Do one of the two."
    TooMany "too-many-headers" Violation:
        "Envoy answers 500, even with failure_mode_allow: the request has more than 100 headers or 60 KiB of them.";
        "Send fewer, or raise max_headers_count and max_request_headers_kb of the proxy."
    ManyResponse "many-response-headers" Warning:
        "With enforce_response_header_limits Envoy answers 500; without, it sends more headers than many clients accept.";
        "Send fewer than 100."
    QueryEncoding "query-not-encoded" Violation:
        "Envoy writes it into the URL as it is, and answers 500 with validate_mutations: `&`, `#` or a space make another URL of it.";
        "Percent-encode names and values."
    QueryValidated "query-encoded" Note:
        "With validate_mutations Envoy answers 500 even to what is encoded properly; without it all is well.";
        "Leave validate_mutations off, or avoid values that need encoding."
    PathOnly "path-set" Note:
        "The upstream gets the other path by the route of the old one, unless the filter has clear_route_cache.";
        "Set clear_route_cache where the route shall follow."
    OldMetadata "ok-response-dynamic-metadata" Warning:
        "The field is deprecated, and what it says wins over dynamic_metadata of the answer.";
        "Use dynamic_metadata of CheckResponse."
    HttpForTcp "http-response-for-tcp" Note:
        "The check was of a TCP connection: Envoy opens or closes it and ignores headers, status and body.";
        "Nothing, if that is what is meant."
    Spelling "allowed-by-another-spelling" Warning:
        "A proxy that does not normalise paths passes the request on as it is, and an upstream that normalises serves what was denied.";
        "Normalise before deciding, or deny what is not normal; set normalize_path, merge_slashes and path_with_escaped_slashes_action in the proxy."
    Encoding "decision-depends-on-encoding" Violation:
        "With encode_raw_headers Envoy sends headers in header_map and leaves headers empty: the same request gets another decision.";
        "Read both fields."
}

impl Code {
    pub(super) fn because(self, did: impl Into<String>) -> Finding {
        Finding {
            code: self,
            did: did.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_has_every_finding_as_it_is() {
        let book = include_str!("../../../docs/src/probe.md");
        for code in Code::ALL {
            let row = format!("| `{code}` | {} | {} |", code.severity(), code.effect());
            assert!(book.lines().any(|line| line == row), "missing: {row}");
        }
    }
}
