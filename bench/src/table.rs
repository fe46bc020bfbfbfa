//! The tables, as text that reads well in a terminal and in a document.

use crate::balance::{PolicyResult, SLOW};
use crate::calls::{CallResult, PACE};
use crate::config::Proxy;
use crate::connections::Idle;
use crate::latency::Paced;
use crate::library::Library;
use crate::limits::LimitResult;
use crate::memory::Held;
use crate::proxies::RowResult;
use crate::samples::median;
use crate::window::Measured;
use crate::workers::{Cores, WorkersResult};

/// The figures of one line: medians over the rounds.
struct Line {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    /// The CPU time of the best round: what others on the machine disturbed least.
    least: f64,
    services: f64,
    answers: u64,
}

impl Line {
    fn of(rounds: &[Measured]) -> Line {
        let cpu = |round: &Measured| round.cpu.first().copied().unwrap_or_default();
        let over = |figure: fn(&Measured) -> f64| median(rounds.iter().map(figure));
        Line {
            rate: over(|round| round.rate),
            p50: over(|round| round.p50),
            p99: over(|round| round.p99),
            cpu: over(cpu),
            least: rounds.iter().map(cpu).fold(f64::INFINITY, f64::min),
            services: over(|round| round.cpu.iter().skip(1).sum()),
            answers: rounds.iter().map(|round| round.requests).sum(),
        }
    }
}

/// Prints the comparison of the proxies.
pub(crate) fn print_proxies(results: &[RowResult]) {
    println!("\nProxies, one worker each, taking turns (medians of the rounds):\n");
    println!(
        "{:<21} {:<6} {:>10} {:>8} {:>8} {:>10} {:>8} {:>11} {:>9}",
        "row",
        "proxy",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "CPU µs/req",
        "(least)",
        "services µs",
        "answers"
    );
    for result in results {
        let lines: Vec<(Proxy, Line)> = result
            .proxies
            .iter()
            .map(|(proxy, rounds)| (*proxy, Line::of(rounds)))
            .collect();
        for (proxy, line) in &lines {
            println!(
                "{:<21} {proxy:<6} {:>10.0} {:>8.0} {:>8.0} {:>10.1} {:>8.1} {:>11.1} {:>9}",
                result.row.title(),
                line.rate,
                line.p50,
                line.p99,
                line.cpu,
                line.least,
                line.services,
                line.answers
            );
        }
        if let [(Proxy::Envoy, envoy), (Proxy::Ours, ours)] = lines.as_slice() {
            println!(
                "{:<21} {:<6} {:>10.2} {:>8.2} {:>8.2} {:>10.2} {:>8.2}",
                "",
                "ratio",
                ours.rate / envoy.rate,
                ours.p50 / envoy.p50,
                ours.p99 / envoy.p99,
                ours.cpu / envoy.cpu,
                ours.least / envoy.least
            );
        }
    }
    let own = results
        .iter()
        .flat_map(|result| &result.proxies)
        .flat_map(|(_, rounds)| rounds)
        .map(|round| round.own_cpu);
    println!(
        "\nCPU µs/req is the proxy's, (least) in its best round, services µs that of the policy services together; \
         ratio is ours / Envoy.\nEvery answer was the expected one: status, headers of \
         the policies, each byte of the body.\nThe load itself cost {:.1} µs per request.",
        median(own)
    );
}

/// Prints latencies at half of Envoy's rate.
pub(crate) fn print_latency(results: &[Paced]) {
    println!("\nLatencies at half of the rate that Envoy reaches (medians of the rounds):\n");
    println!(
        "{:<12} {:<6} {:>12} {:>10} {:>8} {:>8} {:>10}",
        "row", "proxy", "Envoy's most", "requests/s", "p50 µs", "p99 µs", "CPU µs/req"
    );
    for paced in results {
        let title = paced.result.row.title();
        let mut lines = Vec::new();
        for (proxy, rounds) in &paced.result.proxies {
            let line = Line::of(rounds);
            println!(
                "{title:<12} {proxy:<6} {:>12.0} {:>10.0} {:>8.0} {:>8.0} {:>10.1}",
                paced.most, line.rate, line.p50, line.p99, line.cpu
            );
            lines.push(line);
        }
        if let [envoy, ours] = lines.as_slice() {
            println!(
                "{:<12} {:<6} {:>12} {:>10.2} {:>8.2} {:>8.2} {:>10.2}",
                "",
                "ratio",
                "",
                ours.rate / envoy.rate,
                ours.p50 / envoy.p50,
                ours.p99 / envoy.p99,
                ours.cpu / envoy.cpu
            );
        }
    }
}

