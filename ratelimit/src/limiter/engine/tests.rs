use attache_proto::common_ratelimit::rate_limit_descriptor::RateLimitOverride;

use super::*;
use crate::limiter::ManualClock;

const RULES: &str = "
domain: test-domain
descriptors:
- key: key1
  value: value1
  descriptors:
  - key: subkey1
    rate_limit: { unit: second, requests_per_unit: 5 }
  - key: subkey1
    value: subvalue1
    rate_limit: { unit: second, requests_per_unit: 10 }
- key: key2
  rate_limit: { unit: minute, requests_per_unit: 20 }
- key: key2
  value: value2
  rate_limit: { unit: minute, requests_per_unit: 30 }
- key: key2
  value: value3
- key: key3
  rate_limit: { unit: hour, requests_per_unit: 1 }
- key: key4
  rate_limit: { unit: day, requests_per_unit: 1, name: key4_rate_limit }
- key: key5
  value: value5
  rate_limit: { unit: day, requests_per_unit: 15 }
  descriptors:
  - key: subkey5
    value: subvalue5
    rate_limit: { unit: day, requests_per_unit: 25 }
- key: key6
  rate_limit: { unlimited: true }
- key: few
  rate_limit: { unit: minute, requests_per_unit: 2 }
- key: ten
  rate_limit: { unit: hour, requests_per_unit: 10 }
- key: none
  rate_limit: { unit: hour }
- key: a
  value: b_c
  rate_limit: { unit: minute, requests_per_unit: 5 }
- key: a
  value: x
  descriptors:
  - key: b
    value: 1
    rate_limit: { unit: minute, requests_per_unit: 5 }
- key: a
  descriptors:
  - key: b
    rate_limit: { unit: minute, requests_per_unit: 9 }
- key: wild
  value: foo*
  rate_limit: { unit: minute, requests_per_unit: 20 }
- key: file
  rate_limit: { unit: minute, requests_per_unit: 7 }
- key: file
  value: test*
  rate_limit: { unit: minute, requests_per_unit: 100 }
- key: file
  value: test1
  rate_limit: { unit: minute, requests_per_unit: 50 }
- key: k
  value: a*
  rate_limit: { unit: minute, requests_per_unit: 1 }
- key: k
  value: ab*
  rate_limit: { unit: minute, requests_per_unit: 2 }
- key: literal*
  value: literal*
  rate_limit: { unit: minute, requests_per_unit: 3 }
";

type TestLimiter = Limiter<MemoryStore, ManualClock>;

fn limiter() -> TestLimiter {
    let rules = Rules::parse("rules.yaml", RULES).unwrap_or_else(|e| panic!("{e}"));
    Limiter::with_clock(rules, MemoryStore::default(), ManualClock::at(1_000_000))
}

async fn ask(
    limiter: &TestLimiter,
    descriptors: Vec<RateLimitDescriptor>,
    hits_addend: u32,
) -> Decision {
    let request = RateLimitRequest {
        domain: "test-domain".to_owned(),
        descriptors,
        hits_addend,
    };
    limiter.decide(&request).await.unwrap()
}

/// The one descriptor's decision in short: `OK r=4 d=20 5/MINUTE`, `NONE`, `UNLIMITED`.
async fn one(limiter: &TestLimiter, descriptor: RateLimitDescriptor) -> String {
    short(&ask(limiter, vec![descriptor], 0).await.descriptors[0])
}

fn short(decision: &DescriptorDecision) -> String {
    match &decision.applied {
        Applied::Nothing => {
            assert_eq!((decision.code, decision.remaining), (Code::Ok, 0));
            "NONE".to_owned()
        }
        Applied::Unlimited => {
            assert_eq!((decision.code, decision.remaining), (Code::Ok, u32::MAX));
            "UNLIMITED".to_owned()
        }
        Applied::Limit {
            limit, resets_in, ..
        } => {
            let code = match decision.code {
                Code::Ok => "OK",
                Code::OverLimit => "OVER",
            };
            let (requests, unit) = (limit.requests_per_unit, limit.unit);
            format!(
                "{code} r={} d={resets_in} {requests}/{unit:?}",
                decision.remaining
            )
        }
    }
}

