//! The service in the place of envoyproxy/ratelimit: by its environment variables, with its ports,
//! endpoints, names and signals.

use std::{
    num::NonZeroUsize,
    path::Path,
    time::{Duration, Instant},
};

use attache_ratelimit::{
    RateLimitServer,
    config::Merge,
    limiter::{Modes, NearLimitRatio},
    server::{
        Environment, RuleSource, ServerSettings, admin,
        environment::{Counting, RulesFrom, StoreWait},
        health::{HealthParts, REFERENCE_NAME},
        http,
        quota::{QuotaServer, QuotaSettings},
        sink::Sink,
        xds::XdsClient,
    },
    store::{AnyStore, Store as _},
};
use attache_service::{
    Host, Metrics, Shutdown,
    admin::{Admin, ConfigDump, Readiness},
    config::reload::Look,
    http_server::{self, HttpLimits},
    listen::Listener,
    telemetry,
    tls::ServerTls,
};
use tokio::sync::watch;

use super::service::{share, store_of, variable};
use crate::{
    Failure,
    args::{LogArgs, LogFormat, ratelimit::RatelimitArgs},
    reload::{Changes, Task, abort_on_drop},
    run::runtime,
    services::{cores, tls_by_flags},
    traces::Traces,
};

/// Our own name for health, beside the reference's.
const NAME: &str = "envoy.service.ratelimit.v3.RateLimitService";
/// How often is looked whether the store can still be reached.
const STORE_WATCH: Duration = Duration::from_secs(1);
/// Connections to the HTTP endpoint at once.
const HTTP_CONNECTIONS: usize = 1024;
/// Silence of such a connection after which it is closed.
const HTTP_IDLE: Duration = Duration::from_secs(120);

/// Runs the service until it is told to stop.
pub(super) fn run(args: &RatelimitArgs, log: &LogArgs) -> Result<(), Failure> {
    let mut environment =
        Environment::read(&variable).map_err(|errors| Failure::Usage(errors.to_string()))?;
    if let Some(store) = &args.store {
        environment.store = store_of(store)?;
    }
    share(&mut environment.store, args);
    if let Some(listen) = &args.listen {
        environment.listen.grpc = listen.clone();
    }
    start_logging(&environment, log)?;
    for note in &environment.notes {
        tracing::warn!("{} has no effect: {}", note.name, note.reason);
    }
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals_and_hangup().map_err(Failure::run)?;
        let metrics = Metrics::default();
        metrics.describe_process();
        let traces = start_traces(args, &environment, &metrics)?;
        let sink = Sink::bind(environment.statistics.clone())
            .await
            .map_err(Failure::run)?;
        let store = tokio::select! {
            store = open_store(&environment, &metrics) => store?,
            () = shutdown.recv() => return Ok(()),
        };
        let server = RateLimitServer::new(server_settings(&environment), store, &metrics);
        let server = server.tracer(traces.tracer());
        let _sink = abort_on_drop(sink.run(server.statistics()));
        serve(args, environment, server, metrics, shutdown.clone()).await?;
        traces.finish(&shutdown).await;
        Ok(())
    })
}

fn start_logging(environment: &Environment, log: &LogArgs) -> Result<(), Failure> {
    let format = match (log.log_format, environment.log.json) {
        (Some(LogFormat::Text), _) | (None, false) => telemetry::LogFormat::Text,
        (Some(LogFormat::Json), _) => telemetry::LogFormat::Json,
        (None, true) => telemetry::LogFormat::AtJson,
    };
    let filter = log.log.as_deref().unwrap_or(environment.log.level);
    telemetry::init(format, Some(filter)).map_err(|error| Failure::Usage(format!("--log: {error}")))
}

fn start_traces(
    args: &RatelimitArgs,
    environment: &Environment,
    metrics: &Metrics,
) -> Result<Traces, Failure> {
    if args.service.trace.otlp_endpoint.is_some() {
        return Traces::start(&args.service.trace, metrics);
    }
    let settings = match &environment.tracing {
        None => None,
        Some(tracing) => tracing
            .settings(&variable)
            .map_err(|error| Failure::Usage(error.to_string()))?,
    };
    Traces::with(settings, metrics)
}

