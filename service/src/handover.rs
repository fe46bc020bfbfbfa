//! A restart that loses no connection: the new process takes over the listening sockets of the
//! old one, over a Unix socket that both know.
//!
//! Connections wait in the queue of a listening socket, and that queue is the same for both: what
//! one does not take the other does. Two sockets on one port (`SO_REUSEPORT`) would not do, as
//! the kernel resets what waits in the queue of the one that closes.
//!
//! 1. The successor connects ([`Predecessor::meet`]) and gets the sockets, each as a byte with a
//!    descriptor; then a last byte.
//! 2. It starts, and says so with a byte ([`Predecessor::ready`]). If it goes away before, nothing
//!    has changed.
//! 3. The predecessor stops accepting and finishes what runs ([`Handover::succeeded`] returns).

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{
    io::{AsyncReadExt as _, Interest},
    net::{UnixListener, UnixStream},
};

use crate::{
    Address,
    listen::{Bound, SocketFile},
};

/// Bound on each step but the successor's start.
const STEP: Duration = Duration::from_secs(10);
/// How long a successor may take to start.
const START: Duration = Duration::from_secs(120);
/// Most sockets that are taken over.
const MOST: usize = 4096;

/// Comes with a socket.
const SOCKET: u8 = b's';
/// There are no more.
const END: u8 = b'.';
/// The successor listens.
const READY: u8 = b'!';

/// Why sockets are not handed over.
#[derive(Debug, thiserror::Error)]
#[error("handover at {}: {source}", path.display())]
pub struct HandoverError {
    path: PathBuf,
    source: io::Error,
}

impl HandoverError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self {
            path: path.to_owned(),
            source,
        }
    }
}

/// The process that listens until we do.
#[derive(Debug)]
pub struct Predecessor {
    stream: std::os::unix::net::UnixStream,
    sockets: Vec<Bound>,
}

impl Predecessor {
    /// Asks the process at `path` for its sockets; `None` when there is none.
    ///
    /// # Errors
    /// There is one, but it does not answer as it should within some seconds.
    pub fn meet(path: &Path) -> Result<Option<Self>, HandoverError> {
        let stream = match std::os::unix::net::UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(HandoverError::at(path)(error)),
        };
        let take = || {
            stream.set_read_timeout(Some(STEP))?;
            let mut sockets = Vec::new();
            while let Some(socket) = receive(&stream)? {
                if sockets.len() == MOST {
                    return Err(io::Error::other("too many sockets"));
                }
                sockets.push(Bound::foreign(socket.into())?);
            }
            Ok(sockets)
        };
        let sockets = take().map_err(HandoverError::at(path))?;
        Ok(Some(Self { stream, sockets }))
    }

    /// Its sockets.
    pub fn sockets(&self) -> &[Bound] {
        &self.sockets
    }

    /// Tells it that we listen: it stops accepting. What of its sockets is not in use here ends
    /// with it.
    ///
    /// # Errors
    /// It is gone; then nobody else listens, and that is all the same.
    pub fn ready(mut self) -> io::Result<()> {
        self.stream.write_all(&[READY])
    }
}

fn receive(stream: &std::os::unix::net::UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let received = recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    match (received.bytes, byte, descriptor) {
        (1, [SOCKET], Some(descriptor)) => Ok(Some(descriptor)),
        (1, [END], None) => Ok(None),
        (0, ..) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "whoever listens there is no attache",
        )),
    }
}

/// Where a successor finds us.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    listener: UnixListener,
    _file: SocketFile,
}