fn hits(mut descriptor: RateLimitDescriptor, hits: u64) -> RateLimitDescriptor {
    descriptor.hits_addend = Some(hits);
    descriptor
}

fn with_limit(
    mut descriptor: RateLimitDescriptor,
    requests_per_unit: u32,
    unit: i32,
) -> RateLimitDescriptor {
    descriptor.limit = Some(RateLimitOverride {
        requests_per_unit,
        unit,
        unit_multiplier: None,
    });
    descriptor
}

#[tokio::test]
async fn descriptors_find_their_rules() {
    type Entries = &'static [(&'static str, &'static str)];
    let table: &[(Entries, &str)] = &[
        (&[("key1", "something")], "NONE"),
        (&[("key1", "value1")], "NONE"),
        (&[("key2", "value2"), ("subkey", "subvalue")], "NONE"),
        (&[("key5", "value5"), ("subkey5", "subvalue")], "NONE"),
        (&[("key5", "value5")], "OK r=14 d=36800 15/Day"),
        (
            &[("key5", "value5"), ("subkey5", "subvalue5")],
            "OK r=24 d=36800 25/Day",
        ),
        (
            &[("key1", "value1"), ("subkey1", "something")],
            "OK r=4 d=1 5/Second",
        ),
        (
            &[("key1", "value1"), ("subkey1", "subvalue1")],
            "OK r=9 d=1 10/Second",
        ),
        (&[("key2", "something")], "OK r=19 d=20 20/Minute"),
        (&[("key2", "other")], "OK r=19 d=20 20/Minute"),
        (&[("key2", "value2")], "OK r=29 d=20 30/Minute"),
        (&[("key2", "value3")], "NONE"),
        (&[("key6", "foo")], "UNLIMITED"),
        (&[], "NONE"),
        (&[("subkey1", "something"), ("key1", "value1")], "NONE"),
        (&[("KEY2", "something")], "NONE"),
        // No way back out of a branch.
        (&[("a", "x"), ("b", "2")], "NONE"),
        (&[("a", "y"), ("b", "2")], "OK r=8 d=20 9/Minute"),
        // Key and value are joined before they are compared.
        (&[("a_b", "c")], "OK r=4 d=20 5/Minute"),
        // Wildcards: behind exact names, before names without value, first in file order.
        (&[("wild", "foo1")], "OK r=19 d=20 20/Minute"),
        (&[("wild", "foo2")], "OK r=19 d=20 20/Minute"),
        (&[("wild", "bar")], "NONE"),
        (&[("file", "test1")], "OK r=49 d=20 50/Minute"),
        (&[("file", "test2")], "OK r=99 d=20 100/Minute"),
        (&[("file", "other")], "OK r=6 d=20 7/Minute"),
        (&[("k", "abc")], "OK r=0 d=20 1/Minute"),
        (&[("literal*", "literal*")], "OK r=2 d=20 3/Minute"),
        (&[("key2", "")], "OK r=19 d=20 20/Minute"),
    ];
    let limiter = limiter();
    for (entries, expected) in table {
        let decision = one(&limiter, descriptor(entries.iter().copied())).await;
        assert_eq!(&decision, expected, "{entries:?}");
    }
}

#[tokio::test]
async fn an_unknown_domain_limits_nothing_even_with_a_limit_of_its_own() {
    let limiter = limiter();
    let request = RateLimitRequest {
        domain: "foo_domain".to_owned(),
        descriptors: vec![with_limit(descriptor([("key2", "a")]), 0, 1)],
        hits_addend: 0,
    };
    let decision = limiter.decide(&request).await.unwrap();
    assert!(!decision.domain_known);
    assert_eq!(short(&decision.descriptors[0]), "NONE");
    assert_eq!(decision.code, Code::Ok);
}

#[tokio::test]
async fn a_window_ends_at_its_edge() {
    let limiter = limiter();
    let few = || descriptor([("few", "x")]);
    limiter.clock().set(119);
    assert_eq!(one(&limiter, few()).await, "OK r=1 d=1 2/Minute");
    assert_eq!(one(&limiter, few()).await, "OK r=0 d=1 2/Minute");
    assert_eq!(one(&limiter, few()).await, "OVER r=0 d=1 2/Minute");
    limiter.clock().set(120);
    assert_eq!(one(&limiter, few()).await, "OK r=1 d=60 2/Minute");
}

