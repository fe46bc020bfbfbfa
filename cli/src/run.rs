//! `attache run` and `attache check`.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use attache_ext_authz::policy::AuthService;
use attache_proxy::{Config, Plan, Proxy, Running};
use attache_ratelimit::Rules;
use attache_service::{
    Metrics, Shutdown,
    admin::{Admin, BoundAdmin, Readiness},
    config::{Document, Errors, reload::Look},
    handover::{self, Handover, Predecessor},
    listen::Bound,
    metrics::Counter,
    notify::{State, notify},
    telemetry,
};
use tokio::runtime::Runtime;

use crate::{
    Failure,
    admin::{self, InUse},
    args::{CheckArgs, LogArgs, LogFormat, RunArgs},
    discovery::Discovery,
    embedded::{Embedded, OnTrial},
    explain, output,
    reload::{Changes, MovedLogs, abort_on_drop},
    traces::Traces,
};

/// Starts logging as the command line says.
pub(crate) fn start_logging(log: &LogArgs) -> Result<(), Failure> {
    let format = match log.log_format {
        None | Some(LogFormat::Text) => telemetry::LogFormat::Text,
        Some(LogFormat::Json) => telemetry::LogFormat::Json,
    };
    telemetry::init(format, Some(log.log.as_deref().unwrap_or("info")))
        .map_err(|error| Failure::Usage(format!("--log: {error}")))
}

/// The runtime of what is not on a request's path: signals, reloads, the admin page.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::run)
}

/// Runs a proxy from a file.
pub(crate) fn run(args: &RunArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(log)?;
    let metrics = Metrics::default();
    metrics.describe_process();
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(Failure::run)?;
        let readiness = Readiness::default();
        let traces = Traces::start(&args.trace, &metrics)?;
        let embedded = Embedded::new(metrics.clone(), readiness.clone());
        let embedded = embedded.traced(traces.tracer().clone());
        let look = Look::at(&[&args.file]);
        let document = Document::load(&args.file)?;
        let (config, mut plan) = Config::read(&document, &embedded)?;
        adjust(&mut plan, args);
        let source = Source::new(args.file.clone(), embedded, &look);
        let predecessor = match &args.handover {
            Some(path) => Predecessor::meet(path).map_err(Failure::run)?,
            None => None,
        };
        let inherited = predecessor.as_ref().map_or(&[][..], Predecessor::sockets);
        let in_use = InUse::new(&document, args.workers.is_some());
        let proxy = start(
            config, plan, &document, in_use, metrics, readiness, inherited,
        );
        let mut proxy = proxy.await?;
        if predecessor.is_some() && !proxy.learn(&shutdown).await? {
            return Ok(());
        }
        proxy.take_over();
        if let Some(path) = &args.handover {
            proxy.handover = Some(Handover::listen(path).map_err(Failure::run)?);
        }
        if let Some(predecessor) = predecessor
            && let Err(error) = predecessor.ready()
        {
            tracing::warn!(%error, "the process before us is gone");
        }
        proxy.serve(source, Some(args), shutdown.clone()).await?;
        traces.finish(&shutdown).await;
        Ok(())
    })
}

fn adjust(plan: &mut Plan, args: &RunArgs) {
    if let Some(workers) = args.workers {
        plan.workers = workers.get();
    }
    if let Some(seconds) = args.drain_seconds {
        plan.drain_timeout = Duration::from_secs(seconds);
        plan.drain_min = plan.drain_min.min(plan.drain_timeout);
    }
}

/// A proxy that runs, with its admin page.
pub(crate) struct RunningProxy {
    running: Running,
    admin: Option<BoundAdmin>,
    readiness: Readiness,
    refused: Counter,
    in_use: Arc<InUse>,
    /// Where a successor finds us.
    handover: Option<Handover>,
    discovery: Discovery,
}

/// Where the configuration comes from, to read it again.
pub(crate) struct Source {
    file: PathBuf,
    embedded: Embedded,
    changes: Changes,
}

/// How long a control plane may take to tell everything when there is a predecessor, which waits
/// two minutes for us.
const LEARNING: Duration = Duration::from_secs(60);