impl Handover {
    /// Listens at `path`, in the place of a predecessor if there is one. Only processes of the
    /// same user can connect.
    ///
    /// # Errors
    /// The socket cannot be made there.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen(path: &Path) -> Result<Self, HandoverError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}", std::process::id()));
        let beside = PathBuf::from(beside);
        let listen = || {
            match fs::symlink_metadata(path) {
                Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                    return Err(io::Error::other(
                        "a file that is not a socket is in the way",
                    ));
                }
                _ => {}
            }
            let listener = UnixListener::bind(&beside)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))?;
            // In one step, so that a successor always finds somebody.
            fs::rename(&beside, path)?;
            Ok((listener, SocketFile::of(path)?))
        };
        let (listener, file) = listen().map_err(|source| {
            // There may be nothing to remove.
            let _ = fs::remove_file(&beside);
            HandoverError::at(path)(source)
        })?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            _file: file,
        })
    }

    /// Hands the sockets to whoever asks; returns when a successor listens on them.
    pub async fn succeeded(&self, sockets: impl Fn() -> Vec<Bound>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "no handover");
                    tokio::time::sleep(STEP).await;
                    continue;
                }
            };
            match self.hand(stream, sockets()).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "a successor did not start");
                }
            }
        }
    }

    async fn hand(&self, mut stream: UnixStream, sockets: Vec<Bound>) -> io::Result<()> {
        let own = rustix::process::geteuid().as_raw();
        let uid = stream.peer_cred()?.uid();
        if uid != own && uid != 0 {
            return Err(io::Error::other(format!("it belongs to user {uid}")));
        }
        tracing::info!("a successor takes over the listening sockets");
        let send = async {
            for socket in &sockets {
                send(&stream, SOCKET, Some(socket)).await?;
            }
            send(&stream, END, None).await
        };
        tokio::time::timeout(STEP, send).await??;
        match tokio::time::timeout(START, stream.read_u8()).await?? {
            READY => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

async fn send(stream: &UnixStream, byte: u8, socket: Option<&Bound>) -> io::Result<()> {
    let descriptor = socket.map(|socket| [socket.as_fd()]);
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(descriptor) = &descriptor {
                control.push(SendAncillaryMessage::ScmRights(descriptor));
            }
            sendmsg(
                stream,
                &[IoSlice::new(&[byte])],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
            Ok(())
        })
        .await
}

/// Takes the sockets out that are at `address`.
pub async fn at(sockets: &[Bound], address: &Address) -> Vec<Bound> {
    let mut found = Vec::new();
    for socket in sockets {
        if socket.is_at(address).await {
            found.push(socket.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listen::{Listener, Socket};

    async fn meet(path: &Path) -> Result<Option<Predecessor>, HandoverError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || Predecessor::meet(&path))
            .await
            .unwrap()
    }

    async fn bound(address: &str) -> Bound {
        Bound::bind(&address.parse().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_successor_takes_what_waits_in_the_queue() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        let unix = format!("unix:{}", directory.path().join("a.sock").display());
        let sockets = vec![bound("127.0.0.1:0").await, bound(&unix).await];
        let address = sockets[0].address().clone();
        let handover = Handover::listen(&path).unwrap();
        let old = tokio::spawn(async move {
            handover.succeeded(|| sockets.clone()).await;
            for socket in &sockets {
                socket.leave_file();
            }
        });
        let Address::Tcp { port, .. } = address else {
            unreachable!();
        };
        let waiting = tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .unwrap();

        let predecessor = meet(&path).await.unwrap().unwrap();
        let taken = at(predecessor.sockets(), &address).await;
        assert_eq!(taken.len(), 1);
        let listener: Listener = taken[0].listen().unwrap();
        let unix_taken = at(predecessor.sockets(), &unix.parse().unwrap()).await;
        predecessor.ready().unwrap();
        drop(taken);
        old.await.unwrap();

        let Socket::Tcp(accepted) = listener.accept().await else {
            unreachable!();
        };
        assert_eq!(accepted.peer_addr().unwrap(), waiting.local_addr().unwrap());
        let _client = UnixStream::connect(directory.path().join("a.sock"))
            .await
            .unwrap();
        unix_taken[0].listen().unwrap().accept().await;
    }

    #[tokio::test]
    async fn a_successor_that_does_not_start_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        let socket = bound("127.0.0.1:0").await;
        let handover = Handover::listen(&path).unwrap();
        let old = tokio::spawn(async move {
            handover.succeeded(|| vec![socket.clone()]).await;
        });
        drop(meet(&path).await.unwrap().unwrap());
        assert!(!old.is_finished());
        let second = meet(&path).await.unwrap().unwrap();
        second.ready().unwrap();
        old.await.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn without_a_predecessor_there_is_none_and_what_is_in_the_way_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        assert!(meet(&path).await.unwrap().is_none());
        fs::write(&path, "precious").unwrap();
        assert!(Handover::listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn the_place_of_a_predecessor_is_taken_without_a_gap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("handover");
        let old = Handover::listen(&path).unwrap();
        let _new = Handover::listen(&path).unwrap();
        drop(old);
        assert!(UnixStream::connect(&path).await.is_ok());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn somebody_else_at_the_path_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other");
        let other = UnixListener::bind(&path).unwrap();
        let serve = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let (mut stream, _) = other.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
        });
        let error = meet(&path).await.unwrap_err().to_string();
        assert!(error.contains("no attache"), "{error}");
        serve.await.unwrap();
    }
}
