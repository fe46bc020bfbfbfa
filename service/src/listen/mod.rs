//! Listening sockets: TCP and Unix, with errors that name the address.

mod address;
mod handed;
mod refusal;
mod unix;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

pub use address::ListenAddress;
pub use handed::handed;
use refusal::Refusal;
pub(crate) use unix::SocketFile;
pub use unix::SocketMode;

use crate::{Io, address::Address, metrics::Counter};

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
    /// systemd has handed over no socket of this name.
    #[error("cannot listen on systemd:{name}: {}", known(.handed))]
    NotHanded {
        /// The name.
        name: String,
        /// Those that were handed over.
        handed: Vec<String>,
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

fn known(handed: &[String]) -> String {
    match handed {
        [] => "systemd has handed over no sockets".to_owned(),
        names => format!("systemd has handed over {}", names.join(", ")),
    }
}

fn because(source: &Option<io::Error>) -> String {
    source
        .as_ref()
        .map_or_else(String::new, |error| format!(" ({error})"))
}

/// A socket that listens and is in no runtime's care. Clones are the same socket; the last one
/// closes it, and removes its file.
#[derive(Debug, Clone)]
pub struct Bound {
    address: Address,
    socket: Arc<System>,
    file: Option<Arc<SocketFile>>,
}

#[derive(Debug)]
enum System {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A listening socket in the care of a runtime. The last one of those that share a socket file
/// removes it.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    inner: Inner,
    _file: Option<Arc<SocketFile>>,
    /// The system had no means for a connection, and the log says so.
    exhausted: AtomicBool,
    exhaustions: Counter,
}

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An accepted connection.
#[derive(Debug)]
pub enum Socket {
    /// Over TCP, with `TCP_NODELAY` set.
    Tcp(TcpStream),
    /// Over a Unix domain socket.
    Unix(UnixStream),
}

impl Socket {
    /// Whichever it is.
    pub fn boxed(self) -> Box<dyn Io> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

impl Bound {
    /// Listens on `address`. Port 0 lets the system choose: see [`Bound::address`].
    ///
    /// A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// See [`ListenError`]; each names the address.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        match address {
            Address::Tcp { host, port } => bind_tcp(address, host, *port, false).await,
            Address::Unix(path) => unix::bind(address, path, None).await,
        }
    }

    /// Like [`Bound::bind`], but several sockets of this user may share the TCP port
    /// (`SO_REUSEPORT`): the kernel then spreads connections over them.
    ///
    /// Two processes started by mistake with the same port then share it silently, so make the
    /// first socket of a process with [`Bound::bind`] semantics where that matters.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub async fn bind_shared(address: &Address) -> Result<Self, ListenError> {
        match address {
            Address::Tcp { host, port } => bind_tcp(address, host, *port, true).await,
            Address::Unix(path) => unix::bind(address, path, None).await,
        }
    }

    /// Like [`Bound::bind`], with the permissions of a socket file.
    ///
    /// # Errors
    /// As [`Bound::bind`].
    pub async fn bind_with_mode(
        address: &Address,
        mode: Option<SocketMode>,
    ) -> Result<Self, ListenError> {
        match address {
            Address::Tcp { .. } => Self::bind(address).await,
            Address::Unix(path) => unix::bind(address, path, mode).await,
        }
    }

    /// A socket that somebody else has bound, and that listens already. Its file is not ours.
    ///
    /// # Errors
    /// It is no stream socket of a kind that we know.
    pub fn foreign(socket: socket2::Socket) -> io::Result<Self> {
        let local = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        let (address, system) = if let Some(address) = local.as_socket() {
            (of(address), System::Tcp(socket.into()))
        } else if let Some(path) = local.as_pathname() {
            (Address::Unix(path.to_owned()), System::Unix(socket.into()))
        } else if let Some(name) = local.as_abstract_namespace() {
            let name = String::from_utf8_lossy(name);
            let address = Address::Unix(format!("@{name}").into());
            (address, System::Unix(socket.into()))
        } else {
            let message = "not a listening TCP or Unix socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        Ok(Self {
            address,
            socket: Arc::new(system),
            file: None,
        })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Whether `address` means this socket; names of hosts are looked up.
    pub async fn is_at(&self, address: &Address) -> bool {
        if self.address == *address {
            return true;
        }
        let (Address::Tcp { host, port }, System::Tcp(listener)) = (address, &*self.socket) else {
            return false;
        };
        let Ok(local) = listener.local_addr() else {
            return false;
        };
        let resolved = tokio::net::lookup_host((host.as_str(), *port)).await;
        resolved.is_ok_and(|mut all| all.any(|one| one == local))
    }

    /// Puts the socket into the care of the runtime that this is called in. May be done several
    /// times: all of them take connections from the same queue.
    ///
    /// # Errors
    /// The system refuses another descriptor.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(&self) -> Result<Listener, ListenError> {
        let inner = || {
            Ok(match &*self.socket {
                System::Tcp(listener) => Inner::Tcp(TcpListener::from_std(listener.try_clone()?)?),
                System::Unix(listener) => {
                    Inner::Unix(UnixListener::from_std(listener.try_clone()?)?)
                }
            })
        };
        Ok(Listener {
            inner: inner().map_err(|source| refused(&self.address, source))?,
            address: self.address.clone(),
            _file: self.file.clone(),
            exhausted: AtomicBool::new(false),
            exhaustions: Counter::default(),
        })
    }

    /// Leaves the socket file where it is: somebody else listens on this socket too.
    pub fn leave_file(&self) {
        if let Some(file) = &self.file {
            file.leave();
        }
    }
}

