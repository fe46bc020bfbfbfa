//! Rate limit quotas (RLQS): proxies count for themselves, report what they let through, and are
//! told how much they may let through.
//!
//! - [`ledger`]: where usage is counted: the counters and rules of a rate limit service.
//!
//! **Rules.** The pairs of a bucket, sorted by key, are the entries of a descriptor, and the rule
//! of that descriptor is the bucket's. Reports add to the counter that rate limit requests with
//! this descriptor add to, so proxies of both kinds share a limit.
//!
//! **Assignments.** A rule's limit is divided equally among the streams that report the bucket.
//! Each gets its share as a token bucket that fills up in one window; when nothing is left of the
//! window, all get a refusal until it ends. Everybody whose share changes is told: when a stream
//! joins or leaves, when a window is used up or begins, when rules change. The answer to a report
//! also makes the assignment last longer.
//!
//! **Bound.** The shares told last add up to the limit at most. What proxies with such token
//! buckets let through in one window is at most the limit twice, a full bucket each and what
//! flows in; and once reports show that the limit is reached, no more.

mod assignment;
mod book;
mod bucket;
pub mod ledger;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use attache_proto::rate_limit_quota::{
    RateLimitQuotaResponse, RateLimitQuotaUsageReports,
    rate_limit_quota_service_server::{RateLimitQuotaService, RateLimitQuotaServiceServer},
};
use attache_service::{
    Metrics,
    metrics::{Counter, Gauge},
};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming, codegen::tokio_stream::Stream, service::Routes};

pub use assignment::Unmatched;
use book::{Book, StreamId};
use bucket::{BucketKey, Usage};
pub use ledger::{Balance, Ledger};

/// How often time is let pass: windows begin, subscribers are forgotten, rules are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What a [`QuotaServer`] is started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaSettings {
    /// How long an assignment holds without a further report; a subscriber that reports nothing
    /// for so long gives its share back. Longer than the proxies' `reporting_interval`. Default
    /// 60 s.
    pub assignment_ttl: Duration,
    /// What is done with buckets that no rule matches.
    pub unmatched: Unmatched,
    /// Streams at a time; more are refused with `RESOURCE_EXHAUSTED`. Default 1,000.
    pub max_streams: usize,
    /// Buckets at a time, of all domains; more are abandoned. Default 100,000.
    pub max_buckets: usize,
}

impl Default for QuotaSettings {
    fn default() -> Self {
        Self {
            assignment_ttl: Duration::from_secs(60),
            unmatched: Unmatched::default(),
            max_streams: 1_000,
            max_buckets: 100_000,
        }
    }
}

/// The service `envoy.service.rate_limit_quota.v3.RateLimitQuotaService`. Cheap to clone: clones
/// share streams and buckets.
#[derive(Debug)]
pub struct QuotaServer<L> {
    inner: Arc<Inner<L>>,
}

#[derive(Debug)]
struct Inner<L> {
    ledger: L,
    book: Mutex<Book>,
    figures: Figures,
    /// Somebody lets time pass.
    ticking: AtomicBool,
}

#[derive(Debug)]
struct Figures {
    streams: Gauge,
    buckets: Gauge,
    reports: Counter,
    assignments: Counter,
    refused_streams: Counter,
    refused_buckets: Counter,
    ledger_errors: Counter,
}

impl<L: Ledger> QuotaServer<L> {
    /// A server of quotas from `ledger`.
    ///
    /// Counted are, in `metrics`: `attache_ratelimit_quota_streams` and `_buckets` (now), and
    /// `_reports`, `_assignments` (both of single buckets), `_refused` by `what` (`streams`,
    /// `buckets`: there were too many) and `_ledger_errors` (reports that could not be charged
    /// yet).
    pub fn new(ledger: L, settings: QuotaSettings, metrics: &Metrics) -> Self {
        Self {
            inner: Arc::new(Inner {
                ledger,
                book: Mutex::new(Book::new(settings)),
                figures: Figures::new(metrics),
                ticking: AtomicBool::new(false),
            }),
        }
    }

    /// The gRPC service, to be hosted.
    pub fn routes(&self) -> Routes {
        Routes::new(self.service())
    }

    /// The gRPC service, to be added to others.
    pub fn service(&self) -> RateLimitQuotaServiceServer<Self> {
        RateLimitQuotaServiceServer::new(self.clone())
    }
}

impl<L> Clone for QuotaServer<L> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

#[tonic::async_trait]
impl<L: Ledger> RateLimitQuotaService for QuotaServer<L> {
    type StreamRateLimitQuotasStream = Responses;

    async fn stream_rate_limit_quotas(
        &self,
        request: Request<Streaming<RateLimitQuotaUsageReports>>,
    ) -> Result<Response<Responses>, Status> {
        let inner = &self.inner;
        let Ok((id, wake)) = inner.book().join() else {
            inner.figures.refused_streams.inc();
            return Err(Status::resource_exhausted("too many streams"));
        };
        let membership = Membership {
            inner: inner.clone(),
            id,
        };
        inner.count();
        // Only here there is a runtime for sure.
        if !inner.ticking.swap(true, Ordering::Relaxed) {
            tokio::spawn(let_time_pass(Arc::downgrade(inner)));
        }
        let (responses, outgoing) = mpsc::channel(1);
        let conversation = Conversation {
            membership,
            wake,
            domain: None,
            responses,
        };
        tokio::spawn(conversation.run(request.into_inner()));
        Ok(Response::new(Responses(outgoing)))
    }
}

/// What a stream is told.
#[derive(Debug)]
pub struct Responses(mpsc::Receiver<Result<RateLimitQuotaResponse, Status>>);

