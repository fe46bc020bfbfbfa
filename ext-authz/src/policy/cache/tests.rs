use std::sync::atomic::{AtomicUsize, Ordering};

use http::Request;
use tokio::sync::Barrier;

use super::*;
use crate::{
    policy::{explain::Trail, path::Reading, pipeline::Speaker},
    server::{CheckRequestView, Decision},
};

fn plan(raw: config::DecisionCache) -> (Decisions, Arc<Revision>, Metrics) {
    let (revision, metrics, mut errors) = (
        Arc::new(Revision::default()),
        Metrics::default(),
        Errors::new(),
    );
    let decisions = Decisions::plan("p", &raw, &revision, &metrics, &mut errors).unwrap();
    assert!(errors.is_empty(), "{errors}");
    (decisions, revision, metrics)
}

fn defaults() -> config::DecisionCache {
    config::DecisionCache {
        size: None,
        ttl: None,
        negative_ttl: None,
        stale: None,
    }
}

fn view(tenant: &str, noise: &str) -> CheckRequestView {
    let request = Request::get("http://h/p").header("x-tenant", tenant);
    crate::testing::view(&request.header("x-noise", noise).body(()).unwrap())
}

fn ruling(decision: impl Into<Decision>) -> Ruling {
    Ruling::own(decision.into(), Speaker::Pipeline)
}

/// Whether the answer was kept, and what it is.
type Answer = Result<(bool, Decision), Arc<str>>;

async fn ask(
    decisions: &Decisions,
    request: &CheckRequestView,
    decide: impl AsyncFnOnce(&Check<'_>) -> Result<Ruling, Arc<str>>,
) -> Answer {
    let mut check = Check::new(request, Reading::default(), Trail::default()).unwrap();
    match decisions.look(&check).await {
        Looked::Kept(kept) => Ok((true, kept.ruling.decision.clone())),
        Looked::Failed(reason) => Err(reason),
        Looked::Asking(asking) => {
            check.record();
            let decided = decide(&check).await;
            let kept = asking.decided(&check, decided)?;
            Ok((false, kept.ruling.decision.clone()))
        }
    }
}

/// Decides by the tenant alone.
async fn by_tenant(check: &Check<'_>) -> Result<Ruling, Arc<str>> {
    let tenant = check.header("x-tenant").unwrap_or_default().into_owned();
    Ok(ruling(Decision::allow().set("x-is", tenant)))
}

fn is(tenant: &str) -> Decision {
    Decision::allow().set("x-is", tenant).into()
}

#[tokio::test]
async fn requests_that_differ_in_what_was_not_read_share_a_decision() {
    let (decisions, ..) = plan(defaults());
    for (tenant, noise, kept) in [
        ("a", "1", false),
        ("a", "2", true),
        ("b", "1", false),
        ("b", "3", true),
        ("", "1", false),
        ("a", "1", true),
    ] {
        let answer = ask(&decisions, &view(tenant, noise), by_tenant).await;
        assert_eq!(answer, Ok((kept, is(tenant))), "{tenant} {noise}");
    }
}

#[tokio::test]
async fn the_same_values_of_other_parts_are_another_request() {
    let (decisions, ..) = plan(defaults());
    let by = async |name: &'static str, request: &CheckRequestView| {
        let decide = async |check: &Check<'_>| {
            check.header(name);
            Ok(ruling(Decision::allow().set("x-read", name)))
        };
        ask(&decisions, request, decide).await.unwrap().0
    };
    assert!(!by("x-tenant", &view("same", "1")).await);
    assert!(!by("x-noise", &view("2", "same")).await);
    assert!(by("x-tenant", &view("same", "3")).await);
    assert!(!by("x-tenant", &view("4", "5")).await);
}

#[tokio::test(start_paused = true)]
async fn decisions_end_in_time_and_denials_sooner() {
    let (decisions, ..) = plan(defaults());
    let kept = async |tenant: &str| {
        let decide = async |check: &Check<'_>| match check.header("x-tenant").as_deref() {
            Some("bad") => Ok(ruling(Decision::deny(403))),
            _ => Ok(ruling(Decision::allow())),
        };
        ask(&decisions, &view(tenant, ""), decide).await.unwrap().0
    };
    assert!(!kept("good").await && !kept("bad").await);
    assert!(kept("good").await && kept("bad").await);
    tokio::time::advance(Duration::from_secs(6)).await;
    assert!(kept("good").await && !kept("bad").await);
    tokio::time::advance(Duration::from_secs(25)).await;
    assert!(!kept("good").await);
}

