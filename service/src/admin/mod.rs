//! The admin endpoint: a tiny HTTP/1.1 server for probes, metrics and a look at what runs. GET
//! changes nothing; what changes something is asked for with POST or DELETE, and not by pages of
//! other sites.
//!
//! | path | answer |
//! |---|---|
//! | `/live`, `/healthz` | 200 while the process lives |
//! | `/ready`, `/readyz` | 200, or 503 with one reason a line: see [`Readiness`] |
//! | `/metrics`, `/stats/prometheus` | OpenMetrics text |
//! | `/config` | the configuration in use, if the program gives it |
//! | `/log-level` | what is logged; POST `?level=…` changes it |
//! | `/drain` | whether the process drains; POST has it do so: see [`drain`] |
//! | `/` | this list, and the pages of the program |

pub mod drain;
mod log_level;
mod pages;
mod part;
mod readiness;
mod respond;
mod same_site;

use std::{net::IpAddr, sync::Arc};

pub use pages::{Page, PageAnswer, PageMethod, Query};
pub use part::{Part, PartReply, stream, whole};
pub use readiness::{Condition, Readiness};
pub use same_site::is_same_site;

use crate::{
    address::Address,
    http_server::{self, HttpLimits},
    listen::{Bound, ListenError, Listener},
    metrics::Metrics,
    shutdown::Shutdown,
};

/// Why the admin endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Others on the network could reach it.
    #[error(
        "the admin endpoint would be open to the network at {0}: use 127.0.0.1, [::1] or a Unix socket"
    )]
    NotLoopback(Address),
    /// The address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// The configuration as text, and its media type; without secrets.
pub struct ConfigDump {
    /// Such as `application/json`.
    pub content_type: &'static str,
    /// The whole text.
    pub text: String,
}

type DumpConfig = Arc<dyn Fn() -> ConfigDump + Send + Sync>;

/// What the admin endpoint shows.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    metrics: Metrics,
    config: Option<DumpConfig>,
    pages: Vec<Page>,
    parts: Vec<Part>,
    allow_network: bool,
}

impl Admin {
    /// An endpoint for these conditions and metrics.
    pub fn new(readiness: Readiness, metrics: Metrics) -> Self {
        Self {
            readiness,
            metrics,
            config: None,
            pages: log_level::pages().into(),
            parts: Vec::new(),
            allow_network: false,
        }
    }

    /// Shows the configuration in use at `/config`. The closure must leave secrets out.
    #[must_use]
    pub fn config(mut self, dump: impl Fn() -> ConfigDump + Send + Sync + 'static) -> Self {
        self.config = Some(Arc::new(dump));
        self
    }

    /// Adds pages of the program.
    #[must_use]
    pub fn pages(mut self, pages: impl IntoIterator<Item = Page>) -> Self {
        self.pages.extend(pages);
        self
    }

    /// Allows an address that others on the network can reach. Default false.
    #[must_use]
    pub fn allow_network(mut self, allow: bool) -> Self {
        self.allow_network = allow;
        self
    }

    /// Listens on `address`, without serving yet.
    ///
    /// # Errors
    /// The address is not local, or cannot be listened on.
    pub async fn bind(self, address: &Address) -> Result<BoundAdmin, AdminError> {
        if !self.allow_network && !is_local(address) {
            return Err(AdminError::NotLoopback(address.clone()));
        }
        self.on(Bound::bind(address).await?)
    }

    /// Listens on a socket of a predecessor.
    ///
    /// # Errors
    /// Its address is not local, or the system refuses.
    pub fn on(self, socket: Bound) -> Result<BoundAdmin, AdminError> {
        if !self.allow_network && !is_local(socket.address()) {
            return Err(AdminError::NotLoopback(socket.address().clone()));
        }
        Ok(BoundAdmin {
            listener: socket.listen()?,
            socket,
            admin: self,
        })
    }
}

/// An admin endpoint that listens and does not serve yet.
pub struct BoundAdmin {
    listener: Listener,
    socket: Bound,
    admin: Admin,
}

impl BoundAdmin {
    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Adds a part that the program answers itself.
    #[must_use]
    pub fn part(mut self, part: Part) -> Self {
        self.admin.parts.push(part);
        self
    }

    /// Adds pages of the program, as [`Admin::pages`].
    #[must_use]
    pub fn pages(mut self, pages: impl IntoIterator<Item = Page>) -> Self {
        self.admin = self.admin.pages(pages);
        self
    }

    /// The socket, for a successor.
    pub fn socket(&self) -> Bound {
        self.socket.clone()
    }

    /// Serves until `shutdown`. To answer probes during a drain, shut it down after it.
    pub async fn serve(self, shutdown: Shutdown) {
        let admin = Arc::new(self.admin);
        let respond = move |request| {
            let admin = admin.clone();
            async move {
                match admin.part(&request) {
                    Some(part) => part.respond(request).await,
                    None => whole(admin.respond(&request).await),
                }
            }
        };
        http_server::serve(self.listener, HttpLimits::default(), respond, shutdown).await;
    }
}

/// Whether only this machine can reach `address`.
pub fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Tcp { host, .. } => {
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests;
