//! `x-forwarded-client-cert`: who the client is by its certificate, told onward.

use std::sync::OnceLock;

use attache_filter::context::TlsInfo;
use attache_service::tls::{Certificate, fingerprint, write_encoded_pem};
use http::{HeaderMap, HeaderValue};

use crate::hygiene::{X_FORWARDED_CLIENT_CERT, append_list};

/// What becomes of `x-forwarded-client-cert` (Envoy's `forward_client_cert_details`). Where the
/// client has shown no certificate, only `AlwaysForwardOnly` leaves the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    /// It is removed: anybody can claim a certificate there.
    #[default]
    Sanitize,
    /// It goes on as it came.
    ForwardOnly,
    /// What is known of the client's certificate is added to it.
    AppendForward(ClientCertDetails),
    /// It is replaced by what is known of the client's certificate.
    SanitizeSet(ClientCertDetails),
    /// It goes on as it came, whoever sent it.
    AlwaysForwardOnly,
}

/// What is told of the client's certificate beside its SHA-256 and our own URIs (Envoy's
/// `set_current_client_cert_details`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientCertDetails {
    /// The certificate itself: PEM, percent-encoded.
    pub cert: bool,
    /// The subject.
    pub subject: bool,
    /// The URIs among the subject alternative names.
    pub uri: bool,
    /// The DNS names among them.
    pub dns: bool,
}

impl ForwardClientCert {
    /// Whether it writes what the client did not.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::AppendForward(_) | Self::SanitizeSet(_))
    }

    /// Does so to the headers of a request on the connection of `told`.
    pub(crate) fn apply(self, headers: &mut HeaderMap, tls: Option<&TlsInfo>, told: &Told) {
        let shown = tls.and_then(|tls| Some((tls, tls.peer_certificate.as_deref()?)));
        match (self, shown) {
            (Self::AlwaysForwardOnly, _) | (Self::ForwardOnly, Some(_)) => {}
            (Self::AppendForward(details), Some((tls, der))) => {
                match told.element(details, tls, der) {
                    Some(element) => append_list(headers, &X_FORWARDED_CLIENT_CERT, &element),
                    // The last element is believed: it must not be the client's.
                    None => _ = headers.remove(X_FORWARDED_CLIENT_CERT),
                }
            }
            (Self::SanitizeSet(details), Some((tls, der))) => {
                headers.remove(X_FORWARDED_CLIENT_CERT);
                if let Some(element) = told.element(details, tls, der) {
                    headers.insert(X_FORWARDED_CLIENT_CERT, element);
                }
            }
            (Self::Sanitize, _) | (_, None) => {
                headers.remove(X_FORWARDED_CLIENT_CERT);
            }
        }
    }
}

/// What is told of the client of one connection: made for the first request that needs it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(OnceLock<Box<Element>>);

#[derive(Debug, Clone)]
struct Element {
    details: ClientCertDetails,
    value: Option<HeaderValue>,
}

impl Told {
    /// The element of the header; none if a name in a certificate cannot stand in a header.
    fn element(
        &self,
        details: ClientCertDetails,
        tls: &TlsInfo,
        der: &[u8],
    ) -> Option<HeaderValue> {
        let known = self.0.get_or_init(|| {
            let value = details.element(tls, der);
            Box::new(Element { details, value })
        });
        // A reload may have changed what is to be told.
        match known.details == details {
            true => known.value.clone(),
            false => details.element(tls, der),
        }
    }
}

impl ClientCertDetails {
    /// The element of the header; none if a name in a certificate cannot stand in a header.
    fn element(self, tls: &TlsInfo, der: &[u8]) -> Option<HeaderValue> {
        let peer = tls.peer.as_deref();
        let mut element = Text::default();
        for uri in tls.local.iter().flat_map(|ours| ours.uris()) {
            element.add("By", uri);
        }
        element.add("Hash", &fingerprint(der));
        if self.cert {
            let mut pem = Vec::new();
            write_encoded_pem(der, &mut pem);
            element.add_quoted("Cert", &pem);
        }
        if self.subject {
            let subject = peer.map_or("", |peer| &peer.subject);
            element.add_quoted("Subject", subject.as_bytes());
        }
        if self.uri {
            let mut uris = peer.into_iter().flat_map(Certificate::uris);
            // Envoy writes the key also where there is none.
            element.add("URI", uris.next().unwrap_or_default());
            element.add_all("URI", uris);
        }
        if self.dns {
            element.add_all("DNS", peer.into_iter().flat_map(Certificate::dns_names));
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(element.0)).ok()
    }
}

/// `key=value`, with `;` between.
#[derive(Default)]
struct Text(Vec<u8>);

impl Text {
    fn begin(&mut self, key: &str) {
        if !self.0.is_empty() {
            self.0.push(b';');
        }
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
    }

    /// A name cannot pretend to be more than one: where it has a character that ends it, it is
    /// quoted.
    fn add(&mut self, key: &str, value: &str) {
        if value
            .bytes()
            .any(|byte| matches!(byte, b',' | b';' | b'"' | b'\\'))
        {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            return self.add_quoted(key, escaped.as_bytes());
        }
        self.begin(key);
        self.0.extend_from_slice(value.as_bytes());
    }

