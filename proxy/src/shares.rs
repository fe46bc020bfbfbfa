//! Sharing out to the workers what they have together: the sockets and access logs of listeners.

use std::{io, sync::Arc};

use attache_service::{
    Address, Metrics, handover,
    listen::{self, Bound, ListenAddress, ListenError},
};

use crate::{
    access_log::{AccessLogs, Files, Sink},
    edge::Everywhere,
    live::Live,
    overload::Overload,
    plan::{ListenerPlan, Plan},
    running::StartError,
    worker::{Assignment, SharedListener},
};

/// What a plan's listeners are made from.
pub(crate) struct Shares<'s> {
    /// The listeners that run now, each as it was planned.
    pub(crate) before: &'s [(Arc<ListenerPlan>, SharedListener)],
    /// What looks at the memory now.
    pub(crate) overload: Option<&'s Arc<Overload>>,
    /// Sockets of a predecessor.
    pub(crate) inherited: &'s [Bound],
    pub(crate) workers: usize,
    pub(crate) everywhere: &'s Arc<Everywhere>,
    /// Files of access logs that are open.
    pub(crate) files: &'s Files,
    pub(crate) live: &'s Live,
}

/// Opens what all workers share. A port that the system chose stays with the listener's name.
pub(crate) async fn assign(
    plan: Arc<Plan>,
    shares: &Shares<'_>,
    metrics: &Metrics,
) -> Result<Assignment, StartError> {
    let mut listeners: Vec<SharedListener> = Vec::new();
    for (index, listener) in plan.listeners.iter().enumerate() {
        if let Some(error) = clash(&plan.listeners, index) {
            return Err(error);
        }
        let log = access_log(listener, metrics, shares.files)?;
        let known = shares.before.iter().find(|(planned, old)| {
            let same = planned.address == listener.address;
            match is_any_port(&listener.address) {
                true => same && planned.name == listener.name,
                false => same || listener.address == old.address.clone().into(),
            }
        });
        listeners.push(match known {
            Some((_, old)) => SharedListener { log, ..old.clone() },
            None => {
                let sockets = open(listener, shares).await;
                let sockets = sockets.map_err(|source| StartError::Listen {
                    listener: listener.name.to_string(),
                    source,
                })?;
                let first = sockets.first().map(|socket| socket.address().clone());
                SharedListener {
                    address: first.ok_or(StartError::Stopped)?,
                    sockets,
                    connections: Arc::default(),
                    requests: Arc::default(),
                    log,
                }
            }
        });
    }
    let overload = plan.overload.map(|overload| {
        let known = shares.overload.filter(|known| known.is(&overload));
        known
            .cloned()
            .unwrap_or_else(|| Arc::new(Overload::new(overload, metrics)))
    });
    Ok(Assignment {
        plan,
        listeners,
        everywhere: shares.everywhere.clone(),
        overload,
        tracing: None,
        live: shares.live.clone(),
    })
}

/// Whether a listener wants the address of one before it.
pub(crate) fn clash(listeners: &[Arc<ListenerPlan>], index: usize) -> Option<StartError> {
    let listener = listeners.get(index)?;
    let mut before = listeners.iter().take(index);
    let other =
        before.find(|other| other.address == listener.address && !is_any_port(&other.address))?;
    Some(StartError::SameAddress(
        other.name.to_string(),
        listener.name.to_string(),
    ))
}

pub(crate) fn is_any_port(address: &ListenAddress) -> bool {
    matches!(address, ListenAddress::At(Address::Tcp { port: 0, .. }))
}

/// The sockets of one listener, at least one: over TCP one for each worker, so that the kernel
/// spreads connections over them.
async fn open(listener: &ListenerPlan, shares: &Shares<'_>) -> Result<Vec<Bound>, ListenError> {
    let address = match &listener.address {
        ListenAddress::Systemd(name) => return listen::handed(name),
        ListenAddress::At(address) => address,
    };
    let inherited = handover::at(shares.inherited, address).await;
    if !inherited.is_empty() {
        return Ok(inherited);
    }
    if matches!(address, Address::Unix(_)) {
        return Ok(vec![Bound::bind_with_mode(address, listener.mode).await?]);
    }
    if !is_any_port(&listener.address) {
        // Sockets that share a port would not notice that somebody else has it.
        Bound::bind(address).await?;
    }
    let first = Bound::bind_shared(address).await?;
    let address = first.address().clone();
    let mut sockets = vec![first];
    while sockets.len() < shares.workers {
        sockets.push(Bound::bind_shared(&address).await?);
    }
    Ok(sockets)
}

fn access_log(
    listener: &ListenerPlan,
    metrics: &Metrics,
    files: &Files,
) -> Result<Option<AccessLogs>, StartError> {
    if listener.access_logs.is_empty() {
        return Ok(None);
    }
    let dropped = metrics.counter(
        "attache_access_log_dropped",
        "Access log lines lost because the writer was behind.",
        &[("listener", &listener.name)],
    );
    AccessLogs::start(&listener.access_logs, &dropped, files)
        .map(Some)
        .map_err(|(sink, source)| no_log(listener, sink, source))
}

pub(crate) fn no_log(listener: &ListenerPlan, sink: Sink, source: io::Error) -> StartError {
    StartError::AccessLog {
        listener: listener.name.to_string(),
        sink,
        source,
    }
}
