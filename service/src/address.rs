//! Where something listens or is reached: `host:port` or `unix:/path`.

use std::{fmt, path::PathBuf, str::FromStr};

/// A network address as written in configuration.
///
/// `127.0.0.1:8080`, `[::1]:8080`, `web.internal:80` and `unix:/run/auth.sock` are valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host name or IP literal (without brackets) and port.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// TCP port; 0 lets the system choose one when listening.
        port: u16,
    },
    /// Path of a Unix domain socket.
    Unix(PathBuf),
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `:port` at the end.
    #[error("`{0}` is not an address: expected `host:port` or `unix:/path`")]
    NoPort(String),
    /// The part after the last colon is no port number.
    #[error("`{port}` in `{address}` is not a port (0 to 65535)")]
    BadPort {
        /// The whole text.
        address: String,
        /// The part that should be a port.
        port: String,
    },
    /// The host is empty or an IPv6 address lacks its brackets.
    #[error("`{0}` has no valid host (write IPv6 as `[::1]:80`)")]
    BadHost(String),
    /// `unix:` is followed by nothing.
    #[error("`unix:` needs a path")]
    NoPath,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(AddressError::NoPath);
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or_else(|| AddressError::NoPort(text.to_owned()))?;
        let bad_port = || AddressError::BadPort {
            address: text.to_owned(),
            port: port.to_owned(),
        };
        if !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad_port());
        }
        let port = port.parse().map_err(|_| bad_port())?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let valid = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
            }
        };
        if !valid {
            return Err(AddressError::BadHost(text.to_owned()));
        }
        Ok(Self::Tcp {
            host: bare.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

crate::config_parsed! { Address => "an address such as `127.0.0.1:8080` or `unix:/run/a.sock`" }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_a_round_trip() {
        for text in [
            "127.0.0.1:80",
            "[::1]:8080",
            "web.internal:0",
            "unix:/run/a.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn malformed_addresses_are_refused_with_the_offending_text() {
        for (text, part) in [
            ("localhost", "expected `host:port`"),
            (":80", "no valid host"),
            ("a:99999", "`99999`"),
            ("a:+1", "`+1`"),
            ("::1:80", "no valid host"),
            ("a b:1", "no valid host"),
            ("unix:", "needs a path"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
