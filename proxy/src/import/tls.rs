//! Transport sockets: TLS of listeners and clusters.

use attache_service::{
    config::{ConfigValue, Node, envoy::message_of},
    tls::{CipherSuite, Curve},
};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::{self, Output},
};

const CONTEXT: &str = "envoy.extensions.transport_sockets.tls.v3.";

/// Fields of a `CommonTlsContext` that have a control plane tell whom to trust.
const DISCOVERED: [&str; 2] = [
    "combined_validation_context",
    "validation_context_sds_secret_config",
];

/// What a transport socket speaks.
enum Spoken<'n> {
    Tls(Block<'n>),
    Plain,
    Unknown,
}

fn context<'n>(socket: &'n Node, kind: &str, found: &mut Findings) -> Spoken<'n> {
    let config = socket.get("typed_config");
    let message = config.and_then(message_of);
    let is_tls = message.and_then(|message| message.strip_prefix(CONTEXT)) == Some(kind);
    if is_tls && let Some(context) = config.and_then(|config| Block::open(config, found)) {
        return Spoken::Tls(context);
    }
    if message.is_some_and(|message| message.ends_with(".raw_buffer.v3.RawBuffer")) {
        return Spoken::Plain;
    }
    let why = "only TLS and plain text have a counterpart here";
    found.push(socket, Effect::Protection, why);
    Spoken::Unknown
}

/// TLS of a listener; whether it is known what is spoken.
pub(super) fn listener(socket: &Node, out: &mut Output, found: &mut Findings) -> bool {
    let mut context = match context(socket, "DownstreamTlsContext", found) {
        Spoken::Tls(context) => context,
        Spoken::Plain => return true,
        Spoken::Unknown => return false,
    };
    let mut tls = Output::default();
    let required = context.flag("require_client_certificate") == Some(true);
    if let Some(mut common) = context.block("common_tls_context", found) {
        let mut certificates = certificates(&mut common, found).into_iter();
        if let Some(first) = certificates.next() {
            tls.merge(first);
        }
        let more: Vec<_> = certificates.map(Output::into_node).collect();
        if !more.is_empty() {
            tls.put("certificates", output::list(more));
        }
        versions(&mut common, &mut tls, found);
        let mut authority = None;
        if let Some(mut validation) = common.block("validation_context", found) {
            authority = file(&mut validation, "trusted_ca", found);
            validation.finish(Effect::Protection, found);
        }
        if let Some(ca) = authority {
            tls.put("client_ca", ca.clone());
            if !required {
                tls.flag("require_client_certificate", false, &ca.span);
            }
        } else if required {
            let why = "client certificates are asked for, and no authority is named";
            found.push(socket, Effect::Protection, why);
        }
        common.finish(Effect::Protection, found);
    }
    if let Some(disable) = context.take("disable_stateless_session_resumption") {
        tls.put("disable_stateless_session_resumption", disable.clone());
    }
    context.nothing(
        &["disable_stateful_session_resumption", "ocsp_staple_policy"],
        "sessions are resumed by tickets alone, without OCSP",
        found,
    );
    context.finish(Effect::Behaviour, found);
    // Also where nothing could be read of it: it is not plain text.
    out.put("tls", tls.into_node());
    true
}

/// TLS of a cluster; whether it is known what is spoken.
pub(super) fn cluster(socket: &Node, out: &mut Output, found: &mut Findings) -> bool {
    let mut context = match context(socket, "UpstreamTlsContext", found) {
        Spoken::Tls(context) => context,
        Spoken::Plain => return true,
        Spoken::Unknown => return false,
    };
    let mut tls = Output::default();
    let sni = context.take("sni");
    if let Some(sni) = sni {
        tls.put("sni", sni.clone());
    }
    if let Some(mut common) = context.block("common_tls_context", found) {
        let mut certificates = certificates(&mut common, found).into_iter();
        if let Some(first) = certificates.next() {
            tls.merge(first);
        }
        if certificates.next().is_some() {
            found.push(
                socket,
                Effect::Behaviour,
                "one certificate is presented here",
            );
        }
        common.nothing(
            &["alpn_protocols"],
            "it follows the cluster's protocol",
            found,
        );
        match common.block("validation_context", found) {
            Some(mut validation) => {
                let pinned = validation.has("trusted_ca");
                match file(&mut validation, "trusted_ca", found) {
                    Some(ca) => tls.put("ca", ca.clone()),
                    // The system's authorities would be trusted instead.
                    None if pinned => return false,
                    None => {}
                }
                validation.take("system_root_certs");
                names(&mut validation, sni, found);
                validation.finish(Effect::Protection, found);
            }
            None if DISCOVERED.iter().any(|name| common.has(name)) => {
                common.finish(Effect::Protection, found);
                return false;
            }
            None => found.push(
                socket,
                Effect::Behaviour,
                "the server's certificate is checked here, which Envoy does not do without a `validation_context`",
            ),
        }
        common.finish(Effect::Protection, found);
    }
    context.finish(Effect::Behaviour, found);
    out.put("tls", tls.into_node());
    true
}

