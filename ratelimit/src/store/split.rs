//! Batches of which some charges are answered here, and the rest by a store.

use super::{Batch, Charging, Reading, Store, StoreError};

/// Answers of which some are known.
pub(super) type Known = Vec<Option<Reading>>;

/// Has `store` answer what is not known.
pub(super) async fn charge_rest<S: Store>(
    store: &S,
    batch: &Batch,
    charging: Charging,
    known: Known,
    readings: &mut Vec<Reading>,
) -> Result<(), StoreError> {
    let mut rest = batch.another(charging);
    for ((key, charge), known) in batch.iter().zip(&known) {
        if known.is_none() {
            rest.charge_key(key, charge.terms, charge.amount);
        }
    }
    let mut answers = Vec::with_capacity(rest.len());
    if !rest.is_empty() {
        store.charge(&rest, &mut answers).await?;
    }
    let mut answers = answers.into_iter();
    // A store answers for each charge; were one missing, the batch's reader would see it.
    readings.extend(
        known
            .into_iter()
            .filter_map(|known| known.or_else(|| answers.next())),
    );
    Ok(())
}
