//! Applies the processor's header mutations as Envoy does.
//!
//! Removals first, then sets in order. Only `append` and `raw_value` of an entry count:
//! `append_action`, `value` and `keep_empty_value` have no effect.

use std::borrow::Cow;

use attache_filter::{
    MessageHead,
    mutation::{MutationRules, Operation, Verdict},
};
use attache_proto::{core::HeaderValueOption, ext_proc::HeaderMutation};
use http::{HeaderName, HeaderValue, header};

/// Envoy's default bounds of a header map: entries, and bytes of names and values.
const MAX_COUNT: usize = 100;
const MAX_BYTES: usize = 60 << 10;

/// Why a mutation makes its whole message fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MutationError {
    /// A name or value to set is malformed.
    InvalidSet,
    /// A name to remove is malformed.
    InvalidRemove,
    /// The rules forbid a set, and that is an error.
    SetFailed,
    /// The rules forbid a removal, and that is an error.
    RemoveFailed,
    /// There are more entries than allowed.
    TooManyOperations,
    /// The headers would be too many or too large.
    ResultTooLarge,
}

impl MutationError {
    /// Envoy's response code details.
    pub(super) fn details(self) -> &'static str {
        match self {
            Self::InvalidSet => "header_mutation_set_contains_invalid_character",
            Self::InvalidRemove => "header_mutation_remove_contains_invalid_character",
            Self::SetFailed => "header_mutation_set_headers_failed",
            Self::RemoveFailed => "header_mutation_remove_headers_failed",
            Self::TooManyOperations => "header_mutation_operation_count_exceeds_limit",
            Self::ResultTooLarge => "header_mutation_result_exceeds_limit",
        }
    }
}

/// What a mutation is applied to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// A message on its way.
    Message,
    /// A message whose body is replaced: its method may be changed whatever the rules say.
    Replaced,
    /// An immediate response: its status is not a header, and nothing makes it fail.
    Immediate,
}

/// Applies `mutation`; `rejected` counts entries that were refused.
///
/// # Errors
/// Entries before the failing one stay applied.
pub(super) fn apply(
    mutation: &HeaderMutation,
    head: &mut dyn MessageHead,
    target: Target,
    rules: &MutationRules,
    rejected: &mut u64,
) -> Result<(), MutationError> {
    if mutation.set_headers.len() > MAX_COUNT || mutation.remove_headers.len() > MAX_COUNT {
        *rejected += 1;
        return Err(MutationError::TooManyOperations);
    }
    for name in &mutation.remove_headers {
        remove(name, head, rules, rejected)?;
    }
    for option in &mutation.set_headers {
        set(option, head, target, rules, rejected)?;
    }
    if !mutation.set_headers.is_empty() && exceeds_limits(head) {
        *rejected += 1;
        return Err(MutationError::ResultTooLarge);
    }
    Ok(())
}

fn remove(
    name: &str,
    head: &mut dyn MessageHead,
    rules: &MutationRules,
    rejected: &mut u64,
) -> Result<(), MutationError> {
    let lower = lower_case(name);
    let bare = lower.strip_prefix(':').unwrap_or(&lower);
    let Ok(parsed) = HeaderName::from_bytes(bare.as_bytes()) else {
        *rejected += 1;
        return Err(MutationError::InvalidRemove);
    };
    match rules.check(Operation::Remove, &lower) {
        Verdict::Allow => {
            head.headers_mut().remove(parsed);
        }
        Verdict::Ignore => *rejected += 1,
        Verdict::Fail => {
            *rejected += 1;
            return Err(MutationError::RemoveFailed);
        }
    }
    Ok(())
}

fn set(
    option: &HeaderValueOption,
    head: &mut dyn MessageHead,
    target: Target,
    rules: &MutationRules,
    rejected: &mut u64,
) -> Result<(), MutationError> {
    let Some(header) = &option.header else {
        return Ok(());
    };
    let name = lower_case(&header.key);
    let Ok(value) = HeaderValue::from_maybe_shared(header.raw_value.clone()) else {
        *rejected += 1;
        return Err(MutationError::InvalidSet);
    };
    let pseudo = name.strip_prefix(':');
    let Ok(parsed) = HeaderName::from_bytes(pseudo.unwrap_or(&name).as_bytes()) else {
        *rejected += 1;
        return Err(MutationError::InvalidSet);
    };
    if target == Target::Immediate && name == ":status" {
        return Ok(());
    }
    let operation = match option.append {
        Some(true) => Operation::Append,
        _ => Operation::Set,
    };
    let always = target == Target::Replaced && name == ":method" && operation == Operation::Set;
    match if always {
        Verdict::Allow
    } else {
        rules.check(operation, &name)
    } {
        Verdict::Allow => {}
        Verdict::Ignore => {
            *rejected += 1;
            return Ok(());
        }
        Verdict::Fail => {
            *rejected += 1;
            return Err(MutationError::SetFailed);
        }
    }
    // Framing belongs to the connection: a processor that sets it would break the message.
    if parsed == header::TRANSFER_ENCODING && pseudo.is_none() {
        *rejected += 1;
        return Ok(());
    }
    if pseudo.is_some() || name == "host" {
        if head.set_pseudo(&name, value.as_bytes()).is_err() {
            *rejected += 1;
            if rules_are_strict(rules) {
                return Err(MutationError::SetFailed);
            }
        }
        return Ok(());
    }
    let headers = head.headers_mut();
    if operation == Operation::Set {
        headers.insert(parsed, value);
    } else if let Some(present) = headers.get_mut(&parsed).filter(|_| is_single(&name)) {
        let joined = [present.as_bytes(), b",", value.as_bytes()].concat();
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            *present = joined;
        }
    } else {
        headers.append(parsed, value);
    }
    Ok(())
}

/// Whether a refused change fails the message: asked by a change that is never allowed.
fn rules_are_strict(rules: &MutationRules) -> bool {
    rules.check(Operation::Remove, ":") == Verdict::Fail
}

/// Headers that Envoy keeps in one line: a second value is joined with a comma.
fn is_single(name: &str) -> bool {
    matches!(
        name,
        "accept"
            | "accept-encoding"
            | "authorization"
            | "cache-control"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-type"
            | "date"
            | "etag"
            | "expect"
            | "grpc-message"
            | "grpc-status"
            | "grpc-timeout"
            | "keep-alive"
            | "location"
            | "origin"
            | "referer"
            | "server"
            | "te"
            | "upgrade"
            | "user-agent"
            | "via"
            | "x-client-trace-id"
            | "x-forwarded-client-cert"
            | "x-forwarded-for"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-proto"
            | "x-request-id"
    )
}

fn exceeds_limits(head: &dyn MessageHead) -> bool {
    let (mut count, mut bytes) = (0, 0);
    head.for_each(&mut |name, value| {
        count += 1;
        bytes += name.len() + value.len();
    });
    count > MAX_COUNT || bytes > MAX_BYTES
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests;
