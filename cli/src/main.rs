//! The `attache` command.

mod admin;
mod args;
mod authz;
mod demo;
mod discovery;
mod embedded;
mod explain;
mod export;
mod findings;
mod import;
mod origin;
mod probe;
mod ratelimit;
mod ready;
mod record;
mod reload;
mod run;
mod services;
mod traces;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use args::{
    Args, Command,
    probe::{ProbeTarget, RecordTarget},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line or the configuration is wrong, or a service is not there: nothing was done.
const EXIT_WRONG: u8 = 2;

fn main() -> ExitCode {
    let args = Args::of(command_line());
    // Libraries that bring their own TLS use the process default; ours name it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match args.command {
        None => demo::run(&args.log),
        Some(Command::Run(run)) => run::run(&run, &args.log),
        Some(Command::Check(check)) => run::check(&check),
        Some(Command::Export(export)) => export::run(&export),
        Some(Command::Import(import)) => import::run(&import),
        Some(Command::Schema(schema)) => export::schema(&schema),
        Some(Command::ExtAuthz(service)) => services::ext_authz(&service, &args.log),
        Some(Command::Ratelimit(service)) => ratelimit::run(&service, &args.log),
        Some(Command::Probe(probe)) => match probe.target {
            ProbeTarget::ExtProc(probe) => probe::ext_proc(&probe, &args.log),
            ProbeTarget::ExtAuthz(probe) => probe::ext_authz::run(&probe, &args.log),
        },
        Some(Command::Ready(asked)) => ready::run(&asked),
        Some(Command::Record(record)) => match record.target {
            RecordTarget::ExtProc(record) => record::record(&record, &args.log),
        },
        Some(Command::Replay(replay)) => record::replay(&replay, &args.log),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // What was found has been printed.
        Err(Failure::Found) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Config(_) | Failure::Usage(_) | Failure::NotReached(_) => {
                    ExitCode::from(EXIT_WRONG)
                }
                Failure::Run(_) | Failure::Found => ExitCode::FAILURE,
            }
        }
    }
}

/// The command line; under the reference's name it is that of `attache ratelimit`.
fn command_line() -> Vec<OsString> {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    if ratelimit::called_as_the_reference() {
        arguments.insert(1.min(arguments.len()), ratelimit::REFERENCE.into());
    }
    arguments
}

/// Why the command ends with an error.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// A configuration is wrong; every mistake is listed.
    #[error("{0}")]
    Config(#[from] attache_service::config::Errors),
    /// An argument is wrong.
    #[error("attache: {0}")]
    Usage(String),
    /// Something failed while starting or running.
    #[error("attache: {0}")]
    Run(String),
    /// The service to be tried is not there.
    #[error("attache: {0}")]
    NotReached(String),
    /// What the command was to look for is there, such as faults of a service or a loss in a
    /// conversion; its report, which has been printed, says what.
    #[error("attache: the report says what was found")]
    Found,
}

/// Prints what was asked for. A reader that has seen enough (`| head`) is no failure.
fn output(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::run(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

impl Failure {
    fn run(error: impl std::fmt::Display) -> Self {
        Self::Run(error.to_string())
    }
}
