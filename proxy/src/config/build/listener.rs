//! Listeners.

use std::{net::IpAddr, time::Duration};

use attache_service::{
    Address,
    config::{Errors, Located},
    listen::ListenAddress,
};
use ipnet::IpNet;

use super::{Builder, ClusterNames, Scope, Tables, limits, local_reply};
use crate::{
    client_cert::{ClientCertDetails, ForwardClientCert},
    config::{
        self, CodecType, EscapedSlashesAction, ForwardClientCertDetails, Listener,
        ProxyProtocolVersion, Tcp, TlsPassthrough, UnderscoresAction,
    },
    path::EscapedSlashes,
    plan::{Codec, ListenerPlan, Underscores},
    proxy_protocol::{ProxyProtocol, Version},
    server_names::ServerNames,
    tcp::TcpPlan,
};

/// A client does not wait for more.
const MOST_ATTEMPTS: u32 = 10;

impl Builder<'_> {
    pub(super) fn listener(
        &self,
        raw: &Listener,
        tables: &Tables,
        scope: &Scope<'_>,
        errors: &mut Errors,
    ) -> Option<ListenerPlan> {
        let Scope {
            clusters, policies, ..
        } = *scope;
        let mut plan = ListenerPlan::new(&raw.name, raw.address.value.clone());
        plan.mode = raw.mode.as_ref().map(|mode| mode.value);
        if let Some(mode) = &raw.mode
            && !is_socket_file(&raw.address.value)
        {
            errors.push(mode, "only the file of a Unix socket has a mode");
        }
        if let Some(written) = &raw.proxy_protocol {
            plan.proxy_protocol = Some(proxy_protocol(written, errors));
        }
        plan.tls_passthrough = passthrough(&raw.tls_passthrough, clusters, errors);
        if let Some(tcp) = &raw.tcp {
            let Tcp {
                cluster,
                idle_timeout,
                max_connect_attempts,
            } = &tcp.value;
            let attempts = max_connect_attempts.as_ref();
            plan.tcp = Some(self::tcp(
                cluster,
                *idle_timeout,
                attempts,
                clusters,
                errors,
            )?);
        }
        let opens = raw.tls_passthrough.is_empty() || raw.tls.is_some();
        if let Some(name) = raw.filters.first()
            && (raw.tcp.is_some() || !opens)
        {
            errors.push(
                name,
                "policies see HTTP, and this listener passes connections on",
            );
        }
        plan.routes = match &raw.route_specifier {
            Some(own) if raw.tcp.is_some() || !opens => {
                errors.push(
                    own,
                    "this listener passes connections on without looking for routes",
                );
                None
            }
            Some(own) => self.own_routes(&own.value, tables, scope, errors),
            None => None,
        };
        plan.codec = match raw.codec_type {
            None | Some(CodecType::Auto) => Codec::Auto,
            Some(CodecType::Http1) => Codec::Http1,
            Some(CodecType::Http2) => Codec::Http2,
        };
        for name in &raw.filters {
            if !policies.contains_key(name.as_str()) {
                errors.unknown_name(name, "filter", policies.keys().map(String::as_str));
            }
            if plan.filters.iter().any(|known| **known == *name.value) {
                errors.push(name, format!("filter `{}` is named twice", name.value));
            }
            plan.filters.push(name.as_str().into());
        }
        if let Some(limits) = &raw.limits {
            limits::plan(limits, &mut plan.limits, errors);
        }
        let forward = &mut plan.forward;
        forward.use_remote_address = raw.use_remote_address.unwrap_or(forward.use_remote_address);
        forward.xff_num_trusted_hops = raw
            .xff_num_trusted_hops
            .unwrap_or(forward.xff_num_trusted_hops);
        forward.generate_request_id = raw
            .generate_request_id
            .unwrap_or(forward.generate_request_id);
        forward.preserve_external_request_id = raw
            .preserve_external_request_id
            .unwrap_or(forward.preserve_external_request_id);
        forward.client_cert = client_cert(raw);
        plan.path.normalize = raw.normalize_path.unwrap_or(plan.path.normalize);
        plan.path.merge_slashes = raw.merge_slashes.unwrap_or(plan.path.merge_slashes);
        if let Some(action) = raw.path_with_escaped_slashes_action {
            plan.path.escaped_slashes = match action {
                EscapedSlashesAction::KeepUnchanged => EscapedSlashes::KeepUnchanged,
                EscapedSlashesAction::RejectRequest => EscapedSlashes::RejectRequest,
                EscapedSlashesAction::UnescapeAndRedirect => EscapedSlashes::UnescapeAndRedirect,
                EscapedSlashesAction::UnescapeAndForward => EscapedSlashes::UnescapeAndForward,
            };
        }
        if let Some(upgrades) = &raw.upgrades {
            plan.upgrades = upgrades
                .iter()
                .map(|name| name.to_ascii_lowercase())
                .collect();
        }
        let http2 = raw.http2_protocol_options.as_ref();
        plan.allow_connect = http2.and_then(|http2| http2.allow_connect).unwrap_or(false);
        if let Some(limit) = &raw.per_connection_buffer_limit_bytes {
            plan.buffer_limit = limit.value.as_usize();
            if plan.buffer_limit == 0 {
                errors.push(limit, "must be more than 0: no body could pass");
            }
        }
        let common = raw.common_http_protocol_options.as_ref();
        let duration = common.and_then(|common| common.max_stream_duration);
        plan.max_stream_duration = duration.filter(|bound| !bound.is_zero());
        let action = common.and_then(|common| common.headers_with_underscores_action.as_ref());
        plan.underscores = match action.map(|action| action.value).unwrap_or_default() {
            UnderscoresAction::Allow => Underscores::Allow,
            UnderscoresAction::RejectRequest => Underscores::RejectRequest,
            UnderscoresAction::DropHeader => Underscores::DropHeader,
        };
        plan.local_replies = raw
            .local_reply_config
            .as_ref()
            .and_then(|raw| local_reply::plan(raw, errors));
        if let Some(log) = &raw.access_log {
            plan.access_logs = self.access_logs(log, errors);
        }
        if let Some(tls) = &raw.tls {
            let protocols: &[_] = match plan.codec {
                _ if raw.tcp.is_some() => &[],
                Codec::Auto => &["h2", "http/1.1"],
                Codec::Http1 => &["http/1.1"],
                Codec::Http2 => &["h2"],
            };
            plan.tls = Some(tls.plan(protocols, errors)?);
        }
        Some(plan)
    }
}

