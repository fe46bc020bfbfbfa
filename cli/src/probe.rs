//! `attache probe`: plays the proxy against a service.

pub(crate) mod ext_authz;

use std::{fmt::Display, io::Write, path::PathBuf};

use attache_ext_proc::probe::{self, Case, CaseReport, Content, Plan};
use attache_filter::mutation::{HeaderMutationRules, MutationRules};
use attache_service::{
    Address, Channel, ChannelSettings,
    channel::Target,
    config::Errors,
    tls::{ClientFiles, ClientTls},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    Failure,
    args::{
        LogArgs,
        probe::{ClientTlsArgs, ProbeExtProcArgs, ProbedService, ReportFormat},
    },
    output,
    run::{runtime, start_logging},
};

/// Probes a processor of External Processing.
pub(crate) fn ext_proc(args: &ProbeExtProcArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(&quiet(log))?;
    let plan = plan(args)?;
    if args.service.list {
        return list(&plan.cases);
    }
    let channel = open(&args.service)?;
    let table = args.service.format == ReportFormat::Text;
    if table {
        output(&format!(
            "{:<26} {:>9} {:>11}  {:<9}  about\n",
            "case", "sent/got", "time", "verdict"
        ))?;
    }
    let report = runtime()?
        .block_on(probe::run(&channel, &plan, |case: &CaseReport| {
            if table {
                show(case);
            }
        }))
        .map_err(|error| Failure::NotReached(error.to_string()))?;
    let passes = report.passes(args.service.strict);
    tell(&args.service, &report, &report.json(), passes)
}

/// What the channel would log is in the report.
pub(crate) fn quiet(log: &LogArgs) -> LogArgs {
    LogArgs {
        log: Some(format!(
            "{},attache_service::channel=error",
            log.log.as_deref().unwrap_or("info")
        )),
        ..log.clone()
    }
}

/// A line as soon as a case is done. That nobody reads it shows at the end.
fn show(case: &impl Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{case}").and_then(|()| stdout.flush());
}

/// A channel to the service that is to be probed.
fn open(service: &ProbedService) -> Result<Channel, Failure> {
    match &service.address {
        Some(address) => channel(address, &service.tls),
        None => Err(Failure::Usage("ADDRESS is missing".to_owned())),
    }
}

/// Prints the report in the form that is wanted; failure when the service does not pass.
fn tell(
    service: &ProbedService,
    report: &impl Display,
    json: &impl Display,
    passes: bool,
) -> Result<(), Failure> {
    match service.format {
        ReportFormat::Text => output(&format!("\n{report}\n"))?,
        ReportFormat::Json => output(&format!("{json:#}\n"))?,
    }
    match passes {
        true => Ok(()),
        false => Err(Failure::Found),
    }
}

fn list(cases: &[Case]) -> Result<(), Failure> {
    let lines: Vec<_> = cases
        .iter()
        .map(|case| {
            let mode = case.mode.request_body_mode().as_str_name();
            format!("{:<26} {mode:<20} {}\n", case.name, case.about)
        })
        .collect();
    output(&lines.concat())
}

/// A channel to the one address.
pub(crate) fn channel(address: &Address, tls: &ClientTlsArgs) -> Result<Channel, Failure> {
    let targets = vec![Target::Address(address.clone())];
    let mut settings = ChannelSettings::new("processor", targets);
    settings.tls = client_tls(tls)?;
    Ok(Channel::new(settings))
}

