//! Follows a control plane and keeps the proxy at what it says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use attache_service::{
    Metrics,
    channel::{EmbeddedConnector, Target},
    config::{Document, Errors},
    xds::{AdsClient, AdsStatus, Answer, Refusal, Resource, ResourceType, Update, Wanted},
};
use tokio::{sync::watch, time::Instant};

use super::{
    cache::{self, Saved},
    plan::XdsPlan,
    resource::{Assignment, Kept},
    state::{self, Key, State},
};
use crate::{
    Plan, Running, StartError,
    config::{Config, DiscoveredType, EmbeddedService, EmbeddedServices},
};

/// Pause from a change to the writing of the cache, so that many are written once.
const SETTLED: Duration = Duration::from_secs(1);
/// Pause before a listener that the system did not let run is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Why a configuration of a file does not come into force.
#[derive(Debug, thiserror::Error)]
pub enum XdsError {
    /// With what the control plane said it has mistakes.
    #[error("{0}")]
    Config(Errors),
    /// The proxy cannot run it.
    #[error("{0}")]
    Run(#[from] StartError),
}

/// What happens next to a [`ControlPlane`].
#[derive(Debug)]
pub struct Event(What);

#[derive(Debug)]
enum What {
    Update(Update),
    /// The time for some first answer is over.
    Late,
    /// Listeners that the system did not let run are to be tried again.
    TryAgain,
    /// What is in force is to be written down.
    Save,
}

/// A control plane that a proxy follows: `next` waits, `take` acts.
pub struct ControlPlane {
    base: Base,
    plan: XdsPlan,
    client: AdsClient,
    state: State,
    /// What the cache had at the start.
    saved: HashMap<ResourceType, BTreeMap<String, Resource>>,
    /// Types of which nothing has been told yet.
    unanswered: BTreeSet<ResourceType>,
    /// When what is missing is done without, if ever.
    deadlines: BTreeMap<Key, Option<Instant>>,
    start: Instant,
    save: Option<Instant>,
    /// When listeners that could not run are tried again.
    try_again: Option<Instant>,
    /// What became of the latest response about listeners, but for what the system does not let
    /// run.
    latest: Answer,
    /// Listeners that the system does not let run, as the status says it.
    shown: BTreeMap<String, String>,
    metrics: Metrics,
}

/// The file, and what of it need not be made again.
struct Base {
    config: Config,
    document: Document,
    embedded: Remembered,
    workers: usize,
    drain_min: Duration,
    drain_timeout: Duration,
}

/// The services that the file embeds, which run.
struct Remembered(HashMap<String, EmbeddedConnector>);

impl EmbeddedServices for Remembered {
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        let known = self.0.get(cluster).cloned();
        if known.is_none() {
            let message = format!("cluster `{cluster}`: its service does not run");
            match service {
                EmbeddedService::ExtAuthz(at) | EmbeddedService::Ratelimit(at) => {
                    errors.push(at, message);
                }
                EmbeddedService::ExtProc(at) => errors.push(at, message),
            }
        }
        known
    }
}

impl Base {
    /// `plan` is that of the file alone.
    fn new(config: Config, document: Document, plan: &Plan) -> Self {
        let embedded = plan.clusters.iter().filter_map(|cluster| {
            let members = cluster.endpoints.members();
            match members.first()?.endpoint.target() {
                Target::Embedded(connector) => Some((cluster.name.to_string(), connector.clone())),
                Target::Address(_) => None,
            }
        });
        Self {
            embedded: Remembered(embedded.collect()),
            config,
            document,
            workers: plan.workers,
            drain_min: plan.drain_min,
            drain_timeout: plan.drain_timeout,
        }
    }

    fn plan(&self, config: &Config) -> Result<Plan, Errors> {
        let mut plan = state::plan(config, &self.document, &self.embedded)?;
        plan.workers = self.workers;
        plan.drain_min = self.drain_min;
        plan.drain_timeout = self.drain_timeout;
        Ok(plan)
    }
}

