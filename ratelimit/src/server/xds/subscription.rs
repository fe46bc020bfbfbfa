//! What is said on a stream: a subscription, and an answer to each response.

use std::time::Duration;

use attache_proto::{
    core::Node,
    discovery::{DiscoveryRequest, DiscoveryResponse},
    ratelimit_config::RateLimitConfig,
    rpc,
};
use attache_service::config::Errors;
use prost::Message as _;
use prost_types::{Any, Struct, Value, value::Kind};
use tonic::Code;

use super::NodeIdentity;

/// What resources are called, and what they are.
const TYPE_URL: &str = "type.googleapis.com/ratelimit.config.ratelimit.v3.RateLimitConfig";
const MESSAGE: &str = "ratelimit.config.ratelimit.v3.RateLimitConfig";
/// A reason for a refusal that is longer is cut: servers log it, and bound its length.
const LONGEST_REASON: usize = 4096;

/// The pause before a refusal that says the same as the one before, and what it doubles up to.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a client has to remember from one response and stream to the next.
#[derive(Debug)]
pub(super) struct Subscription {
    node: Node,
    /// The version accepted last; empty before.
    version: String,
    /// The latest response, when it was refused.
    refused: Option<Refused>,
}

#[derive(Debug, PartialEq)]
struct Refused {
    version: String,
    reason: String,
    /// How often in a row before.
    repeated: u32,
}

/// What to say to a response.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It is in force.
    Accepted {
        request: DiscoveryRequest,
        resources: usize,
    },
    /// It is not, and what was in force still is.
    Refused {
        request: DiscoveryRequest,
        reason: String,
        /// How long to wait before the request: not at all, unless it repeats itself. Some
        /// servers send what was refused again at once.
        pause: Duration,
    },
    /// Nothing: it is of a type that was not asked for.
    Ignored,
}

impl Subscription {
    pub(super) fn new(identity: &NodeIdentity) -> Self {
        let metadata = identity.metadata.iter().map(|(name, value)| {
            let kind = Some(Kind::StringValue(value.clone()));
            (name.clone(), Value { kind })
        });
        let fields = metadata.collect();
        Self {
            node: Node {
                id: identity.id.clone(),
                metadata: Some(Struct { fields }),
                user_agent_name: "attache".to_owned(),
                user_agent_version_type: Some(
                    attache_proto::core::node::UserAgentVersionType::UserAgentVersion(
                        env!("CARGO_PKG_VERSION").to_owned(),
                    ),
                ),
                ..Node::default()
            },
            version: String::new(),
            refused: None,
        }
    }

    /// The first request of a stream. A server that still has the version of before has nothing
    /// to say.
    pub(super) fn begin(&self) -> DiscoveryRequest {
        DiscoveryRequest {
            version_info: self.version.clone(),
            node: Some(self.node.clone()),
            type_url: TYPE_URL.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    /// Applies a response.
    pub(super) fn take(
        &mut self,
        response: &DiscoveryResponse,
        apply: &mut impl FnMut(&[RateLimitConfig]) -> Result<(), Errors>,
    ) -> Answer {
        if response.type_url != TYPE_URL {
            return Answer::Ignored;
        }
        let applied = resources(response).and_then(|resources| {
            apply(&resources).map_err(|errors| reason(&errors))?;
            Ok(resources.len())
        });
        let refused = match &applied {
            Ok(_) => {
                self.version.clone_from(&response.version_info);
                self.refused = None;
                None
            }
            Err(reason) => Some(rpc::Status {
                code: Code::InvalidArgument.into(),
                message: cut(reason).to_owned(),
                ..rpc::Status::default()
            }),
        };
        let request = DiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: refused,
            ..self.begin()
        };
        match applied {
            Ok(resources) => Answer::Accepted { request, resources },
            Err(reason) => Answer::Refused {
                pause: self.pause(&response.version_info, &reason),
                request,
                reason,
            },
        }
    }

    /// The pause before this refusal, which becomes the latest one.
    fn pause(&mut self, version: &str, reason: &str) -> Duration {
        let same = |last: &&Refused| last.version == version && last.reason == reason;
        let last = self.refused.as_ref().filter(same);
        let repeated = last.map_or(0, |last| last.repeated.saturating_add(1));
        self.refused = Some(Refused {
            version: version.to_owned(),
            reason: reason.to_owned(),
            repeated,
        });
        match repeated.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE
                .saturating_mul(1 << doublings.min(16))
                .min(LONGEST_PAUSE),
        }
    }
}

fn resources(response: &DiscoveryResponse) -> Result<Vec<RateLimitConfig>, String> {
    response.resources.iter().map(resource).collect()
}

fn resource(any: &Any) -> Result<RateLimitConfig, String> {
    let message = any.type_url.rsplit('/').next().unwrap_or_default();
    if message != MESSAGE {
        return Err(format!(
            "mismatched message type: got \"{message}\" want \"{MESSAGE}\""
        ));
    }
    RateLimitConfig::decode(&*any.value)
        .map_err(|error| format!("a resource cannot be read: {error}"))
}

/// All errors, one a line, each as the reference service has it: without a place, which a
/// resource does not have for its author.
fn reason(errors: &Errors) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| match error.file() {
            Some(name) => format!("{name}: {}", error.message()),
            None => error.message().to_owned(),
        })
        .collect();
    lines.join("\n")
}

fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(LONGEST_REASON))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Subscription {
        Subscription::new(&NodeIdentity {
            id: "limits-1".to_owned(),
            metadata: [("zone".to_owned(), "b".to_owned())].into(),
        })
    }

    fn response(version: &str, resources: Vec<Any>) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: version.to_owned(),
            nonce: format!("nonce-{version}"),
            type_url: TYPE_URL.to_owned(),
            resources,
            ..DiscoveryResponse::default()
        }
    }

    fn named(name: &str) -> Any {
        let resource = RateLimitConfig {
            name: name.to_owned(),
            ..RateLimitConfig::default()
        };
        Any {
            type_url: TYPE_URL.to_owned(),
            value: resource.encode_to_vec(),
        }
    }

    fn refuse(_: &[RateLimitConfig]) -> Result<(), Errors> {
        let mut errors = Errors::new();
        errors.push_file("one", "descriptor has empty key");
        errors.push_file("two", "descriptor has empty key");
        Err(errors)
    }

    #[test]
    fn the_first_request_says_who_asks_for_what() {
        let request = subscription().begin();
        assert_eq!(request.type_url, TYPE_URL);
        assert_eq!(request.version_info, "");
        assert_eq!(request.response_nonce, "");
        assert_eq!(request.resource_names, Vec::<String>::new());
        let node = request.node.unwrap();
        assert_eq!(node.id, "limits-1");
        let zone = &node.metadata.unwrap().fields["zone"];
        assert_eq!(zone.kind, Some(Kind::StringValue("b".to_owned())));
    }

    #[test]
    fn what_is_accepted_is_acknowledged_and_remembered_for_the_next_stream() {
        let mut subscription = subscription();
        let mut seen = Vec::new();
        let answer = subscription.take(&response("1", vec![named("a"), named("b")]), &mut |all| {
            seen = all.iter().map(|resource| resource.name.clone()).collect();
            Ok(())
        });
        let Answer::Accepted { request, resources } = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((seen, resources), (vec!["a".to_owned(), "b".to_owned()], 2));
        assert_eq!(request.version_info, "1");
        assert_eq!(request.response_nonce, "nonce-1");
        assert_eq!(request.error_detail, None);
        let again = subscription.begin();
        assert_eq!((&*again.version_info, &*again.response_nonce), ("1", ""));
    }

    #[test]
    fn what_is_refused_is_answered_with_the_reason_and_the_version_of_before() {
        let mut subscription = subscription();
        subscription.take(&response("1", vec![]), &mut |_| Ok(()));
        let answer = subscription.take(&response("2", vec![named("one")]), &mut refuse);
        let Answer::Refused {
            request,
            reason,
            pause,
        } = answer
        else {
            panic!("{answer:?}");
        };
        let text = "one: descriptor has empty key\ntwo: descriptor has empty key";
        assert_eq!(reason, text);
        assert_eq!(request.version_info, "1");
        assert_eq!(request.response_nonce, "nonce-2");
        assert_eq!(request.error_detail.unwrap().message, text);
        assert_eq!(pause, Duration::ZERO);
    }

    #[test]
    fn refusals_that_repeat_themselves_are_slow() {
        let mut subscription = subscription();
        let mut seconds = |version: &str| {
            let answer = subscription.take(&response(version, vec![]), &mut refuse);
            let Answer::Refused { pause, .. } = answer else {
                panic!("{answer:?}");
            };
            pause.as_secs()
        };
        let pauses: Vec<u64> = (0..7).map(|_| seconds("2")).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(seconds("3"), 0);
    }

    #[test]
    fn resources_that_are_none_are_refused_before_anything_is_applied() {
        let foreign = Any {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            value: vec![],
        };
        let broken = Any {
            type_url: TYPE_URL.to_owned(),
            value: vec![0xff],
        };
        for (resource, text) in [
            (
                foreign,
                "mismatched message type: got \"envoy.config.cluster.v3.Cluster\"",
            ),
            (broken, "a resource cannot be read"),
        ] {
            let answer = subscription()
                .take(&response("1", vec![named("a"), resource]), &mut |_| {
                    panic!("applied")
                });
            let Answer::Refused { reason, .. } = answer else {
                panic!("{answer:?}");
            };
            assert!(reason.starts_with(text), "{reason}");
        }
    }

    #[test]
    fn responses_of_other_types_are_passed_over() {
        let mut other = response("1", vec![]);
        other.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
        let answer = subscription().take(&other, &mut |_| panic!("applied"));
        assert_eq!(answer, Answer::Ignored);
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let text = "é".repeat(LONGEST_REASON);
        let cut = cut(&text);
        assert!(cut.len() <= LONGEST_REASON && cut.len() > LONGEST_REASON - 4);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_server_sends_panics(value: Vec<u8>, name: String) {
            let any = Any { type_url: format!("x/{name}"), value: value.clone() };
            let own = Any { type_url: TYPE_URL.to_owned(), value };
            let mut subscription = subscription();
            for any in [any, own] {
                subscription.take(&response(&name, vec![any]), &mut |_| Ok(()));
            }
        }
    }
}
