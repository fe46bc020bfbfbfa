//! The services on their own: `attache ext-authz`, and what it shares with `attache ratelimit`.

use std::{future::Future, num::NonZeroUsize, path::PathBuf, time::Duration};

use crate::{
    Failure,
    args::{
        LogArgs,
        services::{ExtAuthzArgs, ExtAuthzCommand, ServiceArgs},
    },
    authz,
    reload::{Changes, Task, abort_on_drop},
    run::{runtime, start_logging},
    traces::Traces,
};
use attache_ext_authz::{
    policy::{AuthService, Reload},
    server::Server,
};
use attache_ratelimit::{
    RateLimitServer,
    server::quota::{QuotaServer, QuotaSettings},
};
use attache_service::{
    Address, Health, Host, Metrics, Shutdown,
    admin::{Admin, ConfigDump, Page, Readiness, drain},
    config::{Errors, reload::Look},
    metrics::Counter,
    notify::{State, notify},
    tls::{ServerFiles, ServerTls, TlsVersion},
    trace::Tracer,
};

/// How long the last records of the decision log may take to get out.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);

/// A ready-made service, as far as serving it is concerned.
pub(crate) trait Served: Clone + Send + 'static {
    /// Its gRPC name.
    const NAME: &'static str;
    /// A host of it, with the services beside it.
    fn host(&self, metrics: &Metrics, tracer: &Tracer) -> Host;
    fn reload(&self) -> Result<Reload, Errors>;
    /// What it still waits for before it can answer.
    fn waits_for(&self) -> Vec<String> {
        Vec::new()
    }
    /// Waits until it can answer.
    fn ready(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
    /// The files and folders whose change means a reload.
    fn watched(&self) -> Vec<PathBuf>;
    /// Its own pages on the admin endpoint.
    fn pages(&self) -> Vec<Page> {
        Vec::new()
    }
}

impl Served for AuthService {
    const NAME: &'static str = "envoy.service.auth.v3.Authorization";

    fn host(&self, metrics: &Metrics, tracer: &Tracer) -> Host {
        let server = Server::new(self.clone()).metrics(metrics);
        server.tracer(tracer).into_host()
    }

    fn reload(&self) -> Result<Reload, Errors> {
        Self::reload(self)
    }

    fn waits_for(&self) -> Vec<String> {
        Self::waits_for(self)
    }

    async fn ready(&self) {
        Self::ready(self).await;
    }

    fn watched(&self) -> Vec<PathBuf> {
        self.files()
    }
}

impl Served for RateLimitServer {
    const NAME: &'static str = "envoy.service.ratelimit.v3.RateLimitService";

    fn host(&self, metrics: &Metrics, tracer: &Tracer) -> Host {
        let quotas = QuotaServer::new(self.clone(), QuotaSettings::default(), metrics);
        Host::default()
            .service(self.clone().tracer(tracer).service())
            .service(quotas.service())
            .metrics(metrics)
    }

    fn reload(&self) -> Result<Reload, Errors> {
        Self::reload(self).map(|()| Reload::Done)
    }

    fn watched(&self) -> Vec<PathBuf> {
        Self::watched(self)
    }

    fn pages(&self) -> Vec<Page> {
        attache_ratelimit::server::admin::pages(self)
    }
}

/// Runs the auth service.
pub(crate) fn ext_authz(args: &ExtAuthzArgs, log: &LogArgs) -> Result<(), Failure> {
    let config = match (&args.command, &args.config) {
        (Some(ExtAuthzCommand::Check { file }), _) => return authz::check(file),
        (Some(ExtAuthzCommand::Explain(explain)), _) => return authz::explain(explain, log),
        (None, Some(config)) => config,
        (None, None) => return Err(Failure::Usage("--config is needed".to_owned())),
    };
    start_logging(log)?;
    let metrics = Metrics::default();
    let look = Look::at(&[config]);
    let service = AuthService::load(config, &metrics)?;
    runtime()?.block_on(async {
        let served = serve(service.clone(), &look, &args.listen, &args.service, metrics).await;
        service.flush(FLUSH).await;
        served
    })
}

