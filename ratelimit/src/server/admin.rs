//! Pages of the admin endpoint about limits and their counters.
//!
//! | page | answer |
//! |---|---|
//! | `GET /ratelimit/rules?domain=` | the limits, as JSON |
//! | `GET /ratelimit/explain?domain=&entry=key=value` | which limit applies to these entries, why, and where its counter stands |
//! | `GET /ratelimit/counters?prefix=&limit=&cursor=` | counters, as JSON, page by page |
//! | `GET /ratelimit/top?prefix=&count=` | the counters with the most hits |
//! | `DELETE /ratelimit/counters?prefix=` | forgets counters |
//!
//! Keys of counters hold what the descriptors hold, such as users and addresses.

use std::fmt::Write as _;

use attache_proto::{
    common_ratelimit::{RateLimitDescriptor, rate_limit_descriptor::Entry},
    ratelimit::{RateLimitRequest, rate_limit_response::DescriptorStatus},
};
use attache_service::{
    admin::{Page, PageAnswer, PageMethod, Query},
    config::json::{Value, json},
};
use http::StatusCode;

use super::RateLimitServer;
use crate::{
    config::Allowance,
    limiter::Clock,
    store::{
        AnyStore, StoreError,
        inspect::{self, CounterState, Inspect},
    },
};

/// Most that one page shows.
const MOST: usize = 10_000;
/// What it shows when nothing is said.
const USUAL: usize = 100;

/// The pages of a server.
pub fn pages<C: Clock>(server: &RateLimitServer<AnyStore, C>) -> Vec<Page> {
    let page = |method, path, answer: fn(Asked<C>) -> Answering| {
        let server = server.clone();
        Page::new(method, path, move |query| {
            let server = server.clone();
            answer(Asked { server, query })
        })
    };
    vec![
        page(PageMethod::Get, "/ratelimit/rules", |asked| {
            Box::pin(async move { asked.rules() })
        }),
        page(PageMethod::Get, "/ratelimit/explain", |asked| {
            Box::pin(asked.explain())
        }),
        page(PageMethod::Get, "/ratelimit/counters", |asked| {
            Box::pin(asked.counters())
        }),
        page(PageMethod::Get, "/ratelimit/top", |asked| {
            Box::pin(asked.top())
        }),
        page(PageMethod::Delete, "/ratelimit/counters", |asked| {
            Box::pin(asked.reset())
        }),
    ]
}

type Answering = std::pin::Pin<Box<dyn Future<Output = PageAnswer> + Send>>;

/// One request for a page.
struct Asked<C> {
    server: RateLimitServer<AnyStore, C>,
    query: Query,
}

impl<C: Clock> Asked<C> {
    fn rules(self) -> PageAnswer {
        if let Some(refusal) = self.refuse_others(&["domain"]) {
            return refusal;
        }
        let domain = self.query.get("domain");
        let listed = self.server.with_rules(|rules| {
            let rules = rules.iter().map(|(_, rule)| rule);
            let rules = rules.filter(|rule| domain.is_none_or(|domain| *rule.domain == *domain));
            let rules = rules.map(|rule| {
                let (unit, requests) = match &rule.allowance {
                    Allowance::Unlimited => (None, None),
                    Allowance::Limited(limit) => {
                        (Some(limit.unit.wire_name()), Some(limit.requests_per_unit))
                    }
                };
                json!({
                    "domain": &*rule.domain,
                    "rule": rule.path,
                    "name": &*rule.name,
                    "unit": unit,
                    "requests_per_unit": requests,
                    "unlimited": rule.allowance == Allowance::Unlimited,
                    "shadow_mode": rule.shadow_mode,
                    "quota_mode": rule.quota_mode,
                })
            });
            rules.collect::<Vec<_>>()
        });
        shown(json!({ "rules": listed }))
    }

