//! Random messages of both ends.

use attache_proto::{
    core::{self, HeaderValueOption, Metadata},
    ext_proc::{
        BodyMutation, BodyResponse, CommonResponse, GrpcStatus, HeaderMutation, HeadersResponse,
        HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest,
        ProcessingResponse, ProtocolConfiguration, StreamedBodyResponse, StreamedImmediateResponse,
        TrailersResponse, body_mutation::Mutation, processing_request::Request,
        processing_response::Response, streamed_immediate_response,
    },
    ext_proc_filter::ProcessingMode,
    types::HttpStatus,
};
use bytes::Bytes;
use rand::{Rng, rngs::SmallRng, seq::IndexedRandom};

const NAMES: [&str; 14] = [
    "x-a",
    "X-B",
    "content-length",
    "content-type",
    "transfer-encoding",
    "host",
    ":path",
    ":method",
    ":status",
    ":authority",
    "set-cookie",
    "x v",
    "",
    "connection",
];
const VALUES: [&[u8]; 12] = [
    b"1",
    b"",
    b"5",
    b"99999999999999999999",
    b"/p",
    b"POST",
    b"204",
    b"abc",
    b"a\nb",
    b"\xff\xfe",
    b"chunked",
    b"application/grpc",
];

pub(crate) fn chance(random: &mut SmallRng, percent: u32) -> bool {
    random.random_ratio(percent, 100)
}

fn name(random: &mut SmallRng) -> String {
    NAMES.choose(random).unwrap().to_string()
}

fn value(random: &mut SmallRng) -> Bytes {
    match chance(random, 3) {
        true => vec![b'v'; random.random_range(0..40_000)].into(),
        false => Bytes::from_static(VALUES.choose(random).unwrap()),
    }
}

pub(crate) fn bytes(random: &mut SmallRng) -> Bytes {
    let most = *[0, 1, 30, 5_000, 70_000, 300_000].choose(random).unwrap();
    vec![b'z'; random.random_range(0..=most)].into()
}

/// Some small number, also one that no enumeration has.
fn number(random: &mut SmallRng, most: i32) -> i32 {
    match chance(random, 2) {
        true => random.random(),
        false => random.random_range(0..=most),
    }
}

fn some<T>(random: &mut SmallRng, percent: u32, make: impl Fn(&mut SmallRng) -> T) -> Option<T> {
    chance(random, percent).then(|| make(random))
}

fn header(random: &mut SmallRng) -> core::HeaderValue {
    core::HeaderValue {
        key: name(random),
        raw_value: value(random),
        value: some(random, 5, name).unwrap_or_default(),
    }
}

fn mutation(random: &mut SmallRng) -> HeaderMutation {
    let many = if chance(random, 2) { 150 } else { 4 };
    let option = |random: &mut SmallRng| HeaderValueOption {
        header: some(random, 95, header),
        append: some(random, 30, |random| random.random()),
        append_action: number(random, 4),
        ..HeaderValueOption::default()
    };
    let set = random.random_range(0..many);
    let removed = random.random_range(0..4);
    HeaderMutation {
        set_headers: (0..set).map(|_| option(random)).collect(),
        remove_headers: (0..removed).map(|_| name(random)).collect(),
    }
}

/// A mutation that no rule objects to.
fn harmless(random: &mut SmallRng) -> HeaderMutation {
    let header = core::HeaderValue {
        key: "x-fine".to_owned(),
        raw_value: "yes".into(),
        ..core::HeaderValue::default()
    };
    HeaderMutation {
        set_headers: vec![HeaderValueOption {
            header: Some(header),
            ..HeaderValueOption::default()
        }],
        remove_headers: some(random, 30, |_| "content-length".to_owned())
            .into_iter()
            .collect(),
    }
}

fn streamed(random: &mut SmallRng, end_of_stream: bool) -> StreamedBodyResponse {
    StreamedBodyResponse {
        body: bytes(random),
        end_of_stream,
        ..StreamedBodyResponse::default()
    }
}

fn body_mutation(random: &mut SmallRng) -> BodyMutation {
    let mutation = match random.random_range(0..5) {
        0 => None,
        1 => Some(Mutation::ClearBody(random.random())),
        2 => {
            let last = random.random();
            Some(Mutation::StreamedResponse(streamed(random, last)))
        }
        _ => Some(Mutation::Body(bytes(random))),
    };
    BodyMutation { mutation }
}