#[tokio::test]
async fn a_decision_ends_with_what_it_rests_on() {
    let (decisions, ..) = plan(defaults());
    let kept = async |until: SystemTime| {
        let decide = async |check: &Check<'_>| {
            check.holds_until(until);
            Ok(ruling(Decision::allow()))
        };
        ask(&decisions, &view("a", ""), decide).await.unwrap().0
    };
    let now = SystemTime::now();
    let soon = now + Duration::from_millis(50);
    assert!(!kept(now - Duration::from_secs(1)).await);
    assert!(!kept(soon).await);
    while SystemTime::now() < soon {
        std::thread::yield_now();
    }
    assert!(!kept(now + Duration::from_secs(60)).await);
    assert!(kept(now).await);
}

#[tokio::test]
async fn what_holds_once_or_reads_the_time_is_not_kept() {
    let (decisions, ..) = plan(defaults());
    let kept = async |tenant: &str, read: fn(&Check<'_>)| {
        let decide = async |check: &Check<'_>| {
            check.header("x-tenant");
            read(check);
            Ok(ruling(Decision::allow()))
        };
        ask(&decisions, &view(tenant, ""), decide).await.unwrap().0
    };
    for (tenant, read) in [
        ("a", (|check| check.holds_once()) as fn(&Check<'_>)),
        ("b", |check| assert!(check.time() > SystemTime::UNIX_EPOCH)),
        ("c", |check| assert!(check.request().is_http())),
    ] {
        assert!(
            !kept(tenant, read).await && !kept(tenant, read).await,
            "{tenant}"
        );
    }
    assert!(!kept("d", |_| ()).await && kept("d", |_| ()).await);
}

#[tokio::test]
async fn another_revision_of_keys_or_policy_forgets_all() {
    let (decisions, revision, _) = plan(defaults());
    let request = view("a", "");
    assert_eq!(
        ask(&decisions, &request, by_tenant).await,
        Ok((false, is("a")))
    );
    // Replaced while it decides: what was decided on the old keys is not kept either.
    revision.advance();
    let decide = async |check: &Check<'_>| {
        revision.advance();
        by_tenant(check).await
    };
    assert_eq!(
        ask(&decisions, &request, decide).await,
        Ok((false, is("a")))
    );
    assert_eq!(
        ask(&decisions, &request, by_tenant).await,
        Ok((false, is("a")))
    );
    assert_eq!(
        ask(&decisions, &request, by_tenant).await,
        Ok((true, is("a")))
    );
}

#[tokio::test]
async fn failures_are_not_kept() {
    let (decisions, ..) = plan(defaults());
    let fail = async |_: &Check<'_>| Err("unreachable".into());
    for _ in 0..2 {
        let answer = ask(&decisions, &view("a", ""), fail).await;
        assert_eq!(answer, Err("unreachable".into()));
    }
    assert_eq!(
        ask(&decisions, &view("a", ""), by_tenant).await,
        Ok((false, is("a")))
    );
}

