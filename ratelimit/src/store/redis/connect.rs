//! Connections: TCP, Unix or TLS, logged in, and to the server that has the say.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attache_service::{Address, tls::ClientTls};
use redis::{
    AsyncConnectionConfig, Cmd, RedisConnectionInfo, RedisError, Value, aio::MultiplexedConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinHandle,
};

use super::settings::{Auth, RedisSettings, Topology};

/// A connection, with the task that drives it. Dropping it ends both.
pub(super) struct Connection {
    pub(super) handle: MultiplexedConnection,
    /// Who is at the other end.
    pub(super) address: Address,
    driver: JoinHandle<()>,
}

/// Which server to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// This one.
    Server(Address),
    /// The one that sentinels name.
    Master {
        master: String,
        sentinels: Vec<Address>,
        auth: Option<Auth>,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{address}: {source}")]
    Io {
        address: Address,
        source: std::io::Error,
    },
    #[error("{address}: {source}")]
    Redis {
        address: Address,
        source: RedisError,
    },
    #[error("{address}: no connection within {within:?}")]
    Timeout { address: Address, within: Duration },
    #[error("sentinel {address} knows no master `{master}`")]
    UnknownMaster { address: Address, master: String },
    #[error("sentinel {address}: an answer of another kind")]
    Sentinel { address: Address },
    #[error("{address} is named as master but is a {role}")]
    NotMaster { address: Address, role: String },
    #[error("there are no sentinels")]
    NoSentinels,
}

impl Target {
    /// The one server of a topology; of a cluster, which has several, the seeds.
    pub(super) fn of(topology: &Topology) -> Result<Self, &[Address]> {
        match topology {
            Topology::Single(address) => Ok(Self::Server(address.clone())),
            Topology::Sentinel {
                master,
                sentinels,
                auth,
            } => Ok(Self::Master {
                master: master.clone(),
                sentinels: sentinels.clone(),
                auth: auth.clone(),
            }),
            Topology::Cluster(seeds) => Err(seeds),
        }
    }

    /// What stands in errors and metrics.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Server(address) => address.to_string(),
            Self::Master { master, .. } => format!("master {master}"),
        }
    }

    /// Connects. Each attempt is bound by the settings.
    pub(super) async fn connect(
        &self,
        settings: &RedisSettings,
    ) -> Result<Connection, ConnectError> {
        match self {
            Self::Server(address) => connect(address, settings).await,
            Self::Master { master, .. } => {
                let address = self.resolve(settings).await?;
                let connection = connect(&address, settings).await?;
                // A sentinel that was cut off may name one that has been replaced.
                let role = async {
                    let role = role(&connection).await;
                    role.map_err(|source| ConnectError::Redis {
                        address: address.clone(),
                        source,
                    })
                };
                match within(&address, settings.connect_timeout, role).await {
                    Ok(role) if role == "master" => Ok(connection),
                    Ok(role) => Err(ConnectError::NotMaster { address, role }),
                    Err(silent @ ConnectError::Timeout { .. }) => Err(silent),
                    Err(error) => {
                        tracing::debug!(%master, %error, "cannot ask for the role");
                        Ok(connection)
                    }
                }
            }
        }
    }

    /// The server to connect to at this time.
    pub(super) async fn resolve(&self, settings: &RedisSettings) -> Result<Address, ConnectError> {
        let (master, sentinels, auth) = match self {
            Self::Server(address) => return Ok(address.clone()),
            Self::Master {
                master,
                sentinels,
                auth,
            } => (master, sentinels, auth),
        };
        let mut last = ConnectError::NoSentinels;
        for sentinel in sentinels {
            match ask_sentinel(sentinel, master, auth.as_ref(), settings).await {
                Ok(address) => return Ok(address),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

async fn ask_sentinel(
    sentinel: &Address,
    master: &str,
    auth: Option<&Auth>,
    settings: &RedisSettings,
) -> Result<Address, ConnectError> {
    let connection = within(sentinel, settings.connect_timeout, async {
        open(sentinel, auth, 0, settings.tls.as_ref()).await
    })
    .await?;
    let mut command = Cmd::new();
    command
        .arg("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(master);
    let mut handle = connection.handle.clone();
    let answer = within(sentinel, settings.connect_timeout, async {
        let answer = command
            .query_async::<Option<(String, u16)>>(&mut handle)
            .await;
        answer.map_err(|source| ConnectError::Redis {
            address: sentinel.clone(),
            source,
        })
    })
    .await?;
    match answer {
        Some((host, port)) if !host.is_empty() => Ok(Address::Tcp { host, port }),
        Some(_) => Err(ConnectError::Sentinel {
            address: sentinel.clone(),
        }),
        None => Err(ConnectError::UnknownMaster {
            address: sentinel.clone(),
            master: master.to_owned(),
        }),
    }
}

/// Connects to one server.
pub(super) async fn connect(
    address: &Address,
    settings: &RedisSettings,
) -> Result<Connection, ConnectError> {
    let RedisSettings {
        auth,
        database,
        tls,
        connect_timeout,
        ..
    } = settings;
    within(address, *connect_timeout, async {
        open(address, auth.as_ref(), *database, tls.as_ref()).await
    })
    .await
}

async fn within<T>(
    address: &Address,
    within: Duration,
    step: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    tokio::time::timeout(within, step)
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.clone(),
                within,
            })
        })
}

