//! Sockets that systemd has bound for us (`sd_listen_fds(3)`).
//!
//! systemd keeps them while we restart, so that no connection is refused meanwhile.

use std::{
    env, io,
    sync::{LazyLock, Mutex, PoisonError},
};

use listenfd::ListenFd;

use super::{Bound, ListenError};

/// Taken from the environment once; kept, so that a listener may come back with a reload.
static HANDED: LazyLock<Mutex<Vec<(String, Bound)>>> = LazyLock::new(|| Mutex::new(take()));

/// The sockets of this name (`FileDescriptorName=`, by default the unit's own). A socket unit with
/// several addresses has several.
///
/// # Errors
/// There is none.
pub fn handed(name: &str) -> Result<Vec<Bound>, ListenError> {
    let handed = HANDED.lock().unwrap_or_else(PoisonError::into_inner);
    let of_name: Vec<Bound> = handed
        .iter()
        .filter(|(known, _)| known == name)
        .map(|(_, bound)| bound.clone())
        .collect();
    if of_name.is_empty() {
        return Err(ListenError::NotHanded {
            name: name.to_owned(),
            handed: handed.iter().map(|(name, _)| name.clone()).collect(),
        });
    }
    Ok(of_name)
}

fn take() -> Vec<(String, Bound)> {
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').filter(|name| !name.is_empty());
    let mut sockets = ListenFd::from_env();
    let mut handed = Vec::new();
    for index in 0..sockets.len() {
        // As sd_listen_fds_with_names(3) calls it.
        let name = names.next().unwrap_or("unknown");
        match one(&mut sockets, index) {
            Ok(bound) => handed.push((name.to_owned(), bound)),
            Err(error) => tracing::warn!(name, %error, "a socket of systemd cannot be used"),
        }
    }
    handed
}

fn one(sockets: &mut ListenFd, index: usize) -> io::Result<Bound> {
    let socket = match sockets.take_tcp_listener(index) {
        Ok(Some(tcp)) => tcp.into(),
        _ => match sockets.take_unix_listener(index)? {
            Some(unix) => unix.into(),
            None => return Err(io::ErrorKind::NotFound.into()),
        },
    };
    Bound::foreign(socket)
}
