//! Clusters.

use std::{net::IpAddr, num::NonZero, path::PathBuf, time::Duration};

use attache_filter::metadata::MetadataPath;
use attache_service::{
    Address,
    channel::Target as At,
    cluster::{
        Balance, Described, Dns, DnsType, Endpoints, LbPolicy, LookupFamily, Named, Source,
        breakers::BreakersPlan, health::HealthPlan, outlier::Detector,
    },
    config::{Errors, Located},
};
use http::HeaderName;

use super::{Builder, limits::positive};
use crate::{
    config::{self, Cluster, Embedded, EmbeddedService, OriginalDst, Target},
    plan::{ClusterPlan, DestinationPlan, Protocol},
};

impl Builder<'_> {
    pub(super) fn cluster(&self, raw: &Cluster, errors: &mut Errors) -> Option<ClusterPlan> {
        let mut plan = ClusterPlan::new(raw.name.as_str(), []);
        if raw.name.is_empty() {
            errors.push(&raw.name, "a cluster needs a name");
        }
        let connect = raw.connect_timeout.as_ref();
        if let Some(timeout) = positive(connect, "no connection could be made", errors) {
            plan.connect_timeout = timeout;
        }
        let why = "there is always a bound on unused connections (`max_requests_per_connection: 1` \
            keeps none); leave it out for the default, 1h";
        if let Some(timeout) = positive(raw.idle_timeout.as_ref(), why, errors) {
            plan.idle_timeout = timeout;
        }
        let common = raw.common_http_protocol_options.as_ref();
        if let Some(action) = common.and_then(|c| c.headers_with_underscores_action.as_ref()) {
            errors.push(
                action,
                "is about requests of clients: write it in the listener",
            );
        }
        let duration = common.and_then(|common| common.max_stream_duration);
        plan.max_stream_duration = duration.filter(|bound| !bound.is_zero());
        if let Some(breakers) = &raw.circuit_breakers {
            plan.breakers = BreakersPlan::plan(breakers, errors);
        }
        let outliers = raw.outlier_detection.as_ref();
        plan.outliers = outliers.map(|raw| Detector::plan(raw, errors));
        plan.health = health(raw, errors);
        plan.max_connection_duration = positive(
            raw.max_connection_duration.as_ref(),
            "leave it out for no bound",
            errors,
        );
        if let Some(max) = &raw.max_requests_per_connection {
            // 0 is no bound, as in Envoy.
            plan.max_requests_per_connection = NonZero::new(max.value);
        }
        plan.protocol = if raw.http2.is_some() {
            Protocol::Http2
        } else {
            Protocol::Http1
        };
        plan.balance = balance(raw, errors);
        let named = match &raw.target.value {
            Target::Endpoints(written) => {
                if written.is_empty() {
                    errors.push(&raw.target, "`endpoints` needs at least one address");
                }
                let described = written.iter().map(|one| one.plan(errors));
                Some(Named::Here(described.collect()))
            }
            Target::Dns(name) => {
                if is_literal(&name.value) {
                    errors.push(name, "`dns` needs a name; write addresses in `endpoints`");
                }
                if matches!(name.value, Address::Tcp { port: 0, .. }) {
                    errors.push(name, "an endpoint needs a port");
                }
                Some(Named::Here(vec![name.value.clone().into()]))
            }
            Target::EndpointsFile(path) => Some(Named::File(self.document.resolve(&path.value))),
            Target::Eds(eds) => {
                if !self.discovers {
                    errors.push(
                        &raw.target,
                        "`eds` needs the control plane of a top-level `xds`",
                    );
                }
                let name = eds.service_name.as_deref().unwrap_or(&raw.name);
                plan.eds = Some(name.into());
                None
            }
            Target::OriginalDst(raw) => {
                plan.destination = destination(raw, errors);
                None
            }
            Target::Embedded(service) => {
                plan.protocol = Protocol::Http2;
                if let Some(tls) = &raw.tls {
                    errors.push(tls, "an embedded service is reached without TLS");
                }
                let service = self.embedded_service(service);
                let connector = self.embedded.connect(&raw.name, &service, errors)?;
                Some(Named::Here(vec![At::Embedded(connector).into()]))
            }
        };
        if let Some(named) = named {
            let dns = dns(raw, &named, errors);
            if let Named::Here(described) = &named {
                // Names get their addresses when the source is followed.
                let known = described.iter().filter(|one| !is_name(one)).cloned();
                plan.endpoints = Endpoints::new(plan.name.clone(), known);
            }
            plan.source = Some(Source { named, dns });
        }
        plan.configured = Some(raw.clone());
        if let Some(tls) = &raw.tls {
            let alpn: &[&str] = match plan.protocol {
                Protocol::Http1 => &["http/1.1"],
                Protocol::Http2 => &["h2"],
            };
            plan.tls = Some(tls.value.plan(alpn, tls, errors)?);
        }
        Some(plan)
    }

    fn embedded_service(&self, raw: &Embedded) -> EmbeddedService {
        let resolve = |path: &Located<PathBuf>| Located {
            value: self.document.resolve(&path.value),
            span: path.span.clone(),
        };
        match raw {
            Embedded::ExtAuthz(path) => EmbeddedService::ExtAuthz(resolve(path)),
            Embedded::Ratelimit(path) => EmbeddedService::Ratelimit(resolve(path)),
            Embedded::ExtProc(name) => EmbeddedService::ExtProc(name.clone()),
        }
    }
}

