//! What idle connections cost a proxy in memory: each has made one request and is kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::{Proxy, Run};
use crate::downstream::{Asked, BUFFER, Connection};
use crate::memory::resident;
use crate::protocol::Protocol;
use crate::proxies::Scene;
use crate::row::Row;

/// Connections from each source address: a pair of addresses has no more ports than 28,000.
const PER_SOURCE: usize = 5000;
/// How long memory has to settle.
const SETTLE: Duration = Duration::from_secs(10);

/// What idle connections cost one proxy.
#[derive(Debug)]
pub(crate) struct Idle {
    /// What they speak.
    pub(crate) protocol: Protocol,
    /// Which proxy.
    pub(crate) proxy: Proxy,
    /// How many there were.
    pub(crate) connections: usize,
    /// Resident bytes of the process before the first.
    pub(crate) before: u64,
    /// Resident bytes with all of them.
    pub(crate) with: u64,
}

/// Measures every protocol on every proxy.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<Idle>> {
    let scene = Scene::start(run)?;
    let mut results = Vec::new();
    for protocol in Protocol::ALL {
        for proxy in run.proxies() {
            eprintln!("measuring: idle connections, {protocol}, {proxy}");
            let idle = hold(&scene, protocol, *proxy).await;
            results.push(idle.with_context(|| format!("{protocol}, {proxy}"))?);
        }
    }
    Ok(results)
}

async fn hold(scene: &Scene<'_>, protocol: Protocol, proxy: Proxy) -> anyhow::Result<Idle> {
    let row = match protocol {
        Protocol::Http1 | Protocol::Http2 => Row::Plain,
        Protocol::Tls1 | Protocol::Tls2 => Row::Tls,
    };
    let wanted = scene.run.idle;
    let room = |config: &mut Value| {
        let listener = config.pointer_mut("/listeners/0");
        if let Some(listener) = listener.and_then(Value::as_object_mut) {
            // Envoy has no such bound.
            let limits = json!({ "max_connections": wanted + 100 });
            listener.insert("limits".to_owned(), limits);
        }
    };
    let started = scene.proxy_with(proxy, row, protocol, 1, room).await?;
    let (downstream, target) = (&started.downstream, started.target);
    let asked = Asked::new(row.path(), row.expected(), protocol)?;

    tokio::time::sleep(SETTLE).await;
    let before = resident(started.child.process())?;
    let mut buffer = vec![0; BUFFER];
    let mut connections: Vec<Connection> = Vec::new();
    for number in 0..wanted {
        let host = u8::try_from(2 + number / PER_SOURCE).context("too many connections")?;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
        let connected = downstream.connect(target, Some(source)).await;
        let mut connection = connected.with_context(|| format!("connection {number}"))?;
        let answered = connection.ask(&mut buffer, &asked).await;
        answered.with_context(|| format!("connection {number}"))?;
        connections.push(connection);
    }
    tokio::time::sleep(SETTLE).await;
    let with = resident(started.child.process())?;
    // They are connections only if they still work.
    for connection in connections.iter_mut().step_by(100) {
        connection.ask(&mut buffer, &asked).await?;
    }
    Ok(Idle {
        protocol,
        proxy,
        connections: connections.len(),
        before,
        with,
    })
}
