//! The processes of a soak: the proxy, two of each policy service, two of each kind of origin, and
//! a Redis in which both rate-limit services count.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Soak;
use super::plan::{self, Addresses};
use crate::certificates::{Certificates, replace};
use crate::child::{Child, free_address, lasting_address};
use crate::ours;
use crate::redis::Redis;

/// How long a process may take to end after it was asked to.
const END: Duration = Duration::from_secs(20);

/// What a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Web,
    Api,
    Auth,
    Limits,
    Rewrite,
}

impl Role {
    const ALL: [Role; 5] = [
        Role::Web,
        Role::Api,
        Role::Auth,
        Role::Limits,
        Role::Rewrite,
    ];

    /// The name of its cluster.
    pub(crate) fn cluster(self) -> &'static str {
        match self {
            Role::Web => "web",
            Role::Api => "api",
            Role::Auth => "auth",
            Role::Limits => "limits",
            Role::Rewrite => "rewrite",
        }
    }
}

/// One of the two servers of a role.
struct Server {
    role: Role,
    address: SocketAddr,
    child: Option<Child>,
    starts: u32,
}

/// All processes, ended with this value.
pub(crate) struct Stage {
    folder: PathBuf,
    attache: PathBuf,
    redis: Redis,
    servers: Vec<Server>,
    proxy: Option<Child>,
    addresses: Addresses,
    pub(crate) certificates: Certificates,
    /// Number of the configuration that the proxy has.
    pub(crate) generation: u64,
}

impl Stage {
    /// Starts everything.
    pub(crate) async fn start(soak: &Soak, folder: &Path) -> anyhow::Result<Stage> {
        let folder = folder.to_owned();
        let redis = Redis::start(&soak.redis, "redis", &folder).await?;
        let mut servers = Vec::new();
        for role in Role::ALL {
            for _ in 0..2 {
                servers.push(Server {
                    role,
                    address: lasting_address()?,
                    child: None,
                    starts: 0,
                });
            }
        }
        let of = |role| {
            let own = servers.iter().filter(|server| server.role == role);
            own.map(|server| server.address.to_string()).collect()
        };
        let addresses = Addresses {
            plain: lasting_address()?,
            secure: lasting_address()?,
            extra: lasting_address()?,
            admin: lasting_address()?,
            web: of(Role::Web),
            api: of(Role::Api),
            auth: of(Role::Auth),
            limits: of(Role::Limits),
            rewrite: of(Role::Rewrite),
        };
        let certificates = Certificates::new(&folder)?;
        std::fs::create_dir_all(folder.join("limits/config"))?;
        std::fs::write(folder.join("auth.yaml"), plan::AUTH)?;
        std::fs::write(folder.join("limits/config/soak.yaml"), plan::limits())?;
        let mut stage = Stage {
            folder,
            attache: soak.attache.clone(),
            redis,
            servers,
            proxy: None,
            addresses,
            certificates,
            generation: 0,
        };
        for role in Role::ALL {
            stage.begin(role, 0).await?;
            stage.begin(role, 1).await?;
        }
        stage.configure()?;
        let mut command = Command::new(&stage.attache);
        command.arg("run").arg(stage.file()).args([
            "--workers",
            &soak.workers.to_string(),
            "--log",
            "info",
        ]);
        let mut proxy = Child::program("proxy", &mut command, &stage.folder)?;
        let admin = stage.addresses.admin;
        proxy
            .ready(|| async move {
                let ready = get(admin, "/readyz").await?;
                anyhow::ensure!(ready.starts_with("HTTP/1.1 200"), "not ready: {ready}");
                Ok(())
            })
            .await?;
        stage.proxy = Some(proxy);
        Ok(stage)
    }

    /// Where clients connect, without and with TLS.
    pub(crate) fn targets(&self) -> (SocketAddr, SocketAddr) {
        (self.addresses.plain, self.addresses.secure)
    }

    /// The listener that comes and goes.
    pub(crate) fn extra(&self) -> SocketAddr {
        self.addresses.extra
    }

    /// The proxy.
    pub(crate) fn proxy(&self) -> anyhow::Result<&Child> {
        self.proxy.as_ref().context("the proxy does not run")
    }

    fn file(&self) -> PathBuf {
        self.folder.join("attache.yaml")
    }

    /// Gives the proxy its next configuration, in the file alone.
    pub(crate) fn configure(&mut self) -> anyhow::Result<()> {
        self.generation += 1;
        let config = plan::config(self.generation, &self.addresses, &self.certificates);
        replace(&self.file(), &format!("{config:#}\n"))
    }

