//! A certificate, read once.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

use super::distinguished_name::rfc2253;

/// What an X.509 certificate says. Who signed it is not verified here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The subject (RFC 2253).
    pub subject: String,
    /// The issuer (RFC 2253).
    pub issuer: String,
    /// The serial number in lower-case hexadecimal digits, two a byte.
    pub serial: String,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ceases to be valid.
    pub not_after: SystemTime,
    /// Subject alternative names, in their order.
    pub alternative_names: Vec<AlternativeName>,
}

/// A subject alternative name (RFC 5280 §4.2.1.6); kinds that are not listed are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlternativeName {
    /// A URI, such as a SPIFFE ID.
    Uri(String),
    /// A DNS name, perhaps with a wildcard.
    Dns(String),
    /// A mail address.
    Email(String),
    /// An IP address.
    Ip(IpAddr),
}

/// The bytes are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate: {0}")]
pub struct CertificateError(pub String);

impl Certificate {
    /// Reads a certificate (DER).
    ///
    /// # Errors
    /// When it is none.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let wrong = |error: &dyn std::fmt::Display| CertificateError(error.to_string());
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| wrong(&error))?;
        if !rest.is_empty() {
            return Err(wrong(&"bytes follow it"));
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| wrong(&error))?;
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let validity = certificate.validity();
        Ok(Self {
            subject: rfc2253(certificate.subject()),
            issuer: rfc2253(certificate.issuer()),
            serial: certificate
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
            alternative_names: names.filter_map(alternative).collect(),
        })
    }

    /// The URIs among its alternative names.
    pub fn uris(&self) -> impl Iterator<Item = &str> {
        self.alternative_names.iter().filter_map(|name| match name {
            AlternativeName::Uri(uri) => Some(uri.as_str()),
            _ => None,
        })
    }

    /// The DNS names among its alternative names.
    pub fn dns_names(&self) -> impl Iterator<Item = &str> {
        self.alternative_names.iter().filter_map(|name| match name {
            AlternativeName::Dns(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whom it names, as Envoy's `principal` has it: the first URI, else the first DNS name, else
    /// the subject.
    pub fn principal(&self) -> &str {
        let alternative = self.uris().next().or_else(|| self.dns_names().next());
        alternative.unwrap_or(&self.subject)
    }

    /// Whether it is valid at that time.
    pub fn is_valid_at(&self, time: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }
}

/// Whom a DER certificate names: see [`Certificate::principal`]. `None` when the bytes are none.
pub fn principal(certificate: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(certificate.principal().to_owned())
}

/// The SHA-256 of a DER certificate, in lower-case hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    let digest = digest(&SHA256, certificate);
    digest.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Appends a DER certificate as PEM, percent-encoded, as Envoy writes certificates in headers and
/// in checks of ext_authz.
pub fn write_encoded_pem(certificate: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"-----BEGIN%20CERTIFICATE-----%0A");
    for line in STANDARD.encode(certificate).as_bytes().chunks(64) {
        for &byte in line {
            match byte {
                b'+' => out.extend_from_slice(b"%2B"),
                b'/' => out.extend_from_slice(b"%2F"),
                b'=' => out.extend_from_slice(b"%3D"),
                _ => out.push(byte),
            }
        }
        out.extend_from_slice(b"%0A");
    }
    out.extend_from_slice(b"-----END%20CERTIFICATE-----%0A");
}

/// Times before 1970 count as 1970.
fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(UNIX_EPOCH)
}

fn alternative(name: &GeneralName<'_>) -> Option<AlternativeName> {
    Some(match name {
        GeneralName::URI(uri) => AlternativeName::Uri((*uri).to_owned()),
        GeneralName::DNSName(name) => AlternativeName::Dns((*name).to_owned()),
        GeneralName::RFC822Name(name) => AlternativeName::Email((*name).to_owned()),
        GeneralName::IPAddress(bytes) => AlternativeName::Ip(ip(bytes)?),
        _ => return None,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber, date_time_ymd};

    use super::*;

    fn certificate() -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Ada, L");
        let uri = "spiffe://a.example/ns/b".try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let loopback = SanType::IpAddress(Ipv6Addr::LOCALHOST.into());
        params.subject_alt_names.push(loopback);
        params.serial_number = Some(SerialNumber::from(vec![0x0a, 0xff]));
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_read_whole() {
        let read = Certificate::from_der(&certificate()).unwrap();
        assert_eq!(read.subject, "CN=Ada\\, L");
        assert_eq!(read.issuer, "CN=Ada\\, L");
        assert_eq!(read.serial, "0aff");
        assert_eq!(
            read.alternative_names,
            [
                AlternativeName::Dns("a.example".into()),
                AlternativeName::Uri("spiffe://a.example/ns/b".into()),
                AlternativeName::Ip(Ipv6Addr::LOCALHOST.into()),
            ]
        );
        assert_eq!(read.uris().collect::<Vec<_>>(), ["spiffe://a.example/ns/b"]);
        assert_eq!(read.dns_names().collect::<Vec<_>>(), ["a.example"]);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // 2020-01-01 and 2021-01-01, 00:00 UTC.
        for (second, valid) in [
            (1_577_836_799, false),
            (1_577_836_800, true),
            (1_609_459_200, true),
            (1_609_459_201, false),
        ] {
            assert_eq!(read.is_valid_at(at(second)), valid, "{second}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        let mut longer = certificate();
        longer.push(0);
        for bytes in [&b""[..], b"nonsense", &certificate()[..100], &longer] {
            assert!(Certificate::from_der(bytes).is_err());
        }
    }
}
