//! Listening sockets: TCP and Unix, with errors that name the address.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::address::Address;

/// Connections that the kernel holds for us before we accept them.
const BACKLOG: u32 = 1024;
/// Pause after the first failed accept; doubles up to [`ACCEPT_PAUSE_MAX`].
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Why nothing listens on an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process, or another part of this one, listens there.
    #[error("cannot listen on {0}: the address is in use")]
    InUse(Address),
    /// Something other than a socket lies at the path; it is left alone.
    #[error("cannot listen on {0}: a file that is not a socket is in the way")]
    NotASocket(Address),
    /// The host name means nothing.
    #[error("cannot listen on {address}: the host name has no address{}", because(.source))]
    NoHost {
        /// Where we wanted to listen.
        address: Address,
        /// What the resolver said, if it said anything.
        source: Option<io::Error>,
    },
    /// Any other refusal by the system.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// Where we wanted to listen.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
}

fn because(source: &Option<io::Error>) -> String {
    source
        .as_ref()
        .map_or_else(String::new, |error| format!(" ({error})"))
}

/// A bound listening socket. Dropping it closes it and removes its socket file.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

/// An accepted connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP, with `TCP_NODELAY` set.
    Tcp(TcpStream),
    /// Over a Unix domain socket.
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `address`. Port 0 lets the system choose: see [`Listener::address`].
    ///
    /// A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// See [`ListenError`]; each names the address.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        Self::bind_with(address, false).await
    }

    /// Like [`Listener::bind`], but several sockets of this user may share the TCP port
    /// (`SO_REUSEPORT`): the kernel then spreads connections over them.
    ///
    /// Two processes started by mistake with the same port then share it silently, so make the
    /// first socket of a process with [`Listener::bind`] semantics where that matters.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn bind_shared(address: &Address) -> Result<Self, ListenError> {
        Self::bind_with(address, true).await
    }

    async fn bind_with(address: &Address, shared: bool) -> Result<Self, ListenError> {
        match address {
            Address::Tcp { host, port } => bind_tcp(address, host, *port, shared).await,
            Address::Unix(path) => bind_unix(address, path).await,
        }
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection.
    ///
    /// Never fails: when the system refuses (too many open files, above all) it waits a moment,
    /// says so in the log, and tries again. Dropping the future loses no connection.
    pub async fn accept(&self) -> Socket {
        let mut pause = ACCEPT_PAUSE;
        loop {
            let accepted = match &self.inner {
                Inner::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Fails only on a socket that is already dead; reading will tell.
                    let _ = stream.set_nodelay(true);
                    Socket::Tcp(stream)
                }),
                Inner::Unix { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Socket::Unix(stream)),
            };
            match accepted {
                Ok(socket) => return socket,
                Err(error) if is_about_the_peer(&error) => {}
                Err(error) => {
                    tracing::warn!(address = %self.address, %error, "cannot accept a connection");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            }
        }
    }
}

/// The connection died in the queue; the listener is well.
fn is_about_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn bind_tcp(
    address: &Address,
    host: &str,
    port: u16,
    shared: bool,
) -> Result<Listener, ListenError> {
    let resolved = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| ListenError::NoHost {
            address: address.clone(),
            source: Some(source),
        })?;
    let mut last = None;
    for candidate in resolved {
        let attempt = || {
            let socket = match candidate.is_ipv4() {
                true => TcpSocket::new_v4()?,
                false => TcpSocket::new_v6()?,
            };
            // A restart must not wait for the old connections' TIME_WAIT.
            socket.set_reuseaddr(true)?;
            if shared {
                socket.set_reuseport(true)?;
            }
            socket.bind(candidate)?;
            let listener = socket.listen(BACKLOG)?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        match attempt() {
            Ok((listener, port)) => {
                return Ok(Listener {
                    address: Address::Tcp {
                        host: host.to_owned(),
                        port,
                    },
                    inner: Inner::Tcp(listener),
                });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(source) => refused(address, source),
        None => ListenError::NoHost {
            address: address.clone(),
            source: None,
        },
    })
}

async fn bind_unix(address: &Address, path: &Path) -> Result<Listener, ListenError> {
    remove_stale_socket(address, path).await?;
    let bind = || {
        let listener = UnixListener::bind(path)?;
        let file = SocketFile::of(path)?;
        Ok((listener, file))
    };
    let (listener, file) = bind().map_err(|source| refused(address, source))?;
    Ok(Listener {
        address: address.clone(),
        inner: Inner::Unix {
            listener,
            _file: file,
        },
    })
}

/// Removes what a killed process left at `path`, and nothing else.
async fn remove_stale_socket(address: &Address, path: &Path) -> Result<(), ListenError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(refused(address, source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(address.clone()));
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| refused(address, source))
        }
        // Gone meanwhile: so much the better.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Somebody listens, though perhaps with a full queue.
        Ok(_) => Err(ListenError::InUse(address.clone())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ListenError::InUse(address.clone()))
        }
        Err(source) => Err(refused(address, source)),
    }
}

