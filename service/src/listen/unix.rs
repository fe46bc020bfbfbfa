//! Unix sockets: their files, and what is left of those of processes that died.

use std::{
    fmt, fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt as _},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::net::UnixStream;

use super::{Bound, ListenError, System, refused};
use crate::address::Address;

/// Permissions of a socket file: who may connect. Written in octal, such as `0660`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The bits.
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// The text is no mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mode: write three or four octal digits, such as \"0660\"")]
pub struct SocketModeError(String);

impl FromStr for SocketMode {
    type Err = SocketModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || SocketModeError(text.to_owned());
        if !(3..=4).contains(&text.len()) || !text.bytes().all(|c| (b'0'..=b'7').contains(&c)) {
            return Err(wrong());
        }
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

crate::config_parsed! { SocketMode => "a mode in octal digits, such as \"0660\"" }

/// Listens at `path`; one that begins with `@` is a name in the abstract namespace of Linux.
pub(super) async fn bind(
    address: &Address,
    path: &Path,
    mode: Option<SocketMode>,
) -> Result<Bound, ListenError> {
    let name = path.to_str().and_then(|path| path.strip_prefix('@'));
    let (listener, file) = match name {
        Some(name) => {
            let bind = || UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?);
            (bind().map_err(|source| refused(address, source))?, None)
        }
        None => {
            remove_stale_socket(address, path).await?;
            let bind = || {
                let listener = UnixListener::bind(path)?;
                let file = SocketFile::of(path)?;
                if let Some(mode) = mode {
                    fs::set_permissions(path, fs::Permissions::from_mode(mode.bits()))?;
                }
                Ok((listener, file))
            };
            let (listener, file) = bind().map_err(|source| refused(address, source))?;
            (listener, Some(Arc::new(file)))
        }
    };
    listener
        .set_nonblocking(true)
        .map_err(|source| refused(address, source))?;
    Ok(Bound {
        address: address.clone(),
        socket: Arc::new(System::Unix(listener)),
        file,
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

/// The file of a Unix socket, removed on drop unless somebody has put another in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    left: AtomicBool,
}

impl SocketFile {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            id: file_id(path)?,
            path: path.to_owned(),
            left: AtomicBool::new(false),
        })
    }

    /// It is not removed.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = || file_id(&self.path).is_ok_and(|id| id == self.id);
        if !self.left.load(Ordering::Relaxed) && ours() {
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

    #[test]
    fn modes_are_octal() {
        assert_eq!("0660".parse::<SocketMode>().unwrap().bits(), 0o660);
        assert_eq!("777".parse::<SocketMode>().unwrap().to_string(), "0777");
        for wrong in ["", "66", "0990", "4755", "00660", "rw-"] {
            assert!(wrong.parse::<SocketMode>().is_err(), "{wrong}");
        }
    }
}
