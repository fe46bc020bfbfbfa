//! Replacing access tokens: once for each session, however many requests come at once.
//!
//! A provider may take a second use of a refresh token for a theft (RFC 9700, section 4.14). So
//! all requests with the same cookie share one refresh, and its outcome stays known for those
//! that the browser sent before it got the new cookie.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::session::Session;

/// Refreshes that are known, those under way included.
const MAX_KNOWN: usize = 4096;
/// How long an outcome stays known.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// How long a failed one does; then it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How a refresh ended.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// The session goes on as this one.
    Fresh(Arc<Session>),
    /// The provider ended it.
    Over,
    /// The provider did not tell; why, is for the log.
    Failed(String),
}

/// The refreshes of one source.
#[derive(Debug, Default)]
pub(super) struct Refreshes(Mutex<HashMap<Key, Flight>>);

/// A session, and when its access token was to be replaced.
type Key = (String, u64);

#[derive(Debug)]
struct Flight {
    began: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Flight {
    fn known(&self) -> bool {
        let failed = matches!(&*self.outcome.borrow(), Some(Outcome::Failed(_)));
        self.began.elapsed() < if failed { RETRY_AFTER } else { KNOWN_FOR }
    }
}

impl Refreshes {
    /// The outcome of the one refresh of a session; `refresh` does it when nobody did. It goes on
    /// when nobody waits for it any more: what the provider gave must not be lost.
    pub(super) async fn join<F>(&self, session: &Session, refresh: impl FnOnce() -> F) -> Outcome
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let Some(mut outcome) = self.flight(session, refresh) else {
            return Outcome::Failed("too many sessions are being refreshed".to_owned());
        };
        let ended = outcome.wait_for(Option::is_some).await;
        let ended = ended.ok().and_then(|outcome| outcome.clone());
        ended.unwrap_or_else(|| Outcome::Failed("the refresh broke off".to_owned()))
    }

    fn flight<F>(
        &self,
        session: &Session,
        refresh: impl FnOnce() -> F,
    ) -> Option<watch::Receiver<Option<Outcome>>>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let due = session.access.map_or(0, |access| access.due);
        let key = (session.id.clone(), due);
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key).filter(|flight| flight.known()) {
            return Some(flight.outcome.clone());
        }
        if flights.len() >= MAX_KNOWN {
            flights.retain(|_, flight| flight.known());
        }
        if flights.len() >= MAX_KNOWN {
            return None;
        }
        let (done, outcome) = watch::channel(None);
        let refresh = refresh();
        tokio::spawn(async move {
            let _ = done.send(Some(refresh.await));
        });
        let flight = Flight {
            began: Instant::now(),
            outcome: outcome.clone(),
        };
        flights.insert(key, flight);
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::Map;

    use super::*;
    use crate::policy::identity::login::session::Access;

    fn session(id: &str) -> Session {
        Session {
            id: id.to_owned(),
            began: 0,
            seen: 0,
            claims: Map::new(),
            id_token: None,
            access_token: None,
            refresh_token: Some("r".to_owned()),
            access: Some(Access { due: 7, ends: 9 }),
        }
    }

    /// Refreshes with this outcome after a second, and how many there were.
    #[derive(Default)]
    struct Fixture {
        refreshes: Refreshes,
        count: Arc<AtomicUsize>,
    }

    impl Fixture {
        async fn join(&self, session: &Session, outcome: Outcome) -> Outcome {
            let count = self.count.clone();
            let refresh = || async move {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(1)).await;
                outcome
            };
            self.refreshes.join(session, refresh).await
        }

        fn count(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }
    }

    fn fresh(id: &str) -> Outcome {
        Outcome::Fresh(Arc::new(session(id)))
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_one_session_share_one_refresh_and_latecomers_its_outcome() {
        let fixture = Fixture::default();
        let (one, two) = (session("a"), session("b"));
        let (first, second, other) = tokio::join!(
            fixture.join(&one, fresh("x")),
            fixture.join(&one, fresh("y")),
            fixture.join(&two, fresh("z")),
        );
        assert_eq!(fixture.count(), 2);
        for outcome in [first, second] {
            assert!(matches!(outcome, Outcome::Fresh(s) if s.id == "x"));
        }
        assert!(matches!(other, Outcome::Fresh(s) if s.id == "z"));

        tokio::time::advance(Duration::from_secs(50)).await;
        let late = fixture.join(&one, fresh("y")).await;
        assert!(matches!(late, Outcome::Fresh(s) if s.id == "x"));
        tokio::time::advance(Duration::from_secs(20)).await;
        fixture.join(&one, fresh("y")).await;
        assert_eq!(fixture.count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_goes_on_when_the_request_is_gone() {
        let fixture = Fixture::default();
        let one = session("a");
        let gone = tokio::time::timeout(Duration::from_millis(1), fixture.join(&one, fresh("x")));
        assert!(gone.await.is_err());
        let next = fixture.join(&one, fresh("y")).await;
        assert!(matches!(next, Outcome::Fresh(s) if s.id == "x"));
        assert_eq!(fixture.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_refresh_is_tried_again_after_a_while() {
        let fixture = Fixture::default();
        let one = session("a");
        for (wait, count) in [(0, 1), (1, 1), (5, 2)] {
            tokio::time::advance(Duration::from_secs(wait)).await;
            let outcome = fixture.join(&one, Outcome::Failed("down".to_owned())).await;
            assert!(matches!(outcome, Outcome::Failed(_)));
            assert_eq!(fixture.count(), count, "{wait}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_bounded() {
        let fixture = Fixture::default();
        let sessions: Vec<_> = (0..MAX_KNOWN).map(|n| session(&n.to_string())).collect();
        for session in &sessions {
            assert!(
                fixture
                    .refreshes
                    .flight(session, || async { Outcome::Over })
                    .is_some()
            );
        }
        let more = session("more");
        assert!(matches!(
            fixture.join(&more, Outcome::Over).await,
            Outcome::Failed(_)
        ));
        tokio::time::advance(KNOWN_FOR).await;
        assert!(matches!(
            fixture.join(&more, Outcome::Over).await,
            Outcome::Over
        ));
    }
}
