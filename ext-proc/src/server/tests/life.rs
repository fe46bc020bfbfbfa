//! Time, ends, metrics, and what travels beside the messages.

use std::sync::{Arc, Mutex};

use attache_service::Metrics;

use super::*;
use crate::server::{drain::Drain, session::Phase};

/// Takes its time with every part.
#[derive(Clone)]
struct Slow(Duration);

impl Processor for Slow {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        tokio::time::sleep(self.0).await;
        Ok(request.headers.insert("x-slow", "yes")?)
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_gets_more_time_by_itself_where_that_is_allowed() {
    let more = Duration::from_secs(5);
    for (assumed, takes, status) in [
        (more, 1000, 200),
        (Duration::ZERO, 1000, 504),
        (Duration::ZERO, 150, 200),
        (more, 6000, 504),
    ] {
        let settings = ProxySettings {
            max_message_timeout: assumed,
            ..ProxySettings::default()
        };
        let server = Server::new(Slow(Duration::from_millis(takes))).assume(settings);
        let seen = Proxy::of(server)
            .filter(|filter| filter.max_message_timeout = more)
            .send(get())
            .await;
        assert_eq!(seen.response.status(), status, "{assumed:?} {takes}");
    }
}

#[tokio::test]
async fn parts_are_counted_by_what_came_of_them() {
    let metrics = Metrics::default();
    let count = |part: &str, result: &str, count: u32| {
        format!("attache_processor_handled_total{{part=\"{part}\",result=\"{result}\"}} {count}")
    };
    for (server, status) in [
        (Server::new(State::default()), 418),
        (Server::new(Refuse), 401),
        (Server::new(Bad::Error), 500),
    ] {
        let seen = Proxy::of(server.metrics(&metrics)).send(get()).await;
        assert_eq!(seen.response.status(), status);
    }
    let text = metrics.render();
    for line in [
        count("request_headers", "ok", 1),
        count("request_headers", "responded", 1),
        count("request_headers", "failed", 1),
        count("response_headers", "ok", 1),
        count("request_body", "ok", 0),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_trace_of_the_proxy_is_known_to_handlers() {
    #[derive(Clone, Default)]
    struct Traced(Arc<Mutex<Option<String>>>);
    impl Processor for Traced {
        async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
            let trace = request.exchange.trace();
            *self.0.lock().unwrap() = trace.map(|trace| trace.trace_id.to_owned());
            Ok(())
        }
    }
    let processor = Traced::default();
    let id = "0af7651916cd43dd8448eb211c80319c";
    let header = format!("00-{id}-b7ad6b7169203331-01");
    Proxy::new(processor.clone())
        .filter(|filter| {
            let value = header.parse().unwrap();
            filter.initial_metadata.fixed.insert("traceparent", value);
        })
        .send(get())
        .await;
    assert_eq!(processor.0.lock().unwrap().as_deref(), Some(id));
}

#[tokio::test]
async fn a_drain_closes_what_waits_and_lets_bodies_end() {
    /// Notes whether it was asked about the response.
    #[derive(Clone, Default)]
    struct Both;
    impl Processor for Both {
        async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
            if let Some(whole) = body.whole()? {
                body.replace(whole.to_ascii_uppercase());
            }
            Ok(())
        }
        async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
            Ok(response.headers.insert("x-seen", "yes")?)
        }
    }
    let drain = Drain::default();
    let server = || Server::new(Both).draining_with(drain.clone());
    let mut idle = wire::open(server());
    wire::send(&mut idle, wire::head(), None);
    assert!(wire::receive(&mut idle).await.is_some());

    let mut busy = wire::open(server());
    let mode = Some(wire::BodySendMode::Streamed);
    wire::send(&mut busy, wire::head(), mode);
    wire::send(&mut busy, wire::piece("ab", false), None);
    assert!(wire::receive(&mut busy).await.is_some());
    assert!(wire::receive(&mut busy).await.is_some());

    drain.close();
    // A clean end: the proxy lets everything pass.
    assert!(wire::receive(&mut idle).await.is_none());
    wire::send(&mut busy, wire::piece("c", true), None);
    assert_eq!(wire::replaced(wire::receive(&mut busy).await), "ABC");
    assert!(wire::receive(&mut busy).await.is_none());
}

