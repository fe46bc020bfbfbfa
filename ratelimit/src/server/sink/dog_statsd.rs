//! DogStatsD over UDP: `name:value|c|#tag:value`, with names that can be changed on the way.

use std::fmt::Write as _;

use attache_service::Address;
use regex::{Captures, Regex};
use tokio::net::UdpSocket;

use super::{super::statistics::StatisticsSource, Sample, SampleValue, statsd::Rate};

/// What fits into a datagram on every network: that of the Datadog client.
const PACKET: usize = 1432;

/// Changes the names that its pattern matches, and gives them tags.
#[derive(Debug, Clone)]
pub struct Mogrifier {
    /// Which names.
    pub pattern: Regex,
    /// What becomes of them; `$1` stands for the first group of the pattern, and so on.
    pub name: String,
    /// Tags, in whose values `$1` stands for the same.
    pub tags: Vec<(String, String)>,
}

pub(super) struct DogStatsd {
    collector: Address,
    mogrifiers: Vec<Mogrifier>,
    tags: Vec<String>,
    socket: Option<UdpSocket>,
}

impl DogStatsd {
    pub(super) fn new(
        collector: Address,
        mogrifiers: Vec<Mogrifier>,
        tags: &[(String, String)],
    ) -> Self {
        let tags = tags.iter().map(|(key, value)| format!("{key}:{value}"));
        Self {
            collector,
            mogrifiers,
            tags: tags.collect(),
            socket: None,
        }
    }

    /// Sends what has grown. Nobody tells whether it arrives.
    pub(super) async fn flush(&mut self, source: &StatisticsSource) {
        if self.socket.is_none() {
            match connect(&self.collector).await {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => {
                    tracing::warn!(collector = %self.collector, %error, "statistics cannot be sent");
                    return;
                }
            }
        }
        let packets = self.packets(&source.flush());
        let Some(socket) = &self.socket else { return };
        for packet in packets {
            if let Err(error) = socket.send(packet.as_bytes()).await {
                tracing::debug!(collector = %self.collector, %error, "statistics are lost");
            }
        }
    }

    fn packets(&self, samples: &[Sample]) -> Vec<String> {
        let mut packets = vec![String::new()];
        for line in samples.iter().flat_map(|sample| self.lines(sample)) {
            match packets.last_mut() {
                Some(packet) if packet.is_empty() || packet.len() + 1 + line.len() <= PACKET => {
                    if !packet.is_empty() {
                        packet.push('\n');
                    }
                    packet.push_str(&line);
                }
                _ => packets.push(line),
            }
        }
        packets.retain(|packet| !packet.is_empty());
        packets
    }

    fn lines(&self, sample: &Sample) -> Vec<String> {
        let (name, mogrified) = self.mogrify(&sample.name);
        let tags: Vec<_> = self.tags.iter().chain(&mogrified).cloned().collect();
        let mut suffix = String::new();
        if !tags.is_empty() {
            // Writing to a String cannot fail.
            let _ = write!(suffix, "|#{}", tags.join(","));
        }
        match &sample.value {
            SampleValue::Counter(value) => vec![format!("{name}:{value}|c{suffix}")],
            SampleValue::Gauge(value) => vec![format!("{name}:{value}|g{suffix}")],
            SampleValue::Timer(times) => times
                .iter()
                .map(|(time, count)| format!("{name}:{time}.000000|ms{}{suffix}", Rate(*count)))
                .collect(),
        }
    }

    fn mogrify(&self, name: &str) -> (String, Vec<String>) {
        for mogrifier in &self.mogrifiers {
            if let Some(groups) = mogrifier.pattern.captures(name) {
                let tags = mogrifier.tags.iter();
                let tags = tags.map(|(key, value)| format!("{key}:{}", fill(value, &groups)));
                return (fill(&mogrifier.name, &groups), tags.collect());
            }
        }
        (name.to_owned(), Vec::new())
    }
}

async fn connect(collector: &Address) -> std::io::Result<UdpSocket> {
    let address = tokio::net::lookup_host(collector.to_string())
        .await?
        .next()
        .ok_or_else(|| std::io::Error::other("the host name has no address"))?;
    let local = match address.is_ipv4() {
        true => "0.0.0.0:0",
        false => "[::]:0",
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    Ok(socket)
}

/// Puts groups in the places of `$0`, `$1` and so on; a number without a group stays as it is.
fn fill(template: &str, groups: &Captures<'_>) -> String {
    let mut parts = template.split('$');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at_checked(digits).unwrap_or(("", part));
        let known = number.parse().ok().filter(|n: &usize| *n < groups.len());
        match known {
            Some(number) => {
                text.push_str(groups.get(number).map_or("", |group| group.as_str()));
                text.push_str(rest);
            }
            None => {
                text.push('$');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(name: &str) -> Sample {
        Sample {
            name: name.to_owned(),
            value: SampleValue::Counter(1),
        }
    }

    fn sink() -> DogStatsd {
        let mogrifier = Mogrifier {
            pattern: Regex::new(r"^ratelimit\.service\.rate_limit\.(.*)\.(.*)\.(.*)$").unwrap(),
            name: "x.$3".to_owned(),
            tags: [("dom", "$1"), ("d", "$2"), ("q", "$9 $")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .to_vec(),
        };
        let tags = [("b".to_owned(), "2".to_owned())];
        DogStatsd::new("localhost:8125".parse().unwrap(), vec![mogrifier], &tags)
    }

    #[test]
    fn names_that_match_become_others_with_tags() {
        let sink = sink();
        let samples = [
            counter("ratelimit.service.rate_limit.foo.k1_v1.total_hits"),
            counter("ratelimit.service.config_load_success"),
        ];
        assert_eq!(
            sink.packets(&samples),
            ["x.total_hits:1|c|#b:2,dom:foo,d:k1_v1,q:$9 $\n\
              ratelimit.service.config_load_success:1|c|#b:2"]
        );
    }

    #[test]
    fn datagrams_stay_small() {
        let sink = sink();
        let samples: Vec<_> = (0..100).map(|n| counter(&format!("name{n}"))).collect();
        let packets = sink.packets(&samples);
        assert!(packets.len() > 1);
        assert!(packets.iter().all(|packet| packet.len() <= PACKET));
        let lines: usize = packets.iter().map(|packet| packet.lines().count()).sum();
        assert_eq!(lines, 100);
    }
}
