//! What a TLS connection tells about the other side.

use std::{fmt::Write, sync::Arc};

use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    objects::{oid_registry, oid2abbrev},
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

/// The client of a TLS connection that we accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Server name that it asked for.
    pub sni: Option<String>,
    /// Application protocol agreed on.
    pub alpn: Option<String>,
    /// Its leaf certificate, DER, verified; absent when none was asked for.
    pub certificate: Option<Arc<[u8]>>,
    /// Who it is, by that certificate: see [`principal`].
    pub principal: Option<String>,
}

impl Peer {
    /// What is known once the handshake is done.
    pub fn of(connection: &rustls::ServerConnection) -> Self {
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first());
        Self {
            sni: connection.server_name().map(str::to_owned),
            alpn: connection
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            certificate: leaf.map(|leaf| Arc::from(leaf.as_ref())),
            principal: leaf.and_then(|leaf| principal(leaf)),
        }
    }
}

/// Whom a DER certificate names, as Envoy's `principal` has it: the first URI among the subject
/// alternative names, else the first DNS name there, else the subject (RFC 2253).
///
/// `None` when the bytes are no certificate.
pub fn principal(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names = || {
        alternatives
            .iter()
            .flat_map(|extension| extension.value.general_names.iter())
    };
    let uri = names().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let dns = || {
        names().find_map(|name| match name {
            GeneralName::DNSName(dns) => Some((*dns).to_owned()),
            _ => None,
        })
    };
    uri.or_else(dns)
        .or_else(|| Some(rfc2253(certificate.subject())))
}

/// The last relative name first, comma between, special characters escaped.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut relative: Vec<String> = name
        .iter_rdn()
        .map(|rdn| rdn.iter().map(attribute).collect::<Vec<_>>().join("+"))
        .collect();
    relative.reverse();
    relative.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type();
    let mut text = match oid2abbrev(oid, oid_registry()) {
        Ok(short) => short.to_owned(),
        Err(_) => oid.to_id_string(),
    };
    text.push('=');
    match attribute.as_str() {
        Ok(value) => escape(value, &mut text),
        Err(_) => {
            text.push('#');
            for byte in attribute.as_slice() {
                // Writing to a String cannot fail.
                let _ = write!(text, "{byte:02X}");
            }
        }
    }
    text
}

fn escape(value: &str, text: &mut String) {
    let last = value.chars().count().saturating_sub(1);
    for (i, c) in value.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => text.extend(['\\', c]),
            '#' if i == 0 => text.push_str("\\#"),
            ' ' if i == 0 || i == last => text.push_str("\\ "),
            ' '..='~' => text.push(c),
            _ => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(text, "\\{byte:02X}");
                }
            }
        }
    }
}
