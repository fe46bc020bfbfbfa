//! `health_checks` of a cluster: field for field Envoy's `config.core.v3.HealthCheck`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery},
};

use crate::{
    config::{Errors, Located},
    config_enum, config_oneof, config_struct,
};

config_struct! {
    /// How endpoints are asked whether they are well (Envoy's `config.core.v3.HealthCheck`).
    pub struct HealthCheck {
        /// Bound on one check, connecting included. Default 1s.
        pub timeout: Option<Located<Duration>>,
        /// Pause between two checks of an endpoint. Default 5s.
        pub interval: Option<Located<Duration>>,
        /// The first check is up to so much later, by chance. Default 0s.
        pub initial_jitter: Option<Duration>,
        /// Up to so much is added to each pause, by chance. Default 0s.
        pub interval_jitter: Option<Duration>,
        /// The same in percent of the pause. Default 0.
        pub interval_jitter_percent: Option<u32>,
        /// Checks in a row that fail until the endpoint counts as unhealthy. An answer that says
        /// so is enough at once; the threshold is for timeouts and broken connections. Default 2.
        pub unhealthy_threshold: Option<Located<u32>>,
        /// Checks in a row that pass until it is healthy again. Default 2.
        pub healthy_threshold: Option<Located<u32>>,
        /// Keep the connection for the next check. Default true.
        pub reuse_connection: Option<bool>,
        /// Pause while nothing has been sent to the cluster yet. Default 60s.
        pub no_traffic_interval: Option<Located<Duration>>,
        /// The same for endpoints that are healthy. Default `no_traffic_interval`.
        pub no_traffic_healthy_interval: Option<Located<Duration>>,
        /// Pause while the endpoint is unhealthy. Default `interval`.
        pub unhealthy_interval: Option<Located<Duration>>,
        /// Pause after the check that made it unhealthy. Default `unhealthy_interval`.
        pub unhealthy_edge_interval: Option<Located<Duration>>,
        /// Pause after the check that made it healthy. Default `interval`.
        pub healthy_edge_interval: Option<Located<Duration>>,
    }
    oneof {
        /// What is asked.
        pub check: Check,
    }
    elsewhere {
        "alt_port" => "checks go where the requests go",
        "event_log_path" => "changes are in the log of the proxy",
        "event_logger" => "changes are in the log of the proxy",
        "event_service" => "changes are in the log of the proxy",
        "always_log_health_check_failures" => "changes are in the log of the proxy; failures are counted",
        "always_log_health_check_success" => "changes are in the log of the proxy; checks are counted",
        "tls_options" => "checks use `tls` of the cluster",
        "transport_socket_match_criteria" => "checks use `tls` of the cluster",
    }
}

config_oneof! {
    /// What an endpoint is asked.
    pub enum Check {
        /// An HTTP request.
        Http(HttpHealthCheck) = "http_health_check",
        /// A connection, and bytes over it.
        Tcp(TcpHealthCheck) = "tcp_health_check",
        /// The standard gRPC health service.
        Grpc(GrpcHealthCheck) = "grpc_health_check",
    }
    elsewhere {
        "custom_health_check" => "not supported; there are `http_health_check`, `tcp_health_check` and `grpc_health_check`",
    }
}

config_struct! {
    /// A check by an HTTP request (Envoy's `HealthCheck.HttpHealthCheck`).
    pub struct HttpHealthCheck {
        /// The path asked for.
        pub path: Located<String>,
        /// The host asked for. Default: the cluster's name.
        pub host: Option<Located<String>>,
        /// The method. Default `GET`.
        pub method: Option<RequestMethod>,
        /// Statuses of endpoints that are well. Default 200 alone.
        pub expected_statuses: Vec<Located<StatusRange>>,
        /// Statuses of endpoints that are not, and that count towards `unhealthy_threshold`
        /// instead of being enough at once.
        pub retriable_statuses: Vec<Located<StatusRange>>,
        /// The protocol. Default `HTTP1`.
        pub codec_client_type: Option<CodecClientType>,
    }
    elsewhere {
        "send" => "checks have no body",
        "receive" => "the status tells",
        "response_buffer_size" => "the status tells",
        "request_headers_to_add" => "not supported",
        "request_headers_to_remove" => "not supported",
        "service_name_matcher" => "not supported",
        "use_http2" => "write `codec_client_type: HTTP2`",
        "service_name" => "not supported",
    }
}

