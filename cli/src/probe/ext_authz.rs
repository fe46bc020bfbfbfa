//! `attache probe ext-authz`.

use attache_ext_authz::probe::{self, CaseReport, Content, Plan};

use super::{choose, metadata, open, quiet, show, some_left, tell, text};
use crate::{
    Failure,
    args::{
        LogArgs,
        probe::{ProbeExtAuthzArgs, ReportFormat},
    },
    output,
    run::{runtime, start_logging},
};

/// Probes an auth service.
pub(crate) fn run(args: &ProbeExtAuthzArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(&quiet(log))?;
    let plan = plan(args)?;
    if args.service.list {
        let line = |case: &probe::Case| format!("{:<20} {}\n", case.name, case.about);
        let lines: Vec<_> = plan.cases.iter().map(line).collect();
        return output(&lines.concat());
    }
    let channel = open(&args.service)?;
    let table = args.service.format == ReportFormat::Text;
    if table {
        output(&format!(
            "{:<20} {:<12} {:>11}  {:<9}  about\n",
            "case", "answer", "time", "verdict"
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

fn plan(args: &ProbeExtAuthzArgs) -> Result<Plan, Failure> {
    let mut plan = Plan::new(&content(args)?);
    plan.timeout = args.timeout;
    plan.hang_timeout = args.service.hang_timeout;
    plan.metadata = metadata(&args.service.metadata)?;
    choose(
        &mut plan.cases,
        |case| case.name,
        &args.service.cases,
        &args.service.skip,
    )?;
    some_left(&plan.cases)?;
    Ok(plan)
}

fn content(args: &ProbeExtAuthzArgs) -> Result<Content, Failure> {
    let default = Content::default();
    let certificate = match &args.certificate {
        None => default.certificate,
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::Usage(format!("--certificate: {}: {error}", path.display()))
        })?,
    };
    Ok(Content {
        method: args.requests.method.clone().unwrap_or(default.method),
        authority: args.requests.authority.clone().unwrap_or(default.authority),
        path: args.requests.path.clone().unwrap_or(default.path),
        headers: args.requests.headers.clone(),
        body: text("--body", args.requests.body.as_deref())?.unwrap_or(default.body),
        context_extensions: args.context_extensions.clone(),
        principal: args.principal.clone().unwrap_or(default.principal),
        certificate,
    })
}