impl ControlPlane {
    /// Follows the control plane of a configuration; `None` when it has none. `plan` is that of
    /// `config` alone, which runs.
    pub fn new(config: Config, document: Document, plan: &Plan, metrics: &Metrics) -> Option<Self> {
        let mut xds = plan.xds.clone()?;
        let mut clusters = plan.clusters.iter();
        if let Some(cluster) = clusters.find(|one| one.name == xds.settings.channel.name) {
            // With the guards of all who call it.
            xds.settings.channel = cluster.channel(metrics);
        }
        let base = Base::new(config, document, plan);
        let saved = xds.cache.as_deref().map(cache::read);
        let saved = match (saved, &xds.cache) {
            (Some(Err(error)), Some(path)) => {
                let file = path.display();
                tracing::error!(%file, %error, "the last resources of the control plane cannot be read");
                Saved::new()
            }
            (Some(Ok(Some(saved))), _) => saved,
            _ => Saved::new(),
        };
        let by_name = |list: Vec<Resource>| {
            let named = list.into_iter().map(|one| (one.name.clone(), one));
            named.collect::<BTreeMap<_, _>>()
        };
        let saved = saved.into_iter();
        let saved = saved.map(|(kind, list)| (kind, by_name(list))).collect();
        let mut this = Self {
            client: client(&xds, metrics),
            unanswered: asked(&xds).collect(),
            base,
            plan: xds,
            state: State::default(),
            saved,
            deadlines: BTreeMap::new(),
            start: Instant::now(),
            save: None,
            try_again: None,
            latest: Answer::Accepted,
            shown: BTreeMap::new(),
            metrics: metrics.clone(),
        };
        for (kind, list) in &this.saved {
            this.client.resume(*kind, list.keys().cloned());
        }
        this.subscribe();
        Some(this)
    }

    /// How the conversation stands.
    pub fn status(&self) -> watch::Receiver<AdsStatus> {
        self.client.status()
    }

    /// Whether the first answers have come, or are done without.
    pub fn is_ready(&self) -> bool {
        self.unanswered.is_empty() && self.deadlines.is_empty()
    }

    /// Waits for what happens next. It may be given up at any time.
    pub async fn next(&mut self) -> Event {
        let late = self.deadlines.values().flatten().min().copied();
        let first = self.start + self.plan.initial_fetch_timeout;
        let first = (!self.unanswered.is_empty()).then_some(first);
        let late = late.into_iter().chain(first).min();
        Event(tokio::select! {
            biased;
            () = until(self.save) => What::Save,
            () = until(late) => What::Late,
            () = until(self.try_again) => What::TryAgain,
            update = self.client.next() => What::Update(update),
        })
    }

    /// Does what is to be done.
    pub async fn take(&mut self, event: Event, running: &Running) {
        match event.0 {
            What::Update(update) => self.update(&update, running).await,
            What::Late => self.late(running).await,
            What::TryAgain => self.try_again(running).await,
            What::Save => self.write().await,
        }
    }

    async fn update(&mut self, update: &Update, running: &Running) {
        let unanswered = self.unanswered.remove(&update.resource_type);
        let answer = self.take_over(update, running).await;
        if unanswered && matches!(answer, Answer::Refused(_)) {
            // Something may still come in time.
            self.unanswered.insert(update.resource_type);
        }
        if !matches!(answer, Answer::Refused(_)) {
            self.save.get_or_insert(Instant::now() + SETTLED);
        }
        self.client.answer(update, &answer);
        if update.resource_type == ResourceType::LISTENER {
            self.shown.clone_from(&self.state.held);
            self.latest = but_for(&self.shown, answer);
        }
        self.subscribe();
    }

    /// Brings an update into force, without what is refused of it. Listeners that the system does
    /// not let run are refused too where the update brings them, and tried again later.
    async fn take_over(&mut self, update: &Update, running: &Running) -> Answer {
        let mut refused = BTreeMap::<String, String>::new();
        let mut held = BTreeMap::<String, String>::new();
        loop {
            let mut next = self.state.clone();
            let mut refusals = next.take(update, &refused, &self.base.config);
            next.held.extend(held.clone());
            next.settle(&self.base.config, self.clusters_known());
            let more = match self.check_and_run(&next, update, running).await {
                Ok(()) => {
                    refusals.extend(unable(update, &next));
                    self.state = next;
                    return answer(refusals);
                }
                Err(Fault::Config(errors)) => match next.blame(update, &errors) {
                    Some(blamed) => blamed,
                    None => return Answer::Refused(errors.to_string()),
                },
                Err(Fault::Run(error)) => match self.unable(&error, &next) {
                    Some(name) => {
                        let reason = next.why_unable(&name, &error);
                        self.tell_unable(&name, &reason);
                        held.insert(name, reason);
                        continue;
                    }
                    None => return Answer::Refused(error.to_string()),
                },
            };
            let before = refused.len();
            refused.extend(more);
            if refused.len() == before {
                let reasons: Vec<_> = refused.into_values().collect();
                return Answer::Refused(reasons.join("; "));
            }
        }
    }

