//! `attache export` and `attache schema`.

use std::collections::BTreeMap;

use attache_ext_authz::policy::AuthConfig;
use attache_proxy::{
    Config,
    config::{EmbeddedService, EmbeddedServices},
    export,
};
use attache_service::{
    Address,
    channel::EmbeddedConnector,
    config::{Document, Errors, json, json_schema},
};

use crate::{
    Failure,
    args::{ExportArgs, ExportTarget, SchemaArgs, SchemaKind},
    findings, output,
};

/// Prints a configuration in another proxy's language.
pub(crate) fn run(args: &ExportArgs) -> Result<(), Failure> {
    let ExportTarget::Envoy {
        file,
        embedded,
        all,
    } = &args.target;
    let addresses = embedded
        .iter()
        .map(|text| {
            let (cluster, address) = text.split_once('=').ok_or_else(|| {
                Failure::Usage(format!("--embedded {text}: expected CLUSTER=ADDRESS"))
            })?;
            let address = address
                .parse::<Address>()
                .map_err(|error| Failure::Usage(format!("--embedded {text}: {error}")))?;
            Ok((cluster.to_owned(), address))
        })
        .collect::<Result<BTreeMap<_, _>, Failure>>()?;
    let document = Document::load(file)?;
    let (config, _) = Config::read(&document, &Unconnected)?;
    let bootstrap =
        export::envoy(&config, &addresses).map_err(|error| Failure::Usage(error.to_string()))?;
    let left_out = export::left_out(&document);
    findings::list(&left_out, *all);
    print(&bootstrap)?;
    findings::judge(&left_out)
}

/// Prints a JSON Schema.
pub(crate) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    print(&match args.kind {
        SchemaKind::Proxy => json_schema::<Config>("Attaché proxy configuration"),
        SchemaKind::ExtAuthz => json_schema::<AuthConfig>("Attaché auth service configuration"),
    })
}

fn print(value: &json::Value) -> Result<(), Failure> {
    let text = json::to_string_pretty(value).map_err(Failure::run)?;
    output(&format!("{text}\n"))
}

/// Embedded services are not started for an export.
struct Unconnected;

impl EmbeddedServices for Unconnected {
    fn connect(
        &self,
        _cluster: &str,
        _service: &EmbeddedService,
        _errors: &mut Errors,
    ) -> Option<EmbeddedConnector> {
        Some(std::sync::Arc::new(|| tokio::io::duplex(1).0))
    }
}