config_enum! {
    /// The method of a check.
    pub enum RequestMethod {
        /// `GET`.
        Get = "GET",
        /// `HEAD`.
        Head = "HEAD",
        /// `POST`.
        Post = "POST",
        /// `PUT`.
        Put = "PUT",
        /// `DELETE`.
        Delete = "DELETE",
        /// `OPTIONS`.
        Options = "OPTIONS",
        /// `TRACE`.
        Trace = "TRACE",
        /// `PATCH`.
        Patch = "PATCH",
    }
    elsewhere {
        "CONNECT" => "a check cannot open a tunnel",
    }
}

config_enum! {
    /// The protocol of a check.
    pub enum CodecClientType {
        /// HTTP/1.1.
        Http1 = "HTTP1",
        /// HTTP/2.
        Http2 = "HTTP2",
    }
    elsewhere {
        "HTTP3" => "HTTP/3 is not spoken",
    }
}

config_struct! {
    /// Statuses from `start` up to, without, `end` (Envoy's `Int64Range`).
    pub struct StatusRange {
        /// The first.
        pub start: u16,
        /// The one after the last.
        pub end: u16,
    }
}

config_struct! {
    /// A check by bytes over a connection (Envoy's `HealthCheck.TcpHealthCheck`). The connection
    /// alone is enough where nothing is written here.
    pub struct TcpHealthCheck {
        /// What is sent. Default: nothing.
        pub send: Option<Payload>,
        /// What must come back: all of them, in this order, whatever stands between.
        pub receive: Vec<Payload>,
    }
    elsewhere {
        "proxy_protocol_config" => "not supported",
    }
}

config_struct! {
    /// Bytes (Envoy's `HealthCheck.Payload`).
    pub struct Payload {
        /// In hexadecimal digits.
        pub text: Located<String>,
    }
    elsewhere {
        "binary" => "write `text`, in hexadecimal digits",
    }
}

config_struct! {
    /// A check by the standard gRPC health service (Envoy's `HealthCheck.GrpcHealthCheck`).
    pub struct GrpcHealthCheck {
        /// The service asked about. Default: the server as a whole.
        pub service_name: Option<String>,
        /// The `:authority` of the call. Default: the cluster's name.
        pub authority: Option<Located<String>>,
    }
    elsewhere {
        "initial_metadata" => "not supported",
    }
}

/// A [`HealthCheck`], ready to run.
#[derive(Debug, Clone)]
pub struct HealthPlan {
    pub(super) question: Question,
    pub(super) timeout: Duration,
    pub(super) thresholds: Thresholds,
    pub(super) pauses: CheckPauses,
    pub(super) initial_jitter: Duration,
    pub(super) reuse: bool,
}

/// Checks in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) unhealthy: u32,
    pub(super) healthy: u32,
}

/// Pauses between checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CheckPauses {
    pub(super) healthy: Duration,
    pub(super) healthy_edge: Duration,
    pub(super) unhealthy: Duration,
    pub(super) unhealthy_edge: Duration,
    pub(super) idle: Duration,
    pub(super) idle_healthy: Duration,
    pub(super) jitter: Duration,
    pub(super) jitter_percent: u32,
}

/// What is asked, and which answer is good.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Http(HttpQuestion),
    Tcp { send: Bytes, receive: Vec<Bytes> },
    Grpc(GrpcQuestion),
}

#[derive(Debug, Clone)]
pub(super) struct HttpQuestion {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) host: HeaderValue,
    pub(super) http2: bool,
    pub(super) expected: Vec<(u16, u16)>,
    pub(super) retriable: Vec<(u16, u16)>,
}

#[derive(Debug, Clone)]
pub(super) struct GrpcQuestion {
    pub(super) service: Arc<str>,
    pub(super) authority: Authority,
}

pub(super) const CHECKER: HeaderValue = HeaderValue::from_static("Attache/HC");
/// An endpoint that says so is unhealthy at once, whatever it answers otherwise.
pub const IMMEDIATE_FAIL: HeaderName =
    HeaderName::from_static("x-envoy-immediate-health-check-fail");

