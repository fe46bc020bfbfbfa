//! Policies in Rego, evaluated by `regorus`.

use std::{
    cell::RefCell,
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use regorus::{
    Engine, PolicyLengthConfig, Value,
    unstable::{Module as Syntax, Ref},
    utils::limits::ExecutionTimerConfig,
};

use super::{builtins, functions, rewrite::rewritten, syntax::path, wants::Wants};

/// How many steps there are between two looks at the clock.
const STEPS: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// Bounds on the text of a module.
const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::new(16_384).unwrap(),
    max_file_bytes: NonZeroUsize::new(8 << 20).unwrap(),
    max_lines: NonZeroUsize::new(200_000).unwrap(),
};

/// Most engines that a thread keeps.
const MAX_ENGINES: usize = 64;

/// A module: where it is from, for messages, and its text.
pub(super) struct Module {
    pub(super) place: String,
    pub(super) text: String,
}

/// What a policy is made of.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) modules: Vec<Module>,
    /// Objects that are merged; where each is from.
    pub(super) data: Vec<(String, Value)>,
}

/// A policy, compiled.
pub(super) struct Program {
    /// The one that each thread's own is copied from.
    engine: Mutex<Engine>,
    query: String,
    /// What it can read of its input.
    pub(super) wants: Wants,
    /// Whether its answer to the same input can change.
    pub(super) changing: bool,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program").field(&self.query).finish()
    }
}

/// An engine of this thread, and whose it is.
struct Own {
    program: Weak<Program>,
    engine: Engine,
}

fn parse(place: &str, text: &str) -> Result<Ref<Syntax>, String> {
    let mut engine = Engine::new();
    engine.set_policy_length_config(LENGTHS);
    let added = engine.add_policy(place.to_owned(), text.to_owned());
    added.map_err(|error| error.to_string().trim().to_owned())?;
    let module = engine.get_modules().first().cloned();
    module.ok_or_else(|| format!("{place}: there is no module"))
}

/// The package of a module, from `data` on.
pub(super) fn package(module: &Module) -> Result<Vec<String>, String> {
    let module = parse(&module.place, &module.text)?;
    let path = path(&module.package.refr).unwrap_or_default();
    Ok(path.into_iter().map(str::to_owned).collect())
}

thread_local! {
    static ENGINES: RefCell<Vec<Own>> = const { RefCell::new(Vec::new()) };
}

impl Program {
    /// Compiles a policy. `query` names the rule that decides, as in `data.envoy.authz.allow`.
    ///
    /// # Errors
    /// What is wrong with it, each with its place.
    pub(super) fn load(sources: Sources, query: &str, limit: Duration) -> Result<Self, String> {
        let mut engine = Engine::new();
        engine.set_policy_length_config(LENGTHS);
        // As in Open Policy Agent, a built-in function that fails has no value.
        engine.set_strict_builtin_errors(false);
        engine.set_gather_prints(true);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit,
            check_interval: STEPS,
        });
        if sources.modules.is_empty() {
            return Err("there is no module".to_owned());
        }
        let (wants, changing) = Self::read(&sources.modules)?;
        functions::add(&mut engine)?;
        for Module { place, text } in sources.modules {
            let text = rewritten(text, |text| parse(&place, text))?;
            let added = engine.add_policy(place, text);
            added.map_err(|error| error.to_string().trim().to_owned())?;
        }
        for (place, data) in sources.data {
            let added = engine.add_data(data);
            added.map_err(|error| format!("{place}: {error}"))?;
        }
        let compiled = engine.compile_with_entrypoint(&query.into());
        compiled.map_err(|error| error.to_string().trim().to_owned())?;
        Ok(Self {
            engine: Mutex::new(engine),
            query: query.to_owned(),
            wants,
            changing,
        })
    }

    /// What some modules want of their input, and whether their answer can change by itself.
    fn read(modules: &[Module]) -> Result<(Wants, bool), String> {
        let parsed = modules
            .iter()
            .map(|Module { place, text }| parse(place, text));
        let modules: Vec<_> = parsed.collect::<Result<_, _>>()?;
        let changing = builtins::check(&modules)?;
        Ok((Wants::of(&modules), changing))
    }

    /// Decides on an input; [`Value::Undefined`] when no rule does.
    ///
    /// # Errors
    /// When it contradicts itself, or takes too long.
    pub(super) fn evaluate(self: &Arc<Self>, input: Value) -> Result<Value, String> {
        let mut own = self.take();
        own.engine.set_input(input);
        // The engine of a policy that makes it panic is dropped with the rest below.
        let evaluation = AssertUnwindSafe(|| own.engine.eval_rule(self.query.clone()));
        let answer = panic::catch_unwind(evaluation);
        match answer {
            Ok(Ok(answer)) => {
                for line in own.engine.take_prints().unwrap_or_default() {
                    tracing::debug!(query = self.query, "{line}");
                }
                ENGINES.with_borrow_mut(|engines| engines.push(own));
                Ok(answer)
            }
            // What it had in hand is thrown away with it.
            Ok(Err(error)) => Err(error.to_string().trim().to_owned()),
            Err(_) => Err("the engine failed".to_owned()),
        }
    }

    /// This thread's engine, or one for it.
    fn take(self: &Arc<Self>) -> Own {
        let kept = ENGINES.with_borrow_mut(|engines| {
            let mine = |own: &Own| std::ptr::eq(own.program.as_ptr(), Arc::as_ptr(self));
            if let Some(index) = engines.iter().position(mine) {
                return Some(engines.swap_remove(index));
            }
            // A new program often takes the place of an old one.
            engines.retain(|own| own.program.strong_count() > 0);
            if engines.len() >= MAX_ENGINES {
                engines.clear();
            }
            None
        });
        kept.unwrap_or_else(|| {
            let engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            Own {
                program: Arc::downgrade(self),
                engine: engine.clone(),
            }
        })
    }
}