    /// Looks without counting.
    async fn explain(self) -> PageAnswer {
        if let Some(refusal) = self.refuse_others(&["domain", "entry"]) {
            return refusal;
        }
        let Some(domain) = self.query.get("domain") else {
            return bad("`domain` is needed");
        };
        let mut entries = Vec::new();
        for entry in self.query.all("entry") {
            match entry.split_once('=') {
                Some(pair) => entries.push(pair),
                None => return bad("an `entry` is `key=value`"),
            }
        }
        let explanation = self
            .server
            .with_rules(|rules| rules.explain(domain, &entries));
        let Some(explanation) = explanation else {
            return bad("there are no rules yet");
        };
        let mut text = explanation.to_string();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        match self.server.peek(&looking(domain, &entries)).await {
            Ok(status) => describe(status.as_ref(), &mut text),
            Err(error) => {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "counter: not known: {error}");
            }
        }
        PageAnswer {
            status: StatusCode::OK,
            content_type: attache_service::http_server::TEXT,
            text,
        }
    }

    async fn counters(self) -> PageAnswer {
        if let Some(refusal) = self.refuse_others(&["prefix", "limit", "cursor"]) {
            return refusal;
        }
        let limit = match self.number("limit") {
            Ok(limit) => limit,
            Err(refusal) => return refusal,
        };
        let query = inspect::Query {
            prefix: self.prefix(),
            cursor: self.query.get("cursor").map(str::to_owned),
            limit,
        };
        match self.server.store().list(&query, self.server.now()).await {
            Ok(page) => shown(json!({ "counters": states(&page.counters), "next": page.next })),
            Err(error) => failed(&error),
        }
    }

    async fn top(self) -> PageAnswer {
        if let Some(refusal) = self.refuse_others(&["prefix", "count"]) {
            return refusal;
        }
        let count = match self.number("count") {
            Ok(count) => count,
            Err(refusal) => return refusal,
        };
        let (store, now) = (self.server.store(), self.server.now());
        match store.top(&self.prefix(), count, now).await {
            Ok(counters) => shown(json!({ "counters": states(&counters) })),
            Err(error) => failed(&error),
        }
    }

    async fn reset(self) -> PageAnswer {
        if let Some(refusal) = self.refuse_others(&["prefix"]) {
            return refusal;
        }
        let Some(prefix) = self.query.get("prefix") else {
            return bad("`prefix` is needed; an empty one stands for all counters");
        };
        match self.server.store().reset(prefix).await {
            Ok(count) => {
                tracing::warn!(prefix, count, "counters were reset");
                shown(json!({ "forgotten": count }))
            }
            Err(error) => failed(&error),
        }
    }

    fn prefix(&self) -> String {
        self.query.get("prefix").unwrap_or_default().to_owned()
    }

    fn number(&self, name: &str) -> Result<usize, PageAnswer> {
        match self.query.get(name).map(str::parse) {
            None => Ok(USUAL),
            Some(Ok(number)) if (1..=MOST).contains(&number) => Ok(number),
            Some(_) => Err(bad(&format!("`{name}` is a number from 1 to {MOST}"))),
        }
    }

    fn refuse_others(&self, known: &[&str]) -> Option<PageAnswer> {
        let unknown = self.query.unknown(known)?;
        Some(bad(&format!("`{unknown}` is none of {}", known.join(", "))))
    }
}

/// A request that looks at one counter and adds nothing to it.
fn looking(domain: &str, entries: &[(&str, &str)]) -> RateLimitRequest {
    let entries = entries.iter().map(|(key, value)| Entry {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    });
    RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: vec![RateLimitDescriptor {
            entries: entries.collect(),
            hits_addend: Some(0),
            ..RateLimitDescriptor::default()
        }],
        hits_addend: 0,
    }
}

fn describe(status: Option<&DescriptorStatus>, text: &mut String) {
    let Some((status, limit)) =
        status.and_then(|status| Some((status, status.current_limit.as_ref()?)))
    else {
        return;
    };
    let reset = status.duration_until_reset.as_ref();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "counter: {} of {} left, {}, starts anew in {} s",
        status.limit_remaining,
        limit.requests_per_unit,
        status.code().as_str_name(),
        reset.map_or(0, |reset| reset.seconds),
    );
}

fn states(counters: &[CounterState]) -> Vec<Value> {
    let counters = counters.iter();
    counters
        .map(|counter| {
            json!({
                "key": counter.key,
                "hits": counter.used,
                "resets_in_seconds": counter.resets_in,
            })
        })
        .collect()
}

fn shown(value: Value) -> PageAnswer {
    PageAnswer::json(format!("{value:#}\n"))
}

fn bad(reason: &str) -> PageAnswer {
    PageAnswer::failure(StatusCode::BAD_REQUEST, reason)
}

fn failed(error: &StoreError) -> PageAnswer {
    let status = match error {
        StoreError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
        StoreError::NoCursor { .. } => StatusCode::BAD_REQUEST,
        StoreError::Failed { .. } | StoreError::NotConnected { .. } => StatusCode::BAD_GATEWAY,
        StoreError::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
    };
    PageAnswer::failure(status, error)
}

#[cfg(test)]
mod tests {
    use attache_service::Metrics;

    use super::*;
    use crate::{
        limiter::{ManualClock, descriptor},
        server::{RuleSource, ServerSettings},
        store::MemoryStore,
    };

