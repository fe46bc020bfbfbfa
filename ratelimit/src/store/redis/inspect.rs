//! Counters as operators see them: looked for with `SCAN`, one server after the other, over
//! connections of their own, so that decisions do not wait behind.

use std::time::Duration;

use redis::{Cmd, Pipeline, Value};
use tokio::time::Instant;

use super::{
    Backend, Inner, RedisStore, Servers,
    command::{Refusal, unexpected},
    connect::{Connection, Target},
    settings::KeyFormat,
};
use crate::{
    limiter::UnixTime,
    store::{CounterState, Inspect, Page, Query, StoreError},
};

/// Bound on listing a page, and on forgetting counters.
const DEADLINE: Duration = Duration::from_secs(5);

/// A page that took this long ends, however little is on it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keys that a server goes through in one step, at least and at most.
const STEP: (usize, usize) = (10, 1000);

const SECOND: u64 = 1_000_000;

/// What is listed and forgotten are keys that are written and hold what counters of this store
/// do, and have a lifetime; whatever else lives in the same Redis is left alone.
///
/// Of a token bucket the store does not know the limit: what counts is worked out from when the
/// bucket is full again, and may be what it was up to a second before. A fixed window of
/// [`KeyFormat::Reference`] is there until Redis forgets it, which is up to
/// [`RedisSettings::expiry_jitter`](super::RedisSettings::expiry_jitter) after its end.
impl Inspect for RedisStore {
    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        self.inner.in_time(self.inner.list(query, now)).await
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        self.inner.in_time(self.inner.reset(prefix)).await
    }
}

impl Inner {
    async fn in_time<T>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = tokio::time::timeout(DEADLINE, operation).await;
        done.unwrap_or_else(|_| {
            Err(StoreError::Timeout {
                store: "redis",
                address: self.main.name(),
                millis: DEADLINE.as_millis(),
            })
        })
    }

    /// All servers that have counters.
    fn nodes(&self) -> Result<Vec<Node<'_>>, StoreError> {
        let mut nodes = Vec::new();
        for backend in [Some(&self.main), self.per_second.as_ref()] {
            let Some(backend) = backend else { continue };
            let targets = match &backend.servers {
                Servers::One { target, .. } => vec![target.clone()],
                Servers::Cluster(cluster) => cluster.masters()?,
            };
            nodes.extend(targets.into_iter().map(|target| Node { backend, target }));
        }
        Ok(nodes)
    }

    async fn list(&self, query: &Query, now: UnixTime) -> Result<Page, StoreError> {
        let nodes = self.nodes()?;
        let start = match &query.cursor {
            None => Some((0, 0)),
            Some(cursor) => position(cursor).filter(|(at, _)| *at < nodes.len()),
        };
        let (mut at, mut cursor) = start.ok_or_else(|| StoreError::NoCursor {
            cursor: query.cursor.clone().unwrap_or_default(),
        })?;
        let started = Instant::now();
        let mut page = Page::default();
        while let Some(node) = nodes.get(at) {
            let mut walk = Walk::start(node, &query.prefix, cursor, query.limit).await?;
            loop {
                // Those that are moving to another server may be missing from a list.
                let found = walk.step().await?.found;
                page.counters
                    .extend(found.iter().filter_map(|found| found.state(now)));
                let is_over = walk.cursor == 0;
                if is_over {
                    at += 1;
                }
                let is_full = page.counters.len() >= query.limit.max(1);
                if (is_full || started.elapsed() >= PATIENCE) && at < nodes.len() {
                    page.next = Some(format!("{at}:{}", walk.cursor));
                    return Ok(page);
                }
                if is_over {
                    break;
                }
            }
            cursor = 0;
        }
        Ok(page)
    }

    async fn reset(&self, prefix: &str) -> Result<u64, StoreError> {
        let mut sum = 0_u64;
        for node in &self.nodes()? {
            let mut walk = Walk::start(node, prefix, 0, STEP.1).await?;
            loop {
                let step = walk.step().await?;
                sum = sum.saturating_add(walk.forget(&step.found).await?);
                if let Some(moved) = step.moved {
                    return Err(node.failed(moved));
                }
                if walk.cursor == 0 {
                    break;
                }
            }
        }
        Ok(sum)
    }
}

/// The number of a server, and where its `SCAN` goes on.
fn position(cursor: &str) -> Option<(usize, u64)> {
    let (node, at) = cursor.split_once(':')?;
    Some((node.parse().ok()?, at.parse().ok()?))
}

/// A server that has counters.
struct Node<'a> {
    backend: &'a Backend,
    target: Target,
}

impl Node<'_> {
    fn failed(&self, reason: impl ToString) -> StoreError {
        StoreError::Failed {
            store: "redis",
            address: self.target.name(),
            reason: reason.to_string(),
        }
    }
}

