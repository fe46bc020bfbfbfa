//! Bounds, and that none of them is 0 where nothing could happen then.

use attache_service::config::{Errors, Located};

use crate::{config::LimitsConfig, plan::Limits};

/// Envoy's bound on a header block, in bytes; hyper needs some room at least.
const LEAST_HEADER_BYTES: u64 = 8 << 10;

/// A number or duration that must be more than 0; `why` says what it would mean.
pub(super) fn positive<T: Copy + Default + PartialEq>(
    raw: Option<&Located<T>>,
    why: &str,
    errors: &mut Errors,
) -> Option<T> {
    let raw = raw?;
    if raw.value == T::default() {
        errors.push(raw, format!("must be more than 0: {why}"));
    }
    Some(raw.value)
}

/// Takes over what is written.
pub(super) fn plan(raw: &LimitsConfig, to: &mut Limits, errors: &mut Errors) {
    fn set<T: Copy + Default + PartialEq>(
        to: &mut T,
        raw: Option<&Located<T>>,
        why: &str,
        errors: &mut Errors,
    ) {
        *to = positive(raw, why, errors).unwrap_or(*to);
    }
    const NOBODY: &str = "nobody could connect";
    const NONE: &str = "no request could be made";
    const HEAD: &str = "there is always a bound on how long a head takes; leave it out for the \
        default, 10s";
    const IDLE: &str = "there is always a bound on unused connections; leave it out for the \
        default, 1h";
    const SILENCE: &str = "there is always a bound on silence within a body; leave it out for the \
        default, 5m";
    if let Some(size) = &raw.max_header_bytes {
        if size.value.bytes() < LEAST_HEADER_BYTES {
            errors.push(size, "`max_header_bytes` is at least 8KiB");
        }
        to.max_header_bytes = size.value.as_usize();
    }
    let connections = raw.max_connections.as_ref();
    set(&mut to.max_connections, connections, NOBODY, errors);
    set(&mut to.max_headers, raw.max_headers.as_ref(), NONE, errors);
    let head = raw.header_timeout.as_ref();
    set(&mut to.header_timeout, head, HEAD, errors);
    let idle = raw.idle_timeout.as_ref();
    set(&mut to.idle_timeout, idle, IDLE, errors);
    let streams = raw.max_concurrent_streams.as_ref();
    set(&mut to.max_concurrent_streams, streams, NONE, errors);
    to.max_requests = positive(raw.max_requests.as_ref(), NONE, errors);
    let requests = raw.max_requests_per_connection.as_ref();
    to.max_requests_per_connection = positive(requests, NONE, errors);
    let age = raw.max_connection_duration.as_ref();
    to.max_connection_duration = positive(age, "leave it out for no bound", errors);
    let body = raw.body_timeout.as_ref();
    set(&mut to.body_timeout, body, SILENCE, errors);
    let write = raw.write_timeout.as_ref();
    set(&mut to.write_timeout, write, SILENCE, errors);
    to.max_resets = raw.max_resets.unwrap_or(to.max_resets);
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use crate::{Config, config::NothingEmbedded};

    /// What is said of a file, without its excerpts.
    fn errors(limits: &str, cluster: &str) -> Vec<String> {
        let text = format!(
            "listeners:\n- {{ name: a, address: \"127.0.0.1:0\", limits: {limits} }}\nroutes:\n\
             - match: {{ prefix: / }}\n  direct_response: {{ status: 200 }}\nclusters:\n\
             - {{ endpoints: [\"10.0.0.1:80\"], {cluster} }}\n"
        );
        let document = Document::parse("f.yaml", text).unwrap();
        match Config::read(&document, &NothingEmbedded) {
            Ok(_) => Vec::new(),
            Err(errors) => errors
                .iter()
                .map(|error| format!("{}: {}", error.span(), error.message()))
                .collect(),
        }
    }

    #[test]
    fn what_would_let_nothing_happen_is_refused_with_its_place() {
        const FINE: &str = "name: web";
        for name in [
            "max_connections",
            "max_headers",
            "max_concurrent_streams",
            "max_requests",
            "max_requests_per_connection",
        ] {
            let said = errors(&format!("{{ {name}: 0 }}"), FINE);
            assert!(
                said.len() == 1 && said[0].contains(": must be more than 0: no"),
                "{name}: {said:?}"
            );
            assert!(said[0].starts_with("f.yaml:2:"), "{said:?}");
            assert_eq!(errors(&format!("{{ {name}: 1 }}"), FINE), [""; 0]);
        }
        for (name, instead) in [
            ("header_timeout", "leave it out for the default, 10s"),
            ("idle_timeout", "leave it out for the default, 1h"),
            ("max_connection_duration", "leave it out for no bound"),
            ("body_timeout", "leave it out for the default, 5m"),
            ("write_timeout", "leave it out for the default, 5m"),
        ] {
            let said = errors(&format!("{{ {name}: 0s }}"), FINE);
            assert!(
                said.len() == 1 && said[0].contains(": must be more than 0: "),
                "{name}: {said:?}"
            );
            assert!(said[0].ends_with(instead), "{name}: {said:?}");
            assert_eq!(errors(&format!("{{ {name}: 1ms }}"), FINE), [""; 0]);
        }
        for cluster in [
            "name: web, connect_timeout: 0s",
            "name: web, idle_timeout: 0s",
            "name: \"\"",
        ] {
            let said = errors("{}", cluster);
            assert!(
                said.len() == 1 && said[0].starts_with("f.yaml:7:"),
                "{cluster}: {said:?}"
            );
        }
    }

    #[test]
    fn a_zero_with_a_meaning_of_its_own_is_taken() {
        assert_eq!(errors("{ max_resets: 0 }", "name: web"), [""; 0]);
        for cluster in [
            "max_requests_per_connection: 0",
            "circuit_breakers: { thresholds: [{ max_requests: 0 }] }",
            "common_http_protocol_options: { max_stream_duration: 0s }",
        ] {
            assert_eq!(errors("{}", &format!("name: web, {cluster}")), [""; 0]);
        }
    }
}
