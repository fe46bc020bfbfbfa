//! Where a listener of the proxy listens.

use std::{fmt, str::FromStr};

use crate::address::{Address, AddressError};

/// An address to bind, or sockets that systemd has bound for us.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// To be bound.
    At(Address),
    /// Handed over by systemd under this name (`FileDescriptorName=`): `systemd:NAME`.
    Systemd(String),
}

impl From<Address> for ListenAddress {
    fn from(address: Address) -> Self {
        Self::At(address)
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// Why a text is not a [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListenAddressError {
    /// `systemd:` is followed by nothing.
    #[error("`systemd:` needs the name of a socket (`FileDescriptorName=` of its unit)")]
    NoName,
    /// It is no address either.
    #[error(transparent)]
    Address(#[from] AddressError),
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("systemd:") {
            Some("") => Err(ListenAddressError::NoName),
            Some(name) => Ok(Self::Systemd(name.to_owned())),
            None => Ok(Self::At(text.parse()?)),
        }
    }
}

crate::config_parsed! {
    ListenAddress => "an address such as `0.0.0.0:8080`, `unix:/run/a.sock` or `systemd:NAME`",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in ["127.0.0.1:80", "unix:/run/a.sock", "unix:@a", "systemd:web"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        assert!("systemd:".parse::<ListenAddress>().is_err());
        assert!("nowhere".parse::<ListenAddress>().is_err());
    }
}
