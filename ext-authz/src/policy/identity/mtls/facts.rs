//! What is known of a certificate, from whoever told it.

use std::time::SystemTime;

use attache_service::tls::Certificate;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::{
    policy::identity::keys::sha256,
    server::{ForwardedCertificate, SpiffeId},
};

/// What is known of a certificate.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) uris: Vec<String>,
    pub(super) dns_names: Vec<String>,
    pub(super) subject: Option<String>,
    serial: Option<String>,
    /// SHA-256 of its DER, in hexadecimal digits.
    fingerprint: Option<String>,
    not_before: Option<SystemTime>,
    pub(super) not_after: Option<SystemTime>,
}

impl Facts {
    /// All that the certificate (DER) says.
    pub(super) fn of_certificate(der: &[u8]) -> Result<Self, &'static str> {
        let certificate = Certificate::from_der(der).map_err(|_| "malformed")?;
        Ok(Self {
            uris: certificate.uris().map(str::to_owned).collect(),
            dns_names: certificate.dns_names().map(str::to_owned).collect(),
            fingerprint: Some(hex(&sha256(der))),
            not_before: Some(certificate.not_before),
            not_after: Some(certificate.not_after),
            subject: filled(certificate.subject),
            serial: Some(certificate.serial),
        })
    }

    /// What Envoy's `principal` gives away: one URI, else one DNS name, else the subject.
    pub(super) fn of_principal(principal: &str) -> Self {
        let mut facts = Self::default();
        let principal = principal.to_owned();
        // Before the colon of a URI there is its scheme; a subject may have all that is in a URI.
        let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let scheme = principal.split_once("://");
        if scheme.is_some_and(|(scheme, _)| scheme.chars().all(of_scheme))
            || principal.starts_with("urn:")
        {
            facts.uris.push(principal);
        } else if principal.contains('=') {
            facts.subject = Some(principal);
        } else {
            facts.dns_names.push(principal);
        }
        facts
    }

    /// What a proxy tells in `x-forwarded-client-cert`.
    pub(super) fn of_element(element: &ForwardedCertificate) -> Self {
        Self {
            uris: element.uri.iter().cloned().filter_map(filled).collect(),
            dns_names: element.dns.iter().cloned().filter_map(filled).collect(),
            subject: element.subject.clone().and_then(filled),
            fingerprint: element.hash.as_deref().map(str::to_ascii_lowercase),
            ..Self::default()
        }
    }

    /// The SPIFFE ID: the only URI, as X.509-SVIDs have it.
    pub(super) fn spiffe_id(&self) -> Option<SpiffeId<'_>> {
        match self.uris.as_slice() {
            [uri] => SpiffeId::parse(uri).ok(),
            _ => None,
        }
    }

    /// Whose it is, by the rule of Envoy's `principal`.
    pub(super) fn name(&self) -> Option<&str> {
        let names = self.uris.first().or(self.dns_names.first());
        let name = names
            .or(self.subject.as_ref())
            .or(self.fingerprint.as_ref());
        name.map(String::as_str)
    }

    /// Errors are reasons for the log.
    pub(super) fn check_time(&self, now: SystemTime) -> Result<(), &'static str> {
        if self.not_before.is_some_and(|begin| now < begin) {
            return Err("not_yet_valid");
        }
        if self.not_after.is_some_and(|end| now > end) {
            return Err("expired");
        }
        Ok(())
    }

    pub(super) fn claims(&self) -> Map<String, Value> {
        let id = self.spiffe_id();
        let list = |names: &[String]| (!names.is_empty()).then(|| Value::from(names.to_vec()));
        let text = |text: &Option<String>| text.clone().map(Value::from);
        [
            ("spiffe_id", id.map(|id| id.to_string().into())),
            ("trust_domain", id.map(|id| id.trust_domain().into())),
            ("uri", list(&self.uris)),
            ("dns", list(&self.dns_names)),
            ("subject", text(&self.subject)),
            ("serial", text(&self.serial)),
            ("fingerprint", text(&self.fingerprint)),
        ]
        .into_iter()
        .filter_map(|(name, claim)| Some((name.to_owned(), claim?)))
        .collect()
    }
}

/// The certificates of a URL-encoded PEM text, DER; `None` when it is none, or has more than
/// `most`.
pub(super) fn certificates(encoded: &str, most: usize) -> Option<Vec<Vec<u8>>> {
    let pem = percent_decode_str(encoded).decode_utf8().ok()?;
    let mut rest = pem.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        if found.len() == most {
            return None;
        }
        let begun = rest.strip_prefix("-----BEGIN CERTIFICATE-----")?;
        let (base64, behind) = begun.split_once("-----END CERTIFICATE-----")?;
        let base64: String = base64.split_ascii_whitespace().collect();
        found.push(STANDARD.decode(base64).ok()?);
        rest = behind.trim_start();
    }
    Some(found)
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_principal_is_a_uri_a_dns_name_or_a_subject() {
        for (principal, uris, dns_names, subject) in [
            (
                "spiffe://a.example/b",
                &["spiffe://a.example/b"][..],
                &[][..],
                None,
            ),
            ("urn:x:y", &["urn:x:y"], &[], None),
            ("a.example", &[], &["a.example"], None),
            ("CN=a,O=b", &[], &[], Some("CN=a,O=b")),
            (
                "CN=x spiffe://a.example/b",
                &[],
                &[],
                Some("CN=x spiffe://a.example/b"),
            ),
        ] {
            let facts = Facts::of_principal(principal);
            assert_eq!(facts.uris, uris, "{principal}");
            assert_eq!(facts.dns_names, dns_names, "{principal}");
            assert_eq!(facts.subject.as_deref(), subject, "{principal}");
            assert_eq!(facts.name(), Some(principal));
        }
    }

    #[test]
    fn of_several_uris_none_is_the_spiffe_id() {
        let mut facts = Facts::of_principal("spiffe://a.example/b");
        assert!(facts.spiffe_id().is_some());
        facts.uris.push("https://a.example".to_owned());
        assert_eq!(facts.spiffe_id(), None);
        assert!(!facts.claims().contains_key("trust_domain"));
    }

    #[test]
    fn pem_is_read_whole_or_not_at_all() {
        let one = "-----BEGIN%20CERTIFICATE-----%0AAQID%0A-----END%20CERTIFICATE-----%0A";
        let two = format!("{one}{one}");
        assert_eq!(certificates(one, 1), Some(vec![vec![1, 2, 3]]));
        assert_eq!(certificates(&two, 2), Some(vec![vec![1, 2, 3]; 2]));
        assert_eq!(certificates(&two, 1), None);
        assert_eq!(certificates("", 1), Some(vec![]));
        for bad in [
            "AQID",
            &one[..50],
            &format!("{one}x"),
            &one.replace("AQID", "*"),
        ] {
            assert_eq!(certificates(bad, 9), None, "{bad}");
        }
    }
}
