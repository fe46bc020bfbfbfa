//! Calls within the limits of a cluster, and what they say of its endpoints.

use attache_proto::ext_proc::ProcessingRequest;

use super::*;
use crate::{
    Metrics,
    channel::TransportFailure,
    cluster::{
        Outliers, Trouble,
        breakers::{Breakers, BreakersPlan},
        outlier::Detector,
    },
    config::Document,
};

/// The guards that this says.
fn guards(breakers: &str, outliers: &str) -> Guards {
    let metrics = Metrics::default();
    let (raw, mut errors) = Document::parse("breakers.yaml", breakers)
        .unwrap()
        .decode_partly();
    let plan = BreakersPlan::plan(&raw.unwrap(), &mut errors);
    let (raw, more) = Document::parse("outliers.yaml", outliers)
        .unwrap()
        .decode_partly();
    let detector = Detector::plan(&raw.unwrap(), &mut errors);
    errors.into_result(Some(())).unwrap();
    more.into_result(Some(())).unwrap();
    Guards {
        breakers: Breakers::new(plan, "c", &metrics),
        outliers: Some(Outliers::new(detector, "c", &metrics)),
        checked: false,
    }
}

/// A channel to these endpoints, in turn.
fn guarded(targets: Vec<Target>, guards: Guards) -> Channel {
    let mut settings = ChannelSettings::new("c", targets);
    settings.guards = Some(guards);
    settings.balance.policy = crate::cluster::LbPolicy::RoundRobin;
    Channel::new(settings)
}

fn host_target() -> Target {
    Target::Embedded(host().embedded())
}

#[tokio::test]
async fn a_call_over_the_limit_fails_at_once_until_another_has_ended() {
    let guards = guards("{ thresholds: [{ max_requests: 1 }] }", "{}");
    let channel = guarded(vec![host_target()], guards.clone());
    let used = || guards.breakers.snapshot().max_requests.unwrap().used;

    let mut first = channel.stream(&bidi(), HeaderMap::new());
    first.send(encode_message(&ProcessingRequest::default()));
    assert!(next(&mut first).await.unwrap().is_ok());
    assert_eq!(used(), 1);
    let refused = ask(&channel, "hello", 0, None).await.unwrap_err();
    let failure = TransportFailure::of(&refused);
    assert_eq!(failure, Some(TransportFailure::Overflow), "{refused:?}");

    drop(first);
    assert_eq!(used(), 0);
    assert_eq!(ask(&channel, "hello", 0, None).await.unwrap(), "hello");
    assert_eq!(used(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_connection_counts_as_pending() {
    let silent: EmbeddedConnector = Arc::new(|| {
        let (ours, theirs) = tokio::io::duplex(64);
        // Held, but never answered.
        std::mem::forget(theirs);
        ours
    });
    let guards = guards("{ thresholds: [{ max_pending_requests: 1 }] }", "{}");
    let channel = guarded(vec![Target::Embedded(silent)], guards.clone());

    let mut first = channel.stream(&bidi(), HeaderMap::new());
    assert!(next(&mut first).now_or_never().is_none());
    assert_eq!(
        guards
            .breakers
            .snapshot()
            .max_pending_requests
            .unwrap()
            .used,
        1
    );
    let refused = ask(&channel, "hello", 0, None).await.unwrap_err();
    let failure = TransportFailure::of(&refused);
    assert_eq!(failure, Some(TransportFailure::Overflow), "{refused:?}");
}

#[tokio::test]
async fn endpoints_that_fail_calls_are_ejected_but_those_that_refuse_are_not() {
    for (code, ejected) in [("14", true), ("13", true), ("7", false), ("0", false)] {
        let bad = h2_server(move |_, mut connection| {
            Box::pin(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut head = head(StatusCode::OK, GRPC);
                    head.headers_mut()
                        .insert("grpc-status", HeaderValue::from_static(code));
                    respond.send_response(head, true).unwrap();
                }
            })
        });
        let outliers = "{ consecutive_5xx: 2, max_ejection_percent: 100 }";
        let targets = vec![Target::Embedded(bad), host_target()];
        let channel = guarded(targets, guards("{}", outliers));
        channel.warm_up();
        for _ in 0..20 {
            let _ = ask(&channel, "hello", 0, None).await;
        }
        let members = channel.inner.settings.endpoints.members();
        let is = |at: usize| members[at].endpoint.is_in(Trouble::Ejected);
        assert_eq!((is(0), is(1)), (ejected, false), "{code}");
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_ejected() {
    let nowhere = Target::Address("127.0.0.1:1".parse().unwrap());
    let outliers = "{ consecutive_5xx: 3, max_ejection_percent: 100 }";
    let channel = guarded(vec![nowhere, host_target()], guards("{}", outliers));
    channel.warm_up();
    let members = channel.inner.settings.endpoints.members();
    let limit = Duration::from_secs(10);
    let asked = async {
        while !members[0].endpoint.is_in(Trouble::Ejected) {
            assert_eq!(ask(&channel, "hello", 0, None).await.unwrap(), "hello");
        }
    };
    tokio::time::timeout(limit, asked).await.unwrap();
}