    fn add_all<'v>(&mut self, key: &str, values: impl Iterator<Item = &'v str>) {
        for value in values {
            self.add(key, value);
        }
    }

    fn add_quoted(&mut self, key: &str, value: &[u8]) {
        self.begin(key);
        self.0.push(b'"');
        self.0.extend_from_slice(value);
        self.0.push(b'"');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use std::sync::Arc;

    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    const ALL: ClientCertDetails = ClientCertDetails {
        cert: false,
        subject: true,
        uri: true,
        dns: true,
    };

    fn certificate(subject: &str, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn dns(text: &str) -> SanType {
        SanType::DnsName(text.try_into().unwrap())
    }

    fn tls(peer: Option<&[u8]>, ours: &[u8]) -> TlsInfo {
        let read = |der: &[u8]| Arc::new(Certificate::from_der(der).unwrap());
        TlsInfo {
            peer: peer.map(read),
            peer_certificate: peer.map(Arc::from),
            local: Some(read(ours)),
            ..TlsInfo::default()
        }
    }

    /// What the header is after a request that claims to come from root.
    fn told(policy: ForwardClientCert, tls: Option<&TlsInfo>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        let claim = HeaderValue::from_static("URI=spiffe://a/root");
        headers.insert(X_FORWARDED_CLIENT_CERT, claim);
        policy.apply(&mut headers, tls, &Told::default());
        let values = headers.get_all(X_FORWARDED_CLIENT_CERT);
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        values.iter().map(text).collect()
    }

    #[test]
    fn only_a_client_with_a_certificate_is_told_of() {
        let ours = certificate("us", vec![uri("spiffe://a/us")]);
        let theirs = certificate(
            "them",
            vec![dns("a.test"), uri("spiffe://a/b"), uri("urn:c")],
        );
        let mutual = tls(Some(&theirs), &ours);
        let known = format!(
            "By=spiffe://a/us;Hash={};Subject=\"CN=them\";URI=spiffe://a/b;URI=urn:c;DNS=a.test",
            fingerprint(&theirs)
        );
        let claim = "URI=spiffe://a/root";
        use ForwardClientCert as F;
        let table: [(F, &[&str]); 5] = [
            (F::Sanitize, &[]),
            (F::ForwardOnly, &[claim]),
            (F::AlwaysForwardOnly, &[claim]),
            (F::SanitizeSet(ALL), &[&known]),
            (F::AppendForward(ALL), &[&format!("{claim},{known}")]),
        ];
        for (policy, expected) in table {
            assert_eq!(told(policy, Some(&mutual)), expected, "{policy:?}");
            let unknown: &[&str] = match policy {
                F::AlwaysForwardOnly => &[claim],
                _ => &[],
            };
            assert_eq!(told(policy, Some(&tls(None, &ours))), unknown, "{policy:?}");
            assert_eq!(told(policy, None), unknown, "{policy:?}");
        }
    }

    #[test]
    fn what_is_told_of_a_connection_is_made_once() {
        let theirs = certificate("them", vec![dns("a.test")]);
        let tls = tls(Some(&theirs), &theirs);
        let told = Told::default();
        let of = |details| told.element(details, &tls, &theirs).unwrap();

        let (first, second) = (of(ALL), of(ALL));

        assert_eq!(Some(&first), ALL.element(&tls, &theirs).as_ref());
        assert_eq!(first.as_bytes().as_ptr(), second.as_bytes().as_ptr());
        let without_names = ClientCertDetails { dns: false, ..ALL };
        assert_eq!(
            Some(of(without_names)),
            without_names.element(&tls, &theirs)
        );
        assert_ne!(of(without_names), first);
    }

    #[test]
    fn a_name_cannot_pretend_to_be_another() {
        let theirs = certificate(
            "a\";URI=spiffe://a/root",
            vec![uri("urn:b\\\";URI=urn:c,\"")],
        );
        let told = told(
            ForwardClientCert::SanitizeSet(ALL),
            Some(&tls(Some(&theirs), &theirs)),
        );
        let expected = format!(
            r#"By="urn:b\\\";URI=urn:c,\"";Hash={};Subject="CN=a\"\;URI=spiffe://a/root";URI="urn:b\\\";URI=urn:c,\"""#,
            fingerprint(&theirs)
        );
        assert_eq!(told, [expected]);
    }

    #[test]
    fn a_client_whose_name_cannot_be_told_tells_nothing_itself() {
        let theirs = certificate("them", vec![uri("urn:\n")]);
        let mutual = tls(Some(&theirs), &certificate("us", vec![]));
        for policy in [
            ForwardClientCert::AppendForward(ALL),
            ForwardClientCert::SanitizeSet(ALL),
        ] {
            assert_eq!(told(policy, Some(&mutual)), [""; 0], "{policy:?}");
        }
    }

    #[test]
    fn the_certificate_itself_is_told_encoded() {
        let theirs = certificate("them", vec![]);
        let details = ClientCertDetails {
            cert: true,
            ..ClientCertDetails::default()
        };
        let told = told(
            ForwardClientCert::SanitizeSet(details),
            Some(&tls(Some(&theirs), &theirs)),
        );
        let begin = format!(
            "Hash={};Cert=\"-----BEGIN%20CERTIFICATE-----%0AM",
            fingerprint(&theirs)
        );
        assert!(told[0].starts_with(&begin), "{told:?}");
        assert!(
            told[0].ends_with("-----END%20CERTIFICATE-----%0A\""),
            "{told:?}"
        );
    }
}
