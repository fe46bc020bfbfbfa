use attache_proto::common_ratelimit::rate_limit_descriptor::RateLimitOverride;

use super::*;
use crate::limiter::{Applied, Code, DescriptorDecision, ManualClock, Tally};

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
        Applied::Replaced(_) => "REPLACED".to_owned(),
        Applied::Unlimited(_) => {
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
        Applied::Limit {
            rule: Some(rule), ..
        } => {
            let rules = limiter.rules();
            assert_eq!(&*rules.get(*rule).unwrap().name, "key4_rate_limit");
        }
        other => panic!("{other:?}"),
    }
}

fn limiter_of(rules: &str) -> TestLimiter {
    let rules = format!("domain: test-domain\ndescriptors:\n{rules}");
    let rules = Rules::parse("rules.yaml", &rules).unwrap_or_else(|e| panic!("{e}"));
    Limiter::with_clock(rules, MemoryStore::default(), ManualClock::at(1_000_000))
}

fn codes(decision: &Decision) -> (Code, Vec<Code>) {
    let descriptors = decision.descriptors.iter();
    (decision.code, descriptors.map(|one| one.code).collect())
}

use Code::{Ok as OK, OverLimit as OVER};

#[tokio::test]
async fn a_rule_in_shadow_mode_counts_and_refuses_nothing() {
    let limiter = limiter_of(
        "
- { key: shadow, shadow_mode: true, rate_limit: { unit: minute, requests_per_unit: 3 } }
- { key: normal, rate_limit: { unit: minute, requests_per_unit: 0 } }
",
    );
    let mut sum = Tally::default();
    for remaining in [2, 1, 0, 0, 0] {
        let decision = ask(&limiter, vec![descriptor([("shadow", "a")])], 0).await;
        assert_eq!(codes(&decision), (OK, vec![OK]));
        assert_eq!(decision.descriptors[0].remaining, remaining);
        sum.over += decision.descriptors[0].tally.over;
        sum.shadow += decision.descriptors[0].tally.shadow;
    }
    assert_eq!((sum.over, sum.shadow), (2, 2));

    let both = vec![descriptor([("shadow", "a")]), descriptor([("normal", "a")])];
    let decision = ask(&limiter, both, 0).await;
    assert_eq!(codes(&decision), (OVER, vec![OK, OVER]));
    assert_eq!(decision.descriptors[1].tally.shadow, 0);
}

#[tokio::test]
async fn a_limiter_in_shadow_mode_refuses_nothing_and_says_what_is_over() {
    let limiter = limiter_of(
        "
- { key: none, rate_limit: { unit: minute, requests_per_unit: 0 } }
- { key: quota, quota_mode: true, rate_limit: { unit: minute, requests_per_unit: 0 } }
- { key: ten, rate_limit: { unit: minute, requests_per_unit: 10 } }
",
    )
    .modes(Modes {
        shadow: true,
        ..Modes::default()
    });
    for key in ["none", "quota"] {
        let decision = ask(&limiter, vec![descriptor([(key, "a")])], 0).await;
        assert_eq!(codes(&decision), (OK, vec![OVER]), "{key}");
        assert!(decision.shadowed, "{key}");
    }
    let decision = ask(&limiter, vec![descriptor([("ten", "a")])], 0).await;
    assert!(!decision.shadowed);
}

#[tokio::test]
async fn a_request_is_over_when_all_its_quotas_are_or_anything_else_is() {
    let rules = "
- { key: used, quota_mode: true, rate_limit: { unit: minute, requests_per_unit: 0 } }
- { key: used2, quota_mode: true, rate_limit: { unit: minute, requests_per_unit: 0 } }
- { key: left, quota_mode: true, rate_limit: { unit: minute, requests_per_unit: 100 } }
- { key: over, rate_limit: { unit: minute, requests_per_unit: 0 } }
- { key: ok, rate_limit: { unit: minute, requests_per_unit: 100 } }
- { key: free, rate_limit: { unlimited: true } }
";
    // keys, over, over when all are quotas
    let table: &[(&[&str], Code, Code)] = &[
        (&["used", "left"], OK, OK),
        (&["used", "used2"], OVER, OVER),
        (&["over", "left"], OVER, OK),
        (&["ok", "used"], OVER, OK),
        (&["ok", "left"], OK, OK),
        (&["over"], OVER, OVER),
        (&["over", "used"], OVER, OVER),
        (&["over", "nothing"], OVER, OK),
        (&["used", "nothing"], OVER, OK),
        (&["used", "free"], OVER, OVER),
        (&["nothing"], OK, OK),
        (&["free"], OK, OK),
    ];
    let by_rule = limiter_of(rules);
    let all = limiter_of(rules).modes(Modes {
        quota: true,
        ..Modes::default()
    });
    for (keys, expected, expected_of_all) in table {
        let descriptors = || keys.iter().map(|key| descriptor([(*key, "a")])).collect();
        let decision = ask(&by_rule, descriptors(), 0).await;
        assert_eq!(decision.code, *expected, "{keys:?}");
        let decision = ask(&all, descriptors(), 0).await;
        assert_eq!(decision.code, *expected_of_all, "{keys:?}");
    }
}