async fn open(
    address: &Address,
    auth: Option<&Auth>,
    database: u32,
    tls: Option<&ClientTls>,
) -> Result<Connection, ConnectError> {
    let failed = |source| ConnectError::Io {
        address: address.clone(),
        source,
    };
    match address {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            log_in(address, stream, auth, database).await
        }
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port))
                .await
                .map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            match tls {
                None => log_in(address, stream, auth, database).await,
                Some(tls) => {
                    let stream = tls.connect(host, stream).await.map_err(failed)?;
                    log_in(address, stream, auth, database).await
                }
            }
        }
    }
}

async fn log_in<S>(
    address: &Address,
    stream: S,
    auth: Option<&Auth>,
    database: u32,
) -> Result<Connection, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut login = RedisConnectionInfo::default()
        .set_db(database.into())
        .set_skip_set_lib_name();
    if let Some(Auth { user, password }) = auth {
        login = login.set_password(password.reveal());
        if let Some(user) = user {
            login = login.set_username(user);
        }
    }
    // Deadlines are ours: they cover the wait for the connection too.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let (handle, driver) = MultiplexedConnection::new_with_config(&login, stream, config)
        .await
        .map_err(|source| ConnectError::Redis {
            address: address.clone(),
            source,
        })?;
    Ok(Connection {
        handle,
        address: address.clone(),
        driver: tokio::spawn(driver),
    })
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn role(connection: &Connection) -> Result<String, RedisError> {
    let mut command = Cmd::new();
    command.arg("ROLE");
    let mut handle = connection.handle.clone();
    match command
        .query_async::<Vec<Value>>(&mut handle)
        .await?
        .first()
    {
        Some(Value::BulkString(role)) => Ok(String::from_utf8_lossy(role).into_owned()),
        Some(Value::SimpleString(role)) => Ok(role.clone()),
        _ => Ok("server without a role".to_owned()),
    }
}

/// How far the server's clock is ahead of ours, in microseconds. What may be due to the way there
/// and back counts as none.
pub(super) async fn clock_offset(mut handle: MultiplexedConnection) -> Result<i64, RedisError> {
    let mut command = Cmd::new();
    command.arg("TIME");
    let sent = SystemTime::now();
    let (seconds, micros) = command.query_async::<(i64, i64)>(&mut handle).await?;
    let received = SystemTime::now();
    let server = seconds.saturating_mul(1_000_000).saturating_add(micros);
    let (sent, received) = (micros_of(sent), micros_of(received));
    Ok(if server < sent {
        server - sent
    } else if server > received {
        server - received
    } else {
        0
    })
}

fn micros_of(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// Names itself as the master, and is silent to all else.
    async fn sentinel_and_silent_master() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                open.push(tokio::spawn(async move {
                    let mut said = Vec::new();
                    while stream.read_buf(&mut said).await.unwrap() > 0 {
                        if String::from_utf8_lossy(&said).contains("get-master-addr-by-name") {
                            let (length, port) = (port.to_string().len(), port);
                            let answer =
                                format!("*2\r\n$9\r\n127.0.0.1\r\n${length}\r\n{port}\r\n");
                            stream.write_all(answer.as_bytes()).await.unwrap();
                            said.clear();
                        }
                    }
                }));
            }
        });
        port
    }

    #[tokio::test]
    async fn a_master_that_does_not_say_its_role_is_given_up_in_time() {
        let port = sentinel_and_silent_master().await;
        let url = format!("redis+sentinel://127.0.0.1:{port}/main");
        let settings = RedisSettings {
            connect_timeout: Duration::from_millis(100),
            ..RedisSettings::parse(&url).unwrap()
        };
        let target = Target::of(&settings.topology).unwrap();
        let connected = tokio::time::timeout(Duration::from_secs(10), target.connect(&settings));
        let refused = connected.await.expect("it is given up").err().unwrap();
        assert!(
            matches!(refused, ConnectError::Timeout { .. }),
            "{refused:?}"
        );
    }
}