#[tokio::test]
async fn attributes_and_metadata_come_in_and_metadata_goes_out() {
    use attache_proto::{core::Metadata, ext_proc::ProcessingRequest};
    use prost_types::{Any, Struct, Value, value::Kind};

    #[derive(Clone)]
    struct Tells;
    impl Processor for Tells {
        async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
            let exchange = &mut request.exchange;
            let id: Option<String> = exchange.attribute("request.id");
            let user: Option<serde_json::Value> = exchange.metadata("auth");
            let told = serde_json::json!({ "id": id, "user": user });
            exchange.set_metadata("told", &told)?;
            exchange.set_typed_metadata("typed", Any::default());
            Ok(())
        }
    }
    let object = |name: &str, value: &str| Struct {
        fields: [(
            name.to_owned(),
            Value {
                kind: Some(Kind::StringValue(value.to_owned())),
            },
        )]
        .into(),
    };
    let mut stream = wire::open(Server::new(Tells));
    wire::send_message(
        &mut stream,
        &ProcessingRequest {
            request: Some(wire::head()),
            attributes: [(
                "envoy.filters.http.ext_proc".to_owned(),
                object("request.id", "r"),
            )]
            .into(),
            metadata_context: Some(Metadata {
                filter_metadata: [("auth".to_owned(), object("name", "n"))].into(),
                ..Metadata::default()
            }),
            ..ProcessingRequest::default()
        },
    );
    let reply = wire::receive_message(&mut stream).await.unwrap();
    assert!(reply.response.is_some());
    assert!(reply.typed_dynamic_metadata.contains_key("typed"));
    let mut told = super::Exchange::default();
    let metadata = Metadata {
        filter_metadata: match reply.dynamic_metadata.unwrap().fields["told"].kind.clone() {
            Some(Kind::StructValue(told)) => [("told".to_owned(), told)].into(),
            other => panic!("{other:?}"),
        },
        ..Metadata::default()
    };
    told.learn(Vec::new(), Some(metadata), false);
    assert_eq!(
        told.metadata("told"),
        Some(serde_json::json!({"id": "r", "user": {"name": "n"}}))
    );
}

#[tokio::test]
async fn a_proxy_that_only_lets_observe_gets_no_reply() {
    let server = Server::sessions(async |mut session| {
        while let Some(phase) = session.next().await {
            assert!(session.is_observed());
            let Phase::Headers(mut head) = phase else {
                continue;
            };
            assert!(!head.reply.is_owed());
            assert!(
                head.reply
                    .override_modes(session::Modes::default())
                    .is_err()
            );
            head.reply.respond(Immediate::new(403));
        }
        Ok(())
    });
    let seen = Proxy::of(server)
        .filter(|filter| filter.observability_mode = true)
        .send(get())
        .await;
    assert_eq!(seen.response.status(), 200);
}

#[tokio::test]
async fn the_mode_can_be_changed_where_the_proxy_listens() {
    #[derive(Clone)]
    struct Asks;
    impl Processor for Asks {
        async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
            let modes =
                session::Modes::bodies(session::BodyMode::Streamed, session::BodyMode::None);
            Ok(request.override_modes(modes)?)
        }
        async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
            if body.is_last() {
                body.push("!");
            }
            Ok(())
        }
    }
    for (assumed, allowed, body) in [(true, true, "hello!"), (true, false, "hello")] {
        let settings = ProxySettings {
            allow_mode_override: assumed,
            ..ProxySettings::default()
        };
        let seen = Proxy::of(Server::new(Asks).assume(settings))
            .filter(|filter| filter.allow_mode_override = allowed)
            .send(post("hello"))
            .await;
        assert_eq!(seen.forwarded().body(), body);
        // A length that no longer holds is not announced.
        let length = seen.forwarded().headers().get("content-length");
        assert!(length.is_none_or(|length| length == body.len().to_string().as_str()));
    }
    let refused = Proxy::new(Asks).send(post("hello")).await;
    assert_eq!(refused.response.status(), 500);
}

#[tokio::test]
async fn an_answer_of_any_length_is_streamed() {
    let server = Server::sessions(async |mut session| {
        while let Some(phase) = session.next().await {
            if let Phase::Headers(head) = phase {
                let answer = Immediate::new(201).header("x-by", "processor");
                let mut stream = head.reply.stream(answer.unwrap()).unwrap();
                for _ in 0..20 {
                    stream.ready().await;
                    stream.push(vec![b'a'; 100_000]).unwrap();
                }
                stream.finish();
            }
        }
        Ok(())
    });
    let seen = Proxy::of(server).send(get()).await;
    assert!(seen.upstream.is_none());
    assert_eq!(seen.response.status(), 201);
    assert_eq!(seen.response.headers()["x-by"], "processor");
    assert_eq!(seen.response.body().len(), 2_000_000);
}

/// The examples are as short as is promised: lines of code with `main`.
#[test]
fn the_examples_are_short() {
    for (source, most) in [
        (
            include_str!("../../../../examples/processors/rust/add_header.rs"),
            12,
        ),
        (
            include_str!("../../../../examples/processors/rust/rewrite_json.rs"),
            25,
        ),
        (
            include_str!("../../../../examples/processors/rust/redact.rs"),
            40,
        ),
    ] {
        let code = source.lines().map(str::trim);
        let code = code.filter(|line| !line.is_empty() && !line.starts_with("//"));
        assert!(code.count() <= most, "{source}");
    }
}
