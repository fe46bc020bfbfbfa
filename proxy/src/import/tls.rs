//! Transport sockets: TLS of listeners and clusters.

use attache_service::config::{Node, envoy::message_of};

use super::{
    block::Block,
    dropped::{Effect, Findings},
    output::Output,
};

const CONTEXT: &str = "envoy.extensions.transport_sockets.tls.v3.";

/// The context of a socket that speaks TLS.
fn context<'n>(socket: &'n Node, kind: &str, found: &mut Findings) -> Option<Block<'n>> {
    let config = socket.get("typed_config");
    let message = config.and_then(message_of);
    if message.and_then(|message| message.strip_prefix(CONTEXT)) == Some(kind) {
        return Block::open(config?, found);
    }
    if !message.is_some_and(|message| message.ends_with(".RawBuffer")) {
        let why = "only TLS and plain text have a counterpart here";
        found.push(socket, Effect::Protection, why);
    }
    None
}

/// TLS of a listener.
pub(super) fn listener(socket: &Node, out: &mut Output, found: &mut Findings) {
    let Some(mut context) = context(socket, "DownstreamTlsContext", found) else {
        return;
    };
    let mut tls = Output::default();
    let required = context.flag("require_client_certificate") == Some(true);
    if let Some(mut common) = context.block("common_tls_context", found) {
        certificates(&mut common, &mut tls, found);
        versions(&mut common, &mut tls, found);
        if let Some(mut validation) = common.block("validation_context", found) {
            if let Some(ca) = file(&mut validation, "trusted_ca", found) {
                tls.put("client_ca", ca.clone());
                if !required {
                    let why = "clients must present a certificate here";
                    found.push(ca, Effect::Behaviour, why);
                }
            }
            validation.finish(Effect::Protection, found);
        } else if required {
            let why = "client certificates are asked for, and no authority is named";
            found.push(socket, Effect::Protection, why);
        }
        common.finish(Effect::Protection, found);
    }
    context.nothing(
        &["disable_stateless_session_resumption", "ocsp_staple_policy"],
        "sessions are resumed by tickets, without OCSP",
        found,
    );
    context.finish(Effect::Behaviour, found);
    out.map("tls", tls);
}

/// TLS of a cluster.
pub(super) fn cluster(socket: &Node, out: &mut Output, found: &mut Findings) {
    let Some(mut context) = context(socket, "UpstreamTlsContext", found) else {
        return;
    };
    let mut tls = Output::default();
    let sni = context.take("sni");
    if let Some(sni) = sni {
        tls.put("sni", sni.clone());
    }
    if let Some(mut common) = context.block("common_tls_context", found) {
        certificates(&mut common, &mut tls, found);
        common.nothing(
            &["alpn_protocols"],
            "it follows the cluster's protocol",
            found,
        );
        match common.block("validation_context", found) {
            Some(mut validation) => {
                if let Some(ca) = file(&mut validation, "trusted_ca", found) {
                    tls.put("ca", ca.clone());
                }
                validation.take("system_root_certs");
                names(&mut validation, sni, found);
                validation.finish(Effect::Protection, found);
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

fn certificates(common: &mut Block<'_>, tls: &mut Output, found: &mut Findings) {
    let nodes = common.list("tls_certificates");
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            found.push(node, Effect::Behaviour, "one certificate is used here");
            continue;
        }
        let Some(mut certificate) = Block::open(node, found) else {
            continue;
        };
        if let Some(chain) = file(&mut certificate, "certificate_chain", found) {
            tls.put("certificate", chain.clone());
        }
        if let Some(key) = file(&mut certificate, "private_key", found) {
            tls.put("private_key", key.clone());
        }
        certificate.nothing(&["watched_directory"], "files are always followed", found);
        certificate.finish(Effect::Protection, found);
    }
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
    params.finish(Effect::Behaviour, found);
}

/// The file of a `DataSource`.
fn file<'n>(block: &mut Block<'n>, name: &str, found: &mut Findings) -> Option<&'n Node> {
    let mut source = block.block(name, found)?;
    let file = source.take("filename");
    source.nothing(&["watched_directory"], "files are always followed", found);
    source.finish(Effect::Protection, found);
    file
}