    const RULES: &str = "domain: shop\ndescriptors:\n- key: user\n  rate_limit: { unit: hour, requests_per_unit: 2 }\n";

    async fn server(hits: &[&str]) -> RateLimitServer<AnyStore, ManualClock> {
        let metrics = Metrics::default();
        let store = AnyStore::from(MemoryStore::new(100, &metrics));
        let settings = ServerSettings::new(RuleSource::Given);
        let server = RateLimitServer::build(settings, store, ManualClock::at(7200), &metrics);
        let rules = crate::Rules::parse("limits.yaml", RULES);
        server.set_rules(rules).unwrap();
        for user in hits {
            let request = RateLimitRequest {
                domain: "shop".to_owned(),
                descriptors: vec![descriptor([("user", *user)])],
                ..RateLimitRequest::default()
            };
            server.decide(&request).await.unwrap();
        }
        server
    }

    fn asked(server: &RateLimitServer<AnyStore, ManualClock>, query: &str) -> Asked<ManualClock> {
        Asked {
            server: server.clone(),
            query: Query::parse(query),
        }
    }

    #[tokio::test]
    async fn limits_are_explained_with_the_state_of_their_counter_and_nothing_counts() {
        let server = server(&["ada"]).await;
        for _ in 0..3 {
            let answer = asked(&server, "domain=shop&entry=user%3Dada")
                .explain()
                .await;
            let line = "counter: 1 of 2 left, OK, starts anew in 3600 s\n";
            assert!(answer.text.ends_with(line), "{}", answer.text);
            assert!(answer.text.contains("shop_user_ada"), "{}", answer.text);
        }
        let answer = asked(&server, "domain=shop&entry=uesr%3Dada")
            .explain()
            .await;
        assert!(!answer.text.contains("counter: "), "{}", answer.text);
        let answer = asked(&server, "entry=user%3Dada").explain().await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        // Looking is no hit, nor a request in statistics.
        let samples = server.statistics().totals();
        let hits = samples
            .iter()
            .find(|sample| sample.name.ends_with("total_hits"));
        assert_eq!(
            hits.unwrap().value,
            crate::server::sink::SampleValue::Counter(1)
        );
    }

    #[tokio::test]
    async fn counters_are_listed_compared_and_forgotten() {
        let server = server(&["ada", "bob", "bob"]).await;
        let listed = asked(&server, "prefix=shop_user_a").counters().await.text;
        assert!(listed.contains("shop_user_ada"), "{listed}");
        assert!(!listed.contains("bob"), "{listed}");
        let top = asked(&server, "count=1").top().await.text;
        assert!(
            top.contains("shop_user_bob") && top.contains("\"hits\": 2"),
            "{top}"
        );
        assert!(!top.contains("ada"), "{top}");

        let refused = asked(&server, "").reset().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let reset = asked(&server, "prefix=shop_user_bob").reset().await.text;
        assert!(reset.contains("\"forgotten\": 1"), "{reset}");
        let top = asked(&server, "").top().await.text;
        assert!(top.contains("ada") && !top.contains("bob"), "{top}");
    }

    #[test]
    fn what_the_store_refuses_is_no_mistake_of_who_asks() {
        let (store, address) = ("redis", "host:1".to_owned());
        let (reason, cursor) = ("NOPERM".to_owned(), "x".to_owned());
        for (error, status) in [
            (StoreError::NoCursor { cursor }, StatusCode::BAD_REQUEST),
            (
                StoreError::Failed {
                    store,
                    address: address.clone(),
                    reason: reason.clone(),
                },
                StatusCode::BAD_GATEWAY,
            ),
            (
                StoreError::NotConnected {
                    store,
                    address: address.clone(),
                    reason,
                },
                StatusCode::BAD_GATEWAY,
            ),
            (
                StoreError::Timeout {
                    store,
                    address,
                    millis: 1,
                },
                StatusCode::GATEWAY_TIMEOUT,
            ),
        ] {
            assert_eq!(failed(&error).status, status, "{error}");
        }
    }

    #[tokio::test]
    async fn a_cursor_that_is_none_is_refused() {
        let server = server(&["ada"]).await;
        let refused = asked(&server, "cursor=x").counters().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn limits_are_listed() {
        let server = server(&[]).await;
        let rules = asked(&server, "domain=shop").rules().text;
        assert!(rules.contains("\"requests_per_unit\": 2"), "{rules}");
        let others = asked(&server, "domain=other").rules().text;
        assert!(!others.contains("requests_per_unit"), "{others}");
        let refused = asked(&server, "domian=shop").rules();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let refused = asked(&server, "limit=0").counters().await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    }
}
