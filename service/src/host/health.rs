//! `grpc.health.v1.Health`: what a host says about its services.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health as HealthRpc,
};

/// Reports and changes the readiness of a host's services. Cheap to clone.
///
/// The empty name stands for the whole host: it serves when every service of it does, unless it
/// is set by itself.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    serving: BTreeMap<String, bool>,
    draining: bool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::default())),
        }
    }
}

impl Health {
    /// Says whether `service` (its full name, `package.Service`) is ready.
    ///
    /// A draining host stays `NOT_SERVING` whatever is set.
    pub fn set(&self, service: &str, serving: bool) {
        self.state.send_if_modified(|state| {
            if state.serving.get(service) == Some(&serving) {
                return false;
            }
            state.serving.insert(service.to_owned(), serving);
            true
        });
    }

    /// Whether the whole host serves.
    pub fn is_serving(&self) -> bool {
        self.state.borrow().status("") == Some(ServingStatus::Serving)
    }

    /// Everything is `NOT_SERVING` from now on, and watchers are told and let go.
    pub(super) fn drain(&self) {
        self.state.send_modify(|state| state.draining = true);
    }
}

impl State {
    /// `None` when there is no such service.
    fn status(&self, service: &str) -> Option<ServingStatus> {
        let serving = match service {
            "" => match self.serving.get("") {
                Some(serving) => *serving,
                None => self.serving.values().all(|serving| *serving),
            },
            name => *self.serving.get(name)?,
        };
        Some(match serving && !self.draining {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        })
    }
}

#[async_trait]
impl HealthRpc for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let status = self.state.borrow().status(&service);
        match status {
            Some(status) => Ok(Response::new(answer(status))),
            None => Err(Status::not_found("no such service here")),
        }
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            service: request.into_inner().service,
            state: self.state.subscribe(),
            last: None,
        };
        let changes = stream::unfold(watcher, |mut watcher| async move {
            let status = watcher.change().await?;
            Some((Ok(answer(status)), watcher))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

struct Watcher {
    service: String,
    state: watch::Receiver<State>,
    last: Option<ServingStatus>,
}

impl Watcher {
    /// The next status that differs from the last; `None` once a drain has been told, so that
    /// watchers do not hold it up.
    async fn change(&mut self) -> Option<ServingStatus> {
        loop {
            let (status, draining) = {
                let state = self.state.borrow_and_update();
                let status = state.status(&self.service);
                (
                    status.unwrap_or(ServingStatus::ServiceUnknown),
                    state.draining,
                )
            };
            if self.last.replace(status) != Some(status) {
                return Some(status);
            }
            if draining {
                return None;
            }
            self.state.changed().await.ok()?;
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    async fn check(health: &Health, service: &str) -> Result<ServingStatus, tonic::Code> {
        let request = Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        let response = health
            .check(request)
            .await
            .map_err(|status| status.code())?;
        Ok(response.into_inner().status())
    }

    #[tokio::test]
    async fn the_host_serves_when_all_its_services_do() {
        let health = Health::default();
        health.set("a.A", true);
        health.set("b.B", false);

        assert_eq!(check(&health, "a.A").await, Ok(ServingStatus::Serving));
        assert_eq!(check(&health, "b.B").await, Ok(ServingStatus::NotServing));
        assert_eq!(check(&health, "").await, Ok(ServingStatus::NotServing));
        assert_eq!(check(&health, "c.C").await, Err(tonic::Code::NotFound));

        health.set("b.B", true);
        assert_eq!(check(&health, "").await, Ok(ServingStatus::Serving));
    }

    #[tokio::test]
    async fn the_host_can_be_set_by_itself() {
        let health = Health::default();
        health.set("a.A", false);
        health.set("", true);
        assert_eq!(check(&health, "").await, Ok(ServingStatus::Serving));
        assert_eq!(check(&health, "a.A").await, Ok(ServingStatus::NotServing));
        health.drain();
        assert_eq!(check(&health, "").await, Ok(ServingStatus::NotServing));
    }

    #[tokio::test]
    async fn a_draining_host_serves_nothing_whatever_is_set() {
        let health = Health::default();
        health.set("a.A", true);
        health.drain();
        health.set("a.A", true);
        assert_eq!(check(&health, "a.A").await, Ok(ServingStatus::NotServing));
        assert!(!health.is_serving());
    }

    #[tokio::test]
    async fn a_watch_tells_changes_only_and_ends_with_the_drain() {
        let health = Health::default();
        let request = Request::new(HealthCheckRequest {
            service: "a.A".to_owned(),
        });
        let mut watch = health.watch(request).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|change| change.unwrap().status());

        assert_eq!(next().await, Some(ServingStatus::ServiceUnknown));
        health.set("a.A", true);
        assert_eq!(next().await, Some(ServingStatus::Serving));
        health.set("b.B", true);
        assert!(next().now_or_never().is_none());
        health.drain();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    }
}
