use std::collections::HashMap;

use super::*;
use crate::{
    channel::Target,
    cluster::{Described, Trouble},
};

fn described(names: &[(&str, u32)]) -> Vec<Described> {
    let each = names.iter().map(|(name, weight)| Described {
        weight: *weight,
        ..Described::new(Target::Address(format!("{name}:80").parse().unwrap()))
    });
    each.collect()
}

fn endpoints(names: &[(&str, u32)]) -> Arc<Endpoints> {
    Endpoints::new("c", described(names))
}

fn balancer(endpoints: &Arc<Endpoints>, policy: LbPolicy) -> Balancer<()> {
    let settings = Balance {
        policy,
        ..Balance::default()
    };
    Balancer::new(endpoints.clone(), settings, |_| ())
}

fn picked(balancer: &Balancer<()>, key: Option<u64>) -> String {
    balancer.pick(key).unwrap().endpoint.to_string()
}

fn shares(balancer: &Balancer<()>, picks: u64) -> HashMap<String, u64> {
    let mut shares = HashMap::new();
    for key in 0..picks {
        *shares.entry(picked(balancer, Some(key))).or_default() += 1;
    }
    shares
}

#[test]
fn round_robin_takes_turns() {
    let endpoints = endpoints(&[("a", 1), ("b", 1), ("c", 1)]);
    let balancer = balancer(&endpoints, LbPolicy::RoundRobin);
    let order: Vec<_> = (0..6).map(|_| picked(&balancer, None)).collect();
    assert_eq!(order, ["a:80", "b:80", "c:80", "a:80", "b:80", "c:80"]);
}

#[test]
fn round_robin_mixes_weights_evenly() {
    let endpoints = endpoints(&[("a", 5), ("b", 1), ("c", 1)]);
    let balancer = balancer(&endpoints, LbPolicy::RoundRobin);
    let order: String = (0..7).map(|_| picked(&balancer, None).remove(0)).collect();
    assert_eq!(order, "aabacaa");
}

#[test]
fn weights_hold_in_every_policy_while_nothing_is_loaded() {
    let endpoints = endpoints(&[("a", 1), ("b", 3)]);
    for policy in [
        LbPolicy::RoundRobin,
        LbPolicy::Random,
        LbPolicy::LeastRequest,
        LbPolicy::Hash,
    ] {
        let shares = shares(&balancer(&endpoints, policy), 10_000);
        let heavier = shares["b:80"];
        assert!((7_200..7_800).contains(&heavier), "{policy:?}: {heavier}");
    }
}

#[test]
fn least_request_avoids_the_loaded_one() {
    let endpoints = endpoints(&[("a", 1), ("b", 1)]);
    let balancer = balancer(&endpoints, LbPolicy::LeastRequest);
    let busy = InFlight::new(balancer.pick(None).unwrap());
    let other = picked(&balancer, None);
    assert_ne!(busy.endpoint.to_string(), other);
    for _ in 0..100 {
        assert_eq!(picked(&balancer, None), other);
    }
    assert_eq!(busy.endpoint.active(), 1);
    let endpoint = busy.endpoint.clone();
    drop(busy);
    assert_eq!(endpoint.active(), 0);
}

#[test]
fn one_that_is_not_healthy_is_not_used_until_too_many_are_not() {
    let endpoints = endpoints(&[("a", 1), ("b", 1), ("c", 1)]);
    let members = endpoints.members();
    let balancer = balancer(&endpoints, LbPolicy::RoundRobin);

    members[0].endpoint.mark(Trouble::Ejected, true);
    assert!(!shares(&balancer, 30).contains_key("a:80"));

    members[1].endpoint.mark(Trouble::FailedCheck, true);
    assert_eq!(shares(&balancer, 30).len(), 3, "a third is below 50 %");

    members[1].endpoint.mark(Trouble::FailedCheck, false);
    members[0].endpoint.mark(Trouble::Ejected, false);
    assert_eq!(shares(&balancer, 30).len(), 3);
}