/// A way through the keys of one server.
struct Walk<'a> {
    node: &'a Node<'a>,
    connection: Connection,
    pattern: String,
    /// 0 at the end.
    cursor: u64,
    /// Keys to go through in the next step.
    count: usize,
}

/// What a step of a walk has come upon.
struct Step {
    found: Vec<Found>,
    /// Why one of the counters could not be read, if it is on its way to another server.
    moved: Option<Refusal>,
}

/// A counter.
#[derive(Debug)]
struct Found {
    /// As it stands in Redis.
    key: String,
    /// Without the prefix of the settings.
    name: String,
    held: Held,
    /// Microseconds until Redis forgets it.
    left: u64,
}

impl<'a> Walk<'a> {
    async fn start(
        node: &'a Node<'a>,
        prefix: &str,
        cursor: u64,
        count: usize,
    ) -> Result<Self, StoreError> {
        let settings = &node.backend.context.settings;
        let connection =
            node.target
                .connect(settings)
                .await
                .map_err(|error| StoreError::NotConnected {
                    store: "redis",
                    address: node.target.name(),
                    reason: error.to_string(),
                })?;
        Ok(Self {
            node,
            connection,
            pattern: format!("{}{}*", literal(&settings.key_prefix), literal(prefix)),
            cursor,
            count: count.clamp(STEP.0, STEP.1),
        })
    }

    async fn step(&mut self) -> Result<Step, StoreError> {
        let mut scan = Cmd::new();
        scan.arg("SCAN").arg(self.cursor).arg("MATCH");
        scan.arg(&self.pattern).arg("COUNT").arg(self.count);
        let (cursor, keys) = scan
            .query_async::<(u64, Vec<Vec<u8>>)>(&mut self.connection.handle)
            .await
            .map_err(|error| self.node.failed(error))?;
        self.cursor = cursor;
        let step = self.read(keys).await?;
        if step.found.is_empty() {
            // What is looked for is rare.
            self.count = self.count.saturating_mul(2).min(STEP.1);
        }
        Ok(step)
    }

    /// Reads those of the keys that are counters.
    async fn read(&mut self, keys: Vec<Vec<u8>>) -> Result<Step, StoreError> {
        let settings = &self.node.backend.context.settings;
        let mut pipeline = Pipeline::new();
        let mut asked = Vec::with_capacity(keys.len());
        for key in keys {
            let Ok(key) = String::from_utf8(key) else {
                continue;
            };
            let Some(name) = key.strip_prefix(&settings.key_prefix) else {
                continue;
            };
            if let Some(shape) = Shape::of(name, settings.key_format) {
                shape.read(&key, &mut pipeline);
                pipeline.cmd("PTTL").arg(&key);
                asked.push((name.to_owned(), key, shape));
            }
        }
        let mut answers = self.run(&pipeline, asked.len() * 2).await?.into_iter();
        let mut step = Step {
            found: Vec::with_capacity(asked.len()),
            moved: None,
        };
        for (name, key, shape) in asked {
            let (Some(value), Some(left)) = (answers.next(), answers.next()) else {
                break;
            };
            if let Value::ServerError(error) = &value
                && error.code() == "WRONGTYPE"
            {
                continue;
            }
            if matches!(value, Value::ServerError(_)) {
                match unexpected(value) {
                    moved @ (Refusal::Moved(_) | Refusal::Ask(_) | Refusal::TryAgain) => {
                        step.moved = Some(moved);
                    }
                    refusal => return Err(self.node.failed(refusal)),
                }
                continue;
            }
            let millis = match left {
                Value::Int(millis) => u64::try_from(millis).ok(),
                Value::ServerError(_) => return Err(self.node.failed(unexpected(left))),
                _ => None,
            };
            if let (Some(held), Some(millis)) = (shape.held(value), millis) {
                step.found.push(Found {
                    key,
                    name,
                    held,
                    left: millis.saturating_mul(1000),
                });
            }
        }
        Ok(step)
    }

    /// Deletes counters; returns how many were there.
    async fn forget(&mut self, found: &[Found]) -> Result<u64, StoreError> {
        let mut pipeline = Pipeline::new();
        for found in found {
            // One at a time: in a cluster they are in different slots.
            pipeline.cmd("UNLINK").arg(&found.key);
        }
        let mut sum = 0_u64;
        for answer in self.run(&pipeline, found.len()).await? {
            match answer {
                Value::Int(count) => sum = sum.saturating_add_signed(count),
                other => return Err(self.node.failed(unexpected(other))),
            }
        }
        Ok(sum)
    }