    async fn check_and_run(
        &mut self,
        next: &State,
        update: &Update,
        running: &Running,
    ) -> Result<(), Fault> {
        if update.resource_type == ResourceType::CLUSTER_LOAD_ASSIGNMENT
            && self.only_endpoints(next)
        {
            fill(&running.plan(), next);
            return Ok(());
        }
        let said = next.said(&self.base.config, update);
        let said = self.base.plan(&said).map_err(Fault::Config)?;
        if update.resource_type == ResourceType::LISTENER {
            // Its routes may be long in coming, and whoever sent it wants to know now.
            let waiting = update.resources.iter().map(|one| &*one.name);
            let waiting = waiting.filter(|name| next.waits(name) && !next.held.contains_key(*name));
            for name in waiting {
                let could = running.could_run(&said, name).await;
                could.map_err(Fault::Run)?;
            }
        }
        if self.only_endpoints(next) {
            // What was said waits for more.
            return Ok(());
        }
        self.run(next, running).await
    }

    /// The listener that is to blame for what the system said: of those that do not run as they
    /// were told last.
    fn unable(&self, error: &StartError, next: &State) -> Option<String> {
        let (one, other) = match error {
            StartError::Listen { listener, .. } | StartError::AccessLog { listener, .. } => {
                (listener, None)
            }
            StartError::SameAddress(other, listener) => (listener, Some(other)),
            _ => return None,
        };
        let mut names = [one].into_iter().chain(other);
        let blamed = names.find(|name| {
            let told = next.listeners.latest.get(*name);
            let runs = self.state.listeners.active.get(*name);
            told.is_some_and(|told| {
                next.waits(name) || runs.is_none_or(|runs| !Arc::ptr_eq(told, runs))
            }) && !next.held.contains_key(*name)
        });
        blamed.cloned()
    }

    fn tell_unable(&self, name: &str, error: &str) {
        if self.state.held.get(name).is_none_or(|known| known != error) {
            let again = TRY_AGAIN.as_secs();
            tracing::error!(
                error,
                "a listener of the control plane cannot run; it is tried again every {again} s"
            );
        }
    }

    /// Brings into force what is ready of what was told, without listeners that the system does
    /// not let run.
    async fn settle_and_run(&mut self, told: State, running: &Running) -> Result<State, Fault> {
        let mut held = told.held.clone();
        loop {
            let mut next = told.clone();
            next.held.clone_from(&held);
            next.settle(&self.base.config, self.clusters_known());
            let error = match self.run(&next, running).await {
                Ok(()) => return Ok(next),
                Err(Fault::Run(error)) => error,
                Err(fault) => return Err(fault),
            };
            let Some(name) = self.unable(&error, &next) else {
                return Err(Fault::Run(error));
            };
            let reason = next.why_unable(&name, &error);
            self.tell_unable(&name, &reason);
            held.insert(name, reason);
        }
    }

    /// Tries those listeners again that can have their addresses by now.
    async fn try_again(&mut self, running: &Running) {
        self.try_again = None;
        let mut told = self.state.clone();
        told.held.clear();
        if let Ok(plan) = self.base.plan(&told.known(&self.base.config)) {
            for (name, reason) in self.state.held.clone() {
                if running.could_run(&plan, &name).await.is_err() {
                    told.held.insert(name, reason);
                }
            }
        }
        if told.held.len() < self.state.held.len() {
            match self.settle_and_run(told, running).await {
                Ok(next) => {
                    let before = self.state.held.keys();
                    for name in before.filter(|name| !next.held.contains_key(*name)) {
                        tracing::info!(listener = name, "a listener of the control plane can run");
                    }
                    self.state = next;
                }
                Err(fault) => tracing::error!("listeners cannot be tried again: {fault}"),
            }
        }
        self.subscribe();
    }

    /// Whether only endpoints of clusters in use are others than before.
    fn only_endpoints(&self, next: &State) -> bool {
        let before = &self.state;
        state::same(&before.clusters.active, &next.clusters.active)
            && state::same(&before.tables.active, &next.tables.active)
            && state::same(&before.listeners.active, &next.listeners.active)
    }

