//! The steps of a scenario against one service, and the verdict over both.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::differences;
use super::redis::Redis;
use super::rpc;
use super::scenario::{Ask, Http, Load, Port, Scenario, Step};
use super::service::{LOOK, START, Service, Side};
use super::status::UNITS;
use crate::message;

/// How long a counter or a page may lag behind.
const BOOKS: Duration = Duration::from_secs(5);

/// How much of a window must be left when a scenario begins that counts on its end not coming.
const ROOM: u64 = 15;

/// The name of a file that comes and goes within a step.
const EXTRA: &str = "extra.yaml";

const HEALTH: &str = "/grpc.health.v1.Health/Check";

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// A service with its store.
#[derive(Debug)]
pub struct Peer {
    /// Who.
    pub side: Side,
    /// Whether it is the version of the reference that the scenarios call pinned.
    pub pinned: bool,
    /// The service.
    pub service: Service,
    /// The store of its limits by the second, if it is another.
    pub second_redis: Option<Redis>,
}

/// What became of a scenario at one service.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is not as expected.
    pub wrong: Vec<String>,
    /// The answers of each step, without what the clock makes of them.
    pub answers: Vec<Value>,
}

/// Waits until no window ends soon that the scenario counts in.
pub async fn settle(scenario: &Scenario) {
    for unit in ["minute", "hour", "day"] {
        let length = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map_or(1, |u| u.1);
        // The end of a longer window is the end of a shorter one too, but not the other way round.
        while scenario.speaks_of(unit) && length - now() % length < ROOM {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Runs all steps against one service.
pub async fn observe(scenario: &Scenario, peer: &mut Peer, redis: &mut Redis) -> Outcome {
    let mut outcome = Outcome::default();
    for (nth, step) in scenario.steps.iter().enumerate() {
        let place = format!("step {}", nth + 1);
        match run(scenario, step, peer, redis, &mut outcome).await {
            Ok(()) => {}
            Err(error) => {
                outcome.wrong.push(format!("{place}: {error}"));
                break;
            }
        }
    }
    outcome
}

/// What two outcomes have in common must be the same.
pub fn verdict(scenario: &Scenario, outcomes: &[(Side, Outcome)]) -> Result<(), String> {
    let mut wrong = Vec::new();
    for (side, outcome) in outcomes {
        wrong.extend(outcome.wrong.iter().map(|line| format!("{side:?}: {line}")));
    }
    if let [(_, one), (_, other)] = outcomes
        && wrong.is_empty()
        && scenario.deviates.is_none()
    {
        let pairs = one.answers.iter().zip(&other.answers);
        for (one, other) in pairs.filter(|(one, other)| one != other) {
            wrong.push(format!("they differ: {one}\n       and {other}"));
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n"))
    }
}

async fn run(
    scenario: &Scenario,
    step: &Step,
    peer: &mut Peer,
    redis: &mut Redis,
    outcome: &mut Outcome,
) -> Result<(), String> {
    match step {
        Step::Ask(ask) => {
            for nth in 0..ask.times {
                self::ask(scenario, ask, nth, peer, outcome).await?;
            }
            Ok(())
        }
        Step::Recovers(ask) => {
            let start = Instant::now();
            loop {
                match self::ask(scenario, ask, 0, peer, outcome).await {
                    Err(error) if start.elapsed() > START => return Err(error),
                    Err(_) => tokio::time::sleep(LOOK).await,
                    Ok(()) => return Ok(()),
                }
            }
        }
        Step::Http(http) => self::http(http, &peer.service).await,
        Step::Health(expected) => {
            for (name, expected) in expected {
                health(name, expected, &peer.service).await?;
            }
            Ok(())
        }
        Step::Load(load) => self::load(scenario, load, peer).await,
        Step::Rejected(rejected) => {
            let text = rejected.pinned.as_ref().filter(|_| peer.pinned);
            let text = format!("{EXTRA}: {}", text.unwrap_or(&rejected.with));
            let refused = peer.service.load(&extra(Some(&rejected.text))).await?;
            let taken = rejected.taken_by_reference && peer.side == Side::Reference;
            let expected = (!taken).then_some(text.as_str());
            let differs = refusal_differs(expected, refused, &peer.service).await;
            self::load(scenario, &Load::of(extra(None)), peer).await?;
            differs
        }
        Step::Accepted(accepted) => {
            self::load(scenario, &Load::of(extra(Some(&accepted.text))), peer).await?;
            for ask in &accepted.ask {
                self::ask(scenario, ask, 0, peer, outcome).await?;
            }
            self::load(scenario, &Load::of(extra(None)), peer).await
        }
        Step::Stats(expected) => {
            let beginning = format!("ratelimit.service.rate_limit.{}.", scenario.domain);
            let start = Instant::now();
            loop {
                let statsd = &peer.service.statsd;
                let mut seen = statsd.counters(&beginning);
                for name in expected.keys().filter(|name| name.starts_with("ratelimit")) {
                    seen.insert(name.clone(), statsd.counter(name));
                }
                if seen == *expected {
                    return Ok(());
                }
                if start.elapsed() > BOOKS {
                    return Err(format!("counted {seen:?}\n   not {expected:?}"));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Step::Stored(expected) => stored(scenario, expected, redis).await,
        Step::StoredPerSecond(expected) => {
            let redis = peer.second_redis.as_ref();
            stored(scenario, expected, redis.ok_or("there is no second Redis")?).await
        }
        Step::Wait(unit) => {
            let length = UNITS.iter().find(|(name, _)| name == unit);
            let (_, length) = length.ok_or_else(|| format!("no unit `{unit}`"))?;
            let window = now() / length;
            while now() / length == window {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        }
        Step::Redis(what) => match what.as_str() {
            "down" => {
                redis.down();
                Ok(())
            }
            "up" => redis.up().await,
            other => Err(format!("Redis cannot go `{other}`")),
        },
        Step::Signal(name) => {
            peer.service.signal(name)?;
            match peer.service.ended().await? {
                0 => Ok(()),
                code => Err(format!("it ended with {code}")),
            }
        }
    }
}

async fn ask(
    scenario: &Scenario,
    ask: &Ask,
    nth: u64,
    peer: &Peer,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let of = message::descriptor("envoy.service.ratelimit.v3.RateLimitRequest");
    let domain = ask.domain.as_ref().unwrap_or(&scenario.domain);
    let request = message::encode(&of, &ask.of.request(domain, ask.hits)?, false)?;
    let expected = match (peer.side, &ask.reference, &ask.pinned) {
        (Side::Reference, _, Some(pinned)) if peer.pinned => pinned,
        (Side::Reference, Some(reference), _) => reference,
        _ => &ask.expect,
    };
    let before = now();
    let answer = match peer.service.call(METHOD, &request, ask.tls.as_ref()).await {
        Err(_) if expected.whole().gone => return Ok(()),
        answer => answer?,
    };
    let after = now();
    let mut wrong = Vec::new();
    let seen = match answer {
        Ok(bytes) => {
            let of = message::descriptor("envoy.service.ratelimit.v3.RateLimitResponse");
            let seen = message::decode(&of, &bytes)?;
            wrong.extend(differences::answer(
                expected, ask, nth, &seen, before, after,
            )?);
            differences::without_clock(seen)
        }
        Err(failed) => {
            wrong.extend(differences::error(expected, &failed));
            json!({ "code": failed.code, "error": failed.message })
        }
    };
    let time = match ask.times {
        1 => String::new(),
        times => format!(", time {} of {times}", nth + 1),
    };
    if !wrong.is_empty() {
        return Err(format!("{}{time}\n  of {seen}", wrong.join("; ")));
    }
    // What is written as a pattern may differ.
    let pattern = (ask.expect.whole().error).is_some_and(|error| !error.is_string());
    if ask.reference.is_none() && ask.pinned.is_none() && !pattern {
        outcome.answers.push(seen);
    }
    Ok(())
}

async fn http(http: &Http, service: &Service) -> Result<(), String> {
    let address = match http.port {
        Port::Http => service.http,
        Port::Debug => service.debug,
        Port::Prometheus => service.prometheus,
    };
    let body = http.body.as_deref();
    let method = match (&http.method, body) {
        (Some(method), _) => method,
        (None, Some(_)) => "POST",
        (None, None) => "GET",
    };
    let start = Instant::now();
    loop {
        let body = body.unwrap_or_default();
        let wrong = match rpc::exchange(address, method, &http.path, body).await {
            Some(answer) => differences::http(http, &answer),
            None => vec!["no answer".to_owned()],
        };
        if wrong.is_empty() {
            return Ok(());
        }
        // Only what asks for nothing may be repeated.
        if method != "GET" || start.elapsed() > BOOKS {
            return Err(format!("{method} {}: {}", http.path, wrong.join("; ")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Asks the health service until it answers so.
async fn health(name: &str, expected: &Value, service: &Service) -> Result<(), String> {
    let mut request = Vec::new();
    if !name.is_empty() {
        request.extend([0x0a, u8::try_from(name.len()).unwrap_or_default()]);
        request.extend(name.as_bytes());
    }
    let start = Instant::now();
    loop {
        let seen = match service.call(HEALTH, &request, None).await {
            Ok(Ok(answer)) => match answer.as_ref() {
                [0x08, 1] => json!("serving"),
                [0x08, 2] => json!("not serving"),
                other => json!(other),
            },
            Ok(Err(failed)) => json!(failed.code),
            Err(error) => return Err(error),
        };
        if seen == *expected {
            return Ok(());
        }
        if start.elapsed() > BOOKS {
            return Err(format!("health of `{name}` is {seen}, not {expected}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn load(scenario: &Scenario, load: &Load, peer: &mut Peer) -> Result<(), String> {
    let mut changes = load.files.clone();
    if let Some(rules) = &load.rules {
        changes.insert(scenario.file_name(), Some(scenario.document(rules)));
    }
    let refused = peer.service.load(&changes).await?;
    refusal_differs(load.refused.as_deref(), refused, &peer.service).await
}

/// The change that brings the file `EXTRA`, or removes it.
fn extra(text: Option<&str>) -> BTreeMap<String, Option<String>> {
    BTreeMap::from([(EXTRA.to_owned(), text.map(str::to_owned))])
}

async fn refusal_differs(
    expected: Option<&str>,
    refused: Option<usize>,
    service: &Service,
) -> Result<(), String> {
    match (expected, refused) {
        (None, None) => Ok(()),
        (Some(text), Some(since)) => {
            // The log may be read a moment later than the counter.
            let start = Instant::now();
            loop {
                let said = without_places(&service.log(since));
                if said.contains(text) {
                    return Ok(());
                }
                if start.elapsed() > BOOKS {
                    return Err(format!("no {text:?} in {said:?}"));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        (None, Some(since)) => Err(format!("refused: {}", service.log(since))),
        (Some(text), None) => Err(format!("taken, not refused with {text:?}")),
    }
}

/// A log without the lines and columns that ours names after a file.
fn without_places(log: &str) -> String {
    static PLACE: LazyLock<regex::Regex> =
        LazyLock::new(|| regex::Regex::new(r"\.yaml:\d+:\d+:").expect("a valid regex"));
    PLACE.replace_all(log, ".yaml:").into_owned()
}

async fn stored(
    scenario: &Scenario,
    expected: &BTreeMap<String, [i64; 2]>,
    redis: &Redis,
) -> Result<(), String> {
    let pattern = format!("*{}_*", scenario.domain);
    let found = redis.ask(&["KEYS", &pattern]).await?;
    let mut seen = Vec::new();
    for key in &found {
        let ttl = redis.ask(&["TTL", key]).await?;
        let ttl: i64 = ttl[0].parse().map_err(|_| format!("TTL {ttl:?}"))?;
        seen.push((key.replacen(&format!("{}_", scenario.domain), "", 1), ttl));
    }
    let now = now();
    let matches = |wanted: &str, key: &str| {
        let Some((unit, length)) = UNITS
            .iter()
            .find(|(unit, _)| wanted.ends_with(&format!("<{unit}>")))
        else {
            return wanted == key;
        };
        let head = wanted.trim_end_matches(&format!("<{unit}>"));
        (now.saturating_sub(5)..=now).any(|now| format!("{head}{}", now / length * length) == key)
    };
    let right = expected.len() == seen.len()
        && expected.iter().all(|(wanted, [least, most])| {
            let mut seen = seen.iter();
            seen.any(|(key, ttl)| matches(wanted, key) && (least..=most).contains(&ttl))
        });
    if right {
        Ok(())
    } else {
        Err(format!("stored {seen:?}\n   not {expected:?}"))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}