fn refused(address: &Address, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
        _ => ListenError::Refused {
            address: address.clone(),
            source,
        },
    }
}

/// The file of a Unix socket, removed on drop unless somebody has put another in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            id: file_id(path)?,
            path: path.to_owned(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    async fn refusal(address: &Address) -> String {
        let refused = Listener::bind(address).await.map(|_| ()).unwrap_err();
        refused.to_string()
    }

    #[tokio::test]
    async fn port_zero_becomes_the_port_that_was_chosen() {
        let listener = Listener::bind(&address("127.0.0.1:0")).await.unwrap();
        let Address::Tcp { port, .. } = *listener.address() else {
            panic!("{listener:?}");
        };
        assert_ne!(port, 0);
        let client = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let Socket::Tcp(accepted) = listener.accept().await else {
            panic!("not TCP");
        };
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
        assert!(accepted.nodelay().unwrap());
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let first = Listener::bind(&address("127.0.0.1:0")).await.unwrap();
        let refusal = refusal(first.address()).await;
        let expected = format!(
            "cannot listen on {}: the address is in use",
            first.address()
        );
        assert_eq!(refusal, expected);
    }

    #[tokio::test]
    async fn shared_ports_are_shared_with_sharers_only() {
        let first = Listener::bind_shared(&address("127.0.0.1:0"))
            .await
            .unwrap();
        assert!(Listener::bind_shared(first.address()).await.is_ok());
        assert!(Listener::bind(first.address()).await.is_err());
    }

    #[tokio::test]
    async fn a_host_that_does_not_exist_is_named() {
        let refusal = refusal(&address("no-such-host.invalid:80")).await;
        assert!(refusal.contains("no-such-host.invalid:80"), "{refusal}");
    }

    #[tokio::test]
    async fn a_socket_file_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address).await.unwrap();
        assert!(refusal(&address).await.contains("in use"));
        assert!(
            UnixStream::connect(&path).await.is_ok(),
            "the first one is unharmed"
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_whose_queue_is_full_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let socket = || socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let address = socket2::SockAddr::unix(&path).unwrap();
        let busy = socket().unwrap();
        busy.bind(&address).unwrap();
        busy.listen(0).unwrap();
        let mut queued = Vec::new();
        loop {
            let client = socket().unwrap();
            client.set_nonblocking(true).unwrap();
            let full = client.connect(&address).is_err();
            queued.push(client);
            if full {
                break;
            }
        }
        let address = Address::Unix(path);
        let refused = tokio::time::timeout(Duration::from_secs(5), refusal(&address));
        assert!(refused.await.unwrap().contains("in use"));
    }

    #[tokio::test]
    async fn a_socket_file_without_listener_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        // The standard library leaves the file behind, as a killed process does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listener = Listener::bind(&Address::Unix(path.clone())).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn the_file_of_a_successor_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let address = Address::Unix(path.clone());
        let old = Listener::bind(&address).await.unwrap();
        fs::remove_file(&path).unwrap();
        let _new = Listener::bind(&address).await.unwrap();
        drop(old);
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn other_files_and_bad_paths_are_errors_that_name_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data");
        fs::write(&file, "precious").unwrap();
        let refusal_of_file = refusal(&Address::Unix(file.clone())).await;
        assert!(
            refusal_of_file.contains("not a socket"),
            "{refusal_of_file}"
        );
        assert_eq!(fs::read(&file).unwrap(), b"precious");

        for bad in ["none/a.sock".to_owned(), "x".repeat(200)] {
            let refusal = refusal(&Address::Unix(directory.path().join(&bad))).await;
            assert!(refusal.contains(&bad), "{refusal}");
        }
    }
}
