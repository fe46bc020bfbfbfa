//! The pauses between attempts to subscribe.

use std::time::Duration;

use rand::Rng as _;

/// How persistent a client is. No pause is longer than the longer of `unreachable` and `max`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// Between attempts to get a stream at all. Default 1 s.
    pub unreachable: Duration,
    /// After a stream was lost; doubles with each further stream that is lost before it has
    /// brought a response. Default 0.5 s, as Envoy.
    pub initial: Duration,
    /// What it doubles up to. Default 30 s, as Envoy.
    pub max: Duration,
    /// How much of each pause is random, from 0 to 1, so that clients do not come back in step.
    /// Default 0.5.
    pub random: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            unreachable: Duration::from_secs(1),
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            random: 0.5,
        }
    }
}

/// How far a stream came before it was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// No stream: the server could not be reached or refused the call.
    Nothing,
    /// A stream without any response.
    Stream,
    /// At least one response.
    Responses,
}

/// Shorter pauses would be a busy loop.
const SHORTEST: Duration = Duration::from_millis(10);

/// The pauses of one client.
#[derive(Debug)]
pub(super) struct Pauses {
    retry: Retry,
    /// Streams lost in a row without a response.
    fruitless: u32,
}

impl Pauses {
    pub(super) fn new(retry: Retry) -> Self {
        Self {
            retry,
            fruitless: 0,
        }
    }

    /// The pause after an attempt that came so far.
    pub(super) fn after(&mut self, reached: Reached) -> Duration {
        let full = match reached {
            Reached::Nothing => self.retry.unreachable,
            Reached::Responses => {
                self.fruitless = 0;
                self.retry.initial.min(self.retry.max)
            }
            Reached::Stream => {
                let doublings = self.fruitless.min(16);
                self.fruitless = self.fruitless.saturating_add(1);
                let full = self.retry.initial.saturating_mul(1 << doublings);
                full.min(self.retry.max)
            }
        };
        // What is no number is not greater either.
        let random = match self.retry.random > 0.0 {
            true => self.retry.random.min(1.0),
            false => 0.0,
        };
        let kept = 1.0 - random * rand::rng().random_range(0.0..=1.0);
        full.mul_f64(kept).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(random: f64) -> Pauses {
        Pauses::new(Retry {
            unreachable: Duration::from_secs(3),
            initial: Duration::from_secs(10),
            max: Duration::from_secs(60),
            random,
        })
    }

    #[test]
    fn pauses_grow_until_a_response_comes_and_never_beyond_their_bound() {
        let mut pauses = pauses(0.0);
        let mut seconds = |reached| pauses.after(reached).as_secs();
        assert_eq!(seconds(Reached::Nothing), 3);
        assert_eq!(seconds(Reached::Nothing), 3);
        let fruitless: Vec<_> = (0..20).map(|_| seconds(Reached::Stream)).collect();
        assert_eq!(fruitless[..5], [10, 20, 40, 60, 60]);
        assert_eq!(fruitless[19], 60);
        assert_eq!(seconds(Reached::Responses), 10);
        assert_eq!(seconds(Reached::Stream), 10);
    }

    #[test]
    fn the_random_part_only_shortens_and_no_pause_is_zero() {
        for random in [0.5, 1.0, 7.0, f64::NAN, -1.0] {
            let mut pauses = pauses(random);
            for _ in 0..100 {
                let pause = pauses.after(Reached::Responses);
                assert!(pause >= SHORTEST && pause <= Duration::from_secs(10));
            }
        }
        let mut half = pauses(0.5);
        assert!((0..100).all(|_| half.after(Reached::Responses) >= Duration::from_secs(5)));
    }
}
