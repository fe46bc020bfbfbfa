//! What an import or an export left out, for people and for scripts.

use attache_proxy::import::{Dropped, Effect};

use crate::Failure;

/// Lists it on standard error; what has no effect only when `all` is asked for.
pub(crate) fn list(left_out: &[Dropped], all: bool) {
    let listed = |one: &&Dropped| all || one.effect != Effect::Nothing;
    for one in left_out.iter().filter(listed) {
        eprintln!("{one}");
    }
}

/// Fails when something has an effect.
pub(crate) fn judge(left_out: &[Dropped]) -> Result<(), Failure> {
    match left_out.iter().map(|one| one.effect).max() {
        None | Some(Effect::Nothing) => Ok(()),
        Some(Effect::Behaviour | Effect::Protection) => Err(Failure::Found),
    }
}