/// Opens the store and waits until it can be reached.
async fn open_store(environment: &Environment, metrics: &Metrics) -> Result<AnyStore, Failure> {
    let store = environment.store.open(metrics).await;
    let StoreWait {
        initial,
        max,
        give_up_after,
    } = environment.store_wait;
    let begun = Instant::now();
    let mut pause = initial;
    while !store.is_connected() {
        let waited = begun.elapsed();
        if give_up_after.is_some_and(|limit| waited >= limit) {
            return Err(Failure::run(format!(
                "the store was not reached within {waited:?}"
            )));
        }
        tracing::warn!(?waited, "waiting for the store");
        // It connects on its own; this is how often is looked and told.
        let told = Instant::now();
        while !store.is_connected() && told.elapsed() < pause {
            tokio::time::sleep(pause.min(Duration::from_millis(20))).await;
        }
        pause = pause.saturating_mul(2).min(max);
    }
    Ok(store)
}

fn server_settings(environment: &Environment) -> ServerSettings {
    let counting = &environment.counting;
    ServerSettings {
        rules: match &environment.rules {
            RulesFrom::Files(directory) => RuleSource::Runtime {
                directory: directory.clone(),
                merge: merge(counting),
            },
            RulesFrom::Xds(_) => RuleSource::Given,
        },
        modes: Modes {
            shadow: counting.shadow,
            quota: counting.quota,
            all_or_nothing: counting.rejected_are_free,
            near_limit_ratio: NearLimitRatio(counting.near_limit_ratio),
        },
        answers: environment.answers.clone(),
        time_calls: true,
    }
}

fn merge(counting: &Counting) -> Merge {
    match counting.merge_domains {
        true => Merge::Domains,
        false => Merge::Refuse,
    }
}

/// Loads the rules, listens and serves.
async fn serve(
    args: &RatelimitArgs,
    environment: Environment,
    server: RateLimitServer,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let quotas = QuotaServer::new(server.clone(), QuotaSettings::default(), &metrics);
    let mut host = Host::default()
        .service(server.service())
        .service(quotas.service())
        .workers(args.service.workers.map_or_else(cores, NonZeroUsize::get))
        .connection_age(environment.listen.age)
        .shared_port(true)
        .metrics(&metrics);
    let by_flags = tls_by_flags(&args.service)?;
    let by_environment = environment.listen.tls.clone();
    if let Some(tls) = match (by_flags, by_environment) {
        (Some(tls), _) => Some(tls),
        (None, Some(files)) => Some(ServerTls::load(files).map_err(Failure::run)?),
        (None, None) => None,
    } {
        host = host.tls(tls);
    }
    // As in the reference: the name of no service stands for the process, which lives.
    host.health().set("", true);
    let names = [REFERENCE_NAME, NAME].map(str::to_owned);
    let health = HealthParts::new(host.health(), names, environment.healthy_with_rules);
    health.store(true);

    let readiness = Readiness::default();
    let (loaded, mut first_load) = watch::channel(false);
    let follower = Follower {
        server: server.clone(),
        health: health.clone(),
        loaded,
    };
    let _rules = match environment.rules {
        RulesFrom::Files(directory) => {
            let watched = directory.watched();
            if !Path::new(&watched).exists() {
                let problem = "RUNTIME_ROOT: there is nothing at";
                return Err(Failure::run(format!("{problem} {}", watched.display())));
            }
            // From before they are read, so that no change is missed.
            let files = server.watched();
            let look = Look::at(&files);
            let changes = Changes::of_files(files, &look);
            follower.reload();
            abort_on_drop(follower.follow_files(changes))
        }
        RulesFrom::Xds(settings) => {
            let condition = readiness.condition("rules", "no rules from the control plane yet");
            let client = XdsClient::new(*settings, &metrics).readiness(condition);
            let merge = merge(&environment.counting);
            abort_on_drop(client.run(move |resources| follower.take(resources, merge)))
        }
    };
    if !environment.start_without_rules {
        tokio::select! {
            _ = first_load.wait_for(|loaded| *loaded) => {}
            () = shutdown.recv() => return Ok(()),
        }
    }

    let listen = &environment.listen;
    let http = Listener::bind_shared(&listen.http)
        .await
        .map_err(Failure::run)?;
    let debugger = Listener::bind_shared(&listen.debug)
        .await
        .map_err(Failure::run)?;
    let grpc = host.bind(&listen.grpc).await.map_err(Failure::run)?;
    let admin_page = match &args.service.admin {
        None => None,
        Some(address) => {
            let what = environment.listen.clone();
            let page = Admin::new(readiness, metrics).config(move || ConfigDump {
                content_type: "text/plain; charset=utf-8",
                text: format!("{what:#?}\n"),
            });
            let page = page.pages(admin::pages(&server));
            Some(page.bind(address).await.map_err(Failure::run)?)
        }
    };
    tracing::warn!("Listening for HTTP on '{}'", http.address());
    tracing::warn!("Listening for debug on '{}'", debugger.address());
    tracing::warn!("Listening for gRPC on '{}'", grpc.address());
    // Pages answer until the drain is over.
    let pages = Shutdown::new();
    let _admin = admin_page.map(|page| {
        tracing::info!(address = %page.address(), "admin page");
        abort_on_drop(page.serve(pages.clone()))
    });
    let _http = serve_http(http, server.clone(), health.clone(), pages.clone());
    let _debug = serve_debug(debugger, server.clone(), pages.clone());
    let _store = environment
        .health_follows_store
        .then(|| follow_store(server, health.clone()));
    let stopping = shutdown.clone();
    let _stopping = abort_on_drop(async move {
        stopping.recv().await;
        health.stop();
    });
    grpc.serve(shutdown).await.map_err(Failure::run)
}

