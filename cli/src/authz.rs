//! `attache ext-authz check` and `attache ext-authz explain`: a look at an auth service's
//! configuration without serving it.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use attache_ext_authz::{
    policy::{AuthService, Outcome},
    server::CheckRequestView,
};
use attache_proto::{
    auth::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Peer, Request},
    },
    core::{Address, SocketAddress, address, socket_address::PortSpecifier},
};
use attache_service::{Metrics, tls};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    Failure,
    args::{LogArgs, services::ExplainArgs},
    output,
    run::{runtime, start_logging},
};

/// Validates a configuration and prints what it is made of.
pub(crate) fn check(file: &Path) -> Result<(), Failure> {
    let summary = AuthService::validate(file)?;
    let mut text = format!("{}: valid\n", file.display());
    let files = summary.files.iter().map(|file| file.display().to_string());
    for (what, names) in [
        ("pipelines", summary.pipelines),
        ("identity sources", summary.sources),
        ("policies", summary.policies),
        ("files", files.collect()),
        ("would fetch", summary.fetches),
    ] {
        if !names.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{what}: {}", names.join(", "));
        }
    }
    output(&text)
}

/// Prints what would be decided on a request, and why.
pub(crate) fn explain(args: &ExplainArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(log)?;
    let request = CheckRequestView::from(request(args)?);
    let explained = runtime()?.block_on(async {
        let service = AuthService::load(&args.config, &Metrics::default())?;
        let explained = async {
            service.ready().await;
            service.explain(&request).await
        };
        let explained = tokio::time::timeout(args.timeout, explained).await;
        explained.map_err(|_| {
            let missing = service.waits_for();
            let waits = match missing.is_empty() {
                true => "it is not decided".to_owned(),
                false => format!("there is nothing yet of {}", missing.join(", ")),
            };
            Failure::Run(format!("after {:?} {waits}", args.timeout))
        })
    })?;
    if args.json {
        let json = serde_json::to_string_pretty(&explained).map_err(Failure::run)?;
        output(&format!("{json}\n"))?;
    } else {
        output(&explained.to_string())?;
    }
    match explained.outcome {
        Outcome::Allow | Outcome::Deny => Ok(()),
        Outcome::Error => Err(Failure::Found),
    }
}

/// The check that a proxy would send.
fn request(args: &ExplainArgs) -> Result<CheckRequest, Failure> {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in &args.headers {
        let value = match value.strip_prefix('@') {
            Some(file) => read(Path::new(file))?.trim().to_owned(),
            None => value.clone(),
        };
        headers
            .entry(name.to_ascii_lowercase())
            .and_modify(|before| *before = format!("{before},{value}"))
            .or_insert(value);
    }
    let body = match args.body.as_deref() {
        Some(body) => match body.strip_prefix('@') {
            Some(file) => read(Path::new(file))?,
            None => body.to_owned(),
        },
        None => String::new(),
    };
    let path = args.url.path_and_query();
    let host = args.url.authority();
    let http = HttpRequest {
        id: "explain".to_owned(),
        method: args.method.clone(),
        scheme: args.url.scheme_str().unwrap_or("http").to_owned(),
        host: host.map_or("localhost", |host| host.as_str()).to_owned(),
        path: path.map_or("/", |path| path.as_str()).to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        size: i64::try_from(body.len()).unwrap_or(i64::MAX),
        headers,
        body,
        ..HttpRequest::default()
    };
    let (certificate, principal) = match &args.client_cert_pem {
        None => (String::new(), String::new()),
        Some(file) => {
            let pem = read(file)?;
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
                Failure::Usage(format!("--client-cert-pem: `{}`: {error}", file.display()))
            })?;
            (pem, tls::principal(&der).unwrap_or_default())
        }
    };
    let source = SocketAddress {
        address: args.source.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..SocketAddress::default()
    };
    let source = Peer {
        address: Some(Address {
            address: Some(address::Address::SocketAddress(source)),
        }),
        principal,
        certificate,
        ..Peer::default()
    };
    Ok(CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(source),
            request: Some(Request {
                time: None,
                http: Some(http),
            }),
            context_extensions: args.context.iter().cloned().collect(),
            ..AttributeContext::default()
        }),
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file);
    text.map_err(|error| Failure::Usage(format!("cannot read `{}`: {error}", file.display())))
}