    /// Gives it one with a mistake.
    pub(crate) fn misconfigure(&self) -> anyhow::Result<()> {
        replace(
            &self.file(),
            "listeners: [{ name: edge, adress: nowhere }]\n",
        )
    }

    /// Tells it to read its file.
    pub(crate) fn hang_up(&self) -> anyhow::Result<()> {
        self.proxy()?.signal(Signal::HUP)
    }

    /// Ends one of the two servers of a role as `how` says, and starts it again.
    pub(crate) async fn restart(
        &mut self,
        role: Role,
        which: usize,
        how: Ending,
    ) -> anyhow::Result<()> {
        let child = self.server(role, which)?.child.take();
        let child = child.context("it did not run")?;
        match how {
            Ending::Asked => child.terminate(END).await?,
            Ending::Killed => drop(child),
        }
        self.begin(role, which).await
    }

    async fn begin(&mut self, role: Role, which: usize) -> anyhow::Result<()> {
        let server = self.server(role, which)?;
        server.starts += 1;
        let (address, starts) = (server.address, server.starts);
        let listen = ["--listen", &address.to_string()];
        let mut child = match role {
            Role::Web | Role::Api => Child::server_with("soak-origin", &listen)?.0,
            Role::Rewrite => Child::server_with("svc-processor", &listen)?.0,
            Role::Auth | Role::Limits => {
                let mut command = self.service(role, address)?;
                let name = format!("{}-{which}.{starts}", role.cluster());
                Child::program(&name, &mut command, &self.folder)?
            }
        };
        child
            .ready(|| async move {
                TcpStream::connect(address).await?;
                Ok(())
            })
            .await?;
        self.server(role, which)?.child = Some(child);
        Ok(())
    }

    /// The command of a policy service. The one for limits runs in the place of the reference, as
    /// that way has a setting for how long Redis may take: a busy machine is no failure here.
    fn service(&self, role: Role, address: SocketAddr) -> anyhow::Result<Command> {
        if role != Role::Limits {
            let config = self.folder.join("auth.yaml");
            let command = ours::service(&self.attache, "ext-authz", &config, address);
            return Ok(command);
        }
        let mut command = Command::new(&self.attache);
        command
            .args(["ratelimit", "--listen", &address.to_string()])
            .args(["--workers", "1", "--log", "error"])
            .env_clear()
            .envs([("HOST", "127.0.0.1"), ("DEBUG_HOST", "127.0.0.1")])
            .env("PORT", free_address()?.port().to_string())
            .env("DEBUG_PORT", free_address()?.port().to_string())
            .env("RUNTIME_ROOT", &self.folder)
            .env("RUNTIME_SUBDIRECTORY", "limits")
            .env("RUNTIME_WATCH_ROOT", "false")
            .env("REDIS_SOCKET_TYPE", "tcp")
            .env("REDIS_URL", self.redis.address.to_string())
            .envs([("REDIS_TIMEOUT", "5s"), ("REDIS_OPERATION_TIMEOUT", "2s")]);
        Ok(command)
    }

    fn server(&mut self, role: Role, which: usize) -> anyhow::Result<&mut Server> {
        let mut own = self.servers.iter_mut().filter(|server| server.role == role);
        own.nth(which).context("no such server")
    }

    /// Waits until the proxy holds the servers of all clusters for healthy.
    pub(crate) async fn healthy(&self) -> anyhow::Result<()> {
        let mut sick = Vec::new();
        for _ in 0..300 {
            let metrics = get(self.addresses.admin, "/metrics").await?;
            sick = Role::ALL.to_vec();
            sick.retain(|role| {
                let count = |name: &str| {
                    let line =
                        format!("attache_upstream_{name}{{cluster=\"{}\"}} ", role.cluster());
                    let found = metrics.lines().find_map(|other| other.strip_prefix(&line));
                    found.and_then(|count| count.parse::<u64>().ok())
                };
                let healthy = count("membership_healthy");
                healthy < Some(2) || healthy != count("membership_total")
            });
            if sick.is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("not healthy after 30 s: {sick:?}")
    }

    /// Ends the proxy; it has to drain and end without an error.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        let proxy = self.proxy.take().context("the proxy does not run")?;
        proxy.terminate(END).await
    }
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By SIGTERM, finishing what it does.
    Asked,
    /// By SIGKILL.
    Killed,
}

/// The whole answer to a request, as it comes.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