/// Prints one worker and two.
pub(crate) fn print_workers(cores: Cores, results: &[WorkersResult]) {
    let title = cores.title();
    println!("\nWorkers of ours, {title} (medians of the rounds):\n");
    println!(
        "{:<8} {:>10} {:>8} {:>8} {:>10} {:>8} {:>15} {:>22}",
        "workers",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "CPU µs/req",
        "(least)",
        "busiest thread",
        "most with own cores/s"
    );
    let mut lines = Vec::new();
    for result in results {
        let line = Line::of(&result.rounds);
        let busiest = median(result.busiest.iter().copied());
        // The busiest thread has a core of its own, and nothing else to wait for.
        let most = 1e6 / (line.cpu * busiest);
        println!(
            "{:<8} {:>10.0} {:>8.0} {:>8.0} {:>10.1} {:>8.1} {:>14.0}% {most:>22.0}",
            result.workers,
            line.rate,
            line.p50,
            line.p99,
            line.cpu,
            line.least,
            busiest * 100.0
        );
        lines.push((line, most));
    }
    if let [(one, most_of_one), (two, most_of_two)] = lines.as_slice() {
        println!(
            "{:<8} {:>10.2} {:>8.2} {:>8.2} {:>10.2} {:>8.2} {:>15} {:>22.2}",
            "ratio",
            two.rate / one.rate,
            two.p50 / one.p50,
            two.p99 / one.p99,
            two.cpu / one.cpu,
            two.least / one.least,
            "",
            most_of_two / most_of_one
        );
    }
    println!(
        "\nThe last column is worked out, not reached: requests that the busiest thread would be \
         through with in a second\non a core that it shares with nobody."
    );
}

/// Prints what idle connections cost.
pub(crate) fn print_connections(results: &[Idle]) {
    println!("\nIdle connections, each after one request:\n");
    println!(
        "{:<8} {:<6} {:>11} {:>11} {:>11} {:>11}",
        "speaks", "proxy", "connections", "before MiB", "with MiB", "bytes each"
    );
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for idle in results {
        let each = idle.with.saturating_sub(idle.before) as f64 / idle.connections.max(1) as f64;
        println!(
            "{:<8} {:<6} {:>11} {:>11.1} {:>11.1} {each:>11.0}",
            idle.protocol,
            idle.proxy,
            idle.connections,
            mib(idle.before),
            mib(idle.with),
        );
    }
}

/// Prints the balancing policies, with their latencies beside those of the first.
pub(crate) fn print_balance(results: &[PolicyResult]) {
    println!(
        "\nBalancing over four origins, one of which waits {SLOW} ms (medians of the rounds):\n"
    );
    println!(
        "{:<15} {:>10} {:>8} {:>8} {:>10} {:>10}",
        "policy", "requests/s", "p50 µs", "p99 µs", "p99 ratio", "CPU µs/req"
    );
    let first = results.first().map(|result| Line::of(&result.rounds).p99);
    for result in results {
        let line = Line::of(&result.rounds);
        println!(
            "{:<15} {:>10.0} {:>8.0} {:>8.0} {:>9.2}× {:>10.1}",
            result.policy,
            line.rate,
            line.p50,
            line.p99,
            line.p99 / first.unwrap_or(f64::NAN),
            line.cpu
        );
    }
}

/// Prints what calls and exchanges cost our services.
pub(crate) fn print_calls(results: &[CallResult]) {
    println!(
        "\nPolicy services, calls and processors' exchanges on one connection. Do-nothing \
         services have one thread, as ours\nbeside them, with * those that tonic takes by default; \
         OPA and the processors run as they do by default:\n"
    );
    print_lines(results);
}

