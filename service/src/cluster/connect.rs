//! What all who connect to endpoints have in common.

use std::{io, time::Duration};

use rand::Rng;
use tokio::{
    io::DuplexStream,
    net::{TcpStream, UnixStream},
};

use super::Endpoint;
use crate::{Address, Io, channel::Target, tls::ClientTls};

/// A new connection without anything on it.
#[derive(Debug)]
pub enum Opened {
    /// To a socket address.
    Tcp(TcpStream),
    /// To a Unix socket.
    Unix(UnixStream),
    /// To a service of this process.
    Embedded(DuplexStream),
}

impl Endpoint {
    /// Opens a connection. A name that its source has not looked up is looked up anew each time,
    /// so that a service that has moved is found again.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn open(&self) -> io::Result<Opened> {
        Ok(match (self.address(), self.target()) {
            (Some(address), _) => tcp(TcpStream::connect(address).await?)?,
            (None, Target::Address(Address::Tcp { host, port })) => {
                tcp(TcpStream::connect((host.as_str(), *port)).await?)?
            }
            (None, Target::Address(Address::Unix(path))) => {
                Opened::Unix(UnixStream::connect(path).await?)
            }
            (None, Target::Embedded(connector)) => Opened::Embedded(connector()),
        })
    }
}

fn tcp(stream: TcpStream) -> io::Result<Opened> {
    stream.set_nodelay(true)?;
    Ok(Opened::Tcp(stream))
}

impl Opened {
    /// What is spoken on the connection to `host` goes over this: TLS, where a cluster has it.
    /// Embedded services have none.
    ///
    /// # Errors
    /// Those of [`ClientTls::connect`].
    pub async fn secured(self, tls: Option<&ClientTls>, host: &str) -> io::Result<Box<dyn Io>> {
        Ok(match (self, tls) {
            (Self::Embedded(io), _) => Box::new(io),
            (Self::Unix(io), None) => Box::new(io),
            (Self::Unix(io), Some(tls)) => Box::new(tls.connect(host, io).await?),
            (Self::Tcp(io), None) => Box::new(io),
            (Self::Tcp(io), Some(tls)) => Box::new(tls.connect(host, io).await?),
        })
    }
}

/// How old a connection may get: nine to eleven tenths of `max_age`, so that those that were made
/// together do not end together.
pub fn jittered(max_age: Duration) -> Duration {
    let share = rand::rng().random_range(0.9..=1.1);
    Duration::try_from_secs_f64(max_age.as_secs_f64() * share).unwrap_or(max_age)
}
