//! The PROXY protocol, versions 1 and 2: what a load balancer in front of us says about the
//! connection that it passes on.
//!
//! Parsing is pure: bytes in, a header or a reason out. What follows the addresses in version 2
//! (TLVs) is skipped.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::{Buf as _, Bytes, BytesMut};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What a header of version 1 begins with.
const V1: &[u8] = b"PROXY ";
/// What a header of version 2 begins with.
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, with its line end.
const V1_MOST: usize = 107;
/// A header of version 2 without addresses.
const V2_HEAD: usize = 16;
/// Enough for any header without TLVs.
const BUFFER: usize = 256;

/// What a listener does about the PROXY protocol (Envoy's listener filter `proxy_protocol`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// `allow_requests_without_proxy_protocol`: connections need not have a header. Whoever can
    /// connect can then claim any address. Default false.
    pub optional: bool,
    /// Peers that may connect; all when empty.
    pub from: Vec<IpNet>,
    /// `disallowed_versions`: headers of these versions are refused, or, with `optional`, not
    /// taken for headers.
    pub disallowed: Vec<Version>,
}

impl ProxyProtocol {
    /// Whether this peer may connect.
    pub(crate) fn lets(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            _ if self.from.is_empty() => true,
            // A Unix socket has permissions for that.
            None => true,
            Some(ip) => {
                let ip = ip.to_canonical();
                self.from.iter().any(|net| net.contains(&ip))
            }
        }
    }
}

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Whose connection it is, and where that was accepted.
    Proxied {
        /// The client.
        source: SocketAddr,
        /// The address that it connected to.
        destination: SocketAddr,
    },
    /// Nothing: the sender speaks for itself (`LOCAL`, such as a health check), or does not know
    /// (`UNKNOWN`, `AF_UNSPEC`). The connection's own addresses count.
    Own,
}

/// What bytes at the start of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// The beginning of a header, or of anything.
    Incomplete,
    /// No header.
    Absent,
    /// A header.
    Found {
        /// Its version.
        version: Version,
        /// What it says.
        header: Header,
        /// Its bytes, TLVs included, of which some may not have arrived.
        length: usize,
    },
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The line of version 1 does not end.
    #[error("the line is too long")]
    TooLong,
    /// The line of version 1 is not as it must be.
    #[error("the line is malformed")]
    Line,
    /// Neither `LOCAL` nor `PROXY`, or not version 2 after all.
    #[error("unknown version or command {0:#04x}")]
    Command(u8),
    /// Neither IPv4 nor IPv6, nor unspecified.
    #[error("unsupported address family or transport {0:#04x}")]
    Family(u8),
    /// Too short for its addresses.
    #[error("too short for its addresses")]
    TooShort,
}

/// Why a connection's beginning is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("PROXY protocol: {0}")]
    Malformed(#[from] Malformed),
    #[error("PROXY protocol: no header")]
    Absent,
    #[error("PROXY protocol: version {0:?} is not allowed")]
    Disallowed(Version),
    #[error("PROXY protocol: not from here")]
    Stranger,
    #[error("PROXY protocol: {0}")]
    Io(#[from] io::Error),
}

/// Looks at the start of a connection.
///
/// # Errors
/// It is a header, and malformed.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if starts(bytes, V2) {
        return match bytes.len() < V2_HEAD {
            true => Ok(Parsed::Incomplete),
            false => v2(bytes),
        };
    }
    if starts(bytes, V1) {
        return v1(bytes);
    }
    Ok(Parsed::Absent)
}

/// Whether `bytes` begin with `signature`, as far as there are any.
fn starts(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.starts_with(signature) || signature.starts_with(bytes)
}

fn v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let window = bytes.get(..V1_MOST).unwrap_or(bytes);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return match bytes.len() < V1_MOST {
            true => Ok(Parsed::Incomplete),
            false => Err(Malformed::TooLong),
        };
    };
    let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let line = line.and_then(|line| line.strip_prefix(V1));
    let line = line.and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(Malformed::Line)?;
    let header = match line.split_once(' ') {
        _ if line == "UNKNOWN" => Header::Own,
        Some(("UNKNOWN", _)) => Header::Own,
        Some(("TCP4", rest)) => addresses::<Ipv4Addr>(rest)?,
        Some(("TCP6", rest)) => addresses::<Ipv6Addr>(rest)?,
        _ => return Err(Malformed::Line),
    };
    Ok(Parsed::Found {
        version: Version::V1,
        header,
        length: end.saturating_add(1),
    })
}