/// TLS to a service, if it is asked for.
pub(crate) fn client_tls(args: &ClientTlsArgs) -> Result<Option<ClientTls>, Failure> {
    let wanted = args.tls || args.ca.is_some() || args.cert.is_some() || args.server_name.is_some();
    if !wanted {
        return Ok(None);
    }
    let identity: Option<(PathBuf, PathBuf)> = args.cert.clone().zip(args.key.clone());
    let files = ClientFiles {
        ca: args.ca.clone(),
        identity,
        sni: args.server_name.clone(),
        alpn: vec!["h2".to_owned()],
    };
    ClientTls::load(files)
        .map(Some)
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// Pairs `name: value` as gRPC metadata.
pub(crate) fn metadata(pairs: &[(String, String)]) -> Result<HeaderMap, Failure> {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let wrong = || Failure::Usage(format!("--metadata: `{name}` is not valid metadata"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        map.append(name, HeaderValue::from_str(value).map_err(|_| wrong())?);
    }
    Ok(map)
}

fn plan(args: &ProbeExtProcArgs) -> Result<Plan, Failure> {
    let mut plan = Plan::new(content(args)?);
    plan.setup.message_timeout = args.message_timeout;
    plan.setup.max_message_timeout = args.max_message_timeout;
    plan.setup.allow_mode_override = args.allow_mode_override;
    plan.setup.rules = rules(args);
    plan.hang_timeout = args.service.hang_timeout;
    plan.metadata = metadata(&args.service.metadata)?;
    choose(
        &mut plan.cases,
        |case| case.name,
        &args.service.cases,
        &args.service.skip,
    )?;
    if let Some(mode) = &args.mode {
        plan.cases.retain(|case| case.has_mode(mode.name()));
    }
    some_left(&plan.cases)?;
    Ok(plan)
}

/// Keeps the cases that are wanted and not skipped; all are wanted if none is named.
fn choose<C>(
    cases: &mut Vec<C>,
    name: impl Fn(&C) -> &'static str,
    wanted: &[String],
    skipped: &[String],
) -> Result<(), Failure> {
    for wish in wanted.iter().chain(skipped) {
        if !cases.iter().any(|case| name(case) == wish) {
            let message = format!("no case `{wish}`; --list shows them");
            return Err(Failure::Usage(message));
        }
    }
    let listed = |list: &[String], case: &C| list.iter().any(|wish| wish == name(case));
    cases.retain(|case| wanted.is_empty() || listed(wanted, case));
    cases.retain(|case| !listed(skipped, case));
    Ok(())
}

fn some_left<C>(cases: &[C]) -> Result<(), Failure> {
    match cases.is_empty() {
        true => Err(Failure::Usage("no case is left".to_owned())),
        false => Ok(()),
    }
}

/// `mutation_rules` as far as there are options for them.
fn rules(args: &ProbeExtProcArgs) -> MutationRules {
    let raw = HeaderMutationRules {
        allow_all_routing: Some(args.allow_all_routing),
        allow_envoy: Some(args.allow_envoy),
        disallow_system: None,
        disallow_all: None,
        allow_expression: None,
        disallow_expression: None,
        disallow_is_error: None,
    };
    // Without expressions there is nothing to be wrong.
    MutationRules::plan(&raw, &mut Errors::default())
}

fn content(args: &ProbeExtProcArgs) -> Result<Content, Failure> {
    let lines = |pairs: &[(String, String)]| -> Vec<(String, Bytes)> {
        let line = |(name, value): &(String, String)| {
            (name.to_ascii_lowercase(), Bytes::from(value.clone()))
        };
        pairs.iter().map(line).collect()
    };
    let default = Content::default();
    Ok(Content {
        method: args.requests.method.clone().unwrap_or(default.method),
        authority: args.requests.authority.clone().unwrap_or(default.authority),
        path: args.requests.path.clone().unwrap_or(default.path),
        headers: lines(&args.requests.headers),
        body: text("--body", args.requests.body.as_deref())?.unwrap_or(default.body),
        response_headers: lines(&args.response_headers),
        response_body: text("--response-body", args.response_body.as_deref())?
            .unwrap_or(default.response_body),
    })
}

/// A text, or the content of a file (`@FILE`).
fn text(option: &str, given: Option<&str>) -> Result<Option<Bytes>, Failure> {
    let Some(given) = given else { return Ok(None) };
    match given.strip_prefix('@') {
        None => Ok(Some(Bytes::from(given.to_owned()))),
        Some(path) => match std::fs::read(path) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(Failure::Usage(format!("{option}: {path}: {error}"))),
        },
    }
}
