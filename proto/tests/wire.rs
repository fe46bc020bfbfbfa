//! What the generated code does: messages survive the wire, and each client
//! stub reaches its server stub under the path that Envoy calls.

use std::pin::Pin;

use attache_proto::auth::authorization_client::AuthorizationClient;
use attache_proto::auth::authorization_server::{Authorization, AuthorizationServer};
use attache_proto::auth::{
    AttributeContext, CheckRequest, CheckResponse, OkHttpResponse, attribute_context,
    check_response,
};
use attache_proto::common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor};
use attache_proto::core::{HeaderMap, HeaderValue, Metadata};
use attache_proto::ext_proc::external_processor_client::ExternalProcessorClient;
use attache_proto::ext_proc::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use attache_proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HttpBody, HttpHeaders, ImmediateResponse,
    ProcessingRequest, ProcessingResponse, ProtocolConfiguration, StreamedBodyResponse,
    body_mutation, processing_request, processing_response,
};
use attache_proto::ext_proc_filter::{ProcessingMode, processing_mode::BodySendMode};
use attache_proto::ratelimit::rate_limit_service_client::RateLimitServiceClient;
use attache_proto::ratelimit::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse, rate_limit_response};
use attache_proto::ratelimit_config::{
    RateLimitConfig, RateLimitDescriptor as Rule, RateLimitPolicy, RateLimitReplace, RateLimitUnit,
};
use attache_proto::types::{HttpStatus, StatusCode};
use attache_proto::{FILE_DESCRIPTOR_SET, rpc};
use prost::Message;
use prost::bytes::Bytes;
use prost_types::value::Kind;
use prost_types::{FileDescriptorSet, Struct, Value};
use tokio_stream::{Stream, StreamExt as _};
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt as _;

// ---- messages ---------------------------------------------------------------

/// What comes back after a message has been written and read.
fn through_the_wire<M: Message + Default>(message: &M) -> Result<M, prost::DecodeError> {
    M::decode(Bytes::from(message.encode_to_vec()))
}

fn namespace(key: &str, value: &str) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(value.to_owned())),
    };
    Struct {
        fields: [(key.to_owned(), value)].into(),
    }
}

fn headers_message() -> ProcessingRequest {
    ProcessingRequest {
        request: Some(processing_request::Request::RequestHeaders(HttpHeaders {
            headers: Some(HeaderMap {
                headers: vec![
                    HeaderValue {
                        key: ":path".to_owned(),
                        raw_value: Bytes::from_static(b"/"),
                        ..HeaderValue::default()
                    },
                    HeaderValue {
                        key: "x-octets".to_owned(),
                        raw_value: Bytes::from_static(b"\xff\xfe"),
                        ..HeaderValue::default()
                    },
                ],
            }),
            end_of_stream: true,
            ..HttpHeaders::default()
        })),
        metadata_context: Some(Metadata {
            filter_metadata: [("ns".to_owned(), namespace("k", "v"))].into(),
            ..Metadata::default()
        }),
        attributes: [("filter".to_owned(), namespace("request.path", "/"))].into(),
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: BodySendMode::FullDuplexStreamed.into(),
            response_body_mode: BodySendMode::Grpc.into(),
            send_body_without_waiting_for_header_response: true,
        }),
        ..ProcessingRequest::default()
    }
}

fn streamed_reply(body: &Bytes) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(processing_response::Response::RequestBody(BodyResponse {
            response: Some(CommonResponse {
                body_mutation: Some(BodyMutation {
                    mutation: Some(body_mutation::Mutation::StreamedResponse(
                        StreamedBodyResponse {
                            body: body.clone(),
                            end_of_stream: true,
                            ..StreamedBodyResponse::default()
                        },
                    )),
                }),
                ..CommonResponse::default()
            }),
        })),
        mode_override: Some(ProcessingMode {
            response_body_mode: BodySendMode::Buffered.into(),
            ..ProcessingMode::default()
        }),
        ..ProcessingResponse::default()
    }
}

