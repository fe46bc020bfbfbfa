//! Messages as JSON, the way protobuf defines it: what Envoy's HTTP service flavour sends, what
//! recordings hold, and what people read.
//!
//! Written are proto field names (`request_headers`), enum names, base64 for bytes, and no
//! fields at their default. Read are both styles of names (`request_headers`,
//! `requestHeaders`), with or without the defaults. An unknown field is an error.
//!
//! ```
//! use attache_ext_proc::json;
//!
//! let reply = json::decode_response(br#"{"requestHeaders": {"response": {}}}"#)?;
//! assert_eq!(json::encode_response(&reply)?, r#"{"request_headers":{"response":{}}}"#);
//! # Ok::<(), json::JsonError>(())
//! ```

use std::sync::LazyLock;

use attache_proto::{
    FILE_DESCRIPTOR_SET,
    ext_proc::{ProcessingRequest, ProcessingResponse},
};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions,
};

/// A message that cannot be written as JSON, or text that is no such message.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The text is not JSON, or not of this message.
    #[error("not a {message}: {reason}")]
    Text {
        /// Name of the message.
        message: &'static str,
        /// What is wrong, and where.
        reason: serde_json::Error,
    },
    /// The message holds what has no JSON form, such as an `Any` of an unknown type.
    #[error("{message} without a JSON form: {reason}")]
    Message {
        /// Name of the message.
        message: &'static str,
        /// What is wrong.
        reason: String,
    },
}

const REQUEST: &str = "envoy.service.ext_proc.v3.ProcessingRequest";
const RESPONSE: &str = "envoy.service.ext_proc.v3.ProcessingResponse";

/// The two messages as the descriptors have them; `None` only if the build is broken.
struct Descriptors {
    request: Option<MessageDescriptor>,
    response: Option<MessageDescriptor>,
}

static DESCRIPTORS: LazyLock<Descriptors> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    Descriptors {
        request: pool.get_message_by_name(REQUEST),
        response: pool.get_message_by_name(RESPONSE),
    }
});

/// A request as JSON text on one line.
///
/// # Errors
///
/// If the message holds a typed metadata value of a type that is not known here.
pub fn encode_request(request: &ProcessingRequest) -> Result<String, JsonError> {
    encode(REQUEST, DESCRIPTORS.request.as_ref(), request)
}

/// A response as JSON text on one line.
///
/// # Errors
///
/// If the message holds a typed metadata value of a type that is not known here.
pub fn encode_response(response: &ProcessingResponse) -> Result<String, JsonError> {
    encode(RESPONSE, DESCRIPTORS.response.as_ref(), response)
}

/// Reads a request from JSON text.
///
/// # Errors
///
/// If the text is not JSON of a `ProcessingRequest`.
pub fn decode_request(text: &[u8]) -> Result<ProcessingRequest, JsonError> {
    decode(REQUEST, DESCRIPTORS.request.as_ref(), text)
}

/// Reads a response from JSON text.
///
/// # Errors
///
/// If the text is not JSON of a `ProcessingResponse`.
pub fn decode_response(text: &[u8]) -> Result<ProcessingResponse, JsonError> {
    decode(RESPONSE, DESCRIPTORS.response.as_ref(), text)
}

fn encode(
    message: &'static str,
    descriptor: Option<&MessageDescriptor>,
    value: &impl Message,
) -> Result<String, JsonError> {
    let failed = |reason: String| JsonError::Message { message, reason };
    let descriptor = descriptor.ok_or_else(|| failed("no descriptor".to_owned()))?;
    let dynamic = DynamicMessage::decode(descriptor.clone(), value.encode_to_vec().as_slice())
        .map_err(|error| failed(error.to_string()))?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut text = serde_json::Serializer::new(Vec::new());
    dynamic
        .serialize_with_options(&mut text, &options)
        .map_err(|error| failed(error.to_string()))?;
    String::from_utf8(text.into_inner()).map_err(|error| failed(error.to_string()))
}

