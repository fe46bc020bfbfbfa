use super::*;
use crate::server::quota::Unmatched;
use attache_proto::{
    rate_limit_quota::{BucketId, rate_limit_quota_response::bucket_action},
    types::rate_limit_strategy::{BlanketRule, Strategy},
};

fn key(value: &str) -> BucketKey {
    let id = BucketId {
        bucket: [("user".to_owned(), value.to_owned())].into(),
    };
    BucketKey::read(&Arc::from("shop"), Some(&id)).unwrap()
}

fn usage(allowed: u64) -> Usage {
    Usage {
        allowed,
        seconds: 1,
    }
}

fn limited(requests: u32, used_up: bool) -> Balance {
    window(requests, 60, used_up, 30)
}

fn window(requests: u32, seconds: u64, used_up: bool, ends_in: u64) -> Balance {
    Balance::Limited {
        requests,
        seconds,
        burst: requests,
        window: Some(Window { used_up, ends_in }),
    }
}

fn book() -> Book {
    Book::new(QuotaSettings::default())
}

/// What the stream is told, as text, one line a bucket.
fn told(book: &mut Book, stream: StreamId, now: Instant) -> Vec<String> {
    let actions = book.take(stream, now).unwrap_or_default().bucket_action;
    actions.into_iter().map(line).collect()
}

fn line(action: BucketAction) -> String {
    let bucket = action.bucket_id.unwrap().bucket;
    let user = &bucket["user"];
    let assignment = match action.bucket_action.unwrap() {
        bucket_action::BucketAction::AbandonAction(_) => "abandon".to_owned(),
        bucket_action::BucketAction::QuotaAssignmentAction(action) => {
            match action.rate_limit_strategy.unwrap().strategy.unwrap() {
                Strategy::TokenBucket(bucket) => bucket.max_tokens.to_string(),
                Strategy::BlanketRule(rule) if rule == i32::from(BlanketRule::DenyAll) => {
                    "deny".to_owned()
                }
                Strategy::BlanketRule(_) => "allow".to_owned(),
                Strategy::RequestsPerTimeUnit(_) => "rate".to_owned(),
            }
        }
    };
    format!("{user} {assignment}")
}

#[test]
fn a_report_is_answered_with_the_whole_limit_and_every_further_one_again() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    for _ in 0..2 {
        assert_eq!(book.report(one, &key("a"), usage(1), now), Ok(1));
        book.settle(Some(one), &key("a"), limited(10, false), now);
        assert_eq!(told(&mut book, one, now), ["a 10"]);
        assert_eq!(told(&mut book, one, now), Vec::<String>::new());
    }
}

#[test]
fn streams_that_come_and_go_change_the_shares_of_the_others() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    let (two, _) = book.join().unwrap();
    for stream in [one, two] {
        book.report(stream, &key("a"), usage(1), now).unwrap();
        book.settle(Some(stream), &key("a"), limited(11, false), now);
    }
    assert_eq!(told(&mut book, one, now), ["a 6"]);
    assert_eq!(told(&mut book, two, now), ["a 5"]);
    book.leave(one);
    assert_eq!(told(&mut book, two, now), ["a 11"]);
    book.leave(two);
    assert_eq!(book.buckets(), 0);
}

#[test]
fn a_window_that_is_used_up_refuses_all_until_the_next_begins() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    let (two, _) = book.join().unwrap();
    for (stream, used_up) in [(one, false), (two, true)] {
        book.report(stream, &key("a"), usage(5), now).unwrap();
        book.settle(Some(stream), &key("a"), limited(10, used_up), now);
    }
    assert_eq!(told(&mut book, one, now), ["a deny"]);
    assert_eq!(told(&mut book, two, now), ["a deny"]);
    book.pass(now + Duration::from_secs(29));
    assert_eq!(told(&mut book, one, now), Vec::<String>::new());
    book.pass(now + Duration::from_secs(30));
    assert_eq!(told(&mut book, one, now), ["a 5"]);
    assert_eq!(told(&mut book, two, now), ["a 5"]);
}