fn addresses<Ip: std::str::FromStr + Into<IpAddr>>(text: &str) -> Result<Header, Malformed> {
    let mut parts = text.split(' ');
    let mut next = || parts.next().ok_or(Malformed::Line);
    let ip = |text: &str| {
        text.parse::<Ip>()
            .map(Into::into)
            .map_err(|_| Malformed::Line)
    };
    let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u16>().map_err(|_| Malformed::Line),
        false => Err(Malformed::Line),
    };
    let (from, to) = (ip(next()?)?, ip(next()?)?);
    let (from_port, to_port) = (port(next()?)?, port(next()?)?);
    match parts.next() {
        Some(_) => Err(Malformed::Line),
        None => Ok(Header::Proxied {
            source: SocketAddr::new(from, from_port),
            destination: SocketAddr::new(to, to_port),
        }),
    }
}

/// `bytes` has at least [`V2_HEAD`].
fn v2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let mut rest = bytes.get(V2.len()..).unwrap_or_default();
    let (command, family) = (rest.get_u8(), rest.get_u8());
    let length = usize::from(rest.get_u16());
    let local = match command {
        0x20 => true,
        0x21 => false,
        other => return Err(Malformed::Command(other)),
    };
    let needed = match family {
        _ if local => 0,
        0x00 => 0,
        // Also said to be of datagrams, as Envoy takes it.
        0x11 | 0x12 => 12,
        0x21 | 0x22 => 36,
        other => return Err(Malformed::Family(other)),
    };
    if length < needed {
        return Err(Malformed::TooShort);
    }
    if rest.len() < needed {
        return Ok(Parsed::Incomplete);
    }
    let header = match needed {
        12 => {
            let (from, to) = (
                Ipv4Addr::from(rest.get_u32()),
                Ipv4Addr::from(rest.get_u32()),
            );
            proxied(from.into(), to.into(), rest)
        }
        36 => {
            let (from, to) = (
                Ipv6Addr::from(rest.get_u128()),
                Ipv6Addr::from(rest.get_u128()),
            );
            proxied(from.into(), to.into(), rest)
        }
        _ => Header::Own,
    };
    Ok(Parsed::Found {
        version: Version::V2,
        header,
        length: V2_HEAD.saturating_add(length),
    })
}

fn proxied(from: IpAddr, to: IpAddr, mut ports: &[u8]) -> Header {
    Header::Proxied {
        source: SocketAddr::new(from, ports.get_u16()),
        destination: SocketAddr::new(to, ports.get_u16()),
    }
}

