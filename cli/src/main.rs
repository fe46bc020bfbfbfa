//! The `attache` command.

mod args;
mod demo;
mod embedded;
mod export;
mod origin;
mod reload;
mod run;
mod services;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use args::{Args, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The command line or the configuration is wrong: nothing was started.
const EXIT_WRONG: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    // Libraries that bring their own TLS use the process default; ours name it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match args.command {
        None => demo::run(&args.log),
        Some(Command::Run(run)) => run::run(&run, &args.log),
        Some(Command::Check(check)) => run::check(&check),
        Some(Command::Export(export)) => export::run(&export),
        Some(Command::Schema(schema)) => export::schema(&schema),
        Some(Command::ExtAuthz(service)) => services::ext_authz(&service, &args.log),
        Some(Command::Ratelimit(service)) => services::ratelimit(&service, &args.log),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            match failure {
                Failure::Config(_) | Failure::Usage(_) => ExitCode::from(EXIT_WRONG),
                Failure::Run(_) => ExitCode::FAILURE,
            }
        }
    }
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
