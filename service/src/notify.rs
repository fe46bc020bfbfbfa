//! Telling systemd how we are (`sd_notify(3)`, units with `Type=notify` or `notify-reload`).
//!
//! Without `NOTIFY_SOCKET` in the environment nothing is told to anybody.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
};

use rustix::time::{ClockId, clock_gettime};

/// What can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Started, or done with a reload.
    Ready,
    /// Reading the configuration again.
    Reloading,
    /// Draining.
    Stopping,
}

impl State {
    fn text(self) -> String {
        match self {
            // After a handover we are another process than the one that systemd has started.
            Self::Ready => format!("READY=1\nMAINPID={}", std::process::id()),
            Self::Reloading => {
                let now = clock_gettime(ClockId::Monotonic);
                let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
                format!("RELOADING=1\nMONOTONIC_USEC={micros}")
            }
            Self::Stopping => "STOPPING=1".to_owned(),
        }
    }
}

/// Tells systemd, if it listens. Failures are logged: nothing else depends on it.
pub fn notify(state: State) {
    let Ok(socket) = env::var("NOTIFY_SOCKET") else {
        return;
    };
    if socket.is_empty() {
        return;
    }
    if let Err(error) = send(&socket, &state.text()) {
        tracing::warn!(%error, socket, "systemd cannot be told the state");
    }
}

fn send(socket: &str, text: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(Path::new(socket))?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_go_to_the_socket_as_datagrams() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 256];
        let mut told = |state: State| {
            send(path.to_str().unwrap(), &state.text()).unwrap();
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let ready = format!("READY=1\nMAINPID={}", std::process::id());
        assert_eq!(told(State::Ready), ready);
        assert_eq!(told(State::Stopping), "STOPPING=1");
        let reloading = told(State::Reloading);
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        assert!(micros.unwrap().parse::<u64>().unwrap() > 0, "{reloading}");
    }

    #[test]
    fn a_manager_that_is_gone_is_an_error() {
        assert!(send("/nonexistent/notify", "READY=1").is_err());
    }
}