    async fn run(&mut self, pipeline: &Pipeline, count: usize) -> Result<Vec<Value>, StoreError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let handle = &mut self.connection.handle;
        let answers = handle.send_packed_commands(pipeline, 0, count).await;
        answers.map_err(|error| self.node.failed(error))
    }
}

/// A pattern that only the text itself matches.
fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// What a counter's name says of how it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Fixed {
        /// The first second after the window, if the name tells.
        end: Option<u64>,
    },
    Sliding {
        /// Seconds.
        length: u64,
    },
    Bucket {
        /// Seconds.
        period: u64,
    },
}

impl Shape {
    /// The other way round from `plan::name`; `None` for what is not the name of a counter.
    fn of(name: &str, format: KeyFormat) -> Option<Self> {
        let (rest, last) = name.rsplit_once('_')?;
        let Some(seconds) = last.strip_suffix('s') else {
            return (format == KeyFormat::Reference && number(last).is_some())
                .then_some(Self::Fixed { end: None });
        };
        let seconds = number(seconds)?;
        match (rest.rsplit_once('_')?.1, format) {
            ("sliding", _) => Some(Self::Sliding {
                length: seconds.max(1),
            }),
            ("bucket", _) => Some(Self::Bucket {
                period: seconds.max(1),
            }),
            (start, KeyFormat::WithLength) => Some(Self::Fixed {
                end: Some(number(start)?.saturating_add(seconds)),
            }),
            (_, KeyFormat::Reference) => None,
        }
    }

    /// Appends the command that reads such a counter.
    fn read(self, key: &str, pipeline: &mut Pipeline) {
        match self {
            Self::Fixed { .. } => pipeline.cmd("GET").arg(key),
            Self::Sliding { .. } => pipeline
                .cmd("HMGET")
                .arg(key)
                .arg(&["window", "count", "previous"]),
            Self::Bucket { .. } => pipeline.cmd("HMGET").arg(key).arg(&["missing", "at"]),
        };
    }

    /// What the answer says; `None` when there is no such counter.
    fn held(self, answer: Value) -> Option<Held> {
        match self {
            Self::Fixed { end } => {
                // Those of others may be negative.
                let count = redis::from_redis_value::<i64>(answer).ok()?;
                let count = u64::try_from(count).unwrap_or(0);
                Some(Held::Fixed { end, count })
            }
            Self::Sliding { length } => {
                let (window, count, previous) = redis::from_redis_value(answer).ok()?;
                Some(Held::Sliding {
                    length,
                    window,
                    count,
                    previous,
                })
            }
            Self::Bucket { period } => {
                let (missing, at) = redis::from_redis_value::<(u128, u64)>(answer).ok()?;
                Some(Held::Bucket {
                    period,
                    missing,
                    at,
                })
            }
        }
    }
}

/// Digits and nothing else.
fn number(text: &str) -> Option<u64> {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

/// What stands in Redis, as the commands and `charge.lua` write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Fixed {
        end: Option<u64>,
        count: u64,
    },
    Sliding {
        length: u64,
        /// The number of the window since the epoch.
        window: u64,
        count: u64,
        previous: u64,
    },
    Bucket {
        period: u64,
        /// In units of which the period in microseconds make one token.
        missing: u128,
        /// When that was so, in microseconds.
        at: u64,
    },
}

impl Found {
    /// What counts, unless nothing does.
    fn state(&self, now: UnixTime) -> Option<CounterState> {
        let (used, micros) = match self.held {
            Held::Fixed { end, count } => {
                let micros = match end {
                    Some(end) => end.saturating_mul(SECOND).saturating_sub(now.micros()),
                    None => self.left.max(1),
                };
                (count, micros)
            }
            Held::Sliding {
                length,
                window,
                count,
                previous,
            } => sliding(length, (window, count, previous), now),
            Held::Bucket {
                period,
                missing,
                at,
            } => {
                // It lives for the time until it is full, and a second.
                let left = self.left.saturating_sub(SECOND);
                let whole = left.saturating_add(now.micros().saturating_sub(at)).max(1);
                let missing = missing.saturating_mul(left.into()) / u128::from(whole);
                let token = u128::from(period.saturating_mul(SECOND)).max(1);
                (
                    u64::try_from(missing.div_ceil(token)).unwrap_or(u64::MAX),
                    left,
                )
            }
        };
        (used > 0 && micros > 0).then(|| CounterState {
            key: self.name.clone(),
            used,
            resets_in: micros.div_ceil(SECOND),
        })
    }
}