    async fn run(&mut self, next: &State, running: &Running) -> Result<(), Fault> {
        let config = next.in_use(&self.base.config);
        let plan = self.base.plan(&config).map_err(Fault::Config)?;
        fill(&plan, next);
        running.reload(plan).await.map_err(Fault::Run)?;
        // Clusters that stay are those that there were.
        fill(&running.plan(), next);
        Ok(())
    }

    /// What has not come is taken from the cache, or done without.
    async fn late(&mut self, running: &Running) {
        let now = Instant::now();
        let mut next = self.state.clone();
        if !self.unanswered.is_empty() && now >= self.start + self.plan.initial_fetch_timeout {
            for kind in std::mem::take(&mut self.unanswered) {
                let known = self.saved.remove(&kind).unwrap_or_default();
                tracing::warn!(
                    r#type = %kind,
                    cached = known.len(),
                    "the control plane has not answered: going on with what it said last"
                );
                self.adopt(&mut next, kind, known.into_values().collect());
            }
            // What they need need not be waited for once more.
            for (kind, name) in next.missing(&self.base.config) {
                let saved = self.saved.get_mut(&kind);
                let saved = saved.and_then(|saved| saved.remove(&name));
                self.adopt(&mut next, kind, saved.into_iter().collect());
            }
        }
        let is_late = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
        let missing = next.missing(&self.base.config);
        let late = self.deadlines.iter();
        let late = late.filter(|(key, at)| is_late(at) && missing.contains(*key));
        let late: Vec<Key> = late.map(|(key, _)| key.clone()).collect();
        for (kind, name) in late {
            if kind == ResourceType::CLUSTER {
                tracing::warn!(name, "a cluster that was removed is still named, and ends");
                next.given_up.insert((kind, name));
                continue;
            }
            let saved = self.saved.get_mut(&kind);
            let saved = saved.and_then(|saved| saved.remove(&name));
            tracing::warn!(
                r#type = %kind,
                name,
                cached = saved.is_some(),
                "the control plane has not told this in time"
            );
            self.adopt(&mut next, kind, saved.into_iter().collect());
            next.given_up.insert((kind, name));
        }
        let given_up = next.given_up.clone();
        match self.settle_and_run(next, running).await {
            Ok(next) => self.state = next,
            Err(fault) => {
                tracing::error!("what is known without the control plane cannot run: {fault}");
                // Not to be tried again and again.
                self.state.given_up = given_up;
            }
        }
        self.subscribe();
    }

    /// Takes resources over from the cache.
    fn adopt(&self, next: &mut State, kind: ResourceType, resources: Vec<Resource>) {
        for refusal in next.adopt(kind, resources, &self.base.config) {
            tracing::error!(
                r#type = %kind,
                name = refusal.name,
                reason = refusal.reason,
                "a resource of the cache cannot be used"
            );
        }
    }

    fn clusters_known(&self) -> bool {
        !self.unanswered.contains(&ResourceType::CLUSTER)
    }

    /// Says in the status which listeners run by now, and which do not any more.
    fn show(&mut self) {
        if self.shown == self.state.held {
            return;
        }
        self.shown.clone_from(&self.state.held);
        let mut refusals = match &self.latest {
            Answer::Accepted => Vec::new(),
            Answer::Partly(refusals) => refusals.clone(),
            // Nothing of it is in force, whatever runs.
            Answer::Refused(_) => return,
        };
        refusals.extend(self.shown.iter().map(|(name, reason)| Refusal {
            name: name.clone(),
            reason: reason.clone(),
        }));
        self.client.show(ResourceType::LISTENER, &answer(refusals));
    }

    /// Asks for what is needed, and sets the time for what is missing.
    fn subscribe(&mut self) {
        self.show();
        for (kind, names) in self.state.wanted(&self.base.config) {
            self.client.subscribe(kind, names);
        }
        let missing = self.state.missing(&self.base.config);
        let given_up = &self.state.given_up;
        let timeout = self.plan.initial_fetch_timeout;
        self.deadlines
            .retain(|key, _| missing.contains(key) && !given_up.contains(key));
        for key in missing {
            if !given_up.contains(&key) {
                let patience = self.state.patience(&key, timeout);
                let at = patience.and_then(|patience| Instant::now().checked_add(patience));
                self.deadlines.entry(key).or_insert(at);
            }
        }
        match self.state.held.is_empty() {
            true => self.try_again = None,
            false => {
                let at = Instant::now() + TRY_AGAIN;
                self.try_again.get_or_insert(at);
            }
        }
    }