/// Starts the workers and binds the admin page, on the sockets of a predecessor where they fit.
/// Connections are accepted from [`RunningProxy::take_over`] on.
pub(crate) async fn start(
    config: Config,
    plan: Plan,
    document: &Document,
    in_use: Arc<InUse>,
    metrics: Metrics,
    readiness: Readiness,
    inherited: &[Bound],
) -> Result<RunningProxy, Failure> {
    let admin = match &config.admin {
        None => None,
        Some(address) => {
            let shown = in_use.clone();
            let admin = Admin::new(readiness.clone(), metrics.clone());
            let admin = admin.config(move || shown.dump());
            let inherited = handover::at(inherited, &address.value).await;
            let bound = match inherited.into_iter().next() {
                Some(socket) => admin.on(socket),
                None => admin.bind(&address.value).await,
            };
            Some(bound.map_err(Failure::run)?)
        }
    };
    let refused = metrics.counter(
        "attache_config_reloads",
        "Configurations taken over while running.",
        &[("result", "failed")],
    );
    let running = Proxy::start_on(plan, metrics.clone(), inherited).await;
    let running = running.map_err(Failure::run)?;
    let admin = admin.map(|admin: BoundAdmin| admin.part(running.live().part()));
    for (listener, address) in running.plan().listeners.iter().zip(running.addresses()) {
        tracing::info!(listener = %listener.name, %address, "listening");
    }
    let discovery = Discovery::new(&config, document, &running, metrics, readiness.clone());
    Ok(RunningProxy {
        running,
        refused,
        admin,
        readiness,
        in_use,
        handover: None,
        discovery,
    })
}

impl RunningProxy {
    /// Where the admin page is.
    pub(crate) fn admin_address(&self) -> Option<String> {
        self.admin.as_ref().map(|admin| admin.address().to_string())
    }

    /// Accepts connections, with a predecessor from then on.
    pub(crate) fn take_over(&self) {
        let admin = self.admin.as_ref().map(BoundAdmin::address);
        let unclaimed = self.running.take_over().into_iter();
        for address in unclaimed.filter(|address| Some(address) != admin) {
            tracing::warn!(%address, "nobody listens there once the process before us has ended");
        }
    }

    /// Waits until the control plane has told what there is to serve, or is done without: until
    /// then a predecessor goes on alone. False on `shutdown`, when nothing is to be taken over.
    async fn learn(&mut self, shutdown: &Shutdown) -> Result<bool, Failure> {
        let told = async {
            while !self.discovery.is_ready() {
                let event = self.discovery.next().await;
                self.discovery.take(event, &self.running).await;
            }
        };
        tokio::select! {
            () = shutdown.recv() => Ok(false),
            told = tokio::time::timeout(LEARNING, told) => match told {
                Ok(()) => Ok(true),
                Err(_) => Err(Failure::Run(format!(
                    "the control plane has not told everything within {LEARNING:?}: the process before us goes on"
                ))),
            },
        }
    }

    /// Serves until `shutdown`, or until a successor has taken over; then drains.
    pub(crate) async fn serve(
        self,
        mut source: Source,
        args: Option<&RunArgs>,
        shutdown: Shutdown,
    ) -> Result<(), Failure> {
        let admin_shutdown = Shutdown::new();
        let admin_socket = self.admin.as_ref().map(BoundAdmin::socket);
        let _admin = self.admin.map(|admin| {
            tracing::info!(address = %admin.address(), "admin page");
            let pages = admin::pages(&self.running.status(), shutdown.clone());
            let admin = admin.pages(pages);
            abort_on_drop(admin.serve(admin_shutdown.clone()))
        });
        let mut discovery = self.discovery;
        self.in_use.follow(discovery.status());
        let mut moved_logs = MovedLogs::new();
        notify(State::Ready);
        // What waits for a successor looks at what runs, which is drained then.
        let handed_over = {
            let sockets = || {
                let mut sockets = self.running.sockets();
                sockets.extend(admin_socket.clone());
                sockets
            };
            let mut succeeded = pin!(async {
                match &self.handover {
                    Some(handover) => handover.succeeded(sockets).await,
                    None => std::future::pending().await,
                }
            });
            loop {
                tokio::select! {
                    () = shutdown.recv() => break false,
                    () = &mut succeeded => break true,
                    () = moved_logs.next() => {
                        self.running.reopen_logs();
                        tracing::info!("access logs are opened anew");
                    }
                    event = discovery.next() => discovery.take(event, &self.running).await,
                    () = source.changes.next() => {
                        notify(State::Reloading);
                        let look = source.changes.look();
                        match reload(&source, args, &self.running, &mut discovery).await {
                            Ok(document) => {
                                for field in self.in_use.loaded(&document) {
                                    tracing::warn!(%field, "only a start changes this: it stays as it was until then");
                                }
                                self.in_use.follow(discovery.status());
                                source.watch_again(&look);
                                tracing::info!("configuration reloaded");
                            }
                            Err(failure) => {
                                self.in_use.refused(&failure);
                                // The proxy counts what only it can find out.
                                if matches!(failure, Failure::Config(_)) {
                                    self.refused.inc();
                                }
                                tracing::error!("the new configuration is refused, the old one goes on:\n{failure}");
                            }
                        }
                        notify(State::Ready);
                    }
                }
            }
        };
        match handed_over {
            // systemd knows the successor from now on.
            true => tracing::info!("a successor has taken over: draining"),
            false => notify(State::Stopping),
        }
        // Load balancers see it first, so that nothing new comes while the rest finishes.
        let draining = self.readiness.condition("drain", "draining");
        draining.fail("draining");
        let stopper = self.running.stopper();
        let immediate = abort_on_drop(async move {
            shutdown.recv_immediate().await;
            stopper.trigger_immediate();
        });
        match handed_over {
            true => {
                if let Some(socket) = &admin_socket {
                    socket.leave_file();
                }
                admin_shutdown.trigger();
                self.running.hand_over().await;
            }
            false => self.running.shutdown().await,
        }
        source.embedded.flush().await;
        drop(immediate);
        tracing::info!("stopped");
        Ok(())
    }
}

