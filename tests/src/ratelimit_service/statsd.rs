//! Who counts what a service reports in the language of statsd, over TCP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Sums of all counters so far; it listens as long as it lives.
#[derive(Debug)]
pub struct Statsd {
    /// Where it listens.
    pub address: SocketAddr,
    sums: Arc<Mutex<BTreeMap<String, f64>>>,
    _tasks: JoinSet<()>,
}

impl Statsd {
    /// Listens on a free port.
    pub async fn start() -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let sums = Arc::<Mutex<BTreeMap<String, f64>>>::default();
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&sums);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sums = Arc::clone(&shared);
                connections.spawn(async move {
                    let mut lines = BufReader::new(stream).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        if let Some((name, amount)) = counted(&line) {
                            *sums.lock().unwrap().entry(name.to_owned()).or_default() += amount;
                        }
                    }
                });
            }
        });
        Ok(Self {
            address,
            sums,
            _tasks: tasks,
        })
    }

    /// The counter of this name.
    pub fn counter(&self, name: &str) -> f64 {
        let sums = self.sums.lock().unwrap();
        sums.get(name).copied().unwrap_or_default()
    }

    /// All counters that are not 0 and whose names begin so, without that beginning.
    pub fn counters(&self, beginning: &str) -> BTreeMap<String, f64> {
        let sums = self.sums.lock().unwrap();
        let named = sums.iter().filter_map(|(name, sum)| {
            let name = name.strip_prefix(beginning)?;
            (*sum != 0.0).then(|| (name.to_owned(), *sum))
        });
        named.collect()
    }
}

/// Name and amount of a counter's line: `name:3|c`.
fn counted(line: &str) -> Option<(&str, f64)> {
    let (name, rest) = line.rsplit_once(':')?;
    let amount = rest.strip_suffix("|c")?;
    Some((name, amount.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counters_are_counted() {
        assert_eq!(counted("a.b_*.c:3|c"), Some(("a.b_*.c", 3.0)));
        assert_eq!(counted("a.b:3|g"), None);
        assert_eq!(counted("a.b:3.5|ms"), None);
    }
}