#[test]
fn a_used_up_window_stays_so_unless_the_limit_changes() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    for (balance, expected) in [
        (limited(10, true), "a deny"),
        (limited(10, false), "a deny"),
        (limited(20, false), "a 20"),
    ] {
        book.report(one, &key("a"), usage(1), now).unwrap();
        book.settle(Some(one), &key("a"), balance, now);
        assert_eq!(told(&mut book, one, now), [expected]);
    }
}

#[test]
fn a_token_bucket_is_shared_and_never_used_up() {
    let now = Instant::now();
    let mut book = book();
    let balance = Balance::Limited {
        requests: 60,
        seconds: 60,
        burst: 5,
        window: None,
    };
    let streams = [book.join().unwrap().0, book.join().unwrap().0];
    for stream in streams {
        book.report(stream, &key("a"), usage(100), now).unwrap();
        book.settle(Some(stream), &key("a"), balance, now);
    }
    assert_eq!(told(&mut book, streams[0], now), ["a 3"]);
    assert_eq!(told(&mut book, streams[1], now), ["a 2"]);
}

#[test]
fn subscribers_that_are_silent_for_longer_than_their_assignment_give_it_back() {
    let start = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    let (two, _) = book.join().unwrap();
    for stream in [one, two] {
        book.report(stream, &key("a"), usage(1), start).unwrap();
        book.settle(Some(stream), &key("a"), limited(10, false), start);
    }
    let later = start + Duration::from_secs(59);
    book.report(two, &key("a"), usage(1), later).unwrap();
    book.settle(Some(two), &key("a"), limited(10, false), later);
    told(&mut book, two, later);
    book.pass(start + Duration::from_secs(60));
    assert_eq!(told(&mut book, two, later), ["a 10"]);
    book.pass(later + Duration::from_secs(60));
    assert_eq!(book.buckets(), 0);
}

#[test]
fn buckets_without_a_rule_are_abandoned_and_not_kept() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    book.report(one, &key("a"), usage(1), now).unwrap();
    book.settle(Some(one), &key("a"), Balance::NoRule, now);
    assert_eq!(told(&mut book, one, now), ["a abandon"]);
    assert_eq!(book.buckets(), 0);

    let mut book = Book::new(QuotaSettings {
        unmatched: Unmatched::Allow,
        ..QuotaSettings::default()
    });
    let (one, _) = book.join().unwrap();
    book.report(one, &key("a"), usage(1), now).unwrap();
    book.settle(Some(one), &key("a"), Balance::NoRule, now);
    assert_eq!(told(&mut book, one, now), ["a allow"]);
    assert_eq!(book.buckets(), 1);
}

#[test]
fn too_many_buckets_are_abandoned_and_too_many_streams_refused() {
    let now = Instant::now();
    let mut book = Book::new(QuotaSettings {
        max_streams: 1,
        max_buckets: 1,
        ..QuotaSettings::default()
    });
    let (one, _) = book.join().unwrap();
    assert_eq!(book.join().map(|_| ()), Err(Full));
    book.report(one, &key("a"), usage(1), now).unwrap();
    assert_eq!(book.report(one, &key("b"), usage(1), now), Err(Full));
    assert_eq!(told(&mut book, one, now), ["b abandon"]);
    book.leave(one);
    assert!(book.join().is_ok());
}

#[test]
fn usage_that_could_not_be_charged_is_charged_with_the_next_report() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    assert_eq!(book.report(one, &key("a"), usage(7), now), Ok(7));
    book.owe(&key("a"), 7);
    assert_eq!(book.report(one, &key("a"), usage(1), now), Ok(8));
}

#[test]
fn usage_of_past_windows_is_not_charged_to_the_present_one() {
    let now = Instant::now();
    let mut book = book();
    let (one, _) = book.join().unwrap();
    let balance = window(10, 2, false, 1);
    book.report(one, &key("a"), usage(1), now).unwrap();
    book.settle(Some(one), &key("a"), balance, now);
    // One second into the window after the next.
    let later = now + Duration::from_secs(4);
    let spread = Usage {
        allowed: 20,
        seconds: 4,
    };
    assert_eq!(book.report(one, &key("a"), spread, later), Ok(5));
}