fn serve_http(
    listener: Listener,
    server: RateLimitServer,
    health: HealthParts,
    shutdown: Shutdown,
) -> Task {
    let limits = HttpLimits {
        connections: HTTP_CONNECTIONS,
        head: HTTP_IDLE,
        age: None,
    };
    let respond = move |request| http::service(server.clone(), health.clone(), request);
    abort_on_drop(http_server::serve(listener, limits, respond, shutdown))
}

fn serve_debug(listener: Listener, server: RateLimitServer, shutdown: Shutdown) -> Task {
    let respond = move |request: ::http::Request<_>| {
        let server = server.clone();
        async move { http::debug(&server, request.uri().path()) }
    };
    let limits = HttpLimits::default();
    abort_on_drop(http_server::serve(listener, limits, respond, shutdown))
}

/// Health goes with the connection to the store.
fn follow_store(server: RateLimitServer, health: HealthParts) -> Task {
    abort_on_drop(async move {
        loop {
            tokio::time::sleep(STORE_WATCH).await;
            health.store(server.store().is_connected());
        }
    })
}

/// Puts rules in force and tells whoever waits for them.
struct Follower {
    server: RateLimitServer,
    health: HealthParts,
    /// Rules came, right or wrong.
    loaded: watch::Sender<bool>,
}

impl Follower {
    fn reload(&self) {
        let result = self.server.reload();
        let _ = self.note(result);
    }

    fn take(
        &self,
        resources: &[attache_proto::ratelimit_config::RateLimitConfig],
        merge: Merge,
    ) -> Result<(), attache_service::config::Errors> {
        self.note(self.server.apply(resources, merge))
    }

    fn note(
        &self,
        result: Result<(), attache_service::config::Errors>,
    ) -> Result<(), attache_service::config::Errors> {
        match &result {
            Ok(()) => {
                let some = self.server.with_rules(|rules| !rules.is_empty());
                self.health.rules(some.unwrap_or_default());
                tracing::info!("Successfully loaded new configuration");
            }
            Err(errors) => tracing::error!("Error loading new configuration: {errors}"),
        }
        self.loaded.send_replace(true);
        result
    }

    /// Reloads whenever the files change.
    async fn follow_files(self, mut changes: Changes) {
        loop {
            changes.next().await;
            self.reload();
        }
    }
}