/// The health checks of a cluster.
fn health(raw: &Cluster, errors: &mut Errors) -> Option<HealthPlan> {
    let mut checks = raw.health_checks.iter();
    let check = checks.next()?;
    if let Some(second) = checks.next() {
        errors.push(second, "a cluster has one health check, as in Envoy");
    }
    let plan = HealthPlan::plan(check, &raw.name, errors)?;
    let embedded = matches!(raw.target.value, Target::Embedded(_));
    if plan.is_grpc() && raw.http2.is_none() && !embedded {
        errors.push(check, "`grpc_health_check` needs `http2: {}`");
    }
    Some(plan)
}

fn is_literal(address: &Address) -> bool {
    match address {
        Address::Tcp { host, .. } => host.parse::<IpAddr>().is_ok(),
        Address::Unix(_) => true,
    }
}

fn is_name(described: &Described) -> bool {
    matches!(&described.target, At::Address(address) if !is_literal(address))
}

fn balance(raw: &Cluster, errors: &mut Errors) -> Balance {
    let ewma = raw.peak_ewma_lb_config.as_ref();
    if let Some(ewma) = ewma
        && raw.lb_policy != Some(config::LbPolicy::PeakEwma)
    {
        errors.push(ewma, "it is for `lb_policy: PEAK_EWMA`");
    }
    let decay = ewma.and_then(|ewma| {
        positive(
            ewma.value.decay_time.as_ref(),
            "no answer would count for the next choice; leave it out for the default, 10s",
            errors,
        )
    });
    let policy = match raw.lb_policy {
        None | Some(config::LbPolicy::LeastRequest) => LbPolicy::LeastRequest,
        Some(config::LbPolicy::RoundRobin) => LbPolicy::RoundRobin,
        Some(config::LbPolicy::Random) => LbPolicy::Random,
        Some(config::LbPolicy::PeakEwma) => LbPolicy::PeakEwma {
            decay: decay.unwrap_or(Duration::from_secs(10)),
        },
        Some(config::LbPolicy::RingHash | config::LbPolicy::Maglev) => LbPolicy::Hash,
    };
    let threshold = raw.common_lb_config.as_ref();
    let threshold = threshold.and_then(|common| common.healthy_panic_threshold.as_ref());
    let panic_threshold = threshold.map_or(Balance::default().panic_threshold, |percent| {
        if !(0.0..=100.0).contains(&percent.value.value) {
            errors.push(&percent.value, "a percentage is between 0 and 100");
        }
        percent.value.value
    });
    Balance {
        policy,
        panic_threshold,
    }
}

fn dns(raw: &Cluster, named: &Named, errors: &mut Errors) -> Dns {
    let mut dns = Dns::default();
    if let Some(kind) = &raw.dns_type {
        dns.kind = match kind.value {
            config::DnsType::Strict => DnsType::Strict,
            config::DnsType::Logical => DnsType::Logical,
        };
        let one_name =
            matches!(named, Named::Here(all) if matches!(all.as_slice(), [one] if is_name(one)));
        if dns.kind == DnsType::Logical && !one_name {
            errors.push(kind, "`LOGICAL_DNS` is for one name: `dns: host:port`");
        }
    }
    if let Some(every) = positive(
        raw.dns_refresh_rate.as_ref(),
        "names would be asked for without a pause",
        errors,
    ) {
        dns.refresh_rate = every;
    }
    if let Some(family) = raw.dns_lookup_family {
        dns.family = match family {
            config::DnsLookupFamily::Auto => LookupFamily::Auto,
            config::DnsLookupFamily::V4Only => LookupFamily::V4Only,
            config::DnsLookupFamily::V6Only => LookupFamily::V6Only,
            config::DnsLookupFamily::V4Preferred => LookupFamily::V4Preferred,
            config::DnsLookupFamily::All => LookupFamily::All,
        };
    }
    dns
}

fn destination(raw: &OriginalDst, errors: &mut Errors) -> Option<DestinationPlan> {
    let header = raw.http_header_name.as_ref().and_then(|name| {
        HeaderName::try_from(name.as_str())
            .map_err(|_| errors.push(name, format!("`{}` is not a header name", name.value)))
            .ok()
    });
    let metadata = raw.metadata_key.as_ref();
    let metadata = metadata.and_then(|key| MetadataPath::plan(key, errors));
    if raw.http_header_name.is_none() && raw.metadata_key.is_none() {
        errors.push(
            &raw.allowed,
            "beside it, `http_header_name` or `metadata_key` is needed",
        );
    }
    if raw.allowed.value.is_empty() {
        errors.push(
            &raw.allowed,
            "`allowed` needs at least one network, such as `10.0.0.0/8`",
        );
    }
    let allowed = raw.allowed.value.iter().filter_map(|text| {
        let network = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(ipnet::IpNet::from));
        network
            .map_err(|_| errors.push(text, format!("`{}` is not a network", text.value)))
            .ok()
    });
    let allowed = allowed.collect();
    let max_endpoints = raw.max_endpoints.as_ref().map_or(1024, |max| {
        if max.value == 0 {
            errors.push(max, "at least 1 is needed");
        }
        max.value
    });
    Some(DestinationPlan {
        header,
        metadata,
        allowed,
        max_endpoints,
    })
}
