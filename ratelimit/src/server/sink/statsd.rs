//! statsd over TCP, as the reference sends it: `name:value|c` lines, tags at the end of the name.

use std::{fmt::Write as _, time::Duration};

use attache_service::Address;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{super::statistics::StatisticsSource, Sample, SampleValue};

/// Bound on reaching the collector, and on writing to it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a collector, made anew when it is lost.
pub(super) struct Statsd {
    collector: Address,
    /// `.__key=value` of each tag.
    suffix: String,
    connection: Option<TcpStream>,
    /// The collector was told to be away.
    away: bool,
}

impl Statsd {
    pub(super) fn new(collector: Address, tags: &[(String, String)]) -> Self {
        let mut suffix = String::new();
        for (key, value) in tags {
            let value = value.replace(['.', ':', '|'], "_");
            // Writing to a String cannot fail.
            let _ = write!(suffix, ".__{key}={value}");
        }
        Self {
            collector,
            suffix,
            connection: None,
            away: false,
        }
    }

    /// Sends what has grown. While the collector is away it goes on growing.
    pub(super) async fn flush(&mut self, source: &StatisticsSource) {
        let sent = tokio::time::timeout(TIMEOUT, async {
            let connection = match &mut self.connection {
                Some(connection) => connection,
                none => none.insert(TcpStream::connect(self.collector.to_string()).await?),
            };
            let text = lines(&source.flush(), &self.suffix);
            connection.write_all(text.as_bytes()).await?;
            connection.flush().await
        });
        let problem = match sent.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no progress within {TIMEOUT:?}")),
        };
        match problem {
            None if self.away => {
                tracing::info!(collector = %self.collector, "statistics are taken again");
                self.away = false;
            }
            None => {}
            Some(error) => {
                self.connection = None;
                if !std::mem::replace(&mut self.away, true) {
                    tracing::warn!(collector = %self.collector, error, "statistics cannot be sent");
                }
            }
        }
    }
}

fn lines(samples: &[Sample], suffix: &str) -> String {
    let mut text = String::new();
    for Sample { name, value } in samples {
        // Writing to a String cannot fail.
        let _ = match value {
            SampleValue::Counter(value) => writeln!(text, "{name}{suffix}:{value}|c"),
            SampleValue::Gauge(value) => writeln!(text, "{name}{suffix}:{value}|g"),
            SampleValue::Timer(times) => times.iter().try_for_each(|(milliseconds, count)| {
                let rate = Rate(*count);
                writeln!(text, "{name}{suffix}:{milliseconds}.000000|ms{rate}")
            }),
        };
    }
    text
}

/// Stands for several equal times: a share of them that was sent.
pub(super) struct Rate(pub(super) u64);

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 | 1 => Ok(()),
            #[allow(clippy::cast_precision_loss)]
            count => write!(f, "|@{}", 1.0 / (count as f64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_reference() {
        let tags = [
            ("b".to_owned(), "2".to_owned()),
            ("z".to_owned(), "1.0".to_owned()),
        ];
        let suffix = Statsd::new("localhost:8125".parse().unwrap(), &tags).suffix;
        let sample = |name: &str, value| Sample {
            name: name.to_owned(),
            value,
        };
        let samples = [
            sample(
                "ratelimit.service.config_load_success",
                SampleValue::Counter(1),
            ),
            sample("ratelimit.redis_pool.cx_active", SampleValue::Gauge(10)),
            sample(
                "ratelimit_server.ShouldRateLimit.response_time",
                SampleValue::Timer(vec![(0, 1), (3, 4)]),
            ),
        ];
        assert_eq!(
            lines(&samples, &suffix),
            "ratelimit.service.config_load_success.__b=2.__z=1_0:1|c\n\
             ratelimit.redis_pool.cx_active.__b=2.__z=1_0:10|g\n\
             ratelimit_server.ShouldRateLimit.response_time.__b=2.__z=1_0:0.000000|ms\n\
             ratelimit_server.ShouldRateLimit.response_time.__b=2.__z=1_0:3.000000|ms|@0.25\n"
        );
    }
}