impl std::os::fd::AsFd for Bound {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match &*self.socket {
            System::Tcp(listener) => listener.as_fd(),
            System::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    /// Listens on `address`: see [`Bound::bind`].
    ///
    /// # Errors
    /// See [`ListenError`]; each names the address.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        Bound::bind(address).await?.listen()
    }

    /// Like [`Listener::bind`], but several sockets may share the port: see
    /// [`Bound::bind_shared`].
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn bind_shared(address: &Address) -> Result<Self, ListenError> {
        Bound::bind_shared(address).await?.listen()
    }

    /// Counts here how often the system had no means for a connection: too many open files,
    /// above all.
    #[must_use]
    pub fn counting(mut self, exhaustions: Counter) -> Self {
        self.exhaustions = exhaustions;
        self
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection. Dropping the future loses no connection.
    ///
    /// Never fails. When the system has no means for a connection it waits a moment, says so in
    /// the log once, and tries again; connections wait in the kernel's queue. When the socket
    /// itself is broken, which nothing mends, the log says so and there is no next connection.
    pub async fn accept(&self) -> Socket {
        let mut pause = None;
        loop {
            let error = match self.try_accept().await {
                Ok(socket) => {
                    if pause.is_none() && self.exhausted.swap(false, Ordering::Relaxed) {
                        tracing::info!(address = %self.address, "connections are accepted again");
                    }
                    return socket;
                }
                Err(error) => error,
            };
            match Refusal::of(&error) {
                Refusal::Connection => {}
                Refusal::Exhausted => {
                    self.exhaustions.inc();
                    if !self.exhausted.swap(true, Ordering::Relaxed) {
                        tracing::warn!(address = %self.address, %error, "cannot accept connections: they wait");
                    }
                    let now = pause.unwrap_or(ACCEPT_PAUSE);
                    tokio::time::sleep(now).await;
                    pause = Some((now * 2).min(ACCEPT_PAUSE_MAX));
                }
                Refusal::Fatal => {
                    tracing::error!(address = %self.address, %error, "the listening socket is broken");
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<Socket> {
        match &self.inner {
            Inner::Tcp(listener) => listener.accept().await.map(|(stream, _)| tcp(stream)),
            Inner::Unix(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Socket::Unix(stream)),
        }
    }

    /// Stops listening. What had connected and was not accepted yet is returned, so that it is
    /// not reset.
    pub fn close(self) -> Vec<Socket> {
        let mut waiting = Vec::new();
        let error = loop {
            // More than the queue holds have come meanwhile: they never stop coming.
            if waiting.len() > BACKLOG as usize {
                break None;
            }
            match self.accept_now() {
                Ok(Some(socket)) => waiting.push(socket),
                Ok(None) => break None,
                Err(error) if Refusal::of(&error) == Refusal::Connection => {}
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = error {
            tracing::warn!(address = %self.address, %error, "waiting connections are lost");
        }
        waiting
    }

    /// A connection that waits, whether the runtime has noticed it or not.
    fn accept_now(&self) -> io::Result<Option<Socket>> {
        let accepted = match &self.inner {
            Inner::Tcp(listener) => {
                let socket = socket2::SockRef::from(listener);
                socket.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream.into()).map(tcp)
                })
            }
            Inner::Unix(listener) => {
                let socket = socket2::SockRef::from(listener);
                socket.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    UnixStream::from_std(stream.into()).map(Socket::Unix)
                })
            }
        };
        match accepted {
            Ok(socket) => Ok(Some(socket)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn tcp(stream: TcpStream) -> Socket {
    // Fails only on a socket that is already dead; reading will tell.
    let _ = stream.set_nodelay(true);
    Socket::Tcp(stream)
}

fn of(address: SocketAddr) -> Address {
    Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

async fn bind_tcp(
    address: &Address,
    host: &str,
    port: u16,
    shared: bool,
) -> Result<Bound, ListenError> {
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
            let listener = socket.listen(BACKLOG)?.into_std()?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        match attempt() {
            Ok((listener, port)) => {
                return Ok(Bound {
                    address: Address::Tcp {
                        host: host.to_owned(),
                        port,
                    },
                    socket: Arc::new(System::Tcp(listener)),
                    file: None,
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

fn refused(address: &Address, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address.clone()),
        _ => ListenError::Refused {
            address: address.clone(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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

    #[tokio::test]
    async fn what_waits_when_a_socket_closes_is_still_taken() {
        let listener = Listener::bind(&address("127.0.0.1:0")).await.unwrap();
        let Address::Tcp { port, .. } = *listener.address() else {
            panic!("{listener:?}");
        };
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        }
        let mut seen: Vec<_> = Vec::new();
        for socket in listener.close() {
            let Socket::Tcp(stream) = socket else {
                panic!("not TCP");
            };
            seen.push(stream.peer_addr().unwrap());
        }
        let expected: Vec<_> = clients.iter().map(|c| c.local_addr().unwrap()).collect();
        assert_eq!(seen, expected);
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }

    #[tokio::test]
    async fn duplicates_take_from_one_queue_and_the_last_removes_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let bound = Bound::bind(&Address::Unix(path.clone())).await.unwrap();
        let (one, two) = (bound.listen().unwrap(), bound.listen().unwrap());
        drop(bound);
        let _first = UnixStream::connect(&path).await.unwrap();
        one.accept().await;
        drop(one);
        let _second = UnixStream::connect(&path).await.unwrap();
        two.accept().await;
        drop(two);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_file_has_the_permissions_that_are_written() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let mode = "0640".parse().unwrap();
        let address = Address::Unix(path.clone());
        let _bound = Bound::bind_with_mode(&address, Some(mode)).await.unwrap();
        let permissions = fs::metadata(&path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, 0o640);
    }

    #[tokio::test]
    async fn an_abstract_socket_has_no_file() {
        let name = format!("@attache-test-{}", std::process::id());
        let address = Address::Unix(name.clone().into());
        let listener = Listener::bind(&address).await.unwrap();
        assert!(!std::path::Path::new(&name).exists());
        use std::os::linux::net::SocketAddrExt as _;
        let at = std::os::unix::net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let _client = std::os::unix::net::UnixStream::connect_addr(&at).unwrap();
        listener.accept().await;
        assert!(refusal(&address).await.contains("in use"));
    }

    #[tokio::test]
    async fn a_socket_of_somebody_else_knows_its_address() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = own.local_addr().unwrap();
        let bound = Bound::foreign(own.into()).unwrap();
        assert_eq!(bound.address().to_string(), at.to_string());
        assert!(
            bound
                .is_at(&address(&format!("localhost:{}", at.port())))
                .await
        );
        assert!(!bound.is_at(&address("127.0.0.1:1")).await);
        let listener = bound.listen().unwrap();
        let _client = TcpStream::connect(at).await.unwrap();
        listener.accept().await;
    }
}