impl HealthPlan {
    /// Checks the settings for the cluster `name`; mistakes are reported at their place. `None`
    /// only after an error was added.
    pub fn plan(raw: &HealthCheck, name: &str, errors: &mut Errors) -> Option<Self> {
        let mut pause = |written: &Option<Located<Duration>>, default| {
            let Some(written) = written else {
                return default;
            };
            if written.value.is_zero() {
                errors.push(written, "more than 0s is needed between two checks");
            }
            written.value
        };
        let timeout = pause(&raw.timeout, Duration::from_secs(1));
        let healthy = pause(&raw.interval, Duration::from_secs(5));
        let unhealthy = pause(&raw.unhealthy_interval, healthy);
        let idle = pause(&raw.no_traffic_interval, Duration::from_secs(60));
        let pauses = CheckPauses {
            healthy,
            healthy_edge: pause(&raw.healthy_edge_interval, healthy),
            unhealthy,
            unhealthy_edge: pause(&raw.unhealthy_edge_interval, unhealthy),
            idle,
            idle_healthy: pause(&raw.no_traffic_healthy_interval, idle),
            jitter: raw.interval_jitter.unwrap_or_default(),
            jitter_percent: raw.interval_jitter_percent.unwrap_or_default(),
        };
        let mut threshold = |written: &Option<Located<u32>>| {
            if let Some(zero) = written.as_ref().filter(|written| written.value == 0) {
                errors.push(zero, "a threshold is at least 1");
            }
            written.as_ref().map_or(2, |written| written.value)
        };
        let thresholds = Thresholds {
            unhealthy: threshold(&raw.unhealthy_threshold),
            healthy: threshold(&raw.healthy_threshold),
        };
        Some(Self {
            question: Question::plan(&raw.check, name, errors)?,
            timeout,
            thresholds,
            pauses,
            initial_jitter: raw.initial_jitter.unwrap_or_default(),
            reuse: raw.reuse_connection.unwrap_or(true),
        })
    }

    /// Whether it calls the gRPC health service, which needs HTTP/2.
    pub fn is_grpc(&self) -> bool {
        matches!(self.question, Question::Grpc(_))
    }
}

impl Question {
    fn plan(raw: &Check, name: &str, errors: &mut Errors) -> Option<Self> {
        Some(match raw {
            Check::Http(raw) => Self::Http(HttpQuestion::plan(raw, name, errors)?),
            Check::Tcp(raw) => Self::Tcp {
                send: match &raw.send {
                    None => Bytes::new(),
                    Some(payload) => payload.bytes(errors)?,
                },
                receive: (raw.receive.iter())
                    .map(|payload| payload.bytes(errors))
                    .collect::<Option<_>>()?,
            },
            Check::Grpc(raw) => {
                let authority = match &raw.authority {
                    Some(written) => match written.parse() {
                        Ok(authority) => authority,
                        Err(_) => {
                            errors.push(written, format!("`{}` is not a host", written.value));
                            return None;
                        }
                    },
                    None => name
                        .parse()
                        .unwrap_or_else(|_| Authority::from_static("localhost")),
                };
                Self::Grpc(GrpcQuestion {
                    service: raw.service_name.as_deref().unwrap_or_default().into(),
                    authority,
                })
            }
        })
    }
}

impl HttpQuestion {
    fn plan(raw: &HttpHealthCheck, name: &str, errors: &mut Errors) -> Option<Self> {
        let path = match PathAndQuery::try_from(raw.path.as_str()) {
            Ok(path) if raw.path.starts_with('/') => path,
            _ => {
                errors.push(&raw.path, format!("`{}` is not a path", raw.path.value));
                return None;
            }
        };
        let host = match &raw.host {
            Some(written) if written.parse::<Authority>().is_ok() => {
                HeaderValue::from_str(written).ok()
            }
            Some(written) => {
                errors.push(written, format!("`{}` is not a host", written.value));
                return None;
            }
            // Names of clusters are free text.
            None => HeaderValue::from_str(name)
                .ok()
                .filter(|_| name.parse::<Authority>().is_ok()),
        };
        let mut ranges = |written: &[Located<StatusRange>]| -> Vec<(u16, u16)> {
            for range in written {
                let StatusRange { start, end } = range.value;
                if start < 100 || end > 600 || start >= end {
                    errors.push(
                        range,
                        "statuses are from 100 to 599, and `end` is after `start`",
                    );
                }
            }
            let bounds = |range: &Located<StatusRange>| (range.value.start, range.value.end);
            written.iter().map(bounds).collect()
        };
        let mut expected = ranges(&raw.expected_statuses);
        if expected.is_empty() {
            expected.push((200, 201));
        }
        Some(Self {
            method: raw.method.unwrap_or(RequestMethod::Get).method(),
            path,
            host: host.unwrap_or_else(|| HeaderValue::from_static("localhost")),
            http2: raw.codec_client_type == Some(CodecClientType::Http2),
            expected,
            retriable: ranges(&raw.retriable_statuses),
        })
    }

