//! `attache record` and `attache replay`.

use std::{fs::File, io::BufReader};

use attache_ext_proc::probe::{
    recording::{Mask, Recorder, Recording},
    relay::{MAX_MESSAGE, Relay},
    replay::{self, Difference},
};
use attache_service::{Channel, ChannelSettings, Shutdown, channel::Target};
use serde_json::{Value, json};

use crate::{
    Failure,
    args::{
        LogArgs,
        probe::{RecordExtProcArgs, ReplayArgs, ReportFormat},
    },
    output, probe,
    run::{runtime, start_logging},
};

/// Differences of one exchange that are printed.
const SHOWN: usize = 20;

/// Passes exchanges on and records them, until a signal.
pub(crate) fn record(args: &RecordExtProcArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(log)?;
    let file = args.file.display();
    let mask = Mask::new(&args.mask);
    let (recorder, writer) = Recorder::create(&args.file, mask, args.max_size << 20)
        .map_err(|error| Failure::Usage(format!("{file}: {error}")))?;
    let target = Target::Address(args.upstream.clone());
    let mut settings = ChannelSettings::new("processor", vec![target]);
    settings.tls = probe::client_tls(&args.tls)?;
    settings.max_message_size = MAX_MESSAGE;
    let relay = Relay::new(Channel::new(settings), recorder);
    let served = runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(Failure::run)?;
        let host = relay.into_host();
        host.serve(&args.listen, shutdown)
            .await
            .map_err(Failure::run)
    });
    let summary = writer.finish();
    tracing::info!(
        exchanges = summary.exchanges,
        incomplete = summary.cut,
        bytes = summary.bytes,
        "recorded to {file}"
    );
    served
}

/// Sends recorded exchanges to a processor and compares.
pub(crate) fn replay(args: &ReplayArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(&probe::quiet(log))?;
    let wrong = |error: String| Failure::Usage(format!("{}: {error}", args.file.display()));
    let file = File::open(&args.file).map_err(|error| wrong(error.to_string()))?;
    let recording =
        Recording::read(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    let channel = probe::channel(&args.address, &args.tls)?;
    let mut outcomes = Vec::with_capacity(recording.exchanges.len());
    runtime()?.block_on(async {
        for exchange in &recording.exchanges {
            let differences = replay::replay(&channel, exchange, args.timeout)
                .await
                .map_err(|error| Failure::NotReached(error.to_string()))?;
            outcomes.push((exchange.number, differences));
        }
        Ok::<_, Failure>(())
    })?;
    match args.format {
        ReportFormat::Text => output(&text(&outcomes, recording.incomplete))?,
        ReportFormat::Json => output(&format!("{:#}\n", report(&outcomes, recording.incomplete)))?,
    }
    match outcomes
        .iter()
        .all(|(_, differences)| differences.is_empty())
    {
        true => Ok(()),
        false => Err(Failure::Found),
    }
}

type Outcome = (u64, Vec<Difference>);

fn text(outcomes: &[Outcome], incomplete: usize) -> String {
    let mut text = String::new();
    let mut same = 0;
    for (number, differences) in outcomes {
        if differences.is_empty() {
            same += 1;
            continue;
        }
        text.push_str(&format!("exchange {number}\n"));
        for difference in differences.iter().take(SHOWN) {
            text.push_str(&format!("  {difference}\n"));
        }
        if let Some(more) = differences
            .len()
            .checked_sub(SHOWN)
            .filter(|more| *more > 0)
        {
            text.push_str(&format!("  … and {more} more\n"));
        }
    }
    let other = outcomes.len() - same;
    text.push_str(&format!("{same} exchanges the same, {other} different"));
    if incomplete > 0 {
        text.push_str(&format!(
            "; {incomplete} left out, not recorded to their end"
        ));
    }
    text.push('\n');
    text
}

fn report(outcomes: &[Outcome], incomplete: usize) -> Value {
    let exchanges: Vec<_> = outcomes
        .iter()
        .map(|(number, differences)| {
            let differences: Vec<_> = differences
                .iter()
                .map(|difference| {
                    json!({
                        "phase": difference.phase.name(),
                        "path": difference.path,
                        "recorded": difference.recorded,
                        "now": difference.now,
                    })
                })
                .collect();
            json!({ "exchange": number, "differences": differences })
        })
        .collect();
    json!({ "incomplete": incomplete, "exchanges": exchanges })
}