fn client_cert(raw: &Listener) -> ForwardClientCert {
    use ForwardClientCertDetails as Raw;
    let details = raw.set_current_client_cert_details.as_ref();
    let details = details.map_or_else(ClientCertDetails::default, |details| ClientCertDetails {
        cert: details.cert,
        subject: details.subject,
        uri: details.uri,
        dns: details.dns,
    });
    match raw.forward_client_cert_details {
        None | Some(Raw::Sanitize) => ForwardClientCert::Sanitize,
        Some(Raw::ForwardOnly) => ForwardClientCert::ForwardOnly,
        Some(Raw::AppendForward) => ForwardClientCert::AppendForward(details),
        Some(Raw::SanitizeSet) => ForwardClientCert::SanitizeSet(details),
        Some(Raw::AlwaysForwardOnly) => ForwardClientCert::AlwaysForwardOnly,
    }
}

fn is_socket_file(address: &ListenAddress) -> bool {
    match address {
        ListenAddress::At(Address::Unix(path)) => !path.to_string_lossy().starts_with('@'),
        ListenAddress::At(Address::Tcp { .. }) | ListenAddress::Systemd(_) => false,
    }
}

fn proxy_protocol(raw: &config::ProxyProtocol, errors: &mut Errors) -> ProxyProtocol {
    let mut from = Vec::new();
    for written in &raw.from {
        let net = written.parse::<IpNet>().ok();
        match net.or_else(|| written.parse::<IpAddr>().ok().map(IpNet::from)) {
            Some(net) => from.push(net),
            None => errors.push(
                written,
                format!("`{}` is no network such as `10.0.0.0/8`", written.value),
            ),
        }
    }
    let disallowed = raw.disallowed_versions.iter();
    ProxyProtocol {
        optional: raw.allow_requests_without_proxy_protocol.unwrap_or(false),
        from,
        disallowed: disallowed
            .map(|version| match version {
                ProxyProtocolVersion::V1 => Version::V1,
                ProxyProtocolVersion::V2 => Version::V2,
            })
            .collect(),
    }
}

fn passthrough(
    raw: &[TlsPassthrough],
    clusters: &ClusterNames<'_>,
    errors: &mut Errors,
) -> Option<ServerNames<TcpPlan>> {
    if raw.is_empty() {
        return None;
    }
    let mut names = ServerNames::default();
    for one in raw {
        let attempts = one.max_connect_attempts.as_ref();
        names.push(tcp(
            &one.cluster,
            one.idle_timeout,
            attempts,
            clusters,
            errors,
        )?);
        if one.server_names.is_empty() {
            errors.push(&one.cluster, "`server_names` beside it names nothing");
        }
        for name in &one.server_names {
            if let Err(error) = names.name(name) {
                errors.push(name, error.to_string());
            }
        }
    }
    Some(names)
}

fn tcp(
    cluster: &Located<String>,
    idle_timeout: Option<Duration>,
    attempts: Option<&Located<u32>>,
    clusters: &ClusterNames<'_>,
    errors: &mut Errors,
) -> Option<TcpPlan> {
    let Some((index, _)) = clusters.get(cluster.as_str()) else {
        errors.unknown_name(cluster, "cluster", clusters.keys().copied());
        return None;
    };
    let mut plan = TcpPlan::to(*index);
    if let Some(idle) = idle_timeout {
        plan.idle_timeout = (!idle.is_zero()).then_some(idle);
    }
    if let Some(attempts) = attempts {
        if !(1..=MOST_ATTEMPTS).contains(&attempts.value) {
            errors.push(attempts, format!("is between 1 and {MOST_ATTEMPTS}"));
        }
        plan.max_connect_attempts = attempts.value;
    }
    Some(plan)
}
