//! Requests that leave for a server in one write: adds to the same key as one command.

use std::{
    collections::{HashMap, HashSet, hash_map},
    hash::{BuildHasher as _, RandomState},
};

use redis::{Pipeline, Value};
use tokio::sync::oneshot;

use super::command::{Add, Answer, Command, Refusal, count};

/// Keys whose lifetime a connection remembers to have set, at about 10 bytes; up to twice as many
/// while the older half is being forgotten.
const TOUCHED: usize = 250_000;

/// What one request wants of the server.
pub(super) struct Job {
    pub(super) commands: Vec<Command>,
    /// The keys are on their way to this server.
    pub(super) asking: bool,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// The commands of a request again, with what became of each.
pub(super) struct Reply {
    pub(super) commands: Vec<Command>,
    pub(super) outcomes: Vec<Result<Answer, Refusal>>,
}

/// Keys whose lifetime was set, by their hash. Forgetting one costs a command.
pub(super) struct Touched {
    hasher: RandomState,
    recent: HashSet<u64>,
    older: HashSet<u64>,
}

impl Touched {
    pub(super) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            recent: HashSet::new(),
            older: HashSet::new(),
        }
    }

    /// Remembers the key; true when it was not known.
    fn is_new(&mut self, key: &str) -> bool {
        let hash = self.hasher.hash_one(key);
        if self.recent.contains(&hash) || self.older.contains(&hash) {
            return false;
        }
        if self.recent.len() >= TOUCHED {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(hash);
        true
    }
}

/// Requests on their way in one write.
pub(super) struct Flight {
    jobs: Vec<Job>,
    pipeline: Pipeline,
    steps: Vec<Step>,
}

/// What an answer of the server belongs to.
enum Step {
    /// To nobody.
    Aside,
    /// To the making of the counter that the next step adds to.
    Make,
    /// To the adds of a key.
    Add {
        /// Which jobs' commands, and what the sum of the hits is up to each.
        parts: Vec<(usize, usize, u64)>,
        sum: u64,
        /// How the counter gets its lifetime.
        life: Life,
    },
    /// To a script.
    Charge { job: usize, command: usize },
}

/// How a counter gets its lifetime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It has one: this connection has seen it.
    Known,
    /// The hits are its first value, unless it is there; then they are added in a second write.
    Begun,
    /// It was made by the step before.
    Made,
}

/// What a flight found.
pub(super) struct Landed {
    pub(super) script_known: bool,
}

impl Flight {
    pub(super) fn load(jobs: Vec<Job>, touched: &mut Touched, script_known: bool) -> Self {
        let mut steps: Vec<Step> = Vec::with_capacity(jobs.len());
        let mut adds: HashMap<(&str, bool), usize> = HashMap::new();
        let alone = jobs.len() == 1;
        // Additions in a second write would come behind what a script charges.
        let scripts = jobs.iter().flat_map(|job| &job.commands);
        let unknown = match scripts.into_iter().any(|c| matches!(c, Command::Charge(_))) {
            true => Life::Made,
            false => Life::Begun,
        };
        for (
            job,
            Job {
                commands, asking, ..
            },
        ) in jobs.iter().enumerate()
        {
            for (command, step) in commands.iter().enumerate() {
                let add = match step {
                    Command::Add(add) => add,
                    Command::Charge(charge) => {
                        // What comes later must not overtake it.
                        for key in &charge.keys {
                            adds.remove(&(key.as_str(), *asking));
                        }
                        steps.push(Step::Charge { job, command });
                        continue;
                    }
                };
                let hits = u64::from(add.hits);
                // A single command has nobody to be put together with.
                if !(alone && commands.len() == 1) {
                    match adds.entry((add.key.as_str(), *asking)) {
                        hash_map::Entry::Vacant(entry) => {
                            entry.insert(steps.len());
                        }
                        hash_map::Entry::Occupied(entry) => {
                            if let Some(Step::Add { parts, sum, .. }) = steps.get_mut(*entry.get())
                            {
                                *sum = sum.saturating_add(hits);
                                parts.push((job, command, *sum));
                            }
                            continue;
                        }
                    }
                }
                steps.push(Step::Add {
                    parts: vec![(job, command, hits)],
                    sum: hits,
                    life: match touched.is_new(&add.key) {
                        true => unknown,
                        false => Life::Known,
                    },
                });
            }
        }
        let mut pipeline = Pipeline::with_capacity(steps.len() * 2);
        let mut sent = Vec::with_capacity(steps.len() * 2);
        for step in steps {
            let (job, command) = step.first();
            let Some(Job {
                commands, asking, ..
            }) = jobs.get(job)
            else {
                continue;
            };
            let ask = |pipeline: &mut Pipeline, sent: &mut Vec<Step>| {
                if *asking {
                    pipeline.cmd("ASKING");
                    sent.push(Step::Aside);
                }
            };
            match (commands.get(command), &step) {
                (Some(Command::Add(add)), Step::Add { sum, life, .. }) => {
                    if *life == Life::Made {
                        ask(&mut pipeline, &mut sent);
                        make(&mut pipeline, add, 0);
                        sent.push(Step::Make);
                    }
                    ask(&mut pipeline, &mut sent);
                    match life {
                        Life::Begun => make(&mut pipeline, add, *sum),
                        Life::Known | Life::Made => {
                            pipeline.cmd("INCRBY").arg(&add.key).arg(*sum);
                        }
                    }
                }
                (Some(Command::Charge(charge)), _) => {
                    ask(&mut pipeline, &mut sent);
                    charge.encode(&mut pipeline, !script_known);
                }
                _ => continue,
            }
            sent.push(step);
        }
        Self {
            jobs,
            pipeline,
            steps: sent,
        }
    }