/// Serves until a signal; `look` is from before the service read its files.
pub(crate) async fn serve<S: Served>(
    service: S,
    look: &Look,
    listen: &Address,
    args: &ServiceArgs,
    metrics: Metrics,
) -> Result<(), Failure> {
    metrics.describe_process();
    let shutdown = Shutdown::on_signals().map_err(Failure::run)?;
    let traces = Traces::start(&args.trace, &metrics)?;
    let changes = Changes::of(service.watched(), look);
    let workers = args.workers.map_or_else(cores, NonZeroUsize::get);
    let mut host = service.host(&metrics, traces.tracer()).workers(workers);
    if let Some(tls) = tls_by_flags(args)? {
        host = host.tls(tls);
    }
    let readiness = Readiness::default();
    let admin = match &args.admin {
        None => None,
        Some(address) => {
            let files = service.watched();
            let admin = Admin::new(readiness.clone(), metrics.clone()).config(move || ConfigDump {
                content_type: "text/plain; charset=utf-8",
                text: files
                    .iter()
                    .map(|file| format!("{}\n", file.display()))
                    .collect(),
            });
            let admin = admin.pages(service.pages());
            let admin = admin.pages(drain::pages(shutdown.clone(), serde_json::Map::new));
            Some(admin.bind(address).await.map_err(Failure::run)?)
        }
    };
    let _ready = announce_when_ready(&service, &readiness, host.health());
    let bound = host.bind(listen).await.map_err(Failure::run)?;
    let admin_shutdown = Shutdown::new();
    let _admin = admin.map(|admin| {
        tracing::info!(address = %admin.address(), "admin page");
        abort_on_drop(admin.serve(admin_shutdown.clone()))
    });
    let reloads = |result| {
        let help = "Configurations taken over while running.";
        metrics.counter("attache_config_reloads", help, &[("result", result)])
    };
    let _reload = abort_on_drop(reload_on_change(
        service,
        changes,
        reloads("ok"),
        reloads("failed"),
    ));
    notify(State::Ready);
    let draining = shutdown.clone();
    let _drain = abort_on_drop(async move {
        draining.recv().await;
        notify(State::Stopping);
        readiness.condition("drain", "draining").fail("draining");
    });
    bound.serve(shutdown.clone()).await.map_err(Failure::run)?;
    traces.finish(&shutdown).await;
    tracing::info!("stopped");
    Ok(())
}

/// Says that the service is not ready, in health and on the admin page, until it is.
fn announce_when_ready<S: Served>(
    service: &S,
    readiness: &Readiness,
    health: Health,
) -> Option<Task> {
    let waits_for = service.waits_for();
    if waits_for.is_empty() {
        return None;
    }
    let waits_for = waits_for.join(", ");
    tracing::info!(waits_for, "not ready yet");
    let condition = readiness.condition("policy", &format!("waits for {waits_for}"));
    health.set(S::NAME, false);
    let service = service.clone();
    Some(abort_on_drop(async move {
        service.ready().await;
        condition.hold();
        health.set(S::NAME, true);
        tracing::info!("ready");
    }))
}

/// Reloads when a watched file changes or on SIGHUP; the old configuration stays on a mistake.
async fn reload_on_change<S: Served>(
    service: S,
    mut changes: Changes,
    good: Counter,
    bad: Counter,
) {
    loop {
        changes.next().await;
        notify(State::Reloading);
        let look = changes.look();
        match service.reload() {
            Ok(reload) => {
                good.inc();
                changes.watch(service.watched(), &look);
                match reload {
                    Reload::Done => tracing::info!("configuration reloaded"),
                    Reload::WaitsFor(what) => tracing::info!(
                        waits_for = what.join(", "),
                        "configuration read; the old one goes on until the new one has all it needs"
                    ),
                }
            }
            Err(errors) => {
                bad.inc();
                tracing::error!("the new configuration is refused, the old one goes on:\n{errors}");
            }
        }
        notify(State::Ready);
    }
}

/// TLS as the flags say.
pub(crate) fn tls_by_flags(args: &ServiceArgs) -> Result<Option<ServerTls>, Failure> {
    let (Some(certificate), Some(private_key)) = (&args.tls_cert, &args.tls_key) else {
        return Ok(None);
    };
    let files = ServerFiles {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        client_ca: args.client_ca.clone(),
        client_name: None,
        min_version: TlsVersion::default(),
        alpn: vec!["h2".to_owned()],
    };
    ServerTls::load(files).map(Some).map_err(Failure::run)
}

/// One worker per core.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use attache_ratelimit::store::{AnyStore, MemoryStore, memory};

    use super::*;
    use crate::args::TraceArgs;

    #[tokio::test]
    async fn a_change_while_the_service_starts_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules.yaml");
        std::fs::write(&rules, "domain: before\n").unwrap();
        let metrics = Metrics::default();
        let look = Look::at(&[&rules]);
        let store = AnyStore::from(MemoryStore::new(memory::DEFAULT_CAPACITY, &metrics));
        let service = RateLimitServer::load(&rules, store, &metrics).unwrap();
        std::fs::write(&rules, "domain: afterwards\n").unwrap();

        let args = ServiceArgs {
            admin: None,
            workers: NonZeroUsize::new(1),
            trace: TraceArgs {
                otlp_endpoint: None,
            },
            tls_cert: None,
            tls_key: None,
            client_ca: None,
        };
        let listen = "127.0.0.1:0".parse().unwrap();
        let _serving = abort_on_drop({
            let metrics = metrics.clone();
            async move {
                serve(service, &look, &listen, &args, metrics)
                    .await
                    .unwrap();
            }
        });

        let reloaded = async {
            let line = "attache_config_reloads_total{result=\"ok\"} 1";
            while !metrics.render().contains(line) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let reloaded = tokio::time::timeout(Duration::from_secs(20), reloaded).await;
        assert!(reloaded.is_ok(), "{}", metrics.render());
    }
}
