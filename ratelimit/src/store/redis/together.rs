//! Charges that are carried out all or none.
//!
//! On one server, or in one slot of a cluster, a script does it in one step. What is spread over
//! several is taken one after the other, and given back when a later one does not fit or cannot be
//! reached: never more than the limits pass, though for a moment others may find less room than there is.

use super::{
    Backend, Inner, Servers, cluster,
    command::{Answer, Charged, Command, ScriptAction, ScriptCharge},
    plan,
};
use crate::store::{Batch, Reading, StoreError};

/// Charges that one script can carry out.
struct Group<'a> {
    backend: &'a Backend,
    slot: u16,
    places: Vec<usize>,
    script: ScriptCharge,
}

impl Inner {
    pub(super) async fn charge_together(
        &self,
        batch: &Batch,
        readings: &mut Vec<Reading>,
    ) -> Result<(), StoreError> {
        let mut groups = self.groups(batch);
        let mut charged: Vec<Option<Charged>> = vec![None; batch.len()];
        let mut taken = 0;
        for group in &groups {
            match group.run(group.script.clone(), &mut charged).await {
                Ok(true) => taken += 1,
                Ok(false) => break,
                Err(error) => {
                    for group in groups.iter().take(taken) {
                        // What cannot be given back either stays counted: fewer pass, not more.
                        let _ = group.give_back(&mut charged).await;
                    }
                    return Err(error);
                }
            }
        }
        if taken < groups.len() {
            let rest = groups.split_off(taken);
            for group in &groups {
                group.give_back(&mut charged).await?;
            }
            // The first of them said no by itself; of the others only the counts are wanted.
            for group in rest.iter().skip(1) {
                group.peek(&mut charged).await?;
            }
        }
        for ((_, charge), charged) in batch.iter().zip(charged) {
            let charged = charged.ok_or_else(|| self.main.failed("an answer is missing"))?;
            readings.push(plan::reading_of_script(batch, charge, charged));
        }
        Ok(())
    }

    fn groups(&self, batch: &Batch) -> Vec<Group<'_>> {
        let mut groups: Vec<Group<'_>> = Vec::with_capacity(1);
        for (place, (key, charge)) in batch.iter().enumerate() {
            let backend = self.backend(charge);
            let settings = &backend.context.settings;
            let name = plan::name(key, charge, settings);
            let slot = match &backend.servers {
                Servers::One { .. } => 0,
                Servers::Cluster(_) => cluster::slot(&name),
            };
            let found = groups
                .iter()
                .position(|group| std::ptr::eq(group.backend, backend) && group.slot == slot);
            let at = found.unwrap_or_else(|| {
                groups.push(Group {
                    backend,
                    slot,
                    places: Vec::new(),
                    script: ScriptCharge {
                        together: true,
                        keys: Vec::new(),
                        terms: Vec::new(),
                    },
                });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(at) {
                group.places.push(place);
                group.script.keys.push(name);
                group
                    .script
                    .terms
                    .push(plan::script_terms(charge, settings));
            }
        }
        groups
    }
}

impl Group<'_> {
    /// Runs a script and notes what became of its charges; says whether all were carried out.
    async fn run(
        &self,
        script: ScriptCharge,
        charged: &mut [Option<Charged>],
    ) -> Result<bool, StoreError> {
        let answers = self.backend.run(vec![Command::Charge(script)]).await?;
        let Some(Answer::Charged(found)) = answers.into_iter().next() else {
            return Err(self.backend.failed("an answer of another kind"));
        };
        let all = found.iter().all(|charged| charged.charged);
        for (place, found) in self.places.iter().zip(found) {
            if let Some(slot) = charged.get_mut(*place) {
                *slot = Some(found);
            }
        }
        Ok(all)
    }

    /// Undoes what was carried out.
    async fn give_back(&self, charged: &mut [Option<Charged>]) -> Result<(), StoreError> {
        let mut undo = self.script.clone();
        for terms in &mut undo.terms {
            terms.action = match terms.action {
                ScriptAction::Count | ScriptAction::CountIfFits => ScriptAction::GiveBack,
                ScriptAction::GiveBack => ScriptAction::Count,
            };
        }
        // Whatever fits or not, this is what was there before.
        undo.together = false;
        self.backend.run(vec![Command::Charge(undo)]).await?;
        for place in &self.places {
            if let Some(Some(charged)) = charged.get_mut(*place) {
                charged.charged = false;
            }
        }
        Ok(())
    }

    /// Looks at the counters without charging them.
    async fn peek(&self, charged: &mut [Option<Charged>]) -> Result<(), StoreError> {
        let mut look = self.script.clone();
        for terms in &mut look.terms {
            terms.hits = 0;
        }
        self.run(look, charged).await?;
        for (place, terms) in self.places.iter().zip(&self.script.terms) {
            if let Some(Some(charged)) = charged.get_mut(*place) {
                charged.charged = false;
                charged.after = match terms.action {
                    ScriptAction::GiveBack => charged.before.saturating_sub(terms.hits.into()),
                    ScriptAction::Count | ScriptAction::CountIfFits => {
                        charged.before.saturating_add(terms.hits.into())
                    }
                };
            }
        }
        Ok(())
    }
}