#[tokio::test(start_paused = true)]
async fn a_stale_decision_stands_in_when_none_can_be_reached() {
    let (decisions, ..) = plan(config::DecisionCache {
        stale: Some(Located::nowhere(Duration::from_secs(60))),
        ..defaults()
    });
    let request = view("a", "");
    let fail = async |_: &Check<'_>| Err("unreachable".into());
    ask(&decisions, &request, by_tenant).await.unwrap();
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(ask(&decisions, &request, fail).await, Ok((false, is("a"))));
    // While one asks, the others need not wait.
    let others = async |check: &Check<'_>| {
        assert_eq!(ask(&decisions, &request, fail).await, Ok((true, is("a"))));
        by_tenant(check).await
    };
    assert_eq!(
        ask(&decisions, &request, others).await,
        Ok((false, is("a")))
    );
    assert_eq!(ask(&decisions, &request, fail).await, Ok((true, is("a"))));
    tokio::time::advance(Duration::from_secs(91)).await;
    assert!(ask(&decisions, &request, fail).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_alike_at_once_one_decides() {
    for round in 0..20 {
        let (decisions, _, metrics) = plan(defaults());
        let decisions = Arc::new(decisions);
        let (start, made) = (Arc::new(Barrier::new(64)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..64)
            .map(|number: u32| {
                let (decisions, start, made) = (decisions.clone(), start.clone(), made.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    let decide = async |check: &Check<'_>| {
                        made.fetch_add(1, Ordering::Relaxed);
                        tokio::task::yield_now().await;
                        by_tenant(check).await
                    };
                    ask(&decisions, &view("a", &number.to_string()), decide).await
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap().1, is("a"));
        }
        assert_eq!(made.load(Ordering::Relaxed), 1, "round {round}");
        let text = metrics.render();
        let count = |result: &str| {
            let name = format!(r#"cache_total{{pipeline="p",result="{result}"}} "#);
            let line = text.lines().find_map(|line| line.split_once(&name));
            line.unwrap().1.parse::<usize>().unwrap()
        };
        assert_eq!(count("miss"), 1);
        assert_eq!(count("hit") + count("wait"), 63, "{text}");
    }
}

#[tokio::test]
async fn those_who_wait_share_a_failure_and_go_on_when_the_first_is_gone() {
    let (decisions, ..) = plan(defaults());
    let request = view("a", "");
    let never = async |_: &Check<'_>| std::future::pending().await;
    let nobody = async |_: &Check<'_>| unreachable!();
    {
        let mut first = Box::pin(ask(&decisions, &request, never));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = Box::pin(ask(&decisions, &request, by_tenant));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        assert_eq!(second.await, Ok((false, is("a"))));
    }
    let request = view("b", "");
    let (fails, failing) = tokio::sync::oneshot::channel::<()>();
    let fail = async |_: &Check<'_>| {
        let _ = failing.await;
        Err("unreachable".into())
    };
    let mut first = Box::pin(ask(&decisions, &request, fail));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(ask(&decisions, &request, nobody));
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(fails);
    assert!(first.await.is_err());
    assert_eq!(second.await, Err("unreachable".into()));
    assert!(decisions.flights.is_empty());
}

#[tokio::test]
async fn size_and_shapes_are_bounded() {
    let (decisions, _, metrics) = plan(config::DecisionCache {
        size: Some(Located::nowhere(8)),
        ..defaults()
    });
    for number in 0..200 {
        let decide = async |check: &Check<'_>| {
            check.header(&format!("x-{number}"));
            by_tenant(check).await
        };
        ask(&decisions, &view(&number.to_string(), ""), decide)
            .await
            .unwrap();
    }
    assert!(decisions.kept.len() <= 8);
    assert_eq!(decisions.shapes.load().seen.len(), MAX_SHAPES);
    let text = metrics.render();
    assert!(
        text.contains(r#"attache_auth_decision_cache_entries{pipeline="p"} 8"#),
        "{text}"
    );
    assert!(
        text.contains(r#"attache_auth_decision_cache_evictions_total{pipeline="p"} 192"#),
        "{text}"
    );
}

#[test]
fn settings_out_of_bounds_are_reported() {
    let located = |seconds| Some(Located::nowhere(Duration::from_secs(seconds)));
    let raw = config::DecisionCache {
        size: Some(Located::nowhere(MAX_SIZE + 1)),
        ttl: located(10),
        negative_ttl: located(11),
        stale: located(3601),
    };
    let mut errors = Errors::new();
    Decisions::plan("p", &raw, &Arc::default(), &Metrics::default(), &mut errors);
    let text = errors.to_string();
    for expected in ["at most 10000000", "longer than `ttl`", "an hour at most"] {
        assert!(text.contains(expected), "{text}");
    }
    let none = config::DecisionCache {
        size: Some(Located::nowhere(0)),
        ..defaults()
    };
    let mut errors = Errors::new();
    let metrics = Metrics::default();
    assert!(Decisions::plan("p", &none, &Arc::default(), &metrics, &mut errors).is_none());
}