#[test]
fn messages_survive_the_wire() {
    let request = headers_message();
    assert_eq!(through_the_wire(&request).unwrap(), request);

    let reply = streamed_reply(&Bytes::from_static(b"\x00body"));
    assert_eq!(through_the_wire(&reply).unwrap(), reply);
}

#[test]
fn a_status_without_a_name_survives_the_wire() {
    let reply = ImmediateResponse {
        status: Some(HttpStatus { code: 299 }),
        ..ImmediateResponse::default()
    };

    let code = through_the_wire(&reply).unwrap().status.unwrap().code;

    assert_eq!(code, 299);
    assert!(StatusCode::try_from(code).is_err());
}

#[test]
fn a_decoded_body_shares_the_buffer_it_came_in() {
    let message = ProcessingRequest {
        request: Some(processing_request::Request::RequestBody(HttpBody {
            body: Bytes::from(vec![7; 1024]),
            ..HttpBody::default()
        })),
        ..ProcessingRequest::default()
    };
    let wire = Bytes::from(message.encode_to_vec());

    let Some(processing_request::Request::RequestBody(body)) =
        ProcessingRequest::decode(wire.clone()).unwrap().request
    else {
        panic!("not a request body");
    };

    assert!(wire.as_ptr_range().contains(&body.body.as_ptr()));
}

#[test]
fn an_empty_addend_is_not_the_same_as_none() {
    let descriptor = |hits_addend| RateLimitDescriptor {
        entries: vec![rate_limit_descriptor::Entry {
            key: "k".to_owned(),
            value: String::new(),
        }],
        hits_addend,
        ..RateLimitDescriptor::default()
    };
    for addend in [None, Some(0), Some(u64::MAX)] {
        let read = through_the_wire(&descriptor(addend)).unwrap();
        assert_eq!(read.hits_addend, addend);
    }
}

/// Envoy's binary has no descriptor of these messages to compare ours with.
#[test]
fn rules_are_read_as_control_planes_write_them() {
    // What go-control-plane makes of this resource.
    const WRITTEN: &[u8] = &[
        0x0a, 0x01, b'n', 0x12, 0x01, b'd', 0x1a, 0x1f, 0x0a, 0x01, b'k', 0x12, 0x01, b'v', 0x1a,
        0x0e, 0x08, 0x07, 0x10, 0x05, 0x18, 0x01, 0x22, 0x01, b'l', 0x2a, 0x03, 0x0a, 0x01, b'o',
        0x22, 0x03, 0x0a, 0x01, b'c', 0x28, 0x01, 0x30, 0x01,
    ];
    let child = Rule {
        key: "c".to_owned(),
        ..Rule::default()
    };
    let rule = Rule {
        key: "k".to_owned(),
        value: "v".to_owned(),
        rate_limit: Some(RateLimitPolicy {
            unit: RateLimitUnit::Week.into(),
            requests_per_unit: 5,
            unlimited: true,
            name: "l".to_owned(),
            replaces: vec![RateLimitReplace {
                name: "o".to_owned(),
            }],
        }),
        descriptors: vec![child],
        shadow_mode: true,
        detailed_metric: true,
        ..Rule::default()
    };
    let resource = RateLimitConfig {
        name: "n".to_owned(),
        domain: "d".to_owned(),
        descriptors: vec![rule],
    };
    assert_eq!(RateLimitConfig::decode(WRITTEN).unwrap(), resource);
    assert_eq!(resource.encode_to_vec(), WRITTEN);
}

#[test]
fn the_descriptor_set_is_complete() {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();

    let services: Vec<String> = set
        .file
        .iter()
        .flat_map(|file| {
            let named = |service: &prost_types::ServiceDescriptorProto| {
                format!("{}.{}", file.package(), service.name())
            };
            file.service.iter().map(named)
        })
        .collect();
    assert_eq!(
        services,
        [
            <AuthorizationServer<Policy> as NamedService>::NAME,
            // Called, not served.
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            <ExternalProcessorServer<Policy> as NamedService>::NAME,
            "envoy.service.rate_limit_quota.v3.RateLimitQuotaService",
            <RateLimitServiceServer<Policy> as NamedService>::NAME,
            // Called, not served.
            "opentelemetry.proto.collector.trace.v1.TraceService",
        ]
    );
    for (i, file) in set.file.iter().enumerate() {
        for import in &file.dependency {
            assert!(
                set.file[..i].iter().any(|file| file.name() == import),
                "{} comes before {import}",
                file.name()
            );
        }
    }
}