/// What counts of a sliding window, and for how many microseconds more.
fn sliding(length: u64, held: (u64, u64, u64), now: UnixTime) -> (u64, u64) {
    let length = length.saturating_mul(SECOND);
    let current = now.micros() / length.max(1);
    let (window, count, previous) = match held {
        (window, count, previous) if window >= current => (window, count, previous),
        (window, count, _) if window.saturating_add(1) == current => (current, 0, count),
        _ => return (0, 0),
    };
    let end = window.saturating_add(1).saturating_mul(length);
    let left = end.saturating_sub(now.micros());
    let part = u128::from(previous)
        .saturating_mul(left.min(length).into())
        .div_ceil(u128::from(length.max(1)));
    let used = count.saturating_add(u64::try_from(part).unwrap_or(u64::MAX));
    match count {
        0 => (used, left),
        _ => (used, left.saturating_add(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(held: Held, left: u64) -> Found {
        Found {
            key: "p:d_k_v".to_owned(),
            name: "d_k_v".to_owned(),
            held,
            left: left * SECOND,
        }
    }

    fn state(held: Held, left: u64, now: u64) -> Option<(u64, u64)> {
        let state = found(held, left).state(UnixTime::from_seconds(now))?;
        assert_eq!(state.key, "d_k_v");
        Some((state.used, state.resets_in))
    }

    #[test]
    fn names_of_counters_are_told_from_others() {
        let fixed = |end| Some(Shape::Fixed { end });
        let sliding = Some(Shape::Sliding { length: 60 });
        let bucket = Some(Shape::Bucket { period: 60 });
        for (name, reference, with_length) in [
            ("d_k_v_1200", fixed(None), None),
            ("d_k_sliding_60s_1200", fixed(None), None),
            ("d_k_v_1200_60s", None, fixed(Some(1260))),
            ("d_k_v_sliding_60s", sliding, sliding),
            ("d_k_v_bucket_60s", bucket, bucket),
            ("session", None, None),
            ("user_ada", None, None),
            ("user_", None, None),
            ("user_+5", None, None),
            ("user_s", None, None),
            ("d_99999999999999999999999", None, None),
        ] {
            assert_eq!(Shape::of(name, KeyFormat::Reference), reference, "{name}");
            assert_eq!(
                Shape::of(name, KeyFormat::WithLength),
                with_length,
                "{name}"
            );
        }
    }

    #[test]
    fn patterns_match_the_text_alone() {
        assert_eq!(literal("a*b?[c]\\"), "a\\*b\\?\\[c\\]\\\\");
        assert_eq!(literal("ü_{d}"), "ü_{d}");
    }

    #[test]
    fn fixed_windows_count_until_they_end() {
        let held = |end, count| Held::Fixed { end, count };
        assert_eq!(state(held(None, 3), 7, 1000), Some((3, 7)));
        assert_eq!(state(held(Some(1060), 3), 99, 1000), Some((3, 60)));
        assert_eq!(state(held(Some(1000), 3), 2, 1000), None);
        assert_eq!(state(held(None, 0), 7, 1000), None);
    }

    #[test]
    fn sliding_windows_count_what_is_left_of_the_one_before() {
        let held = |window, count, previous| Held::Sliding {
            length: 60,
            window,
            count,
            previous,
        };
        // 1230 is in the middle of window 20, which ends at 1260.
        assert_eq!(state(held(20, 3, 5), 90, 1230), Some((6, 90)));
        assert_eq!(state(held(20, 0, 5), 90, 1230), Some((3, 30)));
        assert_eq!(state(held(19, 3, 5), 60, 1230), Some((2, 30)));
        assert_eq!(state(held(18, 3, 5), 60, 1230), None);
    }

    #[test]
    fn of_buckets_counts_what_is_still_missing() {
        // Six tokens of a minute's sixty were missing at 1000, and come back in six seconds.
        let held = Held::Bucket {
            period: 60,
            missing: 6 * 60 * 1_000_000,
            at: 1000 * SECOND,
        };
        assert_eq!(state(held, 7, 1000), Some((6, 6)));
        assert_eq!(state(held, 5, 1002), Some((4, 4)));
        assert_eq!(state(held, 1, 1006), None);
    }

    #[test]
    fn answers_that_are_no_counters_are_passed_over() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let fixed = Shape::Fixed { end: None };
        assert_eq!(fixed.held(text("hello")), None);
        assert_eq!(fixed.held(Value::Nil), None);
        let negative = Held::Fixed {
            end: None,
            count: 0,
        };
        assert_eq!(fixed.held(text("-3")), Some(negative));
        let empty = Value::Array(vec![Value::Nil, Value::Nil]);
        assert_eq!(Shape::Bucket { period: 1 }.held(empty), None);
    }

    #[test]
    fn cursors_name_a_server_and_a_place() {
        assert_eq!(position("2:17"), Some((2, 17)));
        for bad in ["", "nonsense", "2", "2:", ":2", "-1:2"] {
            assert_eq!(position(bad), None, "{bad}");
        }
    }
}