/// The names that a server may have: here the one that is asked for.
fn names(validation: &mut Block<'_>, sni: Option<&Node>, found: &mut Findings) {
    for node in validation.list("match_typed_subject_alt_names") {
        let exact = node.get("matcher").and_then(|matcher| matcher.get("exact"));
        let same = exact.and_then(Node::text) == sni.and_then(Node::text);
        if exact.is_none() || !same {
            let why = "the certificate has to be for `sni`, or the endpoint's host, here";
            found.push(node, Effect::Behaviour, why);
        }
    }
}

/// The files of each certificate.
fn certificates(common: &mut Block<'_>, found: &mut Findings) -> Vec<Output> {
    let mut certificates = Vec::new();
    for node in common.list("tls_certificates") {
        let Some(mut certificate) = Block::open(node, found) else {
            continue;
        };
        let mut files = Output::default();
        if let Some(chain) = file(&mut certificate, "certificate_chain", found) {
            files.put("certificate", chain.clone());
        }
        if let Some(key) = file(&mut certificate, "private_key", found) {
            files.put("private_key", key.clone());
        }
        certificate.nothing(&["watched_directory"], "files are always followed", found);
        certificate.finish(Effect::Protection, found);
        certificates.push(files);
    }
    certificates
}

fn versions(common: &mut Block<'_>, tls: &mut Output, found: &mut Findings) {
    if let Some(alpn) = common.take("alpn_protocols") {
        tls.put("alpn", alpn.clone());
    }
    let Some(mut params) = common.block("tls_params", found) else {
        return;
    };
    if let Some(version) = params.take("tls_minimum_protocol_version") {
        match version.text() {
            Some("TLS_AUTO") => {}
            Some("TLSv1_0" | "TLSv1_1") => {
                found.push(version, Effect::Behaviour, "TLS 1.2 is the oldest here");
            }
            _ => tls.put("min_version", version.clone()),
        }
    }
    match params.take("tls_maximum_protocol_version") {
        None => {}
        Some(version) if version.text() == Some("TLS_AUTO") => {}
        Some(version) => tls.put("max_version", version.clone()),
    }
    known::<CipherSuite>(&mut params, "cipher_suites", tls, found);
    known::<Curve>(&mut params, "ecdh_curves", tls, found);
    params.finish(Effect::Behaviour, found);
}

/// Those of a list that there are here. Envoy takes several of the same rank in brackets.
fn known<T: ConfigValue>(
    params: &mut Block<'_>,
    field: &str,
    tls: &mut Output,
    found: &mut Findings,
) {
    let mut kept = Vec::new();
    for node in params.list(field) {
        let names = node.text().unwrap_or_default();
        for name in names.trim_matches(['[', ']']).split('|') {
            let one = output::text_at(name, &node.span);
            let what = format!("`{name}`");
            if output::decode::<T>(&one, node, &what, Effect::Behaviour, found).is_some() {
                kept.push(one);
            }
        }
    }
    if !kept.is_empty() {
        tls.put(field, output::list(kept));
    }
}

/// The file of a `DataSource`.
fn file<'n>(block: &mut Block<'n>, name: &str, found: &mut Findings) -> Option<&'n Node> {
    let mut source = block.block(name, found)?;
    let file = source.take("filename");
    source.nothing(&["watched_directory"], "files are always followed", found);
    source.finish(Effect::Protection, found);
    file
}