/// Reads the header of a connection; also what came behind it.
pub(crate) async fn read<IO>(
    io: &mut IO,
    settings: &ProxyProtocol,
) -> Result<(Header, Bytes), Refused>
where
    IO: AsyncRead + Unpin,
{
    let mut bytes = BytesMut::with_capacity(BUFFER);
    loop {
        match parse(&bytes)? {
            Parsed::Incomplete => {
                if io.read_buf(&mut bytes).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            Parsed::Absent if settings.optional => return Ok((Header::Own, bytes.freeze())),
            Parsed::Absent => return Err(Refused::Absent),
            Parsed::Found { version, .. } if settings.disallowed.contains(&version) => {
                return match settings.optional {
                    true => Ok((Header::Own, bytes.freeze())),
                    false => Err(Refused::Disallowed(version)),
                };
            }
            Parsed::Found { header, length, .. } => {
                let missing = length.saturating_sub(bytes.len());
                bytes.advance(length.min(bytes.len()));
                skip(io, missing).await?;
                return Ok((header, bytes.freeze()));
            }
        }
    }
}

async fn skip<IO: AsyncRead + Unpin>(io: &mut IO, count: usize) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    // A usize of 64 KiB at most.
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let skipped = tokio::io::copy(&mut io.take(count), &mut tokio::io::sink()).await?;
    match skipped == count {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(version: Version, header: Header, length: usize) -> Result<Parsed, Malformed> {
        Ok(Parsed::Found {
            version,
            header,
            length,
        })
    }

    fn proxied(source: &str, destination: &str) -> Header {
        Header::Proxied {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    /// A header as a load balancer writes it.
    fn written(version: Version, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
        let text = |family| {
            let (from, to) = (source.ip(), destination.ip());
            let (from_port, to_port) = (source.port(), destination.port());
            format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
        };
        let ports = [
            source.port().to_be_bytes(),
            destination.port().to_be_bytes(),
        ]
        .concat();
        match (version, source.ip(), destination.ip()) {
            (Version::V1, IpAddr::V4(_), _) => text("TCP4"),
            (Version::V1, ..) => text("TCP6"),
            (_, IpAddr::V4(from), IpAddr::V4(to)) => binary(
                0x21,
                0x11,
                &[&from.octets()[..], &to.octets(), &ports].concat(),
            ),
            (_, IpAddr::V6(from), IpAddr::V6(to)) => binary(
                0x21,
                0x21,
                &[&from.octets()[..], &to.octets(), &ports].concat(),
            ),
            _ => unreachable!(),
        }
    }

    #[test]
    fn lines_of_version_1() {
        for (line, header) in [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
                proxied("192.0.2.1:56324", "198.51.100.2:443"),
            ),
            (
                "PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
                proxied("[2001:db8::1]:1", "[::1]:65535"),
            ),
            ("PROXY UNKNOWN\r\n", Header::Own),
            ("PROXY UNKNOWN ffff:: anything 1 2 3\r\n", Header::Own),
        ] {
            let expected = found(Version::V1, header, line.len());
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
            let more = format!("{line}GET /\n");
            assert_eq!(parse(more.as_bytes()), expected);
        }
        let long = format!("PROXY {}", "x".repeat(V1_MOST));
        assert_eq!(parse(long.as_bytes()), Err(Malformed::TooLong));
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n",
            "PROXY TCP4 192.0.2.1  198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 +2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
            "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(Malformed::Line), "{line}");
        }
    }

    #[test]
    fn binaries_of_version_2() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0, 1, 1, 187];
        let header = proxied("192.0.2.1:1", "198.51.100.2:443");
        assert_eq!(
            parse(&binary(0x21, 0x11, &v4)),
            found(Version::V2, header, 28)
        );
        let tlvs = [&v4[..], &[0x02, 0, 3, b'a', b'.', b'b']].concat();
        assert_eq!(
            parse(&binary(0x21, 0x11, &tlvs)),
            found(Version::V2, header, 34)
        );
        let own = |length| found(Version::V2, Header::Own, length);
        assert_eq!(parse(&binary(0x20, 0x11, &v4)), own(28));
        assert_eq!(parse(&binary(0x20, 0x00, &[])), own(16));
        assert_eq!(parse(&binary(0x21, 0x00, &[1, 2, 3])), own(19));
        for (bytes, wrong) in [
            (binary(0x22, 0x11, &v4), Malformed::Command(0x22)),
            (binary(0x11, 0x11, &v4), Malformed::Command(0x11)),
            (binary(0x21, 0x13, &v4), Malformed::Family(0x13)),
            (binary(0x21, 0x31, &[0; 216]), Malformed::Family(0x31)),
            (binary(0x21, 0x11, &v4[..11]), Malformed::TooShort),
            (binary(0x21, 0x21, &v4), Malformed::TooShort),
        ] {
            assert_eq!(parse(&bytes), Err(wrong), "{bytes:?}");
        }
    }

    #[test]
    fn anything_else_is_no_header() {
        for bytes in [
            "GET / HTTP/1.1\r\n",
            "PRI * HTTP/2.0\r\n",
            "\x16\x03\x01",
            "\r\nGET",
        ] {
            assert_eq!(parse(bytes.as_bytes()), Ok(Parsed::Absent), "{bytes}");
        }
        for bytes in ["", "P", "PROXY", "\r\n", "\r\n\r\n\0"] {
            assert_eq!(parse(bytes.as_bytes()), Ok(Parsed::Incomplete), "{bytes}");
        }
    }

    fn socket() -> impl Strategy<Value = (SocketAddr, SocketAddr)> {
        let v4 = any::<(Ipv4Addr, u16, Ipv4Addr, u16)>()
            .prop_map(|(a, b, c, d)| ((a, b).into(), (c, d).into()));
        let v6 = any::<(Ipv6Addr, u16, Ipv6Addr, u16)>()
            .prop_map(|(a, b, c, d)| ((a, b).into(), (c, d).into()));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_each_beginning_is_incomplete(
            (source, destination) in socket(),
            version in prop_oneof![Just(Version::V1), Just(Version::V2)],
            behind in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = written(version, source, destination);
            let header = Header::Proxied { source, destination };
            let expected = found(version, header, bytes.len());
            prop_assert_eq!(parse(&[&bytes[..], &behind].concat()), expected);
            for end in 0..bytes.len() {
                prop_assert_eq!(parse(&bytes[..end]), Ok(Parsed::Incomplete));
            }
        }

        #[test]
        fn no_bytes_make_it_panic_or_wait_for_ever(
            start in prop_oneof![Just(V1), Just(V2), Just(&b""[..])],
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [start, &bytes].concat();
            let parsed = parse(&bytes);
            prop_assert!(parsed != Ok(Parsed::Incomplete) || bytes.len() < BUFFER);
        }
    }

    #[tokio::test]
    async fn a_header_is_read_with_its_tlvs_and_nothing_behind_it_is_lost() {
        let mut bytes = binary(0x21, 0x11, &[&[9; 12][..], &[7; 3000]].concat());
        bytes.extend(b"GET / HTTP/1.1");
        for piece in [1, 20, 5000] {
            let (mut near, mut far) = tokio::io::duplex(piece);
            let sent = bytes.clone();
            let send = async move {
                tokio::io::AsyncWriteExt::write_all(&mut far, &sent)
                    .await
                    .unwrap();
            };
            let settings = ProxyProtocol::default();
            let receive = async move {
                let (header, ahead) = read(&mut near, &settings).await.unwrap();
                let mut behind = ahead.to_vec();
                near.read_to_end(&mut behind).await.unwrap();
                (header, behind)
            };
            let ((), (header, behind)) = tokio::join!(send, receive);
            assert_eq!(header, proxied("9.9.9.9:2313", "9.9.9.9:2313"));
            assert_eq!(behind, b"GET / HTTP/1.1");
        }
    }

    #[tokio::test]
    async fn settings_say_what_is_let_in() {
        async fn outcome(bytes: &str, settings: &ProxyProtocol) -> Result<Header, String> {
            let read = read(&mut bytes.as_bytes(), settings).await;
            read.map(|(header, _)| header)
                .map_err(|refused| refused.to_string())
        }
        let strict = ProxyProtocol::default();
        let optional = ProxyProtocol {
            optional: true,
            ..ProxyProtocol::default()
        };
        let no_v1 = ProxyProtocol {
            disallowed: vec![Version::V1],
            ..ProxyProtocol::default()
        };
        let line = "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n";
        assert!(
            outcome("GET / HTTP/1.1", &strict)
                .await
                .unwrap_err()
                .contains("no header")
        );
        assert_eq!(outcome("GET / HTTP/1.1", &optional).await, Ok(Header::Own));
        assert!(
            outcome(line, &no_v1)
                .await
                .unwrap_err()
                .contains("not allowed")
        );
        assert!(outcome("PROXY ", &strict).await.is_err());
        assert_eq!(
            outcome(line, &optional).await,
            Ok(proxied("1.2.3.4:1", "5.6.7.8:2"))
        );
    }

    #[test]
    fn peers_are_let_in_by_their_network() {
        let settings = ProxyProtocol {
            from: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..ProxyProtocol::default()
        };
        for (ip, let_in) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("fd00::1", true),
            ("11.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(settings.lets(Some(ip.parse().unwrap())), let_in, "{ip}");
        }
        assert!(settings.lets(None));
        assert!(ProxyProtocol::default().lets(Some([1, 2, 3, 4].into())));
    }
}
