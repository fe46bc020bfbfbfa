//! Where statistics go: `USE_STATSD`, `USE_DOG_STATSD`, `USE_PROMETHEUS` and what belongs to them.

use std::{path::PathBuf, time::Duration};

use attache_service::Address;
use regex::Regex;

use super::{
    super::sink::{Mogrifier, PrometheusSettings, SinkSettings, StatisticsSettings},
    variables::Variables,
};

pub(super) fn read(variables: &mut Variables<'_>) -> StatisticsSettings {
    StatisticsSettings {
        sink: sink(variables),
        flush_interval: variables
            .duration("STATS_FLUSH_INTERVAL", Duration::from_secs(10))
            .max(Duration::from_millis(10)),
        extra_tags: variables.pairs("EXTRA_TAGS"),
    }
}

fn sink(variables: &mut Variables<'_>) -> SinkSettings {
    let disabled = variables.flag("DISABLE_STATS", false);
    let statsd = variables.flag("USE_STATSD", true);
    let dog_statsd = variables.flag("USE_DOG_STATSD", false);
    let prometheus = variables.flag("USE_PROMETHEUS", false);
    if disabled {
        return SinkSettings::None;
    }
    match (statsd, dog_statsd, prometheus) {
        (true, false, false) => SinkSettings::Statsd(collector(variables)),
        (false, true, false) => SinkSettings::DogStatsd {
            collector: collector(variables),
            mogrifiers: mogrifiers(variables),
        },
        (false, false, true) => SinkSettings::Prometheus(PrometheusSettings {
            address: prometheus_address(variables),
            path: match variables.text("PROMETHEUS_PATH", "/metrics") {
                path if path.starts_with('/') => path,
                path => format!("/{path}"),
            },
            mapper: variables
                .filled("PROMETHEUS_MAPPER_YAML")
                .map(PathBuf::from),
            response_time_in_milliseconds: variables
                .flag("PROMETHEUS_RESPONSE_TIME_AS_MILLISECONDS", false),
        }),
        (false, false, false) => SinkSettings::Log,
        _ => {
            let name = match prometheus {
                true => "USE_PROMETHEUS",
                false => "USE_DOG_STATSD",
            };
            variables.refuse(
                name,
                "statistics go to one place only: set one of USE_DOG_STATSD, USE_STATSD and \
                 USE_PROMETHEUS, and mind that USE_STATSD is true unless it is set to false",
            );
            SinkSettings::None
        }
    }
}

fn collector(variables: &mut Variables<'_>) -> Address {
    let port = variables.number("STATSD_PORT", 8125_u16);
    let host = variables.text("STATSD_HOST", "localhost");
    Address::Tcp { host, port }
}

/// As Go has it: without a host it is all addresses.
fn prometheus_address(variables: &mut Variables<'_>) -> Address {
    let text = match variables.text("PROMETHEUS_ADDR", ":9090") {
        text if text.is_empty() => ":9090".to_owned(),
        text => text,
    };
    let text = match text.starts_with(':') {
        true => format!("0.0.0.0{text}"),
        false => text,
    };
    text.parse().unwrap_or_else(|_| {
        variables.refuse("PROMETHEUS_ADDR", "not an address such as `:9090`");
        Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        }
    })
}

fn mogrifiers(variables: &mut Variables<'_>) -> Vec<Mogrifier> {
    let mut mogrifiers = Vec::new();
    for key in variables.list("USE_DOG_STATSD_MOGRIFIERS") {
        let of = |part: &str| format!("DOG_STATSD_MOGRIFIER_{}_{part}", key.to_ascii_uppercase());
        let mut needed = |name: String| {
            let value = variables.filled(&name);
            if value.is_none() {
                variables.refuse(&name, "needed, since USE_DOG_STATSD_MOGRIFIERS names it");
            }
            value
        };
        let (pattern, name) = (needed(of("PATTERN")), needed(of("NAME")));
        let tags = variables.pairs(&of("TAGS"));
        if tags
            .iter()
            .any(|(key, value)| key.is_empty() || value.is_empty())
        {
            variables.refuse(&of("TAGS"), "a tag without key or without value");
        }
        let pattern = pattern.and_then(|pattern| match Regex::new(&pattern) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                variables.refuse(&of("PATTERN"), format!("not a regular expression: {error}"));
                None
            }
        });
        if let (Some(pattern), Some(name)) = (pattern, name) {
            mogrifiers.push(Mogrifier {
                pattern,
                name,
                tags,
            });
        }
    }
    mogrifiers
}
