//! A session: who signed in, and how long that holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::seal::Keys;

/// An access token is replaced this long before it ends, in seconds; a short-lived one when half
/// of its time is over.
const MARGIN: u64 = 30;

/// What a browser keeps for us, sealed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Names it where it must not be used any more.
    pub(super) id: String,
    /// When the user signed in, in seconds since 1970.
    pub(super) began: u64,
    /// When a request was last noted.
    pub(super) seen: u64,
    pub(super) claims: Map<String, Value>,
    /// Shown to the provider when the user signs out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) access_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refresh_token: Option<String>,
    /// When the access token has to be replaced, and when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) access: Option<Access>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest is secret or somebody's own.
        f.debug_struct("Session")
            .field("began", &self.began)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// The times of an access token, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Access {
    pub(super) due: u64,
    pub(super) ends: u64,
}

impl Access {
    /// Of a token that was given `now` for so many seconds.
    pub(super) fn new(now: u64, seconds: u64) -> Self {
        let left = seconds.saturating_sub(MARGIN).max(seconds / 2);
        Self {
            due: now.saturating_add(left),
            ends: now.saturating_add(seconds),
        }
    }
}

/// How long sessions last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    pub(super) whole: Duration,
    pub(super) idle: Option<Duration>,
}

/// What is to be done with a session at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It holds; the time at which that has to be looked at again.
    Holds(u64),
    /// It holds, and its last use is to be noted.
    Idle,
    /// The access token has to be replaced; whether it can still be used.
    Stale { usable: bool },
    /// It is over.
    Over,
}

impl Lifetime {
    /// When a session ends if it is not used, in seconds since 1970.
    pub(super) fn end(&self, session: &Session) -> u64 {
        let whole = session.began.saturating_add(self.whole.as_secs());
        let idle = self
            .idle
            .map(|idle| session.seen.saturating_add(idle.as_secs()));
        idle.map_or(whole, |idle| whole.min(idle))
    }

    /// What a session is at a time. `needs_access` tells whether it is of use without a valid
    /// access token.
    pub(super) fn state(&self, session: &Session, needs_access: bool, now: u64) -> State {
        let end = self.end(session);
        if now >= end {
            return State::Over;
        }
        let mut until = end;
        if let Some(access) = session.access {
            if session.refresh_token.is_some() {
                if now >= access.due {
                    let usable = now < access.ends;
                    return State::Stale { usable };
                }
                until = until.min(access.due);
            } else if needs_access {
                if now >= access.ends {
                    return State::Over;
                }
                until = until.min(access.ends);
            }
        }
        // A note of each request would be a cookie in each response.
        if let Some(idle) = self.idle {
            let step = (idle.as_secs() / 10).max(1);
            let note = session.seen.saturating_add(step);
            if now >= note {
                return State::Idle;
            }
            until = until.min(note);
        }
        State::Holds(until)
    }

    /// How long a browser has to keep a session.
    pub(super) fn left(&self, session: &Session, now: u64) -> Duration {
        Duration::from_secs(self.end(session).saturating_sub(now))
    }
}

impl Session {
    /// As a cookie's value. `None` when it cannot be sealed.
    pub(super) fn seal(&self, keys: &Keys, purpose: &str) -> Option<String> {
        keys.seal(purpose, serde_json::to_vec(self).ok()?)
    }

    pub(super) fn open(keys: &Keys, purpose: &str, sealed: &str) -> Option<Self> {
        serde_json::from_slice(&keys.open(purpose, sealed)?).ok()
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The time so many seconds after the beginning of 1970.
pub(super) fn time(seconds: u64) -> SystemTime {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session {
            id: "id".to_owned(),
            began: 1000,
            seen: 1000,
            claims: Map::new(),
            id_token: None,
            access_token: Some("secret-access".to_owned()),
            refresh_token: Some("secret-refresh".to_owned()),
            access: None,
        }
    }

    fn lifetime(whole: u64, idle: Option<u64>) -> Lifetime {
        Lifetime {
            whole: Duration::from_secs(whole),
            idle: idle.map(Duration::from_secs),
        }
    }

    #[test]
    fn sessions_end_at_their_age_or_when_they_are_not_used() {
        let mut session = session();
        let lifetime = lifetime(1000, Some(100));
        for (seen, now, expected) in [
            (1000, 1000, State::Holds(1010)),
            (1000, 1009, State::Holds(1010)),
            (1000, 1010, State::Idle),
            (1000, 1099, State::Idle),
            (1000, 1100, State::Over),
            (1950, 1955, State::Holds(1960)),
            (1995, 1999, State::Holds(2000)),
            (1995, 2000, State::Over),
        ] {
            session.seen = seen;
            assert_eq!(
                lifetime.state(&session, false, now),
                expected,
                "{seen} {now}"
            );
        }
        assert_eq!(lifetime.left(&session, 1999), Duration::from_secs(1));
        assert_eq!(lifetime.left(&session, 3000), Duration::ZERO);
    }

    #[test]
    fn an_access_token_is_replaced_before_it_ends() {
        let lifetime = lifetime(10_000, None);
        let mut session = session();
        session.access = Some(Access::new(1000, 300));
        for (now, expected) in [
            (1000, State::Holds(1270)),
            (1270, State::Stale { usable: true }),
            (1299, State::Stale { usable: true }),
            (1300, State::Stale { usable: false }),
            (11_000, State::Over),
        ] {
            assert_eq!(lifetime.state(&session, false, now), expected, "{now}");
        }
        session.access = Some(Access::new(1000, 40));
        assert_eq!(lifetime.state(&session, false, 1000), State::Holds(1020));
    }

    #[test]
    fn without_a_refresh_token_a_session_outlives_an_access_token_that_nobody_needs() {
        let lifetime = lifetime(10_000, None);
        let mut session = session();
        session.refresh_token = None;
        session.access = Some(Access::new(1000, 300));
        assert_eq!(lifetime.state(&session, false, 2000), State::Holds(11_000));
        assert_eq!(lifetime.state(&session, true, 1299), State::Holds(1300));
        assert_eq!(lifetime.state(&session, true, 1300), State::Over);
    }

    #[test]
    fn sessions_come_back_from_their_cookie_for_the_same_purpose() {
        let keys = Keys::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        let session = session();
        let sealed = session.seal(&keys, "one").unwrap();
        assert_eq!(Session::open(&keys, "one", &sealed), Some(session));
        assert_eq!(Session::open(&keys, "two", &sealed), None);
        let other = keys.seal("one", b"{}".to_vec()).unwrap();
        assert_eq!(Session::open(&keys, "one", &other), None);
    }

    #[test]
    fn logs_do_not_show_tokens() {
        assert!(!format!("{:?}", session()).contains("secret"));
    }
}