fn common(random: &mut SmallRng) -> CommonResponse {
    CommonResponse {
        status: number(random, 1),
        header_mutation: some(random, 40, mutation),
        body_mutation: some(random, 40, body_mutation),
        clear_route_cache: random.random(),
        ..CommonResponse::default()
    }
}

fn mode(random: &mut SmallRng) -> ProcessingMode {
    ProcessingMode {
        request_header_mode: number(random, 2),
        response_header_mode: number(random, 2),
        request_body_mode: number(random, 5),
        response_body_mode: number(random, 5),
        request_trailer_mode: number(random, 2),
        response_trailer_mode: number(random, 2),
    }
}

fn immediate(random: &mut SmallRng) -> ImmediateResponse {
    ImmediateResponse {
        status: some(random, 90, |random| HttpStatus {
            code: number(random, 600),
        }),
        headers: some(random, 50, mutation),
        body: bytes(random),
        grpc_status: some(random, 20, |random| GrpcStatus {
            status: random.random_range(0..20),
        }),
        details: some(random, 50, name).unwrap_or_default(),
    }
}

fn streamed_immediate(random: &mut SmallRng) -> StreamedImmediateResponse {
    use streamed_immediate_response::Response;
    let last = random.random();
    StreamedImmediateResponse {
        response: some(random, 95, |random| match random.random_range(0..4) {
            0 => Response::BodyResponse(streamed(random, last)),
            1 => Response::TrailersResponse(map(random)),
            _ => {
                let mut headers = headers(random);
                if let Some(map) = &mut headers.headers
                    && chance(random, 80)
                {
                    map.headers.push(core::HeaderValue {
                        key: ":status".to_owned(),
                        raw_value: "200".into(),
                        ..core::HeaderValue::default()
                    });
                }
                Response::HeadersResponse(headers)
            }
        }),
    }
}

/// Anything that a processor can say.
pub(crate) fn reply(random: &mut SmallRng) -> ProcessingResponse {
    let trailers = |random: &mut SmallRng| TrailersResponse {
        header_mutation: some(random, 50, mutation),
    };
    let response = match random.random_range(0..10) {
        0 | 1 => Response::RequestHeaders(HeadersResponse {
            response: some(random, 80, common),
        }),
        2 => Response::ResponseHeaders(HeadersResponse {
            response: some(random, 80, common),
        }),
        3 => Response::RequestBody(BodyResponse {
            response: some(random, 80, common),
        }),
        4 => Response::ResponseBody(BodyResponse {
            response: some(random, 80, common),
        }),
        5 => Response::RequestTrailers(trailers(random)),
        6 => Response::ResponseTrailers(trailers(random)),
        7 => Response::ImmediateResponse(immediate(random)),
        _ => Response::StreamedImmediateResponse(streamed_immediate(random)),
    };
    ProcessingResponse {
        response: chance(random, 90).then_some(response),
        mode_override: some(random, 20, mode),
        override_message_timeout: some(random, 10, duration),
        dynamic_metadata: some(random, 10, |_| prost_types::Struct::default()),
        ..ProcessingResponse::default()
    }
}

fn duration(random: &mut SmallRng) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::from(number(random, 5)),
        nanos: number(random, 999_999_999),
    }
}

/// The reply that a well-behaved processor gives to a message; a streamed one when `duplex`.
pub(crate) fn fitting(
    random: &mut SmallRng,
    message: &ProcessingRequest,
    duplex: bool,
) -> Option<ProcessingResponse> {
    let headers = |random: &mut SmallRng| HeadersResponse {
        response: some(random, 60, |random| CommonResponse {
            header_mutation: some(random, 50, harmless),
            ..CommonResponse::default()
        }),
    };
    let body = |random: &mut SmallRng, body: &HttpBody| BodyResponse {
        response: match duplex {
            true => Some(CommonResponse {
                body_mutation: Some(BodyMutation {
                    mutation: Some(Mutation::StreamedResponse(StreamedBodyResponse {
                        body: body.body.clone(),
                        end_of_stream: body.end_of_stream,
                        ..StreamedBodyResponse::default()
                    })),
                }),
                ..CommonResponse::default()
            }),
            false => some(random, 50, |random| CommonResponse {
                header_mutation: some(random, 50, harmless),
                body_mutation: some(random, 50, |random| BodyMutation {
                    mutation: Some(Mutation::Body(bytes(random))),
                }),
                ..CommonResponse::default()
            }),
        },
    };
    let response = match message.request.as_ref()? {
        Request::RequestHeaders(_) => Response::RequestHeaders(headers(random)),
        Request::ResponseHeaders(_) => Response::ResponseHeaders(headers(random)),
        Request::RequestBody(piece) => Response::RequestBody(body(random, piece)),
        Request::ResponseBody(piece) => Response::ResponseBody(body(random, piece)),
        Request::RequestTrailers(_) => Response::RequestTrailers(TrailersResponse::default()),
        Request::ResponseTrailers(_) => Response::ResponseTrailers(TrailersResponse::default()),
    };
    Some(ProcessingResponse {
        response: Some(response),
        mode_override: some(random, 10, mode),
        ..ProcessingResponse::default()
    })
}