// ---- stubs ------------------------------------------------------------------

/// One server for all three services, with an answer that shows the question.
struct Policy;

#[tonic::async_trait]
impl Authorization for Policy {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let labels = attributes.source.unwrap_or_default().labels;
        Ok(Response::new(CheckResponse {
            status: Some(rpc::Status {
                message: labels.get("app").cloned().unwrap_or_default(),
                ..rpc::Status::default()
            }),
            http_response: Some(check_response::HttpResponse::OkResponse(
                OkHttpResponse::default(),
            )),
            ..CheckResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl RateLimitService for Policy {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        Ok(Response::new(RateLimitResponse {
            overall_code: rate_limit_response::Code::OverLimit.into(),
            raw_body: request.into_inner().domain.into(),
            ..RateLimitResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Policy {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let replies = request.into_inner().map(|message| match message?.request {
            Some(processing_request::Request::RequestBody(body)) => Ok(streamed_reply(&body.body)),
            _ => Ok(ProcessingResponse::default()),
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// Fails the test when a call comes in on another path.
fn expect_path<B>(path: &'static str) -> impl Fn(http::Request<B>) -> http::Request<B> + Clone {
    move |request| {
        assert_eq!(request.uri().path(), path);
        request
    }
}

#[tokio::test]
async fn authorization_is_called_where_envoy_calls_it() {
    let server = AuthorizationServer::new(Policy)
        .map_request(expect_path("/envoy.service.auth.v3.Authorization/Check"));

    let reply = AuthorizationClient::new(server)
        .check(CheckRequest {
            attributes: Some(AttributeContext {
                source: Some(attribute_context::Peer {
                    labels: [("app".to_owned(), "shop".to_owned())].into(),
                    ..attribute_context::Peer::default()
                }),
                ..AttributeContext::default()
            }),
        })
        .await
        .unwrap()
        .into_inner();

    assert_eq!(reply.status.unwrap().message, "shop");
    assert_eq!(
        reply.http_response,
        Some(check_response::HttpResponse::OkResponse(
            OkHttpResponse::default()
        ))
    );
}

#[tokio::test]
async fn rate_limiting_is_called_where_envoy_calls_it() {
    let server = RateLimitServiceServer::new(Policy).map_request(expect_path(
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
    ));

    let reply = RateLimitServiceClient::new(server)
        .should_rate_limit(RateLimitRequest {
            domain: "edge".to_owned(),
            ..RateLimitRequest::default()
        })
        .await
        .unwrap()
        .into_inner();

    assert_eq!(reply.overall_code(), rate_limit_response::Code::OverLimit);
    assert_eq!(reply.raw_body, "edge");
}

#[tokio::test]
async fn external_processing_is_called_where_envoy_calls_it() {
    let server = ExternalProcessorServer::new(Policy).map_request(expect_path(
        "/envoy.service.ext_proc.v3.ExternalProcessor/Process",
    ));
    let body = Bytes::from_static(b"piece");
    let messages = [
        headers_message(),
        ProcessingRequest {
            request: Some(processing_request::Request::RequestBody(HttpBody {
                body: body.clone(),
                ..HttpBody::default()
            })),
            ..ProcessingRequest::default()
        },
    ];

    let replies: Vec<_> = ExternalProcessorClient::new(server)
        .process(tokio_stream::iter(messages))
        .await
        .unwrap()
        .into_inner()
        .map(Result::unwrap)
        .collect()
        .await;

    assert_eq!(
        replies,
        [ProcessingResponse::default(), streamed_reply(&body)]
    );
}
