//! Where the endpoints of a cluster come from, and following it: names that are looked up again
//! and again, a file that is read when it changes. What fails or comes back empty changes nothing:
//! the last good set stays.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt, join_all};
use tokio::sync::watch;

use super::{Described, Endpoints, file};
use crate::{
    Address,
    channel::Target,
    config::{Errors, reload::Watch},
};

/// Bound on one lookup.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the endpoints of a cluster come from.
#[derive(Clone)]
pub struct Source {
    /// Who names them.
    pub named: Named,
    /// How names among them become addresses.
    pub dns: Dns,
}

/// Who names the endpoints of a cluster.
#[derive(Clone)]
pub enum Named {
    /// The configuration.
    Here(Vec<Described>),
    /// A file, read again when it changes.
    File(PathBuf),
}

/// How names become addresses.
#[derive(Clone)]
pub struct Dns {
    /// Which of a name's addresses are endpoints. Default [`DnsType::Strict`].
    pub kind: DnsType,
    /// Pause between two lookups. Default 5 s, as Envoy.
    pub refresh_rate: Duration,
    /// Which kinds of addresses are used. Default [`LookupFamily::V4Preferred`].
    pub family: LookupFamily,
    /// Who knows the addresses of a host. Default: the system.
    pub resolver: Resolver,
}

/// Which of a name's addresses are endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DnsType {
    /// Each is one.
    #[default]
    Strict,
    /// The name is one, at the first of them. When that changes, new connections go there.
    Logical,
}

/// Which kinds of addresses are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LookupFamily {
    /// IPv6, else IPv4.
    Auto,
    /// IPv4 alone.
    V4Only,
    /// IPv6 alone.
    V6Only,
    /// IPv4, else IPv6.
    #[default]
    V4Preferred,
    /// Both.
    All,
}

/// Finds the addresses of a host, by its name and port.
pub type Resolver =
    Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

impl Default for Dns {
    fn default() -> Self {
        Self {
            kind: DnsType::default(),
            refresh_rate: Duration::from_secs(5),
            family: LookupFamily::default(),
            resolver: Arc::new(system),
        }
    }
}

/// Asks the system, on a thread of its own.
fn system(host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    async move {
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.collect())
    }
    .boxed()
}

impl LookupFamily {
    fn choose(self, mut found: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let any = |found: &[SocketAddr], v4: bool| found.iter().any(|one| one.is_ipv4() == v4);
        match self {
            Self::All => {}
            Self::V4Only => found.retain(SocketAddr::is_ipv4),
            Self::V6Only => found.retain(SocketAddr::is_ipv6),
            Self::V4Preferred => {
                let v4 = any(&found, true);
                found.retain(|one| one.is_ipv4() == v4);
            }
            Self::Auto => {
                let v6 = any(&found, false);
                found.retain(|one| one.is_ipv6() == v6);
            }
        }
        found
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.named {
            Named::Here(described) => {
                let targets = described.iter().map(|one| one.target.to_string());
                f.debug_list().entries(targets).finish()
            }
            Named::File(path) => path.fmt(f),
        }
    }
}

impl Endpoints {
    /// Follows `source` for as long as these endpoints are in use. What comes back is true as
    /// soon as the source has been asked for the first time, whatever it said.
    ///
    /// # Panics
    /// Outside a tokio runtime, unless the source names addresses alone: those never change.
    pub fn follow(self: &Arc<Self>, source: Source) -> watch::Receiver<bool> {
        let (asked, receiver) = watch::channel(false);
        if let Named::Here(described) = &source.named
            && !described.iter().any(is_name)
        {
            self.replace(described.clone());
            asked.send_replace(true);
            return receiver;
        }
        self.attach(Follower::new(source, Arc::downgrade(self)).run(asked));
        receiver
    }
}

/// Whether it stands for what a lookup finds.
fn is_name(described: &Described) -> bool {
    described.address.is_none() && host(described).is_some()
}

fn host(described: &Described) -> Option<(&str, u16)> {
    match &described.target {
        Target::Address(Address::Tcp { host, port }) if host.parse::<IpAddr>().is_err() => {
            Some((host, *port))
        }
        _ => None,
    }
}