#[test]
fn without_a_panic_threshold_nothing_is_picked_when_nothing_is_healthy() {
    let endpoints = endpoints(&[("a", 1)]);
    let settings = Balance {
        panic_threshold: 0.0,
        ..Balance::default()
    };
    let balancer = Balancer::new(endpoints.clone(), settings, |_| ());
    endpoints.members()[0]
        .endpoint
        .mark(Trouble::FailedCheck, true);
    assert!(balancer.pick(None).is_none());
    assert_eq!(balancer.all().len(), 1);
}

#[test]
fn an_endpoint_that_stays_keeps_what_the_worker_holds_for_it() {
    let endpoints = endpoints(&[("a", 1), ("b", 1)]);
    let balancer = balancer(&endpoints, LbPolicy::RoundRobin);
    let before = balancer.all();
    endpoints.replace(described(&[("c", 1), ("b", 7)]));
    let after = balancer.all();
    assert!(Arc::ptr_eq(&before[1], &after[1]));
    assert_eq!(after[0].endpoint.to_string(), "c:80");
    assert!(Arc::ptr_eq(
        &endpoints.members()[1].endpoint,
        &after[1].endpoint
    ));
}

/// The latencies of requests that come every millisecond for a minute of paused time, in
/// milliseconds and in order, when one endpoint of four takes 300 ms and the others 5 ms.
async fn latencies(policy: LbPolicy) -> Vec<u128> {
    let endpoints = endpoints(&[("a", 1), ("b", 1), ("c", 1), ("slow", 1)]);
    let balancer = balancer(&endpoints, policy);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..20_000 {
        let mut one = InFlight::new(balancer.pick(None).unwrap());
        running.spawn(async move {
            let slow = one.endpoint.to_string() == "slow:80";
            let took = Duration::from_millis(if slow { 300 } else { 5 });
            tokio::time::sleep(took).await;
            one.answered();
            took.as_millis()
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut latencies = running.join_all().await;
    latencies.sort_unstable();
    latencies
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_avoids_a_slow_endpoint() {
    let p99 = |sorted: &[u128]| sorted[sorted.len() * 99 / 100];
    let in_turn = latencies(LbPolicy::RoundRobin).await;
    let decay = Duration::from_secs(10);
    let by_latency = latencies(LbPolicy::PeakEwma { decay }).await;
    assert_eq!(p99(&in_turn), 300);
    assert_eq!(p99(&by_latency), 5);
    assert!(by_latency.contains(&300), "it is tried again now and then");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_at_once_is_not_a_fast_one() {
    let endpoints = endpoints(&[("good", 1), ("bad", 1)]);
    let decay = Duration::from_secs(10);
    let balancer = balancer(&endpoints, LbPolicy::PeakEwma { decay });
    let mut bad = 0;
    for _ in 0..1000 {
        let mut one = InFlight::new(balancer.pick(None).unwrap());
        if one.endpoint.to_string() == "bad:80" {
            bad += 1;
            one.failed();
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            one.answered();
        }
    }
    assert!(bad <= 3, "{bad}");
}

#[test]
fn a_key_goes_elsewhere_only_while_its_endpoint_is_not_healthy() {
    let endpoints = endpoints(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
    let balancer = balancer(&endpoints, LbPolicy::Hash);
    let all = |balancer: &Balancer<()>| -> Vec<String> {
        (0..200).map(|key| picked(balancer, Some(key))).collect()
    };
    let before = all(&balancer);
    let members = endpoints.members();
    members[0].endpoint.mark(Trouble::FailedCheck, true);
    for (was, is) in before.iter().zip(all(&balancer)) {
        assert!(*was == is || was == "a:80", "{was} {is}");
        assert_ne!(is, "a:80");
    }
    members[0].endpoint.mark(Trouble::FailedCheck, false);
    assert_eq!(all(&balancer), before);
}
