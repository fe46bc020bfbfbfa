//! Latencies at half of the rate that Envoy reaches: what a caller sees of a proxy that has
//! enough to do, but not too much.

use anyhow::Context;

use crate::config::{Proxy, Run};
use crate::proxies::{RowResult, Scene, Started};
use crate::row::Row;
use crate::samples::median;

/// Proxying alone, and with all policies.
const ROWS: [Row; 2] = [Row::Plain, Row::All];

/// What was measured in one row.
#[derive(Debug)]
pub(crate) struct Paced {
    /// Requests a second that Envoy reached.
    pub(crate) most: f64,
    /// The rounds at half of that.
    pub(crate) result: RowResult,
}

/// Measures both rows.
pub(crate) async fn measure(run: &Run) -> anyhow::Result<Vec<Paced>> {
    let scene = Scene::start(run)?;
    let mut results = Vec::new();
    for row in ROWS {
        eprintln!("measuring: latencies, {}", row.title());
        let paced = measure_row(&scene, row).await;
        results.push(paced.with_context(|| format!("row `{}`", row.title()))?);
    }
    Ok(results)
}

async fn measure_row(scene: &Scene<'_>, row: Row) -> anyhow::Result<Paced> {
    let envoy = scene.proxy(Proxy::Envoy, row).await?;
    let ours = scene.proxy(Proxy::Ours, row).await?;
    let mut rates = Vec::new();
    for _ in 0..scene.run.rounds() {
        let (load, asked) = scene.load(row, &envoy)?;
        rates.push(load.run(asked, &scene.watched(&envoy)).await?.rate);
    }
    let most = median(rates);
    let mut proxies: Vec<(Proxy, &Started, Vec<_>)> = vec![
        (Proxy::Envoy, &envoy, Vec::new()),
        (Proxy::Ours, &ours, Vec::new()),
    ];
    for _ in 0..scene.run.rounds() {
        for (_, started, rounds) in &mut proxies {
            let (load, asked) = scene.load(row, started)?;
            let watched = scene.watched(started);
            rounds.push(load.run_paced(asked, most / 2.0, &watched).await?);
        }
    }
    let proxies = proxies.into_iter();
    Ok(Paced {
        most,
        result: RowResult {
            row,
            proxies: proxies.map(|(proxy, _, rounds)| (proxy, rounds)).collect(),
        },
    })
}
