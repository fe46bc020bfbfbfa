//! Traces.

use attache_service::{
    config::{ConfigValue, Errors, Located},
    trace::TraceSettings,
};

use super::ClusterNames;
use crate::{
    config::TracingConfig,
    plan::{ClusterPlan, Protocol},
    trace::{Sampling, TracePlan},
};

/// The name of the proxy in traces.
const SERVICE: &str = "attache";
/// What stands for a collector until its cluster is put in its place.
const ANY: &str = "unix:/";

/// Plans traces; `planned` are the clusters, as far as they have no mistakes.
pub(super) fn plan(
    raw: &Located<TracingConfig>,
    clusters: &ClusterNames<'_>,
    planned: &[Option<ClusterPlan>],
    errors: &mut Errors,
) -> Option<TracePlan> {
    let service = raw.service_name.as_deref().unwrap_or(SERVICE);
    let mut written = raw.encode().unwrap_or_default().to_string();
    let mut named = None;
    let settings = match (&raw.endpoint, &raw.cluster) {
        (Some(endpoint), None) => TraceSettings::at(endpoint, service)
            .map_err(|error| errors.push(endpoint, error.to_string()))
            .ok()?,
        (None, Some(cluster)) => {
            let Some((index, _)) = clusters.get(cluster.as_str()) else {
                errors.unknown_name(cluster, "cluster", clusters.keys().copied());
                return None;
            };
            let plan = planned.get(*index)?.as_ref()?;
            if plan.protocol != Protocol::Http2 {
                errors.push(
                    cluster,
                    "a collector is called over gRPC: its cluster needs `http2: {}`",
                );
                return None;
            }
            written = format!("{written} {:?}", plan.configured);
            named = Some(plan.name.clone());
            TraceSettings::at(ANY, service)
                .map_err(|error| errors.push(cluster, error.to_string()))
                .ok()?
        }
        _ => {
            errors.push(raw, "`tracing` needs either `endpoint` or `cluster`");
            return None;
        }
    };
    let mut share = |percent: &Option<Located<f64>>| match percent {
        None => 1.0,
        Some(percent) => {
            if !(0.0..=100.0).contains(&percent.value) {
                errors.push(percent, "a percentage is between 0 and 100");
            }
            percent.value / 100.0
        }
    };
    let sampling = Sampling {
        client: share(&raw.client_sampling),
        random: share(&raw.random_sampling),
        overall: share(&raw.overall_sampling),
    };
    Some(TracePlan {
        settings: settings?,
        cluster: named,
        sampling,
        written,
    })
}