    pub(super) fn commands(&self) -> u64 {
        u64::try_from(self.steps.len()).unwrap_or(u64::MAX)
    }

    /// Sends, waits, and gives everybody their answer. An error says that the connection is of no
    /// use any more.
    pub(super) async fn fly(
        mut self,
        mut connection: redis::aio::MultiplexedConnection,
    ) -> Result<Landed, String> {
        let values = connection
            .send_packed_commands(&self.pipeline, 0, self.steps.len())
            .await
            .map_err(|error| error.to_string())?;
        if values.len() != self.steps.len() {
            return Err(format!(
                "{} answers to {} commands",
                values.len(),
                self.steps.len()
            ));
        }
        let mut outcomes: Vec<Vec<Result<Answer, Refusal>>> = self
            .jobs
            .iter()
            .map(|job| Vec::with_capacity(job.commands.len()))
            .collect();
        for (outcomes, job) in outcomes.iter_mut().zip(&self.jobs) {
            outcomes.resize(
                job.commands.len(),
                Err(Refusal::Failed("no answer".to_owned())),
            );
        }
        let mut landed = Landed {
            script_known: false,
        };
        let mut mortal = Pipeline::new();
        let mut whole = HashSet::new();
        let mut was_made = false;
        let begun = self.add_to_those_there(&mut connection, &values).await?;
        for ((step, value), begun) in self.steps.iter().zip(values).zip(begun) {
            match step {
                Step::Aside => {}
                Step::Make => was_made = !matches!(value, Value::ServerError(_)),
                Step::Add { parts, sum, life } => {
                    let lives = match life {
                        Life::Known => false,
                        Life::Made => was_made,
                        Life::Begun => matches!(begun, Begun::First),
                    };
                    let after = match begun {
                        Begun::First => Ok(*sum),
                        Begun::There(value) => count(value),
                        Begun::No => count(value),
                    };
                    // Somebody has flushed what this instance remembers.
                    if after.as_ref() == Ok(sum)
                        && !lives
                        && let Some(add) = self.add(step)
                    {
                        mortal
                            .cmd("EXPIRE")
                            .arg(&add.key)
                            .arg(add.lifetime)
                            .ignore();
                    }
                    for (job, command, up_to) in parts {
                        let answer = after.clone().map(|after| {
                            Answer::Count(after.saturating_sub(*sum).saturating_add(*up_to))
                        });
                        put(&mut outcomes, *job, *command, answer);
                    }
                }
                Step::Charge { job, command } => {
                    let answer = match self.jobs.get(*job).and_then(|j| j.commands.get(*command)) {
                        Some(Command::Charge(charge)) => charge.decode(value),
                        _ => continue,
                    };
                    match &answer {
                        Err(Refusal::NoScript) => {
                            whole.insert((*job, *command));
                        }
                        Ok(_) => landed.script_known = true,
                        Err(_) => {}
                    }
                    put(&mut outcomes, *job, *command, answer);
                }
            }
        }
        if !whole.is_empty() {
            self.send_whole(&mut connection, &whole, &mut outcomes)
                .await?;
        }
        let read_only = outcomes.iter().flatten().find_map(|outcome| match outcome {
            Err(Refusal::ReadOnly(said)) => Some(said.clone()),
            _ => None,
        });
        for (job, outcomes) in self.jobs.drain(..).zip(outcomes) {
            // Who has given up does not want it.
            let _ = job.reply.send(Reply {
                commands: job.commands,
                outcomes,
            });
        }
        if !mortal.is_empty() {
            connection
                .send_packed_commands(&mortal, 0, mortal.len())
                .await
                .map_err(|error| error.to_string())?;
        }
        match read_only {
            Some(said) => Err(said),
            None => Ok(landed),
        }
    }

