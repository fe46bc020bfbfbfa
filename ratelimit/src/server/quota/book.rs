//! Who subscribes to which buckets, and what they were told: without any I/O.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use attache_proto::rate_limit_quota::{
    RateLimitQuotaResponse, rate_limit_quota_response::BucketAction,
};
use tokio::{sync::Notify, time::Instant};

use super::{
    QuotaSettings,
    assignment::{Assignment, Rate, Standing},
    bucket::{BucketKey, Usage},
    ledger::{Balance, Window},
};

/// Actions that one response holds at most.
const ACTIONS: usize = 1000;

/// One stream, for as long as the book lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct StreamId(u64);

/// All streams and buckets.
#[derive(Debug)]
pub(super) struct Book {
    settings: QuotaSettings,
    streams: HashMap<StreamId, Outbox>,
    buckets: HashMap<BucketKey, Bucket>,
    next: u64,
}

/// What one stream has yet to be told. A later assignment takes the place of an earlier one, so
/// there are no more of them than the stream has buckets.
#[derive(Debug)]
struct Outbox {
    pending: BTreeMap<BucketKey, Assignment>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// `None` until the first charge has been answered.
    standing: Option<Standing>,
    /// When the present window ends, by the latest answer.
    resets: Option<Instant>,
    subscribers: BTreeMap<StreamId, Subscriber>,
    /// Usage that could not be charged yet.
    owed: u64,
}

#[derive(Debug)]
struct Subscriber {
    /// Its latest report.
    heard: Instant,
    told: Option<Assignment>,
}

