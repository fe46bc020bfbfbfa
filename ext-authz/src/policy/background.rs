//! What goes on beside the checks: keys and policies that are fetched and refreshed.
//!
//! Such tasks run on one thread of their own, so that a service works the same in any host, and
//! before one runs. They end with the policy that they belong to.

use std::{
    collections::BTreeSet,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{runtime, sync::Notify, task::AbortHandle};

/// A task that runs while its policy is in use.
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks of one policy, not yet running.
#[derive(Default)]
pub(super) struct Tasks(Vec<Task>);

impl Tasks {
    pub(super) fn add(&mut self, task: Task) {
        self.0.push(task);
    }
}

/// The tasks of one policy; dropped, they end.
#[derive(Debug, Default)]
pub(super) struct Running(Vec<AbortHandle>);

impl Drop for Running {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The thread on which tasks run; made when there is a first task, ended when it is dropped.
#[derive(Default)]
pub(super) struct Background(Mutex<Option<Thread>>);

struct Thread {
    handle: runtime::Handle,
    stop: Arc<Notify>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Background")
    }
}

impl Background {
    /// Starts the tasks of a policy.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn start(&self, tasks: Tasks) -> io::Result<Running> {
        let Tasks(tasks) = tasks;
        if tasks.is_empty() {
            return Ok(Running::default());
        }
        let mut thread = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let thread = match &mut *thread {
            Some(thread) => thread,
            none => none.insert(Thread::start()?),
        };
        let started = tasks
            .into_iter()
            .map(|task| thread.handle.spawn(task).abort_handle());
        Ok(Running(started.collect()))
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        std::thread::Builder::new()
            .name("attache-auth".to_owned())
            .spawn(move || runtime.block_on(stopped.notified()))?;
        Ok(Self { handle, stop })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

/// What a policy waits for before it can decide, by name. Clones are the same gate.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    names: Mutex<BTreeSet<String>>,
    opened: Notify,
}

impl Waiting {
    fn names(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// Keeps the gate shut until the hold is dropped. `name` says what is waited for, such as
    /// ``keys of `users` ``.
    pub(super) fn hold(&self, name: impl Into<String>) -> Hold {
        let name = name.into();
        self.0.names().insert(name.clone());
        Hold {
            gate: self.clone(),
            name,
        }
    }

    /// What is still waited for.
    pub(super) fn waits_for(&self) -> Vec<String> {
        self.0.names().iter().cloned().collect()
    }

    /// Waits until nothing is waited for.
    pub(super) async fn opened(&self) {
        loop {
            let mut opened = std::pin::pin!(self.0.opened.notified());
            opened.as_mut().enable();
            if self.0.names().is_empty() {
                return;
            }
            opened.await;
        }
    }
}

/// One thing that a [`Gate`] waits for; dropped when it is there.
#[derive(Debug)]
pub(super) struct Hold {
    gate: Gate,
    name: String,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.gate.0.names().remove(&self.name);
        self.gate.0.opened.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn tasks_run_without_a_runtime_and_end_with_their_policy() {
        struct Ends(mpsc::Sender<&'static str>);
        impl Drop for Ends {
            fn drop(&mut self) {
                let _ = self.0.send("ended");
            }
        }
        let (said, hears) = mpsc::channel();
        let ends = Ends(said.clone());
        let mut tasks = Tasks::default();
        tasks.add(Box::pin(async move {
            let ends = ends;
            ends.0.send("runs").unwrap();
            std::future::pending().await
        }));
        let background = Background::default();

        let running = background.start(tasks).unwrap();

        assert_eq!(hears.recv().unwrap(), "runs");
        drop(running);
        assert_eq!(hears.recv().unwrap(), "ended");
    }

    #[tokio::test]
    async fn a_gate_opens_when_all_is_there() {
        let gate = Gate::default();
        gate.opened().await;
        let keys = gate.hold("keys of `users`");
        let policy = gate.hold("policy `main`");
        assert_eq!(gate.waits_for(), ["keys of `users`", "policy `main`"]);
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.opened().await }
        });
        drop(keys);
        assert_eq!(gate.waits_for(), ["policy `main`"]);
        drop(policy);
        waiting.await.unwrap();
    }
}
