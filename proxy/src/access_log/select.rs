//! Which requests are logged: conditions, and shares of the requests that are the same everywhere.

use std::time::Duration;

use attache_filter::{context::ResponseFlag, matcher::FieldMatcher};

use super::line::Line;

/// Shares are told in millionths.
const MILLION: u64 = 1_000_000;

/// What is logged of the requests.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Which requests are considered at all; all when absent.
    pub filter: Option<Filter>,
    /// Part of them that is logged.
    pub sample: Share,
    /// Log every request that ended with a status of 500 or more, or without any, and every
    /// connection that something went wrong with.
    pub always_errors: bool,
    /// Log every request that took longer.
    pub always_slower: Option<Duration>,
}

impl Default for Selection {
    /// Every request.
    fn default() -> Self {
        Self {
            filter: None,
            sample: Share {
                millionths: MILLION,
                by: By::RequestId,
            },
            always_errors: false,
            always_slower: None,
        }
    }
}

/// A share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    millionths: u64,
    by: By,
}

/// What decides whether a request is in a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Its request id: the first eight hexadecimal digits, as in Envoy.
    RequestId,
    /// Its trace; the request id where there is none.
    TraceId,
    /// Chance.
    Chance,
}

/// A condition on a request that is over.
#[derive(Debug, Clone)]
pub enum Filter {
    /// On its status; 0 where there is none.
    Status(Comparison),
    /// On its duration in milliseconds.
    Duration(Comparison),
    /// On its head.
    Header(Box<FieldMatcher>),
    /// One of these went wrong; anything where there are none.
    Flags(Vec<ResponseFlag>),
    /// On the status of a gRPC call.
    Grpc {
        /// Codes.
        codes: Vec<i32>,
        /// Others than these are meant.
        exclude: bool,
    },
    /// It is in a share.
    Share(Share),
    /// Its trace is recorded.
    Traceable,
    /// All of these.
    All(Vec<Filter>),
    /// One of these.
    Any(Vec<Filter>),
}

/// A comparison with a figure.
#[derive(Debug, Clone, Copy)]
pub enum Comparison {
    /// Equal to it.
    Equal(u64),
    /// Not equal to it.
    NotEqual(u64),
    /// It or more.
    AtLeast(u64),
    /// It or less.
    AtMost(u64),
}

impl Comparison {
    pub(crate) fn holds(self, figure: u64) -> bool {
        match self {
            Self::Equal(with) => figure == with,
            Self::NotEqual(with) => figure != with,
            Self::AtLeast(with) => figure >= with,
            Self::AtMost(with) => figure <= with,
        }
    }
}

impl Share {
    /// A share of 0 to 1.
    pub fn of(rate: f64, by: By) -> Self {
        // Between 0 and a million, by the bounds of `rate`.
        let millionths = (rate.clamp(0.0, 1.0) * MILLION as f64).round() as u64;
        Self { millionths, by }
    }

    fn takes(self, line: &Line) -> bool {
        if self.millionths >= MILLION || self.millionths == 0 {
            return self.millionths > 0;
        }
        let trace = || {
            line.context
                .trace
                .as_ref()
                .map(|trace| trace.trace.spread())
        };
        let id = || line.request_id().map(spread);
        let number = match self.by {
            By::RequestId => id(),
            By::TraceId => trace().or_else(id),
            By::Chance => None,
        };
        let number = number.unwrap_or_else(rand::random);
        number % MILLION < self.millionths
    }
}

/// A number for a request id that is the same wherever it is seen.
fn spread(id: &[u8]) -> u64 {
    let digits = id.get(..8).and_then(|digits| str::from_utf8(digits).ok());
    let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    // FNV-1a, for ids that are no UUIDs.
    number.unwrap_or_else(|| {
        id.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    })
}

impl Filter {
    fn holds(&self, line: &Line) -> bool {
        match self {
            Self::Status(comparison) => comparison.holds(line.status_number().into()),
            Self::Duration(comparison) => {
                let millis = line.finished.duration.as_millis();
                comparison.holds(u64::try_from(millis).unwrap_or(u64::MAX))
            }
            Self::Header(matcher) => line.request().is_some_and(|head| matcher.matches(head)),
            Self::Flags(wanted) => {
                let flags = line.context.flags();
                match wanted.as_slice() {
                    [] => !flags.is_empty(),
                    wanted => wanted.iter().any(|flag| flags.contains(flag)),
                }
            }
            Self::Grpc { codes, exclude } => codes.contains(&line.grpc_code()) != *exclude,
            Self::Share(share) => share.takes(line),
            Self::Traceable => line.context.trace.as_ref().is_some_and(|t| t.sampled),
            Self::All(filters) => filters.iter().all(|filter| filter.holds(line)),
            Self::Any(filters) => filters.iter().any(|filter| filter.holds(line)),
        }
    }

    /// Whether it looks at the head of the request.
    pub(crate) fn reads_request(&self) -> bool {
        match self {
            Self::Header(_) => true,
            Self::All(filters) | Self::Any(filters) => filters.iter().any(Self::reads_request),
            _ => false,
        }
    }
}

impl Selection {
    /// Whether a request is logged.
    pub(super) fn takes(&self, line: &Line) -> bool {
        if self.filter.as_ref().is_some_and(|f| !f.holds(line)) {
            return false;
        }
        (self.always_errors && line.failed())
            || self
                .always_slower
                .is_some_and(|limit| line.finished.duration > limit)
            || self.sample.takes(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_the_same_number_everywhere() {
        assert_eq!(spread(b"0000000a-1111-4111-8111-111111111111"), 10);
        assert_eq!(spread(b"FFFFFFFF"), u64::from(u32::MAX));
        assert_eq!(spread(b"not-a-uuid"), spread(b"not-a-uuid"));
        assert_ne!(spread(b"not-a-uuid"), spread(b"not-a-uuie"));
    }

    #[test]
    fn figures_are_compared() {
        assert!(Comparison::AtLeast(500).holds(500) && !Comparison::AtLeast(500).holds(499));
        assert!(Comparison::AtMost(5).holds(5) && !Comparison::AtMost(5).holds(6));
        assert!(Comparison::Equal(5).holds(5) && !Comparison::Equal(5).holds(6));
        assert!(Comparison::NotEqual(5).holds(6) && !Comparison::NotEqual(5).holds(5));
    }
}