impl Stream for Responses {
    type Item = Result<RateLimitQuotaResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A stream in the book, until it is dropped.
struct Membership<L> {
    inner: Arc<Inner<L>>,
    id: StreamId,
}

impl<L> Drop for Membership<L> {
    fn drop(&mut self) {
        self.inner.book().leave(self.id);
        self.inner.count();
    }
}

struct Conversation<L> {
    membership: Membership<L>,
    wake: Arc<Notify>,
    domain: Option<Arc<str>>,
    responses: mpsc::Sender<Result<RateLimitQuotaResponse, Status>>,
}

impl<L: Ledger> Conversation<L> {
    /// Until either side ends it. While the proxy does not read, its reports are not read either.
    async fn run(mut self, mut reports: Streaming<RateLimitQuotaUsageReports>) {
        let wake = self.wake.clone();
        loop {
            tokio::select! {
                message = reports.message() => {
                    let taken = match message {
                        Ok(Some(reports)) => self.take(&reports).await,
                        Ok(None) | Err(_) => return,
                    };
                    if let Err(status) = taken {
                        // Fails only when the proxy has gone.
                        let _ = self.responses.send(Err(status)).await;
                        return;
                    }
                }
                () = wake.notified() => {}
                () = self.responses.closed() => return,
            }
            if self.tell().await.is_err() {
                return;
            }
        }
    }

    /// Sends all that waits for the stream. An error: the proxy has gone.
    async fn tell(&self) -> Result<(), mpsc::error::SendError<()>> {
        let inner = &self.membership.inner;
        loop {
            let permit = self.responses.reserve().await?;
            let next = inner.book().take(self.membership.id, Instant::now());
            let Some(response) = next else {
                return Ok(());
            };
            let assignments = response.bucket_action.len() as u64;
            inner.figures.assignments.inc_by(assignments);
            permit.send(Ok(response));
        }
    }

    async fn take(&mut self, reports: &RateLimitQuotaUsageReports) -> Result<(), Status> {
        let domain = self.domain_of(reports)?;
        for usage in &reports.bucket_quota_usages {
            let key = BucketKey::read(&domain, usage.bucket_id.as_ref())
                .map_err(|malformed| Status::invalid_argument(malformed.to_string()))?;
            self.report(&key, Usage::read(usage)).await;
        }
        Ok(())
    }

    /// The domain stands in the first message; in later ones it may stand again.
    fn domain_of(&mut self, reports: &RateLimitQuotaUsageReports) -> Result<Arc<str>, Status> {
        let domain = match &self.domain {
            None if reports.domain.is_empty() => {
                return Err(Status::invalid_argument(
                    "the first usage report has no domain",
                ));
            }
            None => Arc::from(&*reports.domain),
            Some(known) if reports.domain.is_empty() || reports.domain == **known => known.clone(),
            Some(_) => {
                return Err(Status::invalid_argument(
                    "the domain of a stream does not change",
                ));
            }
        };
        self.domain = Some(domain.clone());
        Ok(domain)
    }

    async fn report(&self, key: &BucketKey, usage: Usage) {
        let inner = &self.membership.inner;
        inner.figures.reports.inc();
        let id = self.membership.id;
        let Ok(charge) = inner.book().report(id, key, usage, Instant::now()) else {
            inner.figures.refused_buckets.inc();
            return;
        };
        inner.charge(Some(id), key, charge).await;
        inner.count();
    }
}

impl<L> Inner<L> {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        let book = self.book();
        let show = |gauge: &Gauge, number: usize| {
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        show(&self.figures.streams, book.streams());
        show(&self.figures.buckets, book.buckets());
    }
}

impl<L: Ledger> Inner<L> {
    async fn charge(&self, reporter: Option<StreamId>, key: &BucketKey, hits: u64) {
        let charged = self.ledger.charge(&key.domain, key.descriptor(hits));
        match charged.await {
            Ok(balance) => self.book().settle(reporter, key, balance, Instant::now()),
            Err(error) => {
                tracing::debug!(%error, domain = &*key.domain, "usage not charged yet");
                self.figures.ledger_errors.inc();
                self.book().owe(key, hits);
            }
        }
    }
}

/// For as long as the server lives.
async fn let_time_pass<L: Ledger>(inner: Weak<Inner<L>>) {
    let Some(generation) = inner.upgrade().map(|inner| inner.ledger.generation()) else {
        return;
    };
    let mut known = generation;
    loop {
        tokio::time::sleep(TICK).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut passed = Instant::now();
        inner.book().pass(passed);
        inner.count();
        let generation = inner.ledger.generation();
        if generation != known {
            known = generation;
            let keys = inner.book().keys();
            for key in keys {
                inner.charge(None, &key, 0).await;
                // However long that takes for all of them.
                if passed.elapsed() >= TICK {
                    passed = Instant::now();
                    inner.book().pass(passed);
                }
            }
        }
    }
}

impl Figures {
    fn new(metrics: &Metrics) -> Self {
        let gauge = |name: &str, help: &str| {
            metrics.gauge(&format!("attache_ratelimit_quota_{name}"), help, &[])
        };
        let counter = |name: &str, help: &str| {
            metrics.counter(&format!("attache_ratelimit_quota_{name}"), help, &[])
        };
        let refused = |what| {
            metrics.counter(
                "attache_ratelimit_quota_refused",
                "What was refused since there was too much of it.",
                &[("what", what)],
            )
        };
        Self {
            streams: gauge("streams", "Streams of proxies."),
            buckets: gauge("buckets", "Buckets that proxies report."),
            reports: counter("reports", "Usage reports of single buckets."),
            assignments: counter("assignments", "Assignments sent."),
            refused_streams: refused("streams"),
            refused_buckets: refused("buckets"),
            ledger_errors: counter(
                "ledger_errors",
                "Usage reports that could not be charged when they came.",
            ),
        }
    }
}
