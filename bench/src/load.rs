//! The load: connections that each send one ready-made request at a time and
//! check the answer.
//!
//! One thread, and for HTTP/1.1 no HTTP library: what it costs must not show beside what a
//! proxy costs. `bench/README.md` has the comparison with a known tool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cpu::Process;
use crate::downstream::{Asked, BUFFER, Connection, Downstream};
use crate::samples::Samples;
use crate::window::{Clients, Gate, Measured, Window};

/// Requests at a time on each connection that requests share.
const STREAMS: u32 = 8;

/// How to load a server.
#[derive(Clone)]
pub(crate) struct Load {
    /// Where it listens.
    pub(crate) target: SocketAddr,
    /// How to connect to it.
    pub(crate) downstream: Downstream,
    /// How many requests to keep on their way.
    pub(crate) connections: u32,
    /// How long, and how many requests at most.
    pub(crate) window: Window,
}

impl Load {
    /// Runs the load, each client as fast as it is answered, and watches the CPU of `processes`
    /// meanwhile.
    pub(crate) async fn run(
        &self,
        asked: Asked,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = self.window.gate();
        let asked = Arc::new(asked);
        let mut clients = Clients::new();
        for connection in self.connect().await? {
            let (gate, asked) = (gate.clone(), asked.clone());
            clients.spawn(async move { repeat(connection, &asked, &gate).await });
        }
        self.window.measure(clients, &gate, processes).await
    }

    /// Runs the load at `rate` requests a second. A latency counts from when a request was due if
    /// its client was still waiting for an answer then, so a proxy that stalls is not asked less;
    /// else from when it was sent, so that the clock's grain, a millisecond, does not count.
    pub(crate) async fn run_paced(
        &self,
        asked: Asked,
        rate: f64,
        processes: &[Process],
    ) -> anyhow::Result<Measured> {
        let gate = self.window.gate();
        let asked = Arc::new(asked);
        let connections = self.connect().await?;
        let between = Duration::from_secs_f64(connections.len() as f64 / rate);
        let start = tokio::time::Instant::now();
        let apart = between / self.connections;
        let mut clients = Clients::new();
        for (number, connection) in (0..).zip(connections) {
            let (gate, asked) = (gate.clone(), asked.clone());
            let first = start + apart * number;
            clients.spawn(async move { paced(connection, &asked, &gate, first, between).await });
        }
        self.window.measure(clients, &gate, processes).await
    }

    async fn connect(&self) -> anyhow::Result<Vec<Connection>> {
        let mut connections: Vec<Connection> = Vec::new();
        for number in 0..self.connections {
            let shared = match number % STREAMS {
                0 => None,
                _ => connections.last().and_then(Connection::share),
            };
            connections.push(match shared {
                Some(shared) => shared,
                None => self.downstream.connect(self.target, None).await?,
            });
        }
        Ok(connections)
    }
}

/// Asks while the gate is open; gives the latencies of what was counted.
async fn repeat(mut connection: Connection, asked: &Asked, gate: &Gate) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let mut buffer = vec![0; BUFFER];
    let mut start = Instant::now();
    while gate.open() {
        connection.ask(&mut buffer, asked).await?;
        let now = Instant::now();
        if gate.counts() {
            samples.add(now - start);
        }
        start = now;
    }
    Ok(samples)
}

/// Asks once every `between` while the gate is open.
async fn paced(
    mut connection: Connection,
    asked: &Asked,
    gate: &Gate,
    first: tokio::time::Instant,
    between: Duration,
) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    let mut buffer = vec![0; BUFFER];
    let mut due = first;
    while gate.open() {
        let late = tokio::time::Instant::now() > due;
        let start = if late {
            due
        } else {
            tokio::time::sleep_until(due).await;
            tokio::time::Instant::now()
        };
        connection.ask(&mut buffer, asked).await?;
        if gate.counts() {
            samples.add(start.elapsed());
        }
        due += between;
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Protocol;
    use crate::row::Row;
    use crate::window::STALLED;

    /// Loads an origin without a proxy, expecting the answers of `row`.
    async fn load(row: Row) -> anyhow::Result<Measured> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let target = listener.local_addr()?;
        tokio::spawn(crate::origin::accept(listener, Duration::ZERO));
        let window = Window {
            warm_up: Duration::ZERO,
            seconds: STALLED,
            most: 100,
        };
        let http1 = Protocol::Http1;
        let load = Load {
            target,
            downstream: Downstream::plain(http1),
            connections: 4,
            window,
        };
        let asked = Asked::new(row.path(), row.expected(), http1)?;
        load.run(asked, &[]).await
    }

    #[tokio::test]
    async fn right_answers_are_counted() {
        let measured = load(Row::Plain).await.unwrap();
        // A few may have come before counting began.
        assert!((1..=100).contains(&measured.requests), "{measured:?}");
    }

    #[tokio::test]
    async fn answers_that_no_policy_touched_fail_the_row() {
        let failed = load(Row::ExtAuthz).await.unwrap_err().to_string();
        assert!(failed.contains("expected `x-origin-saw: auth`"), "{failed}");
        let failed = load(Row::ExtProcBody).await.unwrap_err().to_string();
        assert!(failed.contains("expected `x-origin-saw: proc`"), "{failed}");
    }
}
