//! A share of the requests: Envoy's `RuntimeFractionalPercent`.

use attache_service::{config_enum, config_struct};
use rand::Rng;

config_enum! {
    /// Envoy's `type.v3.FractionalPercent.DenominatorType`.
    pub enum Denominator {
        /// Per hundred.
        Hundred = "HUNDRED",
        /// Per ten thousand.
        TenThousand = "TEN_THOUSAND",
        /// Per million.
        Million = "MILLION",
    }
}

config_struct! {
    /// Envoy's `type.v3.FractionalPercent`.
    pub struct FractionalPercent {
        /// How many of the denominator. Default 0.
        pub numerator: Option<u32>,
        /// Out of how many. Default `HUNDRED`.
        pub denominator: Option<Denominator>,
    }
}

config_struct! {
    /// Envoy's `config.core.v3.RuntimeFractionalPercent`.
    pub struct RuntimeFractionalPercent {
        /// The share.
        pub default_value: FractionalPercent,
    }
    elsewhere {
        "runtime_key" => "there is no runtime layer here: change the value and reload",
    }
}

/// A share of the requests, compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    /// All requests.
    pub const ALL: Self = Self {
        numerator: 1,
        denominator: 1,
    };

    /// The share as configured; all requests when it is not.
    pub fn plan(raw: Option<&RuntimeFractionalPercent>) -> Self {
        let Some(RuntimeFractionalPercent {
            default_value: percent,
        }) = raw
        else {
            return Self::ALL;
        };
        let denominator = match percent.denominator {
            None | Some(Denominator::Hundred) => 100,
            Some(Denominator::TenThousand) => 10_000,
            Some(Denominator::Million) => 1_000_000,
        };
        Self {
            numerator: percent.numerator.unwrap_or(0),
            denominator,
        }
    }

    /// Whether no request is in it.
    pub fn is_none(self) -> bool {
        self.numerator == 0
    }

    /// Whether every request is in it.
    pub fn is_all(self) -> bool {
        self.numerator >= self.denominator
    }

    /// Tosses for one request.
    pub fn sample(self) -> bool {
        if self.is_all() {
            return true;
        }
        !self.is_none() && rand::rng().random_range(0..self.denominator) < self.numerator
    }
}

impl std::fmt::Display for Fraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.numerator, self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_and_all_are_never_left_to_chance() {
        let share = |numerator| {
            Fraction::plan(Some(&RuntimeFractionalPercent {
                default_value: FractionalPercent {
                    numerator: Some(numerator),
                    denominator: None,
                },
            }))
        };
        for _ in 0..1000 {
            assert!(!share(0).sample());
            assert!(share(100).sample() && share(101).sample());
        }
        let half = (0..10_000).filter(|_| share(50).sample()).count();
        assert!((4_000..6_000).contains(&half), "{half}");
        assert!(Fraction::plan(None).sample());
    }
}