/// There are as many as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Book {
    pub(super) fn new(settings: QuotaSettings) -> Self {
        Self {
            settings,
            streams: HashMap::new(),
            buckets: HashMap::new(),
            next: 0,
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn buckets(&self) -> usize {
        self.buckets.len()
    }

    pub(super) fn keys(&self) -> Vec<BucketKey> {
        self.buckets.keys().cloned().collect()
    }

    /// A new stream; what it is told is announced by the notification.
    pub(super) fn join(&mut self) -> Result<(StreamId, Arc<Notify>), Full> {
        if self.streams.len() >= self.settings.max_streams {
            return Err(Full);
        }
        let id = StreamId(self.next);
        self.next = self.next.wrapping_add(1);
        let wake = Arc::<Notify>::default();
        self.streams.insert(
            id,
            Outbox {
                pending: BTreeMap::new(),
                wake: wake.clone(),
            },
        );
        Ok((id, wake))
    }

    /// A stream has ended: others get its shares.
    pub(super) fn leave(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
        let unmatched = self.settings.unmatched;
        self.buckets.retain(|key, bucket| {
            if bucket.subscribers.remove(&stream).is_some() {
                bucket.tell(key, None, unmatched, &mut self.streams);
            }
            !bucket.subscribers.is_empty()
        });
    }

    /// A report of one bucket: subscribes the stream to it, and says how much to charge.
    /// [`Book::settle`] or [`Book::owe`] has to follow.
    pub(super) fn report(
        &mut self,
        stream: StreamId,
        key: &BucketKey,
        usage: Usage,
        now: Instant,
    ) -> Result<u64, Full> {
        if !self.buckets.contains_key(key) && self.buckets.len() >= self.settings.max_buckets {
            // The proxy then does what it does without an assignment.
            if let Some(outbox) = self.streams.get_mut(&stream) {
                outbox.put(key, Assignment::Abandon);
            }
            return Err(Full);
        }
        let bucket = self.buckets.entry(key.clone()).or_default();
        let subscriber = bucket.subscribers.entry(stream);
        subscriber
            .and_modify(|subscriber| subscriber.heard = now)
            .or_insert(Subscriber {
                heard: now,
                told: None,
            });
        let charge = usage.within(bucket.seconds_into_window(now));
        Ok(charge.saturating_add(std::mem::take(&mut bucket.owed)))
    }

    /// Usage that could not be charged; it is added to the next report. Assignments stay.
    pub(super) fn owe(&mut self, key: &BucketKey, usage: u64) {
        if let Some(bucket) = self.buckets.get_mut(key) {
            bucket.owed = bucket.owed.saturating_add(usage);
        }
    }

    /// A bucket was charged. Tells the stream that reported it, if one did, and all to whom
    /// something is new.
    pub(super) fn settle(
        &mut self,
        reporter: Option<StreamId>,
        key: &BucketKey,
        balance: Balance,
        now: Instant,
    ) {
        let Some(bucket) = self.buckets.get_mut(key) else {
            return;
        };
        bucket.take(balance, now);
        bucket.tell(key, reporter, self.settings.unmatched, &mut self.streams);
        if bucket.subscribers.is_empty() {
            self.buckets.remove(key);
        }
    }

    /// Lets time pass: windows begin, and subscribers whose assignments have run out are
    /// forgotten.
    pub(super) fn pass(&mut self, now: Instant) {
        let Self {
            settings,
            streams,
            buckets,
            ..
        } = self;
        buckets.retain(|key, bucket| {
            let members = bucket.subscribers.len();
            bucket.subscribers.retain(|_, subscriber| {
                now.saturating_duration_since(subscriber.heard) < settings.assignment_ttl
            });
            let mut changed = bucket.subscribers.len() != members;
            if let Some(Standing::UsedUp { rate, until }) = bucket.standing
                && until <= now
            {
                bucket.standing = Some(Standing::Open(rate));
                changed = true;
            }
            if changed {
                bucket.tell(key, None, settings.unmatched, streams);
            }
            !bucket.subscribers.is_empty()
        });
    }

    /// What a stream has to be told, and how many assignments are among it; `None` when nothing.
    pub(super) fn take(
        &mut self,
        stream: StreamId,
        now: Instant,
    ) -> Option<RateLimitQuotaResponse> {
        let ttl = self.settings.assignment_ttl;
        let outbox = self.streams.get_mut(&stream)?;
        let mut bucket_action = Vec::new();
        while bucket_action.len() < ACTIONS
            && let Some((key, assignment)) = outbox.pending.pop_first()
        {
            bucket_action.push(BucketAction {
                bucket_id: Some(key.to_wire()),
                bucket_action: Some(assignment.to_wire(now, ttl)),
            });
        }
        (!bucket_action.is_empty()).then_some(RateLimitQuotaResponse { bucket_action })
    }

    /// What the subscribers of all buckets may let through in a window, by what they were told
    /// last.
    #[cfg(test)]
    pub(super) fn assigned(&self, key: &BucketKey) -> u64 {
        let told = |subscriber: &Subscriber| match subscriber.told {
            Some(Assignment::Share(rate)) => u64::from(rate.requests),
            _ => 0,
        };
        let bucket = self.buckets.get(key);
        bucket.map_or(0, |bucket| bucket.subscribers.values().map(told).sum())
    }
}

impl Outbox {
    fn put(&mut self, key: &BucketKey, assignment: Assignment) {
        self.pending.insert(key.clone(), assignment);
        self.wake.notify_one();
    }
}

impl Bucket {
    /// Seconds since the present window began; all of time when that is not known.
    fn seconds_into_window(&self, now: Instant) -> u64 {
        let (Some(resets), Some(rate)) = (self.resets, self.rate()) else {
            return u64::MAX;
        };
        let window = Duration::from_secs(rate.seconds);
        match resets.checked_duration_since(now) {
            Some(left) => window.saturating_sub(left).as_secs(),
            None => now.saturating_duration_since(resets).as_secs() % rate.seconds.max(1),
        }
    }

    fn rate(&self) -> Option<Rate> {
        match self.standing {
            Some(Standing::Open(rate) | Standing::UsedUp { rate, .. }) => Some(rate),
            Some(Standing::NoRule | Standing::Unlimited) | None => None,
        }
    }

    fn take(&mut self, balance: Balance, now: Instant) {
        let before = self.standing;
        self.resets = None;
        self.standing = Some(match balance {
            Balance::NoRule => Standing::NoRule,
            Balance::Unlimited => Standing::Unlimited,
            Balance::Limited {
                requests,
                seconds,
                burst,
                window,
            } => {
                let rate = Rate {
                    requests,
                    seconds,
                    burst,
                };
                // An end beyond what a clock can show never comes.
                let end = |window: Window| now.checked_add(Duration::from_secs(window.ends_in));
                self.resets = window.and_then(end);
                match (self.resets, before) {
                    (Some(until), _) if window.is_some_and(|window| window.used_up) => {
                        Standing::UsedUp { rate, until }
                    }
                    // Where hits that do not fit are not counted, the counter does not show that
                    // they came.
                    (Some(_), Some(used_up @ Standing::UsedUp { rate: same, until }))
                        if same == rate && until > now =>
                    {
                        used_up
                    }
                    _ => Standing::Open(rate),
                }
            }
        });
    }

    /// Gives every subscriber its assignment: `reporter` in any case, since its time begins anew
    /// then, and the others when theirs has changed.
    fn tell(
        &mut self,
        key: &BucketKey,
        reporter: Option<StreamId>,
        unmatched: super::Unmatched,
        streams: &mut HashMap<StreamId, Outbox>,
    ) {
        let Some(standing) = self.standing else {
            return;
        };
        let count = self.subscribers.len();
        for (place, (stream, subscriber)) in self.subscribers.iter_mut().enumerate() {
            let assignment = standing.assignment(place, count, unmatched);
            if subscriber.told == Some(assignment) && reporter != Some(*stream) {
                continue;
            }
            subscriber.told = Some(assignment);
            if let Some(outbox) = streams.get_mut(stream) {
                outbox.put(key, assignment);
            }
        }
        self.subscribers
            .retain(|_, subscriber| subscriber.told != Some(Assignment::Abandon));
    }
}

#[cfg(test)]
mod tests;