    /// Whether this status is that of an endpoint that is well.
    pub(super) fn expects(&self, status: StatusCode) -> bool {
        within(&self.expected, status)
    }

    /// Whether this status counts towards the threshold.
    pub(super) fn is_retriable(&self, status: StatusCode) -> bool {
        within(&self.retriable, status)
    }
}

fn within(ranges: &[(u16, u16)], status: StatusCode) -> bool {
    let status = status.as_u16();
    ranges
        .iter()
        .any(|(start, end)| (*start..*end).contains(&status))
}

impl RequestMethod {
    fn method(self) -> Method {
        match self {
            Self::Get => Method::GET,
            Self::Head => Method::HEAD,
            Self::Post => Method::POST,
            Self::Put => Method::PUT,
            Self::Delete => Method::DELETE,
            Self::Options => Method::OPTIONS,
            Self::Trace => Method::TRACE,
            Self::Patch => Method::PATCH,
        }
    }
}

impl Payload {
    fn bytes(&self, errors: &mut Errors) -> Option<Bytes> {
        let bytes = hex(&self.text);
        if bytes.is_none() {
            let message = format!("`{}` is not in hexadecimal digits", self.text.value);
            errors.push(&self.text, message);
        }
        bytes.map(Bytes::from)
    }
}

/// The bytes of hexadecimal digits; `None` where they are not, or none at all.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| u8::try_from(digit.to_digit(16)?).ok())
        .collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    (rest.is_empty() && !bytes.is_empty()).then_some(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Document;

    pub(in crate::cluster::health) fn planned(text: &str) -> Result<HealthPlan, String> {
        let document = Document::parse("check.yaml", text).unwrap();
        let (raw, mut errors) = document.decode_partly::<HealthCheck>();
        let planned = raw.and_then(|raw| HealthPlan::plan(&raw, "web", &mut errors));
        errors.into_result(planned).map_err(|e| e.to_string())
    }

    #[test]
    fn pauses_fall_back_to_the_wider_one() {
        let plan =
            planned("{ http_health_check: { path: / }, interval: 2s, unhealthy_interval: 3s }");
        let secs = Duration::from_secs;
        let pauses = plan.unwrap().pauses;
        assert_eq!(
            (pauses.healthy, pauses.healthy_edge, pauses.unhealthy),
            (secs(2), secs(2), secs(3))
        );
        assert_eq!(
            (pauses.unhealthy_edge, pauses.idle, pauses.idle_healthy),
            (secs(3), secs(60), secs(60))
        );
    }

    #[test]
    fn statuses_are_200_unless_written() {
        let question = |text: &str| match planned(text).unwrap().question {
            Question::Http(question) => question,
            other => panic!("{other:?}"),
        };
        let of = |code| StatusCode::from_u16(code).unwrap();
        let plain = question("{ http_health_check: { path: / } }");
        assert!(plain.expects(of(200)) && !plain.expects(of(201)) && !plain.expects(of(204)));
        let written = question(
            "{ http_health_check: { path: /, expected_statuses: [{ start: 204, end: 206 }, { start: 418, end: 419 }], retriable_statuses: [{ start: 500, end: 600 }] } }",
        );
        let expected = [200, 203, 204, 205, 206, 418].map(|code| written.expects(of(code)));
        assert_eq!(expected, [false, false, true, true, false, true]);
        assert!(written.is_retriable(of(503)) && !written.is_retriable(of(404)));
    }

    #[test]
    fn mistakes_are_reported() {
        for (text, fault) in [
            ("{ interval: 1s }", "http_health_check"),
            ("{ http_health_check: { path: x } }", "`x` is not a path"),
            (
                "{ http_health_check: { path: /, host: 'a b' } }",
                "`a b` is not a host",
            ),
            (
                "{ http_health_check: { path: /, expected_statuses: [{ start: 200, end: 200 }] } }",
                "statuses are from 100",
            ),
            ("{ tcp_health_check: {}, interval: 0s }", "more than 0s"),
            (
                "{ tcp_health_check: {}, healthy_threshold: 0 }",
                "at least 1",
            ),
            (
                "{ tcp_health_check: { send: { text: '0' } } }",
                "hexadecimal",
            ),
            (
                "{ tcp_health_check: { receive: [{ text: 'xy' }] } }",
                "hexadecimal",
            ),
            ("{ grpc_health_check: { authority: '/' } }", "is not a host"),
            ("{ http_health_check: { path: /, send: {} } }", "no body"),
        ] {
            let error = planned(text).unwrap_err();
            assert!(error.contains(fault), "{text}: {error}");
        }
    }
}
