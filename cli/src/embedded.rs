//! The services that a proxy can run in its own process.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use attache_ext_authz::{
    policy::{AuthService, Reload},
    server as ext_authz_server,
};
use attache_ext_proc::server::Server;
use attache_proxy::config::{EmbeddedService, EmbeddedServices};
use attache_ratelimit::RateLimitServer;
use attache_ratelimit::store::{AnyStore, MemoryStore, memory};
use attache_service::{
    Host, Metrics,
    admin::Readiness,
    channel::EmbeddedConnector,
    config::{Errors, Located},
    trace::Tracer,
};

use crate::{
    demo::processor::DemoProcessor,
    reload::{Task, abort_on_drop},
    services::FLUSH,
};

/// Services by the file or folder they are made of. A reload of the proxy reloads them where they
/// are, so that counters and caches survive.
pub(crate) struct Embedded {
    metrics: Metrics,
    readiness: Readiness,
    tracer: Tracer,
    services: Mutex<Services>,
}

#[derive(Default)]
struct Services {
    auth: HashMap<PathBuf, Auth>,
    limits: HashMap<PathBuf, (RateLimitServer, EmbeddedConnector)>,
}

struct Auth {
    service: AuthService,
    connector: EmbeddedConnector,
    /// Tells when it is ready.
    _ready: Option<Task>,
}

impl Embedded {
    /// No service yet; each is made when a configuration names it, inside a runtime.
    /// `readiness` says which of them are not ready.
    pub(crate) fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Self {
            metrics,
            readiness,
            tracer: Tracer::default(),
            services: Mutex::default(),
        }
    }

    /// Makes spans of what the services are asked.
    pub(crate) fn traced(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// The files and folders that the services are made of.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let services = self.services();
        let auth = services.auth.values();
        let auth = auth.flat_map(|auth| auth.service.files());
        auth.chain(services.limits.keys().cloned()).collect()
    }

    /// Waits until the services have logged all their decisions, for some seconds at most.
    pub(crate) async fn flush(&self) {
        let auth: Vec<AuthService> = {
            let services = self.services();
            let auth = services.auth.values();
            auth.map(|auth| auth.service.clone()).collect()
        };
        for service in auth {
            service.flush(FLUSH).await;
        }
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn auth(&self, path: &Located<PathBuf>, errors: &mut Errors) -> Option<EmbeddedConnector> {
        let mut services = self.services();
        if let Some(auth) = services.auth.get(&path.value) {
            let connector = auth.connector.clone();
            let reload = report(auth.service.reload(), path, errors)?;
            if let Reload::WaitsFor(what) = reload {
                tracing::info!(
                    policy = %path.value.display(),
                    waits_for = what.join(", "),
                    "the old policy decides until the new one has all it needs"
                );
            }
            return Some(connector);
        }
        let service = report(AuthService::load(&path.value, &self.metrics), path, errors)?;
        let server = ext_authz_server::Server::new(service.clone()).tracer(&self.tracer);
        let connector = server.into_host().embedded();
        let auth = Auth {
            _ready: self.announce_when_ready(&path.value, &service),
            connector: connector.clone(),
            service,
        };
        services.auth.insert(path.value.clone(), auth);
        Some(connector)
    }

    fn announce_when_ready(&self, path: &Path, service: &AuthService) -> Option<Task> {
        let waits_for = service.waits_for();
        if waits_for.is_empty() {
            return None;
        }
        let reason = format!("waits for {}", waits_for.join(", "));
        let name = format!("ext_authz {}", path.display());
        let condition = self.readiness.condition(&name, &reason);
        let service = service.clone();
        Some(abort_on_drop(async move {
            service.ready().await;
            condition.hold();
        }))
    }

    fn limits(&self, path: &Located<PathBuf>, errors: &mut Errors) -> Option<EmbeddedConnector> {
        let mut services = self.services();
        if let Some((service, connector)) = services.limits.get(&path.value) {
            let connector = connector.clone();
            return report(service.reload(), path, errors).map(|()| connector);
        }
        let store = AnyStore::from(MemoryStore::new(memory::DEFAULT_CAPACITY, &self.metrics));
        let service = report(
            RateLimitServer::load(&path.value, store, &self.metrics),
            path,
            errors,
        )?
        .tracer(&self.tracer);
        let connector = Host::default().service(service.service()).embedded();
        services
            .limits
            .insert(path.value.clone(), (service, connector.clone()));
        Some(connector)
    }
}

/// Services that are looked at for mistakes and not made.
pub(crate) struct OnTrial;

impl EmbeddedServices for OnTrial {
    fn connect(
        &self,
        cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        match service {
            EmbeddedService::ExtAuthz(path) => {
                report(AuthService::validate(&path.value), path, errors)?;
                Some(Arc::new(|| tokio::io::duplex(1).0))
            }
            EmbeddedService::Ratelimit(_) | EmbeddedService::ExtProc(_) => {
                let embedded = Embedded::new(Metrics::default(), Readiness::default());
                embedded.connect(cluster, service, errors)
            }
        }
    }
}

/// Adds a service's own errors to those of the proxy: where they stand in its own files, and what
/// stands nowhere, such as that there is no file, where `path` stands in the proxy's.
fn report<T>(result: Result<T, Errors>, path: &Located<PathBuf>, errors: &mut Errors) -> Option<T> {
    let more = match result {
        Ok(value) => return Some(value),
        Err(more) => more,
    };
    for error in &more {
        match (error.span().is_known(), error.file()) {
            (true, _) => errors.push(error.span(), error.message()),
            (false, Some(file)) => errors.push(path, format!("{file}: {}", error.message())),
            (false, None) => errors.push(path, error.message()),
        }
    }
    None
}

impl EmbeddedServices for Embedded {
    fn connect(
        &self,
        _cluster: &str,
        service: &EmbeddedService,
        errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        match service {
            EmbeddedService::ExtAuthz(path) => self.auth(path, errors),
            EmbeddedService::Ratelimit(path) => self.limits(path, errors),
            EmbeddedService::ExtProc(name) if name.value == "demo" => {
                let server = Server::new(DemoProcessor::default()).tracer(&self.tracer);
                Some(server.into_host().embedded())
            }
            EmbeddedService::ExtProc(name) => {
                errors.push(
                    name,
                    format!(
                        "there is no built-in processor `{}`; `demo` is one",
                        name.value
                    ),
                );
                None
            }
        }
    }
}