    /// Adds the hits that were no counter's first value, since it was there. Of each step what
    /// became of such a value.
    async fn add_to_those_there(
        &self,
        connection: &mut redis::aio::MultiplexedConnection,
        values: &[Value],
    ) -> Result<Vec<Begun>, String> {
        let mut begun = Vec::with_capacity(self.steps.len());
        let mut pipeline = Pipeline::new();
        let mut sent = Vec::new();
        for (at, (step, value)) in self.steps.iter().zip(values).enumerate() {
            begun.push(match (step, value) {
                (
                    Step::Add {
                        life: Life::Begun, ..
                    },
                    Value::Okay,
                ) => Begun::First,
                (
                    Step::Add {
                        life: Life::Begun,
                        sum,
                        ..
                    },
                    Value::Nil,
                ) => {
                    if let Some(add) = self.add(step) {
                        if self.is_asking(step) {
                            pipeline.cmd("ASKING");
                            sent.push(None);
                        }
                        pipeline.cmd("INCRBY").arg(&add.key).arg(*sum);
                        sent.push(Some(at));
                    }
                    Begun::No
                }
                _ => Begun::No,
            });
        }
        if sent.is_empty() {
            return Ok(begun);
        }
        let values = connection
            .send_packed_commands(&pipeline, 0, sent.len())
            .await
            .map_err(|error| error.to_string())?;
        for (at, value) in sent.into_iter().zip(values) {
            if let Some(slot) = at.and_then(|at| begun.get_mut(at)) {
                *slot = Begun::There(value);
            }
        }
        Ok(begun)
    }

    fn is_asking(&self, step: &Step) -> bool {
        let (job, _) = step.first();
        self.jobs.get(job).is_some_and(|job| job.asking)
    }

    /// Sends scripts that the server does not keep (any more).
    async fn send_whole(
        &self,
        connection: &mut redis::aio::MultiplexedConnection,
        which: &HashSet<(usize, usize)>,
        outcomes: &mut [Vec<Result<Answer, Refusal>>],
    ) -> Result<(), String> {
        for (job, command) in which {
            let Some(Job {
                commands, asking, ..
            }) = self.jobs.get(*job)
            else {
                continue;
            };
            let Some(Command::Charge(charge)) = commands.get(*command) else {
                continue;
            };
            let mut pipeline = Pipeline::new();
            if *asking {
                pipeline.cmd("ASKING");
            }
            charge.encode(&mut pipeline, true);
            let last = pipeline.len().saturating_sub(1);
            let mut values = connection
                .send_packed_commands(&pipeline, last, 1)
                .await
                .map_err(|error| error.to_string())?;
            let answer = values
                .pop()
                .ok_or(Refusal::NoScript)
                .and_then(|value| charge.decode(value));
            put(outcomes, *job, *command, answer);
        }
        Ok(())
    }

    fn add(&self, step: &Step) -> Option<&Add> {
        let (job, command) = step.first();
        match self.jobs.get(job)?.commands.get(command)? {
            Command::Add(add) => Some(add),
            Command::Charge(_) => None,
        }
    }
}

impl Step {
    /// Job and command that it is about.
    fn first(&self) -> (usize, usize) {
        match self {
            Self::Aside | Self::Make => (usize::MAX, usize::MAX),
            Self::Add { parts, .. } => parts
                .first()
                .map_or((usize::MAX, usize::MAX), |(job, command, _)| {
                    (*job, *command)
                }),
            Self::Charge { job, command } => (*job, *command),
        }
    }
}

/// What became of hits that were to be the first value of a counter.
enum Begun {
    /// They are.
    First,
    /// It was there; what the server said when they were added to it.
    There(Value),
    /// They were not to be, or the server refused.
    No,
}

/// Makes a counter with its lifetime if there is none. One that the connection breaks behind has
/// a lifetime all the same, as it would not if that were set after the first hits.
fn make(pipeline: &mut Pipeline, add: &Add, hits: u64) {
    pipeline
        .cmd("SET")
        .arg(&add.key)
        .arg(hits)
        .arg("EX")
        .arg(add.lifetime)
        .arg("NX");
}

fn put(
    outcomes: &mut [Vec<Result<Answer, Refusal>>],
    job: usize,
    command: usize,
    answer: Result<Answer, Refusal>,
) {
    if let Some(slot) = outcomes
        .get_mut(job)
        .and_then(|outcomes| outcomes.get_mut(command))
    {
        *slot = answer;
    }
}
