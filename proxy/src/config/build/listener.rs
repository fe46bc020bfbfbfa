//! Listeners and their access logs.

use std::time::Duration;

use attache_service::{Address, config::Errors};

use super::{Builder, Policies};
use crate::{
    access_log::{AccessLogPlan, Sink},
    config::{AccessLog, EscapedSlashesAction, Listener},
    path::EscapedSlashes,
    plan::ListenerPlan,
};

/// Envoy's bound on a header block, in bytes; hyper needs some room at least.
const LEAST_HEADER_BYTES: u64 = 8 << 10;

impl Builder<'_> {
    pub(super) fn listener(
        &self,
        raw: &Listener,
        policies: &Policies,
        errors: &mut Errors,
    ) -> Option<ListenerPlan> {
        let mut plan = ListenerPlan::new(&raw.name, raw.address.value.clone());
        if matches!(raw.address.value, Address::Unix(_)) {
            errors.push(
                &raw.address,
                "listeners on Unix sockets are not supported yet",
            );
        }
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
            let to = &mut plan.limits;
            if let Some(size) = &limits.max_header_bytes {
                if size.value.bytes() < LEAST_HEADER_BYTES {
                    errors.push(size, "`max_header_bytes` is at least 8KiB");
                }
                to.max_header_bytes = size.value.as_usize();
            }
            to.max_connections = limits.max_connections.unwrap_or(to.max_connections);
            to.max_headers = limits.max_headers.unwrap_or(to.max_headers);
            to.header_timeout = limits.header_timeout.unwrap_or(to.header_timeout);
            to.idle_timeout = limits.idle_timeout.unwrap_or(to.idle_timeout);
            to.max_concurrent_streams = limits
                .max_concurrent_streams
                .unwrap_or(to.max_concurrent_streams);
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
        if let Some(log) = &raw.access_log {
            plan.access_log = self.access_log(log, errors);
        }
        if let Some(tls) = &raw.tls {
            plan.tls = Some(tls.plan(&["h2", "http/1.1"], errors)?);
        }
        Some(plan)
    }

    fn access_log(&self, raw: &AccessLog, errors: &mut Errors) -> Option<AccessLogPlan> {
        let mut plan = AccessLogPlan {
            sink: match &raw.path {
                Some(path) => Sink::File(self.document.resolve(&path.value)),
                None => Sink::Stdout,
            },
            sample: 1.0,
            always_errors: false,
            always_slower: None,
        };
        if let Some(sample) = &raw.sample {
            if !(0.0..=1.0).contains(&sample.value) {
                errors.push(sample, "`sample` is a part between 0 and 1");
            }
            plan.sample = sample.value;
        }
        for condition in &raw.always {
            match condition.strip_prefix("slow>").map(parse_duration) {
                Some(Some(duration)) => plan.always_slower = Some(duration),
                None if condition.value == "errors" => plan.always_errors = true,
                _ => errors.push(
                    condition,
                    format!(
                        "`{}` is not a condition: `errors` and `slow>1s` are",
                        condition.value
                    ),
                ),
            }
        }
        Some(plan)
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    attache_service::config::parse_duration(text)
}
