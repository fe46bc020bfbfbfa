//! TLS of listeners and clusters.

use std::path::PathBuf;

use attache_service::{
    config::{Located, envoy::type_url, json},
    tls::{ClusterTls, ListenerTls, TlsVersion},
};
use json::{Value, json};

use super::resolved;

pub(super) fn downstream(tls: &ListenerTls, http: bool) -> Value {
    let mut certificates = vec![certificate(&tls.certificate, &tls.private_key)];
    let more = tls.certificates.iter();
    certificates.extend(more.map(|files| certificate(&files.certificate, &files.private_key)));
    let mut params = json!({
        "tls_minimum_protocol_version": tls.min_version.unwrap_or(TlsVersion::Tls12).as_str(),
    });
    if let Some(version) = &tls.max_version {
        params["tls_maximum_protocol_version"] = json!(version.value.as_str());
    }
    if !tls.cipher_suites.is_empty() {
        params["cipher_suites"] = tls.cipher_suites.iter().map(|s| s.as_str()).collect();
    }
    if !tls.ecdh_curves.is_empty() {
        params["ecdh_curves"] = tls.ecdh_curves.iter().map(|c| c.as_str()).collect();
    }
    let mut common = json!({ "tls_certificates": certificates, "tls_params": params });
    let alpn = tls.alpn.clone();
    let alpn = alpn.or_else(|| http.then(|| vec!["h2".into(), "http/1.1".into()]));
    if let Some(alpn) = alpn {
        common["alpn_protocols"] = json!(alpn);
    }
    if let Some(ca) = &tls.client_ca {
        common["validation_context"] = json!({ "trusted_ca": { "filename": resolved(ca) } });
    }
    let required = tls.require_client_certificate.as_ref();
    let required = required.is_none_or(|required| required.value);
    let mut context = json!({
        "common_tls_context": common,
        "require_client_certificate": tls.client_ca.is_some() && required,
    });
    if tls.disable_stateless_session_resumption == Some(true) {
        context["disable_stateless_session_resumption"] = json!(true);
        context["disable_stateful_session_resumption"] = json!(true);
    }
    transport_socket("DownstreamTlsContext", context)
}

pub(super) fn upstream(tls: &ClusterTls, host: Option<&str>, http2: bool) -> Value {
    let sni = tls.sni.as_ref().map(|sni| sni.value.as_str()).or(host);
    let mut validation = match &tls.ca {
        Some(ca) => json!({ "trusted_ca": { "filename": resolved(ca) } }),
        None => json!({ "system_root_certs": {} }),
    };
    if let Some(name) = sni {
        let kind = if name.parse::<std::net::IpAddr>().is_ok() {
            "IP_ADDRESS"
        } else {
            "DNS"
        };
        validation["match_typed_subject_alt_names"] =
            json!([{ "san_type": kind, "matcher": { "exact": name } }]);
    }
    let mut common = json!({
        "alpn_protocols": [if http2 { "h2" } else { "http/1.1" }],
        "validation_context": validation,
    });
    if let (Some(chain), Some(key)) = (&tls.certificate, &tls.private_key) {
        common["tls_certificates"] = json!([certificate(chain, key)]);
    }
    let mut context = json!({ "common_tls_context": common });
    if let Some(name) = sni.filter(|name| name.parse::<std::net::IpAddr>().is_err()) {
        context["sni"] = json!(name);
    }
    transport_socket("UpstreamTlsContext", context)
}

fn certificate(chain: &Located<PathBuf>, key: &Located<PathBuf>) -> Value {
    json!({
        "certificate_chain": { "filename": resolved(chain) },
        "private_key": { "filename": resolved(key) },
    })
}

fn transport_socket(context: &str, mut config: Value) -> Value {
    config["@type"] = json!(type_url(&format!(
        "envoy.extensions.transport_sockets.tls.v3.{context}"
    )));
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}