#[tokio::test]
async fn a_rule_replaces_those_that_it_names() {
    let limiter = limiter_of(
        "
- key: foo
  descriptors:
  - { key: bar, value: banned, rate_limit: { name: banned_limit, unit: minute, requests_per_unit: 0 } }
- key: source_cluster
  value: proxy
  descriptors:
  - key: destination_cluster
    value: override
    rate_limit: { unit: minute, requests_per_unit: 2, replaces: [{ name: banned_limit }] }
",
    );
    let banned = || descriptor([("foo", "x"), ("bar", "banned")]);
    let replacing = || {
        descriptor([
            ("source_cluster", "proxy"),
            ("destination_cluster", "override"),
        ])
    };
    for expected in [OK, OK, OVER] {
        let decision = ask(&limiter, vec![banned(), replacing()], 0).await;
        assert_eq!(decision.code, expected);
        assert_eq!(short(&decision.descriptors[0]), "REPLACED");
        assert_eq!(decision.descriptors[0].tally, Tally::default());
    }
    assert_eq!(one(&limiter, banned()).await, "OVER r=0 d=20 0/Minute");
}

#[tokio::test]
async fn replaced_limits_are_not_charged() {
    let limiter = limiter_of(
        "
- { key: one, rate_limit: { name: bkthomps, unit: minute, requests_per_unit: 1 } }
- { key: two, rate_limit: { name: fuzzy, unit: minute, requests_per_unit: 1 } }
- { key: both, rate_limit: { unit: minute, requests_per_unit: 4, replaces: [{ name: bkthomps }, { name: fuzzy }] } }
- { key: free, rate_limit: { unlimited: true, replaces: [{ name: bkthomps }] } }
- { key: a, rate_limit: { name: a, unit: minute, requests_per_unit: 0, replaces: [{ name: b }] } }
- { key: b, rate_limit: { name: b, unit: minute, requests_per_unit: 0, replaces: [{ name: a }] } }
",
    );
    let all = |keys: &[&str]| keys.iter().map(|key| descriptor([(*key, "x")])).collect();
    for expected in [OK, OK, OK, OK, OVER] {
        let decision = ask(&limiter, all(&["one", "two", "both"]), 0).await;
        assert_eq!(decision.code, expected);
    }
    assert_eq!(ask(&limiter, all(&["one"]), 0).await.code, OK);
    assert_eq!(ask(&limiter, all(&["one"]), 0).await.code, OVER);
    // One without limit replaces too, and two that replace each other both go.
    assert_eq!(ask(&limiter, all(&["free", "one"]), 0).await.code, OK);
    assert_eq!(ask(&limiter, all(&["a", "b"]), 0).await.code, OK);
    // A limit that the request brings is not the rule.
    let mut descriptors: Vec<_> = all(&["one", "both"]);
    descriptors[0] = with_limit(descriptors[0].clone(), 0, 2);
    assert_eq!(ask(&limiter, descriptors, 0).await.code, OVER);
}