fn decode<T: Message + Default>(
    message: &'static str,
    descriptor: Option<&MessageDescriptor>,
    text: &[u8],
) -> Result<T, JsonError> {
    let failed = |reason: String| JsonError::Message { message, reason };
    let descriptor = descriptor.ok_or_else(|| failed("no descriptor".to_owned()))?;
    let wrong = |reason| JsonError::Text { message, reason };
    let mut json = serde_json::Deserializer::from_slice(text);
    let options = DeserializeOptions::new();
    let dynamic = DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options)
        .map_err(wrong)?;
    json.end().map_err(wrong)?;
    T::decode(dynamic.encode_to_vec().as_slice()).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attache_proto::{
        core::{HeaderMap, HeaderValue, Metadata},
        ext_proc::{
            BodyMutation, BodyResponse, CommonResponse, HttpBody, HttpHeaders, body_mutation,
            processing_request::Request, processing_response::Response,
        },
    };
    use bytes::Bytes;

    use super::*;

    fn headers() -> ProcessingRequest {
        let header = HeaderValue {
            key: ":path".to_owned(),
            raw_value: Bytes::from_static(b"/p"),
            ..HeaderValue::default()
        };
        ProcessingRequest {
            request: Some(Request::RequestHeaders(HttpHeaders {
                headers: Some(HeaderMap {
                    headers: vec![header],
                }),
                end_of_stream: true,
                ..HttpHeaders::default()
            })),
            metadata_context: Some(Metadata::default()),
            ..ProcessingRequest::default()
        }
    }

    #[test]
    fn names_are_the_fields_and_bytes_are_base64() {
        let text = encode_request(&headers()).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            serde_json::json!({
                "request_headers": {
                    "headers": { "headers": [{ "key": ":path", "raw_value": "L3A=" }] },
                    "end_of_stream": true,
                },
                "metadata_context": {},
            })
        );
    }

    #[test]
    fn both_styles_of_names_are_read() {
        let snake = br#"{"request_body": {"end_of_stream": true, "body": "aGk="}}"#;
        let camel = br#"{"requestBody": {"endOfStream": true, "body": "aGk="}}"#;
        let message = decode_request(snake).unwrap();
        assert_eq!(decode_request(camel).unwrap(), message);
        let Some(Request::RequestBody(HttpBody { body, .. })) = message.request else {
            panic!("{message:?}");
        };
        assert_eq!(body, "hi");
    }

    #[test]
    fn structs_are_plain_objects() {
        let text = br#"{"dynamic_metadata": {"ns": {"a": [1, true, null, "x"]}}}"#;
        let message = decode_response(text).unwrap();
        let again = encode_response(&message).unwrap();
        assert_eq!(decode_response(again.as_bytes()).unwrap(), message);
        assert!(
            again.contains(r#"{"ns":{"a":[1.0,true,null,"x"]}}"#),
            "{again}"
        );
    }

    #[test]
    fn what_is_no_message_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "expected"),
            ("{} {}", "trailing"),
            (r#"{"request_heders": {}}"#, "request_heders"),
            (r#"{"request_body": {"body": 5}}"#, "expected"),
        ] {
            let error = decode_request(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn typed_values_of_unknown_types_are_errors_not_lies() {
        let any = prost_types::Any {
            type_url: "type.googleapis.com/no.such.Type".to_owned(),
            value: vec![1],
        };
        let response = ProcessingResponse {
            typed_dynamic_metadata: BTreeMap::from([("ns".to_owned(), any)]),
            ..ProcessingResponse::default()
        };
        assert!(encode_response(&response).is_err());
    }

    proptest::proptest! {
        #[test]
        fn replies_survive_the_way_there_and_back(body: Vec<u8>, clear: bool) {
            let mutation = body_mutation::Mutation::Body(body.into());
            let response = ProcessingResponse {
                response: Some(Response::ResponseBody(BodyResponse {
                    response: Some(CommonResponse {
                        body_mutation: Some(BodyMutation { mutation: Some(mutation) }),
                        clear_route_cache: clear,
                        ..CommonResponse::default()
                    }),
                })),
                ..ProcessingResponse::default()
            };
            let text = encode_response(&response).unwrap();
            assert_eq!(decode_response(text.as_bytes()).unwrap(), response);
        }

        #[test]
        fn no_text_panics(text: Vec<u8>) {
            let _ = decode_response(&text);
        }
    }
}
