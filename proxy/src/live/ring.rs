//! The last requests, each with what is to be shown of it.

use std::{collections::VecDeque, sync::Arc};

use super::MAX_REQUESTS;

/// Most requests that were looked at in full which are kept beside the others.
const MAX_TAPPED: usize = 4;

/// How far a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is on its way.
    Running,
    /// It is over.
    Over,
    /// It is over, and was looked at in full: it stays when others make place.
    Tapped,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// Grows with everything that is shown.
    pub(super) at: u64,
    request: u64,
    pub(super) stage: Stage,
    /// How many requests were over then.
    pub(super) over: u64,
    pub(super) text: Arc<str>,
}

/// The last requests, in the order in which they became what they are.
#[derive(Debug, Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
    tapped: VecDeque<Entry>,
    last: u64,
}

impl Ring {
    /// Puts a request in the place of what was known of it.
    pub(super) fn push(&mut self, request: u64, stage: Stage, over: u64, text: Arc<str>) {
        self.entries.retain(|entry| entry.request != request);
        if self.entries.len() >= MAX_REQUESTS {
            self.make_place();
        }
        self.last = self.last.saturating_add(1);
        self.entries.push_back(Entry {
            at: self.last,
            request,
            stage,
            over,
            text,
        });
    }

    fn make_place(&mut self) {
        let Some(oldest) = self.entries.pop_front() else {
            return;
        };
        if oldest.stage != Stage::Tapped {
            return;
        }
        if self.tapped.len() >= MAX_TAPPED {
            self.tapped.pop_front();
        }
        self.tapped.push_back(oldest);
    }

    /// What became known after `at`, in its order.
    pub(super) fn after(&self, at: u64) -> Vec<Entry> {
        let all = self.tapped.iter().chain(&self.entries);
        all.filter(|entry| entry.at > at).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(ring: &Ring, at: u64) -> Vec<String> {
        let after = ring.after(at).into_iter();
        after.map(|entry| entry.text.to_string()).collect()
    }

    #[test]
    fn a_request_that_is_over_takes_the_place_of_the_one_on_its_way() {
        let mut ring = Ring::default();
        ring.push(1, Stage::Running, 0, "1 runs".into());
        ring.push(2, Stage::Running, 0, "2 runs".into());
        ring.push(1, Stage::Over, 1, "1 over".into());
        assert_eq!(texts(&ring, 0), ["2 runs", "1 over"]);
        assert_eq!(texts(&ring, 2), ["1 over"]);
        assert!(texts(&ring, 3).is_empty());
    }

    #[test]
    fn the_oldest_make_place_and_the_tapped_stay() {
        let mut ring = Ring::default();
        ring.push(0, Stage::Tapped, 1, "in full".into());
        for request in 1..=500 {
            ring.push(request, Stage::Over, request, format!("{request}").into());
        }
        let kept = texts(&ring, 0);
        assert_eq!(kept.len(), MAX_REQUESTS + 1);
        assert_eq!((&*kept[0], &*kept[1]), ("in full", "301"));
        for request in 1000..1500 {
            ring.push(request, Stage::Tapped, request, format!("{request}").into());
        }
        let kept = texts(&ring, 0);
        assert_eq!(kept.len(), MAX_REQUESTS + MAX_TAPPED);
        assert_eq!(kept[0], "1296");
    }
}