#[tokio::test]
async fn two_limits_are_charged_although_one_is_over() {
    let limiter = limiter();
    for hit in 1..=15u32 {
        let descriptors = vec![descriptor([("key2", "z")]), descriptor([("ten", "z")])];
        let decision = ask(&limiter, descriptors, 0).await;
        let over = hit > 10;
        assert_eq!(decision.code == Code::OverLimit, over, "hit {hit}");
        assert_eq!(decision.descriptors[0].code, Code::Ok);
        assert_eq!(decision.descriptors[0].remaining, 20 - hit);
        assert_eq!(decision.descriptors[1].remaining, 10u32.saturating_sub(hit));
    }
}

#[tokio::test]
async fn statuses_keep_the_order_of_descriptors() {
    let limiter = limiter();
    let descriptors = vec![
        descriptor([("ten", "a")]),
        descriptor([("nothing", "a")]),
        descriptor([("key6", "a")]),
    ];
    let decision = ask(&limiter, descriptors, 0).await;
    let statuses: Vec<_> = decision.descriptors.iter().map(short).collect();
    assert_eq!(statuses, ["OK r=9 d=800 10/Hour", "NONE", "UNLIMITED"]);
}

#[tokio::test]
async fn hits_come_from_the_descriptor_else_from_the_request_else_are_one() {
    let limiter = limiter();
    let ten = |value| descriptor([("ten", value)]);
    let remaining = |decision: Decision| decision.descriptors[0].remaining;
    assert_eq!(remaining(ask(&limiter, vec![ten("a")], 0).await), 9);
    assert_eq!(remaining(ask(&limiter, vec![ten("b")], 5).await), 5);
    assert_eq!(
        remaining(ask(&limiter, vec![hits(ten("c"), 2)], 5).await),
        8
    );
    assert_eq!(
        remaining(ask(&limiter, vec![hits(ten("d"), 0)], 5).await),
        10
    );
}

#[tokio::test]
async fn zero_hits_only_look() {
    let limiter = limiter();
    let key3 = |n| hits(descriptor([("key3", "foo")]), n);
    assert_eq!(one(&limiter, key3(0)).await, "OK r=1 d=800 1/Hour");
    assert_eq!(one(&limiter, key3(1)).await, "OK r=0 d=800 1/Hour");
    assert_eq!(one(&limiter, key3(0)).await, "OK r=0 d=800 1/Hour");
    assert_eq!(one(&limiter, key3(1)).await, "OVER r=0 d=800 1/Hour");
    let decision = ask(&limiter, vec![key3(0)], 0).await;
    assert_eq!(short(&decision.descriptors[0]), "OVER r=0 d=800 1/Hour");
    assert_eq!(decision.descriptors[0].tally, Tally::default());
}

#[tokio::test]
async fn a_limit_of_zero_lets_only_looks_pass() {
    let limiter = limiter();
    let none = |n| hits(descriptor([("none", "x")]), n);
    assert_eq!(one(&limiter, none(0)).await, "OK r=0 d=800 0/Hour");
    assert_eq!(one(&limiter, none(1)).await, "OVER r=0 d=800 0/Hour");
}

#[tokio::test]
async fn hits_that_do_not_fit_stay_counted() {
    let limiter = limiter();
    let ten = |n| hits(descriptor([("ten", "big")]), n);
    assert_eq!(one(&limiter, ten(8)).await, "OK r=2 d=800 10/Hour");
    assert_eq!(one(&limiter, ten(5)).await, "OVER r=0 d=800 10/Hour");
    assert_eq!(one(&limiter, ten(1)).await, "OVER r=0 d=800 10/Hour");
}

#[tokio::test]
async fn an_absurd_number_of_hits_is_over_and_breaks_nothing() {
    let limiter = limiter();
    let ten = |n| hits(descriptor([("ten", "absurd")]), n);
    assert_eq!(one(&limiter, ten(1 << 63)).await, "OVER r=0 d=800 10/Hour");
    assert_eq!(one(&limiter, ten(u64::MAX)).await, "OVER r=0 d=800 10/Hour");
}