#[tokio::test]
async fn values_share_a_counter_where_the_rule_says_so() {
    let limiter = limiter_of(
        "
- { key: files, value: files/*, share_threshold: true, rate_limit: { unit: hour, requests_per_unit: 10 } }
- { key: apart, value: files/*, rate_limit: { unit: hour, requests_per_unit: 10 } }
- key: top
  value: top/*
  share_threshold: true
  descriptors:
  - { key: leaf, rate_limit: { unit: hour, requests_per_unit: 10 } }
",
    );
    for _ in 0..10 {
        assert!(
            one(&limiter, descriptor([("files", "files/a.pdf")]))
                .await
                .starts_with("OK")
        );
        one(&limiter, descriptor([("apart", "files/a.pdf")])).await;
    }
    let shared = one(&limiter, descriptor([("files", "files/b.csv")])).await;
    assert_eq!(shared, "OVER r=0 d=800 10/Hour");
    let apart = one(&limiter, descriptor([("apart", "files/b.csv")])).await;
    assert_eq!(apart, "OK r=9 d=800 10/Hour");
    for (top, remaining) in [("top/1", 9), ("top/2", 8)] {
        let decision = one(&limiter, descriptor([("top", top), ("leaf", "x")])).await;
        assert_eq!(decision, format!("OK r={remaining} d=800 10/Hour"));
    }
}

#[tokio::test]
async fn statistics_have_the_paths_of_the_reference() {
    let limiter = limiter_of(
        "
- key: route
  value_to_metric: true
  descriptors:
  - key: http_method
    value_to_metric: true
    descriptors:
    - { key: subject_id, rate_limit: { unit: minute, requests_per_unit: 60 } }
    - { key: detailed, detailed_metric: true, rate_limit: { unit: minute, requests_per_unit: 60 } }
- key: k1
  descriptors:
  - key: k2
    value_to_metric: true
    descriptors:
    - { key: k3, rate_limit: { unit: minute, requests_per_unit: 60 } }
- { key: wild, value: foo*, value_to_metric: true, rate_limit: { unit: minute, requests_per_unit: 20 } }
- { key: plain, value: foo*, rate_limit: { unit: minute, requests_per_unit: 20 } }
- { key: any*, rate_limit: { unit: minute, requests_per_unit: 20 } }
- key: route2
  value: api/*
  share_threshold: true
  value_to_metric: true
  descriptors:
  - { key: method, rate_limit: { unit: minute, requests_per_unit: 20 } }
- key: service
  value: svc/*
  share_threshold: true
  descriptors:
  - { key: endpoint, detailed_metric: true, rate_limit: { unit: minute, requests_per_unit: 20 } }
- key: nestedWild
  value: val1
  descriptors:
  - { key: wild, value: goo*, rate_limit: { unit: minute, requests_per_unit: 20 } }
- { key: ip, detailed_metric: true, rate_limit: { unit: minute, requests_per_unit: 20 } }
",
    );
    type Entries = &'static [(&'static str, &'static str)];
    let table: &[(Entries, &str)] = &[
        (
            &[
                ("route", "draw"),
                ("http_method", "GET"),
                ("subject_id", "123"),
            ],
            "route_draw.http_method_GET.subject_id",
        ),
        (
            &[("route", ""), ("http_method", "GET"), ("subject_id", "123")],
            "route.http_method_GET.subject_id",
        ),
        (
            &[("route", "draw"), ("http_method", ""), ("detailed", "123")],
            "route_draw.http_method_.detailed_123",
        ),
        (&[("k1", "X"), ("k2", "Y"), ("k3", "Z")], "k1.k2_Y.k3"),
        (&[("wild", "foo1")], "wild_foo1"),
        (&[("plain", "foo1")], "plain_foo*"),
        (&[("anything", "x")], "anything_any*"),
        (
            &[("route2", "api/1"), ("method", "GET")],
            "route2_api/*.method",
        ),
        (
            &[("service", "svc/1"), ("endpoint", "get")],
            "service_svc/*.endpoint_get",
        ),
        (
            &[("service", "svc/1"), ("endpoint", "")],
            "service_svc/*.endpoint",
        ),
        (
            &[("nestedWild", "val1"), ("wild", "goo2")],
            "nestedWild_val1.wild_goo*",
        ),
        (&[("ip", "10.0.0.1:80")], "ip_10_0_0_1_80"),
    ];
    let rules = limiter.rules();
    for (entries, expected) in table {
        let decision = ask(&limiter, vec![descriptor(entries.iter().copied())], 0).await;
        let Applied::Limit {
            rule, metric_path, ..
        } = &decision.descriptors[0].applied
        else {
            panic!("{decision:?}");
        };
        let rule = rules.get(rule.unwrap()).unwrap();
        let path = metric_path.as_deref().unwrap_or(&rule.metric_path);
        assert_eq!(path, format!("test-domain.{expected}"), "{entries:?}");
    }
    let brought = with_limit(descriptor([("key1", "value1"), ("b", "")]), 3, 2);
    let decision = ask(&limiter, vec![brought], 0).await;
    match &decision.descriptors[0].applied {
        Applied::Limit {
            rule: None,
            metric_path: Some(path),
            ..
        } => {
            assert_eq!(&**path, "test-domain.key1_value1.b");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_the_store_did_not_count_can_be_told() {
    let limiter = limiter_of("- { key: ten, rate_limit: { unit: minute, requests_per_unit: 10 } }");
    let request = RateLimitRequest {
        domain: "test-domain".to_owned(),
        descriptors: vec![
            descriptor([("no", "rule")]),
            hits(descriptor([("ten", "a")]), 7),
        ],
        hits_addend: 0,
    };
    let rules = limiter.rules();
    let told = limiter.hits(&rules, &request);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].hits, &told[0].metric_path), (7, &None));
    assert_eq!(told[0].rule, rules.iter().map(|(id, _)| id).next());
}

#[test]
fn metadata_of_a_rule_is_kept() {
    let limiter = limiter_of(
        "- { key: a, metadata: { tier: { name: gold, level: 2 } }, rate_limit: { unlimited: true } }",
    );
    let rules = limiter.rules();
    let (_, rule) = rules.iter().next().unwrap();
    let metadata = rule.metadata.as_ref().unwrap();
    assert!(metadata.fields.contains_key("tier"), "{metadata:?}");
}

#[tokio::test]
async fn rejected_hits_can_be_free() {
    let limiter = limiter_of(
        "- { key: ten, rate_limit: { unit: hour, requests_per_unit: 10, rejected: free } }",
    );
    let ten = |n| hits(descriptor([("ten", "big")]), n);
    assert_eq!(one(&limiter, ten(8)).await, "OK r=2 d=800 10/Hour");
    assert_eq!(one(&limiter, ten(5)).await, "OVER r=2 d=800 10/Hour");
    assert_eq!(one(&limiter, ten(2)).await, "OK r=0 d=800 10/Hour");
}

#[tokio::test]
async fn a_token_bucket_lets_a_burst_pass_and_then_its_rate() {
    let limiter = limiter_of(
        "- { key: k, rate_limit: { unit: minute, requests_per_unit: 6, algorithm: token_bucket, burst: 2 } }",
    );
    let ask = async || one(&limiter, descriptor([("k", "v")])).await;
    assert!(ask().await.starts_with("OK r=1"));
    assert!(ask().await.starts_with("OK r=0"));
    assert!(ask().await.starts_with("OVER r=0"));
    limiter.clock().set(1_000_010);
    assert!(ask().await.starts_with("OK r=0"));
    assert!(ask().await.starts_with("OVER r=0"));
}

#[test]
fn windows_go_by_the_second_and_what_comes_back_in_between_by_the_clock() {
    /// Tells another second than the time.
    struct Between;

    impl Clock for Between {
        fn now(&self) -> UnixTime {
            UnixTime::from_micros(1_000_020_250_000)
        }

        fn second(&self) -> UnixTime {
            UnixTime::from_micros(1_000_019_750_000)
        }
    }

    let limiter = |more: &str| {
        let rules = format!(
            "domain: d\ndescriptors:\n- {{ key: k, rate_limit: {{ unit: minute, requests_per_unit: 1 }} }}\n{more}"
        );
        let rules = Rules::parse("rules.yaml", &rules).unwrap();
        Limiter::with_clock(rules, MemoryStore::default(), Between)
    };
    // A minute begins at 1,000,020.
    let whole = limiter("");
    assert_eq!(
        short(&whole.check("d", &[("k", "v")], 1)),
        "OK r=0 d=1 1/Minute"
    );
    let split = limiter(
        "- { key: b, rate_limit: { unit: second, requests_per_unit: 1, algorithm: token_bucket } }",
    );
    assert_eq!(
        short(&split.check("d", &[("k", "v")], 1)),
        "OK r=0 d=60 1/Minute"
    );
}

#[tokio::test]
async fn a_sliding_window_remembers_the_window_before() {
    let limiter = limiter_of(
        "- { key: k, rate_limit: { unit: minute, requests_per_unit: 10, algorithm: sliding_window } }",
    );
    limiter.clock().set(119);
    let ask = async |n| one(&limiter, hits(descriptor([("k", "v")]), n)).await;
    assert!(ask(10).await.starts_with("OK r=0"));
    limiter.clock().set(121);
    assert!(ask(1).await.starts_with("OVER"));
}

#[tokio::test]
async fn a_window_of_the_calendar_ends_with_the_month() {
    let limiter = limiter_of(
        "- { key: k, rate_limit: { unit: month, requests_per_unit: 1, algorithm: calendar_window } }",
    );
    let ask = async || one(&limiter, descriptor([("k", "v")])).await;
    // 2024-02-29, an hour before midnight.
    limiter.clock().set(1_709_247_600);
    assert_eq!(ask().await, "OK r=0 d=3600 1/Month");
    assert_eq!(ask().await, "OVER r=0 d=3600 1/Month");
    limiter.clock().set(1_709_251_200);
    assert_eq!(ask().await, "OK r=0 d=2678400 1/Month");
}

const ALL_OR_NOTHING: &str = "
domain: test-domain
charging: all_or_nothing
descriptors:
- { key: two, rate_limit: { unit: hour, requests_per_unit: 2 } }
- { key: ten, rate_limit: { unit: hour, requests_per_unit: 10 } }
- { key: shadow, shadow_mode: true, rate_limit: { unit: hour, requests_per_unit: 1 } }
";

#[tokio::test]
async fn a_request_can_be_charged_whole_or_not_at_all() {
    let rules = Rules::parse("rules.yaml", ALL_OR_NOTHING).unwrap();
    let limiter = Limiter::with_clock(rules, MemoryStore::default(), ManualClock::at(1_000_000));
    let both = || vec![descriptor([("ten", "a")]), descriptor([("two", "a")])];
    for remaining in [9, 8] {
        let decision = ask(&limiter, both(), 0).await;
        assert_eq!(codes(&decision), (OK, vec![OK, OK]));
        assert_eq!(decision.descriptors[0].remaining, remaining);
    }
    let decision = ask(&limiter, both(), 0).await;
    assert_eq!(codes(&decision), (OVER, vec![OK, OVER]));
    assert_eq!(decision.descriptors[0].remaining, 8);
    assert_eq!(
        one(&limiter, descriptor([("ten", "a")])).await,
        "OK r=7 d=800 10/Hour"
    );
}

#[tokio::test]
async fn a_rule_in_shadow_mode_keeps_nothing_from_being_charged() {
    let rules = Rules::parse("rules.yaml", ALL_OR_NOTHING).unwrap();
    let limiter = Limiter::with_clock(rules, MemoryStore::default(), ManualClock::at(1_000_000));
    let both = || vec![descriptor([("shadow", "a")]), descriptor([("two", "a")])];
    for (shadow, remaining) in [(0, 1), (1, 0)] {
        let decision = ask(&limiter, both(), 0).await;
        assert_eq!(codes(&decision), (OK, vec![OK, OK]));
        assert_eq!(decision.descriptors[0].tally.shadow, shadow);
        assert_eq!(decision.descriptors[1].remaining, remaining);
    }
    // What is refused is not counted in the shadow either.
    let other = vec![descriptor([("shadow", "b")]), descriptor([("two", "a")])];
    assert_eq!(ask(&limiter, other, 0).await.code, OVER);
    let shadow = ask(&limiter, vec![hits(descriptor([("shadow", "b")]), 0)], 0).await;
    assert_eq!(shadow.descriptors[0].remaining, 1);
}

#[tokio::test]
async fn a_limit_in_the_request_is_counted_as_the_domain_says() {
    let rules = "domain: test-domain\ndefaults: { rejected: free }";
    let rules = Rules::parse("rules.yaml", rules).unwrap();
    let limiter = Limiter::with_clock(rules, MemoryStore::default(), ManualClock::at(1_000_000));
    let limited = |n| hits(with_limit(descriptor([("k", "v")]), 10, 3), n);
    assert_eq!(one(&limiter, limited(11)).await, "OVER r=10 d=800 10/Hour");
    assert_eq!(one(&limiter, limited(10)).await, "OK r=0 d=800 10/Hour");
}

#[test]
fn one_descriptor_can_be_checked_without_waiting() {
    let limiter = limiter();
    let check = |entries: &[_], hits| {
        let decision = limiter.check("test-domain", entries, hits);
        short(&decision)
    };
    assert_eq!(check(&[("key3", "now")], 0), "OK r=1 d=800 1/Hour");
    assert_eq!(check(&[("key3", "now")], 1), "OK r=0 d=800 1/Hour");
    assert_eq!(check(&[("key3", "now")], 1), "OVER r=0 d=800 1/Hour");
    assert_eq!(check(&[("key6", "now")], 1), "UNLIMITED");
    assert_eq!(check(&[("no", "rule")], 1), "NONE");
    assert_eq!(check(&[], 1), "NONE");
    assert_eq!(
        short(&limiter.check("unknown", &[("key3", "now")], 1)),
        "NONE"
    );
}