    async fn write(&mut self) {
        self.save = None;
        let Some(path) = self.plan.cache.clone() else {
            return;
        };
        let saved = self.state.saved();
        let file = path.clone();
        let written =
            tokio::task::spawn_blocking(move || cache::write(&file, &cache::text(&saved))).await;
        if let Ok(Err(error)) = written {
            let file = path.display();
            tracing::error!(%file, %error, "the resources of the control plane cannot be written down");
        }
    }

    /// Goes on with another file; `plan` is that of the file alone. What the control plane said
    /// stays, and the conversation goes on unless the file says otherwise.
    ///
    /// # Errors
    /// The file does not go with what the control plane said, or cannot run; nothing has changed
    /// then.
    pub async fn rebase(
        &mut self,
        config: Config,
        document: Document,
        plan: &Plan,
        running: &Running,
    ) -> Result<(), XdsError> {
        let base = Base::new(config, document, plan);
        let before = std::mem::replace(&mut self.base, base);
        match self.settle_and_run(self.state.clone(), running).await {
            Ok(next) => self.state = next,
            Err(fault) => {
                self.base = before;
                return Err(match fault {
                    Fault::Config(errors) => XdsError::Config(errors),
                    Fault::Run(error) => XdsError::Run(error),
                });
            }
        }
        let Some(xds) = running.plan().xds.clone() else {
            return Ok(());
        };
        if xds.written != self.plan.written {
            self.client = client(&xds, &self.metrics);
            for (kind, list) in self.state.saved() {
                self.client
                    .resume(kind, list.into_iter().map(|one| one.name));
            }
        }
        self.plan = xds;
        self.subscribe();
        Ok(())
    }

    /// Where the last good resources are kept.
    pub fn cache(&self) -> Option<&PathBuf> {
        self.plan.cache.as_ref()
    }
}

/// Why a state does not come into force.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Config(Errors),
    #[error("{0}")]
    Run(StartError),
}

fn answer(refusals: Vec<Refusal>) -> Answer {
    match refusals.is_empty() {
        true => Answer::Accepted,
        false => Answer::Partly(refusals),
    }
}

/// What became of a response, but for listeners that are held.
fn but_for(held: &BTreeMap<String, String>, answer: Answer) -> Answer {
    match answer {
        Answer::Partly(mut refusals) => {
            refusals.retain(|one| held.get(&one.name) != Some(&one.reason));
            Answer::Partly(refusals)
        }
        whole => whole,
    }
}

/// The listeners of an update that the system does not let run.
fn unable(update: &Update, next: &State) -> Vec<Refusal> {
    if update.resource_type != ResourceType::LISTENER {
        return Vec::new();
    }
    let names = update.resources.iter().map(|one| &one.name);
    names
        .filter_map(|name| {
            Some(Refusal {
                name: name.clone(),
                reason: next.held.get(name)?.clone(),
            })
        })
        .collect()
}

/// Gives the clusters of a plan the endpoints that are known.
fn fill(plan: &Plan, state: &State) {
    for cluster in &plan.clusters {
        let name = cluster.eds.as_deref();
        let known: Option<&Arc<Kept<Assignment>>> =
            name.and_then(|name| state.assignments.get(name));
        if let Some(known) = known {
            cluster.endpoints.replace(known.resource.endpoints.clone());
        }
    }
}

fn asked(plan: &XdsPlan) -> impl Iterator<Item = ResourceType> {
    plan.resources.iter().map(|one| match one {
        DiscoveredType::Clusters => ResourceType::CLUSTER,
        DiscoveredType::Listeners => ResourceType::LISTENER,
    })
}

fn client(plan: &XdsPlan, metrics: &Metrics) -> AdsClient {
    let whole: BTreeSet<_> = asked(plan).collect();
    let named = || Wanted::Named(BTreeSet::new());
    // Clusters before those who name them, as in Envoy.
    let types = [
        (ResourceType::CLUSTER, Wanted::All),
        (ResourceType::CLUSTER_LOAD_ASSIGNMENT, named()),
        (ResourceType::LISTENER, Wanted::All),
        (ResourceType::ROUTE_CONFIGURATION, named()),
    ];
    let types = types
        .into_iter()
        .filter(|(kind, wanted)| *wanted != Wanted::All || whole.contains(kind));
    AdsClient::new(plan.settings.clone(), types, metrics)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