#[tokio::test]
async fn the_same_descriptor_twice_counts_twice() {
    let limiter = limiter();
    let key3 = || descriptor([("key3", "twice")]);
    let decision = ask(&limiter, vec![key3(), key3()], 0).await;
    let statuses: Vec<_> = decision.descriptors.iter().map(short).collect();
    assert_eq!(statuses, ["OK r=0 d=800 1/Hour", "OVER r=0 d=800 1/Hour"]);
    assert_eq!(decision.code, Code::OverLimit);
}

#[tokio::test]
async fn hits_can_be_given_back() {
    let limiter = limiter();
    let ten = || descriptor([("ten", "back")]);
    one(&limiter, hits(ten(), 5)).await;
    let mut back = hits(ten(), 3);
    back.is_negative_hits = true;
    assert_eq!(one(&limiter, back.clone()).await, "OK r=8 d=800 10/Hour");
    assert_eq!(one(&limiter, back).await, "OK r=10 d=800 10/Hour");
    assert_eq!(one(&limiter, ten()).await, "OK r=9 d=800 10/Hour");
}

#[tokio::test]
async fn a_limit_in_the_request_goes_before_the_rules() {
    let limiter = limiter();
    let entries = || descriptor([("key1", "value1"), ("subkey1", "something")]);
    assert_eq!(
        one(&limiter, with_limit(entries(), 10, 4)).await,
        "OK r=9 d=36800 10/Day"
    );
    assert_eq!(
        one(&limiter, with_limit(entries(), 42, 3)).await,
        "OK r=41 d=800 42/Hour"
    );
    let unmatched = with_limit(descriptor([("no", "rule")]), 3, 7);
    assert_eq!(one(&limiter, unmatched).await, "OK r=2 d=209600 3/Week");
    let unlimited = with_limit(descriptor([("key6", "x")]), 3, 2);
    assert_eq!(one(&limiter, unlimited).await, "OK r=2 d=20 3/Minute");
    // The unit does not exist: the rule applies.
    let unknown = with_limit(descriptor([("key2", "u")]), 3, 0);
    assert_eq!(one(&limiter, unknown).await, "OK r=19 d=20 20/Minute");
}

#[tokio::test]
async fn a_raised_limit_in_the_request_takes_effect_at_once() {
    let limiter = limiter();
    let limited = |n| with_limit(descriptor([("key2", "raise")]), n, 2);
    one(&limiter, limited(1)).await;
    assert_eq!(one(&limiter, limited(1)).await, "OVER r=0 d=20 1/Minute");
    assert_eq!(one(&limiter, limited(100)).await, "OK r=97 d=20 100/Minute");
}

#[tokio::test]
async fn a_window_of_several_units_is_aligned_as_a_whole() {
    let limiter = limiter();
    let mut limited = with_limit(descriptor([("key2", "thirty")]), 5, 1);
    if let Some(limit) = &mut limited.limit {
        limit.unit_multiplier = Some(30);
    }
    assert_eq!(one(&limiter, limited).await, "OK r=4 d=20 5/Second");
}

#[tokio::test]
async fn counters_survive_new_rules() {
    let limiter = limiter();
    let ten = || descriptor([("ten", "reload")]);
    for _ in 0..15 {
        one(&limiter, ten()).await;
    }
    let text = RULES.replace("requests_per_unit: 10 }", "requests_per_unit: 20 }");
    limiter.set_rules(Rules::parse("rules.yaml", &text).unwrap());
    assert_eq!(one(&limiter, ten()).await, "OK r=4 d=800 20/Hour");
}

#[tokio::test]
async fn requests_without_domain_or_descriptors_are_errors() {
    let limiter = limiter();
    let mut request = RateLimitRequest::default();
    let error = limiter.decide(&request).await.unwrap_err();
    assert_eq!(error.to_string(), "rate limit domain must not be empty");
    request.domain = "test-domain".to_owned();
    let error = limiter.decide(&request).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "rate limit descriptor list must not be empty"
    );
}

#[tokio::test]
async fn names_of_limits_are_passed_on() {
    let limiter = limiter();
    let decision = ask(&limiter, vec![descriptor([("key4", "foo")])], 0).await;
    match &decision.descriptors[0].applied {
        Applied::Limit { limit, .. } => assert_eq!(&*limit.name, "key4_rate_limit"),
        other => panic!("{other:?}"),
    }
}