fn map(random: &mut SmallRng) -> core::HeaderMap {
    let fields = random.random_range(0..6);
    core::HeaderMap {
        headers: (0..fields).map(|_| header(random)).collect(),
    }
}

fn headers(random: &mut SmallRng) -> HttpHeaders {
    HttpHeaders {
        headers: some(random, 95, map),
        end_of_stream: random.random(),
        ..HttpHeaders::default()
    }
}

/// Anything that a proxy can say.
pub(crate) fn request(random: &mut SmallRng) -> ProcessingRequest {
    let body = |random: &mut SmallRng| HttpBody {
        body: bytes(random),
        end_of_stream: chance(random, 20),
        ..HttpBody::default()
    };
    let trailers = |random: &mut SmallRng| HttpTrailers {
        trailers: some(random, 95, map),
    };
    let request = match random.random_range(0..10) {
        0 | 1 => Request::RequestHeaders(headers(random)),
        2 | 3 => Request::ResponseHeaders(headers(random)),
        4 | 5 => Request::RequestBody(body(random)),
        6 | 7 => Request::ResponseBody(body(random)),
        8 => Request::RequestTrailers(trailers(random)),
        _ => Request::ResponseTrailers(trailers(random)),
    };
    envelope(random, request)
}

fn envelope(random: &mut SmallRng, request: Request) -> ProcessingRequest {
    ProcessingRequest {
        request: chance(random, 98).then_some(request),
        metadata_context: some(random, 80, |_| Metadata::default()),
        observability_mode: chance(random, 2),
        protocol_config: some(random, 30, config),
        ..ProcessingRequest::default()
    }
}

fn config(random: &mut SmallRng) -> ProtocolConfiguration {
    ProtocolConfiguration {
        request_body_mode: number(random, 5),
        response_body_mode: number(random, 5),
        send_body_without_waiting_for_header_response: random.random(),
    }
}

/// What a proxy says in an exchange that follows the protocol, in order.
pub(crate) fn lawful(random: &mut SmallRng) -> Vec<ProcessingRequest> {
    let mut messages = Vec::new();
    let mut way = |random: &mut SmallRng, is_request: bool| {
        let pieces = random.random_range(0..5);
        let head = HttpHeaders {
            end_of_stream: pieces == 0,
            ..headers(random)
        };
        messages.push(match is_request {
            true => Request::RequestHeaders(head),
            false => Request::ResponseHeaders(head),
        });
        let trailers = chance(random, 30);
        for piece in 1..=pieces {
            let body = HttpBody {
                body: bytes(random),
                end_of_stream: piece == pieces && !trailers,
                ..HttpBody::default()
            };
            messages.push(match is_request {
                true => Request::RequestBody(body),
                false => Request::ResponseBody(body),
            });
        }
        if trailers && pieces > 0 {
            let trailers = HttpTrailers {
                trailers: Some(map(random)),
            };
            messages.push(match is_request {
                true => Request::RequestTrailers(trailers),
                false => Request::ResponseTrailers(trailers),
            });
        }
    };
    way(random, true);
    way(random, false);
    let config = config(random);
    let first = std::iter::once(Some(config)).chain(std::iter::repeat(None));
    let message = |(request, protocol_config)| ProcessingRequest {
        request: Some(request),
        metadata_context: Some(Metadata::default()),
        protocol_config,
        ..ProcessingRequest::default()
    };
    messages.into_iter().zip(first).map(message).collect()
}
