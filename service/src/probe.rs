//! What the probes of policy services have in common: severities, latencies, what a server says of
//! itself.

use std::{fmt, future::poll_fn, time::Duration};

use http::HeaderMap;
use prost::Message;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Code as GrpcCode;

use crate::channel::{Channel, Method, frame_message};

/// How bad a finding is, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The exchange stays open without an end that the proxy would enforce.
    Hang,
    /// The caller gets an error, or traffic is changed otherwise than the processor says.
    Violation,
    /// A part of the answer is without effect, or works by chance.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// In one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hang => "hang",
            Self::Violation => "violation",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Declares `Code`, the kinds of finding of a probe: name, severity, what Envoy does, what helps.
#[macro_export]
macro_rules! probe_codes {
    ($($name:ident $text:literal $severity:ident: $effect:literal; $fix:literal)+) => {
        /// A kind of finding. Its [name](Code::name) is stable, for scripts.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $effect] $name,)+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name, in kebab case.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// How bad it is.
            pub fn severity(self) -> $crate::probe::Severity {
                match self { $(Self::$name => $crate::probe::Severity::$severity,)+ }
            }

            /// What Envoy 1.40 does with it.
            pub fn effect(self) -> &'static str {
                match self { $(Self::$name => $effect,)+ }
            }

            /// What to do about it.
            pub fn fix(self) -> &'static str {
                match self { $(Self::$name => $fix,)+ }
            }
        }

        impl std::fmt::Display for Code {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

/// How long answers took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// Number of answers.
    pub count: usize,
    /// The fastest.
    pub min: Duration,
    /// Half were as fast as this or faster.
    pub median: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Latency {
    /// Of these; `None` when there are none.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        Some(Self {
            count: times.len(),
            min: *times.first()?,
            median: *times.get(times.len() / 2)?,
            max: *times.last()?,
        })
    }

    /// For programs, in milliseconds.
    pub fn json(&self) -> Value {
        json!({
            "count": self.count,
            "min_ms": millis(self.min),
            "median_ms": millis(self.median),
            "max_ms": millis(self.max),
        })
    }
}

/// Milliseconds, to the microsecond.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// A number and what it counts.
pub fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{count} {what}s"),
    }
}

/// Why nothing was probed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotServed {
    /// There is no connection.
    #[error("{0}")]
    Unreachable(String),
    /// Another service answers there: the one that is looked for, and what was said.
    #[error("{0} is not implemented there ({1})")]
    Unimplemented(&'static str, String),
}

/// What the standard health service says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It serves.
    Serving,
    /// It says that it does not serve.
    NotServing,
    /// There is no health service, or it does not know the service.
    Absent,
}

impl Health {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::NotServing => "not serving",
            Self::Absent => "absent",
        }
    }
}

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its health.
    pub health: Health,
    /// Whether it describes itself (gRPC reflection).
    pub reflection: bool,
}

impl fmt::Display for ServerFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reflection = if self.reflection { "served" } else { "absent" };
        write!(
            f,
            "health: {}; reflection: {reflection}",
            self.health.name()
        )
    }
}

/// Asks the server at the end of `channel` for the health of `service` and for its description.
///
/// # Errors
/// When there is no connection.
pub async fn server(
    channel: &Channel,
    service: &str,
    metadata: &HeaderMap,
    patience: Duration,
) -> Result<ServerFacts, NotServed> {
    Ok(ServerFacts {
        health: health(channel, service, metadata, patience).await?,
        reflection: reflection(channel, metadata, patience).await,
    })
}

/// `grpc.health.v1.HealthCheckRequest` and its answer.
#[derive(Clone, PartialEq, Message)]
struct HealthCheck {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthAnswer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks for the health of a service, and so finds out whether anybody is there.
async fn health(
    channel: &Channel,
    service: &str,
    metadata: &HeaderMap,
    patience: Duration,
) -> Result<Health, NotServed> {
    let method = Method::new("/grpc.health.v1.Health/Check");
    for service in [service, ""] {
        let ask = HealthCheck {
            service: service.to_owned(),
        };
        let answer = channel
            .unary(
                &method,
                &ask.encode_to_vec(),
                metadata.clone(),
                Some(patience),
            )
            .await;
        match answer {
            Ok(bytes) => {
                return Ok(match HealthAnswer::decode(bytes) {
                    Ok(HealthAnswer { status: 1 }) => Health::Serving,
                    Ok(_) => Health::NotServing,
                    Err(_) => Health::Absent,
                });
            }
            Err(status) if status.code() == GrpcCode::Unavailable => {
                return Err(NotServed::Unreachable(status.message().to_owned()));
            }
            // Unknown by that name; the server as a whole may be known.
            Err(status) if status.code() == GrpcCode::NotFound => {}
            Err(_) => return Ok(Health::Absent),
        }
    }
    Ok(Health::Absent)
}

/// `ServerReflectionRequest` that lists the services.
#[derive(Clone, PartialEq, Message)]
struct ListServices {
    #[prost(string, tag = "7")]
    list_services: String,
}

/// Whether the server describes itself.
async fn reflection(channel: &Channel, metadata: &HeaderMap, patience: Duration) -> bool {
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let mut stream = channel.stream(&Method::new(path), metadata.clone());
        let ask = ListServices {
            list_services: "*".to_owned(),
        };
        stream.send(frame_message(&ask.encode_to_vec()));
        let answer = timeout(patience, poll_fn(|cx| stream.poll_message(cx))).await;
        if matches!(answer, Ok(Some(Ok(_)))) {
            return true;
        }
    }
    false
}