/// A proxy as Envoy's filter is one: a token bucket of what it was assigned.
struct Proxy {
    stream: StreamId,
    tokens: f64,
    share: f64,
    used: u64,
}

impl Proxy {
    /// A new assignment; the bucket keeps how full it is.
    fn hear(&mut self, book: &mut Book, now: Instant) {
        for line in told(book, self.stream, now) {
            let share = line.split(' ').next_back().unwrap().parse().unwrap_or(0.0);
            if share == self.share {
                continue;
            }
            let full = if self.share > 0.0 {
                self.tokens / self.share
            } else {
                1.0
            };
            self.tokens = share * full;
            self.share = share;
        }
    }

    fn second(&mut self, wanted: u64, window: u64) -> u64 {
        self.tokens = (self.tokens + self.share / window as f64).min(self.share);
        let passed = (self.tokens.floor() as u64).min(wanted);
        self.tokens -= passed as f64;
        self.used += passed;
        passed
    }
}

proptest::proptest! {
    /// Streams come, report, and go; after each step the shares told last fit the limit.
    #[test]
    fn shares_never_exceed_the_limit(
        steps in proptest::collection::vec((0usize..6, 0u8..4, 0u32..50), 1..60)
    ) {
        let now = Instant::now();
        let mut book = book();
        let mut streams = Vec::new();
        for (index, step, limit) in steps {
            match step {
                0 => streams.push(book.join().unwrap().0),
                1 if !streams.is_empty() => {
                    let gone = streams.remove(index % streams.len());
                    book.leave(gone);
                    let fits = book.assigned(&key("a"));
                    proptest::prop_assert!(fits <= 50);
                }
                _ if !streams.is_empty() => {
                    let stream = streams[index % streams.len()];
                    book.report(stream, &key("a"), usage(1), now).unwrap();
                    book.settle(Some(stream), &key("a"), limited(limit, step == 3), now);
                    let most = if step == 3 { 0 } else { limit };
                    proptest::prop_assert!(book.assigned(&key("a")) <= u64::from(most));
                }
                _ => {}
            }
        }
    }

    /// In one window proxies let through twice the limit at most, whenever their requests come;
    /// what comes all at once is held to the limit and what flows in until the next report.
    #[test]
    fn proxies_let_through_no_more_than_the_bound(
        limit in 1u32..200,
        proxies in 1usize..5,
        every in 1u64..10,
        wishes in proptest::collection::vec(0u64..40, 240),
        greedy: bool,
    ) {
        const WINDOW: u64 = 60;
        let start = Instant::now();
        let mut book = book();
        let mut crowd: Vec<Proxy> = (0..proxies)
            .map(|_| Proxy { stream: book.join().unwrap().0, tokens: 0.0, share: 0.0, used: 0 })
            .collect();
        let mut count = 0;
        let mut passed = 0;
        for second in 0..3 * WINDOW {
            let now = start + Duration::from_secs(second);
            if second % WINDOW == 0 {
                (count, passed) = (0, 0);
                for proxy in &mut crowd {
                    proxy.used = 0;
                }
            }
            book.pass(now);
            if second % every == 0 {
                for proxy in &mut crowd {
                    let used = std::mem::take(&mut proxy.used);
                    let spread = Usage { allowed: used, seconds: 0 };
                    count += book.report(proxy.stream, &key("a"), spread, now).unwrap();
                    let used_up = count >= u64::from(limit);
                    let balance = window(limit, WINDOW, used_up, WINDOW - second % WINDOW);
                    book.settle(Some(proxy.stream), &key("a"), balance, now);
                }
            }
            for (index, proxy) in crowd.iter_mut().enumerate() {
                proxy.hear(&mut book, now);
                let wish = wishes[(second as usize * proxies + index) % wishes.len()];
                passed += proxy.second(if greedy { 1000 } else { wish }, WINDOW);
            }
            let limit = u64::from(limit);
            proptest::prop_assert!(passed <= 2 * limit, "{passed} of {limit}");
            if greedy {
                let flow = (limit * (every + 1)).div_ceil(WINDOW) + proxies as u64;
                proptest::prop_assert!(passed <= limit + flow, "{passed} of {limit}, {flow}");
            }
        }
    }
}
