//! Policies compiled to WebAssembly, run by `opa-wasm`.
//!
//! Functions that Open Policy Agent compiles into the module run there. A policy that wants others
//! of its host is refused when it is loaded.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use opa_wasm::{
    DefaultContext, Policy, Runtime,
    wasmtime::{
        Config, Engine, Instance, Linker, Memory, Module, Store, StoreLimits, StoreLimitsBuilder,
    },
};
use regorus::Value;

use super::Verdict;

/// How finely time is measured.
const TICK: Duration = Duration::from_millis(5);
/// Most memory of an instance, in bytes.
const MAX_MEMORY: usize = 256 << 20;
/// Most instances that a thread keeps.
const MAX_INSTANCES: usize = 64;

/// A policy, compiled.
#[derive(Clone)]
pub(super) struct Program(Arc<Inner>);

struct Inner {
    engine: Engine,
    module: Module,
    data: Value,
    entrypoint: String,
    /// In ticks.
    limit: u64,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program").field(&self.0.entrypoint).finish()
    }
}

/// An instance of a policy. It decides on one request at a time.
struct Running {
    program: Weak<Inner>,
    store: Store<StoreLimits>,
    policy: Policy<DefaultContext>,
}

thread_local! {
    static INSTANCES: RefCell<Vec<Running>> = const { RefCell::new(Vec::new()) };
}

impl Program {
    /// Compiles a module. `data` are objects that are merged; where each is from.
    ///
    /// # Errors
    /// When it is none, lacks the entrypoint, or wants functions that there are not.
    pub(super) fn load(
        wasm: &[u8],
        data: Vec<(String, Value)>,
        entrypoint: &str,
        limit: Duration,
    ) -> Result<Self, String> {
        let mut merged = regorus::Engine::new();
        for (place, data) in data {
            let added = merged.add_data(data);
            added.map_err(|error| format!("{place}: {error}"))?;
        }
        let mut config = Config::new();
        config.epoch_interruption(true);
        let engine = Engine::new(&config).map_err(|error| error.to_string())?;
        let module = Module::new(&engine, wasm)
            .map_err(|error| format!("this is no WebAssembly module: {error}"))?;
        start_clock(&engine)?;
        let ticks = limit.as_nanos().div_ceil(TICK.as_nanos()).saturating_add(1);
        let inner = Inner {
            engine,
            module,
            data: merged.get_data(),
            entrypoint: entrypoint.to_owned(),
            limit: u64::try_from(ticks).unwrap_or(u64::MAX >> 1),
        };
        let wanted = inner.host_functions()?;
        if !wanted.is_empty() {
            let wanted: Vec<_> = wanted.iter().map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "functions that are not available: {}",
                wanted.join(", ")
            ));
        }
        let program = Self(Arc::new(inner));
        program.try_out()?;
        Ok(program)
    }

    /// Makes one instance, to see whether it can be.
    fn try_out(&self) -> Result<(), String> {
        let inner = self.0.clone();
        // The caller may be within a runtime, which cannot wait for another one.
        let tried = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let runtime = runtime.map_err(|error| error.to_string())?;
            runtime.block_on(async {
                let (_, policy) = inner.instance().await?;
                let entrypoints = policy.entrypoints();
                if entrypoints.contains(inner.entrypoint.as_str()) {
                    return Ok(());
                }
                let mut known: Vec<_> =
                    entrypoints.iter().map(|name| format!("`{name}`")).collect();
                known.sort_unstable();
                let (wanted, known) = (&inner.entrypoint, known.join(", "));
                Err(format!(
                    "there is no entrypoint `{wanted}`; there are {known}"
                ))
            })
        });
        tried
            .join()
            .unwrap_or_else(|_| Err("the engine failed".to_owned()))
    }

    /// Decides on an input.
    ///
    /// # Errors
    /// When it contradicts itself, takes too long, or its answer is none.
    pub(super) async fn evaluate(&self, input: &Value) -> Result<Verdict, String> {
        let mut running = self.take().await?;
        running.store.set_epoch_deadline(self.0.limit);
        let answer: serde_json::Value = running
            .policy
            .evaluate(&mut running.store, &self.0.entrypoint, input)
            .await
            // What it had in hand is thrown away with it.
            .map_err(|error| format!("{error:#}"))?;
        INSTANCES.with_borrow_mut(|instances| instances.push(running));
        let serde_json::Value::Array(results) = answer else {
            return Err("the policy's answer is no list of results".to_owned());
        };
        match results.into_iter().next() {
            // No rule says anything.
            None => Ok(Verdict::deny()),
            Some(serde_json::Value::Object(mut result)) => match result.remove("result") {
                Some(answer) => Verdict::new(answer),
                None => Err("the policy's answer has no result".to_owned()),
            },
            Some(_) => Err("the policy's answer has no result".to_owned()),
        }
    }

    /// One of this thread's instances that has nothing to do, or one made now.
    async fn take(&self) -> Result<Running, String> {
        let kept = INSTANCES.with_borrow_mut(|instances| {
            let mine = |one: &Running| std::ptr::eq(one.program.as_ptr(), Arc::as_ptr(&self.0));
            if let Some(index) = instances.iter().position(mine) {
                return Some(instances.swap_remove(index));
            }
            // A new program often takes the place of an old one.
            instances.retain(|one| one.program.strong_count() > 0);
            if instances.len() >= MAX_INSTANCES {
                instances.clear();
            }
            None
        });
        if let Some(running) = kept {
            return Ok(running);
        }
        let (store, policy) = self.0.instance().await?;
        Ok(Running {
            program: Arc::downgrade(&self.0),
            store,
            policy,
        })
    }
}

