//! Every scenario as a test of its own, through Envoy and through our proxy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock};

use attache_tests::envoy::{self, Envoy};
use attache_tests::left_out;
use attache_tests::run::{self, Prepared};
use attache_tests::scenario::Scenario;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tokio::runtime::Runtime;

/// Scenarios mostly wait, so more of them run at once than there are cores.
const AT_ONCE: usize = 8;

/// All scenarios, and Envoy with a listener for each. Envoy starts with the
/// first scenario that needs it.
struct Stage {
    scenarios: Vec<Scenario>,
    runtime: Runtime,
    fleet: OnceLock<Result<Fleet, String>>,
    /// Those marked `not_yet` that pass all the same.
    ready: Mutex<Vec<usize>>,
}

struct Fleet {
    envoy: Option<Envoy>,
    prepared: Vec<Prepared>,
}

impl Stage {
    fn fleet(&self) -> Result<&Fleet, String> {
        let fleet = self.fleet.get_or_init(|| {
            let prepare = |(nth, scenario): (usize, &Scenario)| {
                Prepared::new(nth, scenario).map_err(|e| format!("{}: {e}", scenario.title()))
            };
            let scenarios = self.scenarios.iter().enumerate();
            let prepared: Vec<_> = scenarios.map(prepare).collect::<Result<_, _>>()?;
            let parts: Vec<_> = prepared.iter().map(|one| one.bootstrap.clone()).collect();
            let envoy = match envoy::program() {
                Some(program) => Some(self.runtime.block_on(Envoy::start(&program, &parts))?),
                None => None,
            };
            Ok(Fleet { envoy, prepared })
        });
        fleet.as_ref().map_err(Clone::clone)
    }

    fn run(&self, nth: usize) -> Result<Completion, Failed> {
        let (scenario, fleet) = (&self.scenarios[nth], self.fleet()?);
        let prepared = &fleet.prepared[nth];
        let envoy = match &fleet.envoy {
            None => None,
            Some(envoy) => {
                let seen = self
                    .runtime
                    .block_on(prepared.through_envoy(scenario, envoy));
                Some(seen.map_err(|error| format!("through Envoy: {error}"))?)
            }
        };
        let ours = self.runtime.block_on(prepared.through_ours(scenario));
        if scenario.is_pending() {
            run::verdict(scenario, envoy.as_ref(), None)?;
            if let Ok(true) =
                ours.map(|ours| run::verdict(scenario, envoy.as_ref(), ours.as_ref()).is_ok())
            {
                self.ready.lock().unwrap().push(nth);
            }
            return Ok(Completion::Completed);
        }
        let ours = ours.map_err(|error| format!("through ours: {error}"))?;
        run::verdict(scenario, envoy.as_ref(), ours.as_ref())?;
        Ok(Completion::Completed)
    }

    /// What our proxy does not run yet, in one line.
    fn not_yet(&self) -> Option<String> {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for reason in self.scenarios.iter().filter_map(|s| s.not_yet.as_deref()) {
            *reasons.entry(reason).or_default() += 1;
        }
        let listed: Vec<_> = reasons
            .iter()
            .map(|(why, n)| format!("{why} ({n})"))
            .collect();
        let count: usize = reasons.values().sum();
        let line = format!(
            "through Envoy only, as our proxy has no such settings yet: {count} scenarios of {}: {}",
            self.scenarios.len(),
            listed.join(", ")
        );
        (count > 0).then_some(line)
    }

    /// What only Envoy can show, and what no scenario shows, in one line each.
    fn left_out(&self) -> Vec<String> {
        let only: Vec<_> = (self.scenarios.iter())
            .filter_map(|s| Some(format!("{}: {}", s.title(), s.envoy_only.as_ref()?)))
            .collect();
        let left: Vec<_> = (Scenario::left_out().unwrap_or_default().iter())
            .map(|left| format!("{} {}: {}", left.spec, left.what, left.reason))
            .collect();
        let line = |words: &str, list: Vec<String>| {
            (!list.is_empty()).then(|| format!("{words}: {}", list.join("; ")))
        };
        let ready = self.ready.lock().unwrap();
        let ready = ready.iter().map(|nth| self.scenarios[*nth].title());
        let lines = [
            line("pass already, so remove `not_yet`", ready.collect()),
            line("through Envoy only", only),
            line("shown by no scenario", left),
        ];
        lines.into_iter().flatten().collect()
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(AT_ONCE));
    let wanted = |scenario: &Scenario| {
        let filter = arguments.filter.as_deref();
        filter.is_none_or(|filter| scenario.title().contains(filter))
    };
    let scenarios = match Scenario::load_all() {
        Ok(all) => all.into_iter().filter(wanted).collect::<Vec<_>>(),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(line) = left_out::line().filter(|_| !arguments.list) {
        println!("{line}");
    }
    let titles: Vec<String> = scenarios.iter().map(Scenario::title).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let stage = Arc::new(Stage {
        scenarios,
        runtime,
        fleet: OnceLock::new(),
        ready: Mutex::default(),
    });
    let trial = |(nth, title): (usize, String)| {
        let stage = Arc::clone(&stage);
        Trial::ignorable_test(title, move || stage.run(nth))
    };
    let trials = titles.into_iter().enumerate().map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        for line in stage.not_yet().into_iter().chain(stage.left_out()) {
            println!("{line}");
        }
    }
    // Envoy ends here, with the last hold on the stage.
    drop(stage);
    conclusion.exit_code()
}
