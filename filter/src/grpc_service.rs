//! Which service a policy layer calls: Envoy's `GrpcService`.

use std::time::Duration;

use attache_proto::types;
use attache_service::config::{ConfigValue, Errors, Located, Node, Schemas, Value, json};
use attache_service::{Channel, Method, config_enum, config_struct};
use bytes::Bytes;
use http::HeaderMap;
use tonic::Status;

use crate::{
    CallMetadata,
    retry::{Failure, Retry, RetryPolicy},
};

config_struct! {
    /// Envoy's `config.core.v3.GrpcService`.
    pub struct GrpcService {
        /// The cluster to call.
        pub envoy_grpc: EnvoyGrpc,
        /// Bound on a call; each filter has its own default.
        pub timeout: Option<Duration>,
        /// Metadata to send with each call.
        pub initial_metadata: Vec<Located<MetadataEntry>>,
        /// When a call is made again. Only for calls with one answer; never by default.
        pub retry_policy: Option<Located<RetryPolicy>>,
    }
    elsewhere {
        "google_grpc" => "there is one gRPC client here: name a cluster in `envoy_grpc`",
    }
}

config_struct! {
    /// Envoy's `GrpcService.EnvoyGrpc`.
    pub struct EnvoyGrpc {
        /// Name of a cluster of this configuration.
        pub cluster_name: Located<String>,
    }
    elsewhere {
        "authority" => "the cluster's name is sent as `:authority`",
        "retry_policy" => "Envoy does nothing with it here: write `retry_policy` beside `envoy_grpc`",
        "max_receive_message_length" => "messages of up to 16 MiB are accepted",
        "skip_envoy_headers" => "no `x-envoy-*` headers are sent to policy services",
    }
}

config_struct! {
    /// Envoy's `config.core.v3.HeaderValue`.
    pub struct MetadataEntry {
        /// Name; lower-cased.
        pub key: String,
        /// Value; formatters as in [`crate::call_metadata`] are filled in.
        pub value: Option<String>,
    }
    elsewhere {
        "raw_value" => "write the value as text in `value`",
    }
}

config_enum! {
    /// Envoy's `config.core.v3.ApiVersion`.
    pub enum ApiVersion {
        /// The only one that exists today.
        V3 = "V3",
    }
    elsewhere {
        "AUTO" => "write `V3`",
        "V2" => "version 2 of the API is gone from Envoy",
    }
}

/// A [`GrpcService`] ready to be called.
#[derive(Debug, Clone)]
pub struct ServiceCall {
    /// The cluster.
    pub cluster: Located<String>,
    /// Bound on a call, if one is configured.
    pub timeout: Option<Duration>,
    /// Metadata of each call.
    pub metadata: CallMetadata,
    /// When a call is made again, if ever.
    pub retry: Option<Retry>,
}

impl ServiceCall {
    /// Checks the settings; faults are reported at their place.
    pub fn plan(raw: &GrpcService, errors: &mut Errors) -> Self {
        let mut metadata = CallMetadata::plan(&raw.initial_metadata, errors);
        let retry = Retry::plan(raw.retry_policy.as_ref(), &mut metadata.fixed, errors);
        Self {
            cluster: raw.envoy_grpc.cluster_name.clone(),
            timeout: raw.timeout,
            metadata,
            retry,
        }
    }

    /// The same for a filter that makes each call once: a `retry_policy` is a fault.
    pub fn plan_once(raw: &GrpcService, errors: &mut Errors) -> Self {
        if let Some(policy) = &raw.retry_policy {
            errors.push(policy, "calls of this filter are not retried yet");
        }
        Self {
            cluster: raw.envoy_grpc.cluster_name.clone(),
            timeout: raw.timeout,
            metadata: CallMetadata::plan(&raw.initial_metadata, errors),
            retry: None,
        }
    }
}

/// Makes a call with one answer, again where `retry` says so. `message` is framed already (see
/// [`attache_service::channel::encode_message`]); `timeout` bounds all attempts together.
///
/// # Errors
/// The status of the last attempt.
pub async fn call_unary(
    channel: &Channel,
    method: &Method,
    message: Bytes,
    metadata: HeaderMap,
    timeout: Option<Duration>,
    retry: Option<&Retry>,
) -> Result<Bytes, Status> {
    let Some(retry) = retry else {
        return channel
            .unary_framed(method, message, metadata, timeout)
            .await;
    };
    let bound = retry.of_attempt(timeout);
    let attempts = retry.run(
        channel.breakers(),
        || channel.unary_framed(method, message.clone(), metadata.clone(), bound),
        |answer| answer.as_ref().err().map(Failure::of_status),
    );
    match timeout {
        None => attempts.await,
        Some(timeout) => tokio::time::timeout(timeout, attempts)
            .await
            .unwrap_or_else(|_| {
                let message = format!("no answer within {timeout:?}, retries included");
                Err(Status::deadline_exceeded(message))
            }),
    }
}

config_struct! {
    /// Envoy's `type.v3.HttpStatus`.
    pub struct HttpStatus {
        /// The status as a number (`403`) or Envoy's name for it (`Forbidden`).
        pub code: StatusCode,
    }
}

/// An HTTP status in configuration: a number or Envoy's enum name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusCode(pub http::StatusCode);

impl ConfigValue for StatusCode {
    fn decode(node: &Node, errors: &mut Errors) -> Option<Self> {
        let code = match (&node.value, node.as_str()) {
            (Value::Int(code), _) => i32::try_from(*code).ok(),
            (_, Some(name)) => types::StatusCode::from_str_name(name).map(|code| code as i32),
            _ => None,
        };
        let status = code
            .filter(|code| types::StatusCode::try_from(*code).is_ok())
            .and_then(|code| u16::try_from(code).ok())
            .and_then(|code| http::StatusCode::from_u16(code).ok());
        if status.is_none() {
            errors.expected(
                node,
                "an HTTP status that Envoy lists, such as `403` or `Forbidden`",
            );
        }
        status.map(Self)
    }

    fn encode(&self) -> Option<json::Value> {
        Some(self.0.as_u16().into())
    }

    fn schema(_schemas: &mut Schemas) -> json::Value {
        json::json!({ "type": ["integer", "string"], "description": "An HTTP status: a number or Envoy's name for it." })
    }
}
