//! Requests and responses as JSON, the way protobuf defines it.

use std::sync::LazyLock;

use attache_proto::{
    FILE_DESCRIPTOR_SET,
    ratelimit::{RateLimitRequest, RateLimitResponse},
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

/// Text that is no request, or a response that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// The messages as the descriptors have them; `None` only if the build is broken.
struct Descriptors {
    request: Option<MessageDescriptor>,
    response: Option<MessageDescriptor>,
}

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let message = |name: &str| pool.get_message_by_name(name);
    Descriptors {
        request: message("envoy.service.ratelimit.v3.RateLimitRequest"),
        response: message("envoy.service.ratelimit.v3.RateLimitResponse"),
    }
});

/// Reads a request. An unknown field is an error.
///
/// # Errors
/// The text is not JSON of a `RateLimitRequest`.
pub fn decode_request(text: &[u8]) -> Result<RateLimitRequest, JsonError> {
    let descriptor = DESCRIPTORS.request.clone().ok_or_else(broken)?;
    let mut json = serde_json::Deserializer::from_slice(text);
    let message = DynamicMessage::deserialize(descriptor, &mut json).map_err(failed)?;
    json.end().map_err(failed)?;
    RateLimitRequest::decode(message.encode_to_vec().as_slice()).map_err(failed)
}

/// Writes a response, without fields at their default.
///
/// # Errors
/// It has no JSON form.
pub fn encode_response(response: &RateLimitResponse) -> Result<String, JsonError> {
    let descriptor = DESCRIPTORS.response.clone().ok_or_else(broken)?;
    let bytes = response.encode_to_vec();
    let message = DynamicMessage::decode(descriptor, bytes.as_slice()).map_err(failed)?;
    serde_json::to_string(&message).map_err(failed)
}

fn broken() -> JsonError {
    JsonError("no descriptor".to_owned())
}

fn failed(error: impl std::fmt::Display) -> JsonError {
    JsonError(error.to_string())
}

#[cfg(test)]
mod tests {
    use attache_proto::ratelimit::rate_limit_response::{
        Code, DescriptorStatus, RateLimit, rate_limit::Unit,
    };

    use super::*;

    #[test]
    fn both_styles_of_names_are_read() {
        let text = br#"{"domain":"foo","hitsAddend":2,"descriptors":[
            {"entries":[{"key":"k","value":"v"}],"hits_addend":"3",
             "limit":{"requestsPerUnit":5,"unit":"MINUTE"}}]}"#;
        let request = decode_request(text).unwrap();
        assert_eq!(request.domain, "foo");
        assert_eq!(request.hits_addend, 2);
        let descriptor = &request.descriptors[0];
        assert_eq!(descriptor.hits_addend, Some(3));
        assert_eq!(descriptor.limit.as_ref().unwrap().requests_per_unit, 5);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in ["", "{", "[]", r#"{"x":1}"#, r#"{"domain":1}"#, "{} {}"] {
            assert!(decode_request(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn responses_are_written_as_by_the_reference() {
        let response = RateLimitResponse {
            overall_code: Code::Ok.into(),
            statuses: vec![DescriptorStatus {
                code: Code::Ok.into(),
                current_limit: Some(RateLimit {
                    requests_per_unit: 3,
                    unit: Unit::Minute.into(),
                    ..RateLimit::default()
                }),
                limit_remaining: 2,
                duration_until_reset: Some(prost_types::Duration {
                    seconds: 52,
                    nanos: 0,
                }),
                ..DescriptorStatus::default()
            }],
            ..RateLimitResponse::default()
        };
        assert_eq!(
            encode_response(&response).unwrap(),
            r#"{"overallCode":"OK","statuses":[{"code":"OK","currentLimit":{"requestsPerUnit":3,"unit":"MINUTE"},"limitRemaining":2,"durationUntilReset":"52s"}]}"#
        );
    }
}
