//! How a refusal is said, and how often.

use std::time::Duration;

use attache_proto::rpc;
use tonic::Code;

/// A reason that is longer is cut: servers log it, and bound its length.
const LONGEST_REASON: usize = 4096;

/// The pause before a refusal that says the same as the one before, and what it doubles up to.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The `error_detail` of a refusal.
pub(super) fn detail(reason: &str) -> rpc::Status {
    rpc::Status {
        code: Code::InvalidArgument.into(),
        message: cut(reason).to_owned(),
        ..rpc::Status::default()
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(LONGEST_REASON))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// Refusals in a row that say the same. Some servers send what was refused again at once, and
/// would get the same answer for ever.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    last: Option<Refused>,
}

#[derive(Debug)]
struct Refused {
    version: String,
    reason: String,
    /// How often in a row before.
    repeated: u32,
}

impl Repeats {
    /// The latest response is not refused.
    pub(super) fn end(&mut self) {
        self.last = None;
    }

    /// The pause before this refusal, which becomes the latest one: none, unless it repeats the
    /// one before.
    pub(super) fn pause(&mut self, version: &str, reason: &str) -> Duration {
        let same = |last: &&Refused| last.version == version && last.reason == reason;
        let last = self.last.as_ref().filter(same);
        let repeated = last.map_or(0, |last| last.repeated.saturating_add(1));
        self.last = Some(Refused {
            version: version.to_owned(),
            reason: reason.to_owned(),
            repeated,
        });
        match repeated.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE
                .saturating_mul(1 << doublings.min(16))
                .min(LONGEST_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_repeat_themselves_are_slow() {
        let mut repeats = Repeats::default();
        let mut seconds = |version: &str| repeats.pause(version, "no").as_secs();
        let pauses: Vec<u64> = (0..7).map(|_| seconds("2")).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(seconds("3"), 0);
        assert_eq!(seconds("3"), 1);
        repeats.end();
        assert_eq!(repeats.pause("3", "no"), Duration::ZERO);
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let text = "é".repeat(LONGEST_REASON);
        let cut = detail(&text).message;
        assert!(cut.len() <= LONGEST_REASON && cut.len() > LONGEST_REASON - 4);
        assert_eq!(detail("why").code, i32::from(Code::InvalidArgument));
    }
}
