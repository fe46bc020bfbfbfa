//! What can be wrong with a processor's answers: codes, what Envoy makes of each, what helps.

use std::time::Duration;

pub use attache_service::probe::Severity;

use super::event::Phase;

/// One thing that is wrong, or worth knowing, about an answer of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub code: Code,
    /// The part of the exchange that it is about.
    pub phase: Phase,
    /// When it showed, from the opening of the stream.
    pub at: Duration,
    /// What the processor did, in one sentence.
    pub did: String,
}

attache_service::probe_codes! {
    NoReply "no-reply" Violation:
        "Envoy fails the request with 504 when message_timeout (200 ms by default) has passed; with failure_mode_allow it passes unprocessed.";
        "Answer every message in every phase; an empty reply of the right kind lets it pass."
    LateReply "late-reply" Violation:
        "Envoy has failed the request with 504 by then; with failure_mode_allow it passed unprocessed.";
        "Answer faster, raise message_timeout in the filter, or send override_message_timeout in time (the filter needs max_message_timeout)."
    StalledChunks "stalled-chunks" Hang:
        "Any reply stops Envoy's timer, even with more chunks outstanding: the exchange hangs until a route or idle timeout.";
        "Send one body reply for each body message, in their order."
    NoImmediateEnd "streamed-immediate-without-end" Hang:
        "There is no timer during a streamed immediate response: the caller waits for the rest.";
        "End it with end_of_stream in headers_response or body_response, or with trailers_response."
    NotReading "not-reading" Hang:
        "Envoy buffers up to its limits, then stops reading from the caller; nothing times out while chunks are still leaving.";
        "Read the request stream all the time, also while a reply is being made."
    SecondReply "second-reply" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Send exactly one reply for each message."
    WrongPhase "wrong-phase" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Reply with the field that has the name of the message's own: request_body to request_body, and so on."
    EmptyResponse "empty-response" Violation:
        "Envoy answers 500 with `unhandled_message`.";
        "Set the reply that belongs to the message; to let it pass, set it with nothing inside."
    MetadataOnly "metadata-only-response" Violation:
        "Envoy answers 500 with `unhandled_message`: metadata alone is not a reply.";
        "Put dynamic_metadata into the message that has the reply."
    Undecodable "undecodable-message" Violation:
        "Envoy ends the stream with status 13 and fails the request with 500.";
        "Send ProcessingResponse messages of envoy.service.ext_proc.v3."
    ErrorStatus "error-status" Violation:
        "Envoy fails the request with 500 (status_on_error), even while it waits for the upstream; with failure_mode_allow it passes.";
        "Answer with an immediate response to refuse a request; end the stream with OK to let it pass."
    ErrorStatusAtEnd "error-status-at-end" Warning:
        "Envoy no longer listens, so only logs and metrics of the processor show an error for each normal request.";
        "Take half-close, CANCEL and RST_STREAM as the normal end: stop reading and return OK."
    NoEndAfterHalfClose "no-end-after-half-close" Warning:
        "Envoy resets the stream, at once or after a second; what the handler holds may live longer.";
        "Return from the handler when the request stream has ended."
    DeadAfterReset "dead-after-reset" Violation:
        "A caller who goes away is everyday life: Envoy resets the stream and expects the next one to work.";
        "Treat the end of one stream as the end of that exchange only."
    ClosedUnanswered "closed-unanswered" Warning:
        "A clean end is no error to Envoy: what waits for a reply passes unprocessed, and the rest with it.";
        "Reply first, then end the stream."
    ClosedEarly "closed-early" Note:
        "A clean end lets the rest of the exchange pass unprocessed. That is no error to Envoy.";
        "Keep the stream open until the proxy ends it, unless the rest may pass unseen."
    LostChunks "full-duplex-closed-early" Violation:
        "Envoy keeps no copy in FULL_DUPLEX_STREAMED mode: the chunks sent and not returned are lost, and later ones pass.";
        "Return all bytes and end_of_stream before ending the stream."
    AfterEnd "message-after-end" Warning:
        "Envoy ignores everything after an immediate response.";
        "End the stream after an immediate response."
    ObservedError "observability-error-status" Violation:
        "Observability is not fail-safe: an error status fails the request with 500 unless failure_mode_allow is set.";
        "End the stream with OK in observability mode, whatever happens."
    ObservedReply "observability-reply" Note:
        "Envoy ignores replies in observability mode.";
        "Look at observability_mode and save the work."

    OnlyValue "value-instead-of-raw-value" Violation:
        "Envoy reads raw_value only: the header is set to an empty value.";
        "Put the bytes into raw_value and leave value unset."
    BothValues "value-and-raw-value-differ" Warning:
        "Envoy takes raw_value.";
        "Leave value unset."
    AppendAction "append-action-ignored" Warning:
        "Envoy ignores append_action here: without `append: true` the header is overwritten, or added when absent.";
        "Use `append`; for add-if-absent or overwrite-if-exists look at the headers received and decide."
    AppendActionWrong "append-action-has-wrong-effect" Violation:
        "Envoy ignores append_action here; in this exchange the outcome is not the one asked for.";
        "Use `append`; for add-if-absent or overwrite-if-exists look at the headers received and decide."
    InvalidName "invalid-header-name" Violation:
        "Envoy fails the request with 500, even with failure_mode_allow.";
        "Use token characters only (RFC 9110 section 5.6.2)."
    InvalidValue "invalid-header-value" Violation:
        "Envoy fails the request with 500, even with failure_mode_allow.";
        "Take CR, LF and NUL out of values."
    EmptyName "empty-header-name" Violation:
        "Envoy does not check it: a line without a name reaches the other side, which may refuse the message.";
        "Give the header a name."
    NoHeader "entry-without-header" Warning:
        "Envoy skips an entry of set_headers that has no header.";
        "Set `header` in every entry."
    NeverAllowed "header-never-allowed" Warning:
        "Envoy skips it, whatever its mutation_rules say, and counts rejected_header_mutations.";
        "Do not remove `host` or names with a colon, and do not append to these; :status is 200 or more, :scheme is http or https."
    RefusedByDefault "header-refused-by-default" Warning:
        "Envoy skips it and counts rejected_header_mutations, unless mutation_rules allow it (allow_all_routing, allow_envoy); with disallow_is_error the request fails.";
        "Allow it in the filter's mutation_rules, or leave it alone."
    TooManyOperations "too-many-header-operations" Violation:
        "Envoy fails the request with 500: more than 100 set_headers or remove_headers.";
        "Set and remove at most 100 headers in one reply."
    TooLarge "headers-too-large" Violation:
        "Envoy fails the request with 500: the outcome has more than 100 headers or 60 KiB.";
        "Keep what is added small."
    TransferEncoding "transfer-encoding-set" Violation:
        "Envoy lets it through and breaks the framing: the upstream may wait forever or be open to request smuggling.";
        "Never set transfer-encoding; framing belongs to the connection."
    BadPath "path-without-slash" Warning:
        "Envoy sends it as it is; most upstreams refuse it.";
        "Begin :path with a slash."
    ConnectionHeader "connection-header-set" Warning:
        "Envoy strips it: connection headers belong to one hop.";
        "Leave connection headers alone."
    LateHeaders "header-mutation-too-late" Warning:
        "Envoy has sent the headers on already and drops the mutation without counting it.";
        "Change headers in the reply to headers; in the reply to a body only BUFFERED and BUFFERED_PARTIAL still can."
    CommonTrailers "trailers-in-common-response" Warning:
        "Envoy ignores CommonResponse.trailers.";
        "Change trailers in the reply to trailers; they cannot be added where there are none."

    LengthMismatch "content-length-mismatch" Violation:
        "Envoy fails the request with 500: mismatch_between_content_length_and_the_length_of_the_mutated_body.";
        "Set content-length to the new length, or remove it, in the same reply."
    WrongLength "wrong-content-length" Violation:
        "Envoy sends the wrong length on: the other side waits for bytes that do not come, or takes the rest as another message.";
        "Never change content-length without changing the body to that length."
    StaleLength "stale-content-length" Violation:
        "Overriding the mode does not strip content-length: a body of another size goes out under the old length.";
        "Remove content-length in the reply that overrides the body mode."
    LengthDropped "content-length-dropped" Note:
        "Envoy strips content-length in this mode, also one that the processor sets (without allow_content_length_header).";
        "No need to set it; the body is sent chunked."
    BodyInContinue "body-mutation-without-replace" Violation:
        "Envoy ignores body_mutation in a reply to headers whose status is CONTINUE.";
        "Use CONTINUE_AND_REPLACE, or change the body in the reply to the body."
    ReplaceWithoutBody "replace-without-body" Warning:
        "Envoy sends the original body on, unprocessed.";
        "Give a body_mutation with CONTINUE_AND_REPLACE, or use CONTINUE."
    ReplaceInBody "replace-in-body-reply" Note:
        "In a reply to a body CONTINUE_AND_REPLACE means what CONTINUE means.";
        "Use CONTINUE there."
    AfterReplace "body-reply-after-replace" Violation:
        "After CONTINUE_AND_REPLACE Envoy takes body replies of that direction as spurious and fails the request with 500.";
        "Be silent on that direction after CONTINUE_AND_REPLACE, also for chunks that came before."
    StreamedInOtherMode "streamed-response-in-other-mode" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Use streamed_response in FULL_DUPLEX_STREAMED mode only; look at protocol_config for the mode."
    PlainInDuplex "plain-body-in-full-duplex" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "In FULL_DUPLEX_STREAMED mode answer bodies with body_mutation.streamed_response only, also to let them pass; look at protocol_config for the mode."
    BodyBeforeHeaders "full-duplex-body-before-headers" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Answer the headers first, then send body."
    BodyUnasked "full-duplex-body-before-body" Violation:
        "Envoy takes a body reply before it has sent any body as spurious and fails the request with 500.";
        "Wait for the first body message before the first body reply."
    AfterEos "reply-after-end-of-stream" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Send nothing more of a body after end_of_stream."
    MissingHeaders "full-duplex-no-headers-reply" Hang:
        "There is no timer in FULL_DUPLEX_STREAMED mode: the exchange hangs until the caller leaves.";
        "Answer the headers."
    MissingEos "full-duplex-no-end-of-stream" Hang:
        "There is no timer in FULL_DUPLEX_STREAMED mode: the message never ends and the exchange hangs until the caller leaves.";
        "Set end_of_stream in the last streamed_response of a message without trailers."
    MissingTrailers "full-duplex-no-trailers-reply" Hang:
        "There is no timer in FULL_DUPLEX_STREAMED mode: the message never ends and the exchange hangs until the caller leaves.";
        "Answer trailers with a trailers reply; it is what ends a message that has them."
    EosInsteadOfTrailers "full-duplex-end-of-stream-before-trailers" Hang:
        "The bytes are sent on, the message is left without an end, and the exchange hangs until the caller leaves.";
        "Leave end_of_stream unset when trailers follow; the trailers reply ends the message."
    EndedEarly "full-duplex-ended-early" Warning:
        "Envoy ends the message there and drops the rest of the caller's body.";
        "Set end_of_stream only after the proxy did, unless the rest shall be dropped."
    LargeChunk "large-chunk" Note:
        "Envoy takes it and holds all of it in memory at once.";
        "Cut bodies into pieces of at most 64 KiB."

    ClearRouteCache "clear-route-cache-ignored" Warning:
        "Without a header_mutation in the same reply Envoy ignores it and counts clear_route_cache_ignored; in the response direction it means nothing.";
        "Send it with the header_mutation that changes the route, in the request direction."
    OverrideIgnored "mode-override-ignored" Warning:
        "Envoy ignores it silently and goes on in the configured mode.";
        "Set allow_mode_override in the filter and send it in a reply to headers; it never works while a body mode is FULL_DUPLEX_STREAMED or with send_body_without_waiting_for_header_response."
    OverrideResets "mode-override-resets-body-modes" Note:
        "Both body modes are always taken from the override: what it leaves out becomes NONE.";
        "State both body modes in every mode_override."
    OverrideAlone "mode-override-alone" Violation:
        "Envoy answers 500 with `unhandled_message`, unless request headers are pending and it asks for FULL_DUPLEX_STREAMED with trailers sent.";
        "Send mode_override in the reply to headers."
    TimeoutIgnored "override-message-timeout-ignored" Warning:
        "Envoy counts override_message_timeout_ignored and keeps its timer.";
        "Ask once for each message, for no more than the filter's max_message_timeout (off by default), and not in FULL_DUPLEX_STREAMED mode."
    TimeoutDiscards "override-message-timeout-discards-reply" Violation:
        "Envoy reads nothing else of a message that has override_message_timeout: the reply in it is lost.";
        "Send override_message_timeout in a message of its own, then the reply."
    UnusedField "field-without-effect" Note:
        "Envoy 1.40 knows the field and does nothing with it.";
        "Do not rely on it."
    MetadataNotStruct "metadata-not-a-struct" Warning:
        "Envoy stores the top-level keys of dynamic_metadata as namespaces, and one that holds no struct as an empty namespace.";
        "Use a namespace as the key and a struct as its value."

    ImmediateStatus "immediate-status-too-low" Warning:
        "Envoy answers 200 when the status is missing or below 200.";
        "Set the status."
    ImmediateHeaders "immediate-header-without-effect" Warning:
        "Envoy ignores :status there and works out content-length itself.";
        "Set the status field; leave the length to the proxy."
    ImmediateInvalid "immediate-header-invalid" Violation:
        "Envoy keeps the headers before it, drops the rest, and sends the response all the same.";
        "Send only valid names and values."
    ImmediateTooLate "immediate-too-late" Warning:
        "The caller has the response headers already, so Envoy resets the connection in the middle of the body.";
        "Decide at response_headers, or use a BUFFERED response body."
    StreamedTooLate "streamed-immediate-too-late" Violation:
        "Envoy takes it as a spurious message and fails the request with 500: it is valid only as the first reply to request_headers.";
        "Use immediate_response later on."
    StreamedImmediateMode "streamed-immediate-in-other-mode" Violation:
        "Envoy takes it as a spurious message and fails the request with 500: a body works with the request body modes NONE and FULL_DUPLEX_STREAMED only.";
        "Use immediate_response in the other modes."
    StreamedImmediateStatus "streamed-immediate-without-status" Violation:
        "Envoy answers 502: the header :status is required.";
        "Set :status, by raw_value."
    StreamedImmediateOrder "streamed-immediate-order" Violation:
        "Envoy takes it as a spurious message and fails the request with 500.";
        "Send headers_response first, then bodies, then trailers, and nothing after the end."
}

impl Code {
    /// A finding of this kind.
    pub(super) fn at(self, at: Duration, phase: Phase, did: impl Into<String>) -> Finding {
        Finding {
            code: self,
            phase,
            at,
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