struct Follower {
    dns: Dns,
    endpoints: Weak<Endpoints>,
    file: Option<PathBuf>,
    /// What is named, and what was last found for each name.
    named: Vec<(Described, Vec<SocketAddr>)>,
    /// What went wrong the last time, so that it is logged once.
    failures: Vec<String>,
}

impl Follower {
    fn new(source: Source, endpoints: Weak<Endpoints>) -> Self {
        let (named, file) = match source.named {
            Named::Here(described) => (described, None),
            Named::File(path) => (Vec::new(), Some(path)),
        };
        Self {
            dns: source.dns,
            endpoints,
            file,
            named: named.into_iter().map(|one| (one, Vec::new())).collect(),
            failures: Vec::new(),
        }
    }

    async fn run(mut self, asked: watch::Sender<bool>) {
        // Watched before it is read: a change in between is noticed.
        let mut watch = self.file.as_ref().and_then(|path| {
            let watch = Watch::new([path]);
            let complain = |error| {
                tracing::warn!(path = %path.display(), %error, "changes of the file are not noticed");
            };
            watch.map_err(complain).ok()
        });
        let mut reread = true;
        loop {
            let mut failures = Vec::new();
            if reread && let Err(failure) = self.read() {
                failures.push(failure);
            }
            self.look_up(&mut failures).await;
            if !self.publish(failures) {
                return;
            }
            asked.send_replace(true);
            let names = self.named.iter().any(|(described, _)| is_name(described));
            reread = tokio::select! {
                () = changed(watch.as_mut()) => true,
                () = tokio::time::sleep(self.dns.refresh_rate), if names => false,
            };
        }
    }

    /// Reads the file; what was found for names that stay is kept.
    fn read(&mut self) -> Result<(), String> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        let described = file::load(path).map_err(|errors: Errors| errors.to_string())?;
        let mut before = std::mem::take(&mut self.named);
        let each = described.into_iter().map(|described| {
            let same = |(other, _): &&mut (Described, _)| host(other) == host(&described);
            let found = before.iter_mut().find(same).map(|(_, found)| found.clone());
            (described, found.unwrap_or_default())
        });
        self.named = each.collect();
        Ok(())
    }

    async fn look_up(&mut self, failures: &mut Vec<String>) {
        let lookups = self.named.iter_mut().filter(|(named, _)| is_name(named));
        let dns = &self.dns;
        let outcomes = join_all(lookups.map(|(described, found)| async move {
            let (host, port) = host(described)?;
            let lookup = (dns.resolver)(host.to_owned(), port);
            let outcome = match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
                Ok(outcome) => outcome,
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            };
            let why = match outcome.map(|all| dns.family.choose(all)) {
                Ok(all) if !all.is_empty() => {
                    *found = all;
                    return None;
                }
                Ok(_) => "there is no such address".to_owned(),
                Err(error) => error.to_string(),
            };
            Some(format!("`{host}` cannot be looked up: {why}"))
        }));
        failures.extend(outcomes.await.into_iter().flatten());
    }

    /// Replaces the set; false when nobody uses it any more.
    fn publish(&mut self, failures: Vec<String>) -> bool {
        let Some(endpoints) = self.endpoints.upgrade() else {
            return false;
        };
        let name = endpoints.name();
        if let Some(stats) = endpoints.common().stats.get() {
            match failures.is_empty() {
                true => stats.updates.inc(),
                false => stats.failed_updates.inc(),
            };
        }
        for failure in failures.iter().filter(|one| !self.failures.contains(one)) {
            tracing::warn!(cluster = %name, "{failure}; the endpoints stay as they were");
        }
        if failures.is_empty() && !self.failures.is_empty() {
            tracing::info!(cluster = %name, "the endpoints are known again");
        }
        self.failures = failures;
        let logical = self.dns.kind == DnsType::Logical;
        let described = self.named.iter().flat_map(|(named, found)| {
            let at = |address: Option<SocketAddr>| Described {
                address,
                logical: logical && is_name(named),
                ..named.clone()
            };
            let addresses = found.iter().copied().map(Some);
            let addresses: Vec<_> = match (is_name(named), logical) {
                (false, _) => vec![None],
                (true, true) => addresses.take(1).collect(),
                (true, false) => addresses.collect(),
            };
            addresses.into_iter().map(at).collect::<Vec<_>>()
        });
        endpoints.replace(described.collect());
        true
    }
}

async fn changed(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