/// Prints what decisions on limits cost.
pub(crate) fn print_limits(results: &[LimitResult]) {
    println!(
        "\nDecisions on rate limits over gRPC, one connection. Ours and Limitador's engine have one \
         thread, ratelimit\nas many as it takes by default; counters are in memory, or in a Redis \
         that each has for itself:\n"
    );
    println!(
        "{:<12} {:<8} {:>11} {:>8} {:>8} {:>12} {:>8} {:>13} {:>9} {:>10}",
        "which",
        "keys",
        "decisions/s",
        "p50 µs",
        "p99 µs",
        "per CPU s",
        "CPU µs",
        "(least)",
        "Redis µs",
        "commands"
    );
    for result in results {
        let line = Line::of(&result.rounds);
        let (redis, commands) = match result.commands {
            Some(commands) => (format!("{:.1}", line.services), format!("{commands:.2}")),
            None => (String::new(), String::new()),
        };
        println!(
            "{:<12} {:<8} {:>11.0} {:>8.0} {:>8.0} {:>12.0} {:>8.1} {:>13.1} {redis:>9} {commands:>10}",
            result.which,
            result.keys,
            line.rate,
            line.p50,
            line.p99,
            1e6 / line.cpu,
            line.cpu,
            line.least,
        );
    }
    println!(
        "\nCPU µs is that of the service for each decision, (least) in its best round; Redis µs that \
         of its Redis, which\nthe service's does not include; commands are those to Redis for each \
         decision."
    );
}

/// Prints what decisions cost without a call.
pub(crate) fn print_library(library: &[Library]) {
    println!(
        "\nThe engine as a library, 100,000 keys in memory, one core, millions of decisions for each \
         second of CPU time\n(best round):\n"
    );
    for way in library {
        println!(
            "{:<12} {:>8.2} {:>14} decisions",
            way.way,
            way.per_second / 1e6,
            way.decisions
        );
    }
}

/// Prints latencies at a fixed rate.
pub(crate) fn print_paced(results: &[CallResult]) {
    println!("\nThe same at {PACE} calls a second, latencies from when a call was due:\n");
    print_lines(results);
}

fn print_lines(results: &[CallResult]) {
    println!(
        "{:<12} {:<12} {:>10} {:>8} {:>8} {:>12} {:>8} {:>9}",
        "service", "which", "calls/s", "p50 µs", "p99 µs", "CPU µs/call", "(least)", "answers"
    );
    for result in results {
        let theirs = Line::of(&result.theirs);
        print_call(result.title, result.peer, &theirs);
        if !result.ours.is_empty() {
            let ours = Line::of(&result.ours);
            print_call(result.title, "ours", &ours);
            println!(
                "{:<12} {:<12} {:>10.2} {:>8.2} {:>8.2} {:>12.2} {:>8.2}",
                "",
                "ratio",
                ours.rate / theirs.rate,
                ours.p50 / theirs.p50,
                ours.p99 / theirs.p99,
                ours.cpu / theirs.cpu,
                ours.least / theirs.least
            );
        }
    }
}

/// Prints what open exchanges cost.
pub(crate) fn print_held(results: &[(&'static str, Held)]) {
    println!("\nProcessors, exchanges held open after their first answer:\n");
    println!(
        "{:<12} {:>10} {:>16} {:>10}",
        "which", "exchanges", "bytes each (RSS)", "MiB"
    );
    for (which, held) in results {
        println!(
            "{which:<12} {:>10} {:>16.0} {:>10.1}",
            held.exchanges,
            held.bytes_each,
            held.bytes_each * held.exchanges as f64 / f64::from(1 << 20)
        );
    }
}

fn print_call(title: &str, which: &str, line: &Line) {
    println!(
        "{title:<12} {which:<12} {:>10.0} {:>8.0} {:>8.0} {:>12.1} {:>8.1} {:>9}",
        line.rate, line.p50, line.p99, line.cpu, line.least, line.answers
    );
}

/// One measurement in one line.
pub(crate) fn one_line(measured: &Measured) -> String {
    format!(
        "{} answers, {:.0}/s, p50 {:.0} µs, p99 {:.0} µs; this program: {:.1} CPU µs per request",
        measured.requests, measured.rate, measured.p50, measured.p99, measured.own_cpu
    )
}