impl Source {
    /// Watches a configuration that was just read: what has changed since `look`, before that, is
    /// noticed, also while the proxy is still starting.
    pub(crate) fn new(file: PathBuf, embedded: Embedded, look: &Look) -> Self {
        let changes = Changes::of(watched(&file, &embedded), look);
        Self {
            file,
            embedded,
            changes,
        }
    }

    /// A new configuration may be made of other files.
    fn watch_again(&mut self, look: &Look) {
        self.changes
            .watch(watched(&self.file, &self.embedded), look);
    }
}

fn watched(file: &Path, embedded: &Embedded) -> Vec<PathBuf> {
    let mut files = vec![file.to_path_buf()];
    files.extend(embedded.files());
    files
}

async fn reload(
    source: &Source,
    args: Option<&RunArgs>,
    running: &Running,
    discovery: &mut Discovery,
) -> Result<Document, Failure> {
    let document = Document::load(&source.file)?;
    // Reading reloads the embedded services where they are, so what is not valid as a whole must
    // not get that far: these services are only for a look.
    Config::read(&document, &OnTrial)?;
    let (config, mut plan) = Config::read(&document, &source.embedded)?;
    if let Some(args) = args {
        adjust(&mut plan, args);
    }
    discovery.reload(config, &document, plan, running).await?;
    Ok(document)
}

/// Validates files and folders; all mistakes of all of them are reported.
pub(crate) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let mut errors = Errors::new();
    for path in &args.paths {
        match check_one(path) {
            Ok(valid) => {
                output(&format!("{}: valid {}\n", path.display(), valid.kind()))?;
                if let (Valid::Proxy(document, plan), true) = (&valid, args.explain) {
                    output(&explain::filters(plan, document.root()))?;
                }
            }
            Err(more) => errors.append(more),
        }
    }
    errors.into_result(Some(())).map_err(Failure::Config)
}

/// What a file that is meant for `attache run` may begin with, by mistake too.
const PROXY_KEYS: [&str; 13] = [
    "listeners",
    "filters",
    "routes",
    "virtual_hosts",
    "clusters",
    "xds",
    "admin",
    "live_page",
    "workers",
    "drain",
    "max_active_downstream_connections",
    "static_resources",
    "dynamic_resources",
];

/// What a file or folder is.
enum Valid {
    Rules,
    AuthService,
    Proxy(Box<Document>, Box<Plan>),
}

impl Valid {
    fn kind(&self) -> &'static str {
        match self {
            Self::Rules => "rate limit rules",
            Self::AuthService => "auth service configuration",
            Self::Proxy(..) => "proxy configuration",
        }
    }
}

fn check_one(path: &Path) -> Result<Valid, Errors> {
    if path.is_dir() {
        Rules::load(path)?;
        return Ok(Valid::Rules);
    }
    let document = Document::load(path)?;
    let root = document.root();
    let has = |key| root.get(key).is_some();
    if has("domain") {
        Rules::load(path)?;
        Ok(Valid::Rules)
    } else if has("identity") || has("rules") {
        AuthService::validate(path)?;
        Ok(Valid::AuthService)
    } else if !PROXY_KEYS.into_iter().any(has) {
        let mut errors = document.errors();
        errors.push(
            root,
            "this is no configuration: expected `listeners` (a proxy), `identity` (an auth service) or `domain` (rate limits)",
        );
        Err(errors)
    } else {
        let (_, plan) = Config::read(&document, &OnTrial)?;
        Ok(Valid::Proxy(Box::new(document), Box::new(plan)))
    }
}
