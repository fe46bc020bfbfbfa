//! The services that a proxy can run in its own process.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use attache_ext_authz::{policy::AuthService, server as ext_authz_server};
use attache_ext_proc::server::Server;
use attache_proxy::config::{EmbeddedService, EmbeddedServices};
use attache_ratelimit::RateLimitServer;
use attache_ratelimit::store::{AnyStore, MemoryStore, memory};
use attache_service::{
    Host, Metrics,
    channel::EmbeddedConnector,
    config::{Errors, Located},
};

use crate::demo::processor::DemoProcessor;

/// Services by the file or folder they are made of. A reload of the proxy reloads them where they
/// are, so that counters and caches survive.
pub(crate) struct Embedded {
    metrics: Metrics,
    services: Mutex<Services>,
}

#[derive(Default)]
struct Services {
    auth: HashMap<PathBuf, (AuthService, EmbeddedConnector)>,
    limits: HashMap<PathBuf, (RateLimitServer, EmbeddedConnector)>,
}

impl Embedded {
    /// No service yet; each is made when a configuration names it.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            services: Mutex::default(),
        }
    }

    /// The files and folders that the services are made of.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let services = self.services();
        let auth = services
            .auth
            .values()
            .flat_map(|(service, _)| service.files());
        auth.chain(services.limits.keys().cloned()).collect()
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn auth(&self, path: &Located<PathBuf>, errors: &mut Errors) -> Option<EmbeddedConnector> {
        let mut services = self.services();
        if let Some((service, connector)) = services.auth.get(&path.value) {
            let connector = connector.clone();
            return report(service.reload(), errors).map(|()| connector);
        }
        let service = report(AuthService::load(&path.value, &self.metrics), errors)?;
        let connector = Host::new(ext_authz_server::routes(service.clone())).embedded();
        services
            .auth
            .insert(path.value.clone(), (service, connector.clone()));
        Some(connector)
    }

    fn limits(&self, path: &Located<PathBuf>, errors: &mut Errors) -> Option<EmbeddedConnector> {
        let mut services = self.services();
        if let Some((service, connector)) = services.limits.get(&path.value) {
            let connector = connector.clone();
            return report(service.reload(), errors).map(|()| connector);
        }
        let store = AnyStore::from(MemoryStore::new(memory::DEFAULT_CAPACITY, &self.metrics));
        let service = report(
            RateLimitServer::load(&path.value, store, &self.metrics),
            errors,
        )?;
        let connector = Host::new(service.routes()).embedded();
        services
            .limits
            .insert(path.value.clone(), (service, connector.clone()));
        Some(connector)
    }
}

/// Adds a service's own errors, located in its own files, to those of the proxy.
fn report<T>(result: Result<T, Errors>, errors: &mut Errors) -> Option<T> {
    result.map_err(|more| errors.append(more)).ok()
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
                Some(Host::new(Server::new(DemoProcessor::default()).into_routes()).embedded())
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
