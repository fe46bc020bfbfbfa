//! What happens around the proxy while clients visit, one thing after the other.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;

use super::plan::has_extra;
use super::stage::{Ending, Role, Stage};
use super::tally::Tally;
use crate::certificates::NAME;

/// How long it may take until a change of files has its effect.
const EFFECT: Duration = Duration::from_secs(15);

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The proxy's file changes.
    File,
    /// It changes, and SIGHUP says so.
    HangUp,
    /// It changes, and has a mistake; then it is right again.
    Mistake,
    /// The listener's certificate changes.
    Certificate,
    /// A server ends and starts again.
    Restart(Role, usize, Ending),
}

/// One round: everything once or more.
const ROUND: [Event; 18] = [
    Event::File,
    Event::Restart(Role::Web, 0, Ending::Asked),
    Event::Restart(Role::Auth, 0, Ending::Asked),
    Event::Certificate,
    Event::Restart(Role::Api, 0, Ending::Killed),
    Event::HangUp,
    Event::Restart(Role::Limits, 0, Ending::Asked),
    Event::Restart(Role::Rewrite, 0, Ending::Asked),
    Event::File,
    Event::Restart(Role::Web, 1, Ending::Asked),
    Event::Mistake,
    Event::Restart(Role::Auth, 1, Ending::Asked),
    Event::Certificate,
    Event::Restart(Role::Api, 1, Ending::Killed),
    Event::HangUp,
    Event::Restart(Role::Limits, 1, Ending::Asked),
    Event::Restart(Role::Rewrite, 1, Ending::Asked),
    Event::File,
];

/// What has happened.
#[derive(Debug, Default)]
pub(crate) struct Happened {
    /// Whole rounds.
    pub(crate) rounds: Cell<u64>,
    /// Configurations taken over.
    pub(crate) reloads: Cell<u64>,
    /// Servers ended and started again, origins and policy services.
    pub(crate) restarts: Cell<u64>,
    /// Certificates.
    pub(crate) rotations: Cell<u64>,
}

/// Lets things happen, with a pause after each, until this is dropped.
pub(crate) async fn run(stage: &mut Stage, tally: &Tally, pause: Duration, happened: &Happened) {
    loop {
        for event in ROUND {
            tokio::time::sleep(pause).await;
            println!("{:>9.2} s  {event:?}", tally.at());
            let done = happen(stage, tally, event, happened).await;
            if let Err(why) = done {
                tally.failed(&format!("{event:?}"), format!("{why:#}"));
            }
            if let Err(why) = stage.healthy().await {
                tally.failed(&format!("{event:?}"), format!("{why:#}"));
            }
        }
        happened.rounds.update(|count| count + 1);
    }
}

async fn happen(
    stage: &mut Stage,
    tally: &Tally,
    event: Event,
    happened: &Happened,
) -> anyhow::Result<()> {
    match event {
        Event::File | Event::HangUp => {
            reload(stage, tally, matches!(event, Event::HangUp)).await?;
            happened.reloads.update(|count| count + 1);
        }
        Event::Mistake => {
            stage.misconfigure()?;
            stage.hang_up()?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            reload(stage, tally, false).await?;
            happened.reloads.update(|count| count + 1);
        }
        Event::Certificate => {
            rotate(stage).await?;
            happened.rotations.update(|count| count + 1);
        }
        Event::Restart(role, which, how) => {
            stage.restart(role, which, how).await?;
            happened.restarts.update(|count| count + 1);
        }
    }
    Ok(())
}

/// Changes the configuration and waits for an answer that comes from it.
async fn reload(stage: &mut Stage, tally: &Tally, hang_up: bool) -> anyhow::Result<()> {
    stage.configure()?;
    if hang_up {
        stage.hang_up()?;
    }
    let wanted = stage.generation;
    until(|| async { tally.generation() >= wanted })
        .await
        .with_context(|| format!("no answer from configuration {wanted}"))?;
    let extra = stage.extra();
    until(|| async { TcpStream::connect(extra).await.is_ok() == has_extra(wanted) })
        .await
        .with_context(|| format!("the listener that comes and goes, in configuration {wanted}"))
}

/// Changes the certificate and waits for a connection that shows it.
async fn rotate(stage: &Stage) -> anyhow::Result<()> {
    let wanted = stage.certificates.rotate()?;
    let connector = stage.certificates.connector("http/1.1")?;
    let (_, target) = stage.targets();
    let start = Instant::now();
    loop {
        let stream = TcpStream::connect(target).await?;
        let name = ServerName::try_from(NAME)?;
        let stream = connector.connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        if shown.and_then(<[_]>::first) == Some(&wanted) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < EFFECT,
            "the old certificate is still shown"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < EFFECT {
        if condition().await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("nothing after {EFFECT:?}")
}