impl Inner {
    fn store(&self) -> Store<StoreLimits> {
        let limits = StoreLimitsBuilder::new().memory_size(MAX_MEMORY).build();
        let mut store = Store::new(&self.engine, limits);
        store.limiter(|limits| limits);
        store.set_epoch_deadline(self.limit);
        store
    }

    async fn instance(&self) -> Result<(Store<StoreLimits>, Policy<DefaultContext>), String> {
        let mut store = self.store();
        let runtime = Runtime::new(&mut store, &self.module).await;
        let runtime = runtime.map_err(|error| format!("{error:#}"))?;
        let policy = runtime.with_data(&mut store, &self.data).await;
        Ok((store, policy.map_err(|error| format!("{error:#}"))?))
    }

    /// The functions that the module wants of its host.
    fn host_functions(&self) -> Result<Vec<String>, String> {
        let problem = |error: opa_wasm::wasmtime::Error| {
            format!("this is no policy that `opa build -t wasm` made: {error}")
        };
        let mut store = self.store();
        let mut linker = Linker::new(&self.engine);
        let memory = self
            .module
            .imports()
            .find(|import| import.name() == "memory");
        let memory = memory.and_then(|import| import.ty().memory().cloned());
        let memory = memory.ok_or("this is no policy that `opa build -t wasm` made")?;
        let memory = Memory::new(&mut store, memory).map_err(problem)?;
        linker
            .define(&store, "env", "memory", memory)
            .map_err(problem)?;
        // All that is called here is the list of functions.
        linker
            .define_unknown_imports_as_traps(&self.module)
            .map_err(problem)?;
        let instance = linker
            .instantiate(&mut store, &self.module)
            .map_err(problem)?;
        let list = call(&mut store, &instance, "builtins", ()).map_err(problem)?;
        let text = call(&mut store, &instance, "opa_json_dump", list).map_err(problem)?;
        let start = usize::try_from(text).unwrap_or(usize::MAX);
        let text = memory.data(&store).get(start..).unwrap_or_default();
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let list: BTreeMap<String, i32> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        Ok(list.into_keys().collect())
    }
}

fn call<P: opa_wasm::wasmtime::WasmParams>(
    store: &mut Store<StoreLimits>,
    instance: &Instance,
    name: &str,
    parameters: P,
) -> Result<i32, opa_wasm::wasmtime::Error> {
    let function = instance.get_typed_func::<P, i32>(&mut *store, name)?;
    function.call(store, parameters)
}

/// Counts the time for an engine, on a thread that ends with it.
fn start_clock(engine: &Engine) -> Result<(), String> {
    let engine = engine.weak();
    let clock = std::thread::Builder::new().name("attache-wasm".to_owned());
    let started = clock.spawn(move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    });
    started.map(drop).map_err(|error| error.to_string())
}
