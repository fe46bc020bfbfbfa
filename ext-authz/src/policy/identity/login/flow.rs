//! A sign-in under way: what has to be known again when the browser comes back.
//!
//! It is kept in a cookie of its own, sealed and short-lived, so that several tabs can sign in at
//! once and nobody else's answer of the provider is taken (RFC 6749, section 10.12).

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as B64};
use serde::{Deserialize, Serialize};

use super::{
    cookie::Names,
    origin::Origin,
    seal::{Keys, random},
};
use crate::policy::{check::Check, identity::keys::sha256};

/// How long a sign-in may take.
const LIFETIME: Duration = Duration::from_secs(600);
/// Sign-ins under way in one browser; the oldest make room.
const MAX_FLOWS: usize = 8;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Flow {
    /// Comes back from the provider.
    pub(super) state: String,
    /// Comes back in the ID token.
    pub(super) nonce: String,
    /// Proves to the token endpoint that the code was asked for here (RFC 7636).
    pub(super) verifier: String,
    /// Where the browser wanted to go.
    pub(super) target: String,
    pub(super) origin: Origin,
    /// Seconds since 1970.
    began: u64,
}

impl Flow {
    /// `None` when the machine has no randomness.
    pub(super) fn begin(origin: Origin, target: String, now: u64) -> Option<Self> {
        Some(Self {
            state: random()?,
            nonce: random()?,
            verifier: random()?,
            target,
            origin,
            began: now,
        })
    }

    /// What the provider compares with the verifier (RFC 7636, S256).
    pub(super) fn challenge(&self) -> String {
        B64.encode(sha256(self.verifier.as_bytes()))
    }

    /// The `set-cookie` lines that make the browser remember, and forget the oldest if there are
    /// many. `None` when nothing could be sealed.
    pub(super) fn remember(
        &self,
        check: &Check<'_>,
        keys: &Keys,
        names: &Names,
    ) -> Option<Vec<String>> {
        let name = names.flow(&self.state);
        let sealed = keys.seal(&purpose(&name), serde_json::to_vec(self).ok()?)?;
        let mut lines = vec![names.keep(&name, &sealed, LIFETIME)];
        let mut others: Vec<(u64, &str)> = check
            .request()
            .cookies()
            .filter(|(name, _)| names.is_flow(name))
            .map(|(name, sealed)| {
                let flow = open(keys, name, sealed);
                (flow.map_or(0, |flow| flow.began), name)
            })
            .collect();
        others.sort_unstable();
        let surplus = (others.len().saturating_add(1)).saturating_sub(MAX_FLOWS);
        let oldest = others.into_iter().take(surplus);
        lines.extend(oldest.map(|(_, name)| names.forget(name)));
        Some(lines)
    }

    /// The sign-in that an answer with this `state` belongs to, if it began in this browser at
    /// this origin, and is not too old.
    pub(super) fn resume(
        check: &Check<'_>,
        keys: &Keys,
        names: &Names,
        state: &str,
        origin: &Origin,
        now: u64,
    ) -> Option<Self> {
        let name = names.flow(state);
        let flow = open(keys, &name, check.cookie(&name).next()?)?;
        let age = now.checked_sub(flow.began)?;
        let same = verify_slices_are_equal(flow.state.as_bytes(), state.as_bytes()).is_ok();
        (same && flow.origin == *origin && age <= LIFETIME.as_secs()).then_some(flow)
    }
}

fn open(keys: &Keys, name: &str, sealed: &str) -> Option<Flow> {
    serde_json::from_slice(&keys.open(&purpose(name), sealed)?).ok()
}

fn purpose(name: &str) -> String {
    format!("sign-in {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{explain::Trail, path::Reading};

    const KEYS: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    struct Fixture {
        keys: Keys,
        names: Names,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                keys: Keys::parse(KEYS).unwrap(),
                names: Names::new("s", true),
            }
        }

        fn with<T>(&self, cookies: &[String], test: impl FnOnce(&Check<'_>, Origin) -> T) -> T {
            let request = http::Request::get("https://shop.test/");
            let request = request.header("cookie", cookies.join("; "));
            let view = crate::testing::view(&request.body(()).unwrap());
            let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
            let origin = Origin::of(&check, None).unwrap();
            test(&check, origin)
        }

        /// A flow and the cookie that a browser keeps of it.
        fn begin(&self, cookies: &[String], now: u64) -> (Flow, String, Vec<String>) {
            self.with(cookies, |check, origin| {
                let flow = Flow::begin(origin, "/a?b".to_owned(), now).unwrap();
                let mut lines = flow.remember(check, &self.keys, &self.names).unwrap();
                let kept = lines.remove(0);
                let cookie = kept.split(';').next().unwrap().to_owned();
                (flow, cookie, lines)
            })
        }

        fn resume(&self, cookies: &[String], state: &str, now: u64) -> Option<Flow> {
            self.with(cookies, |check, origin| {
                Flow::resume(check, &self.keys, &self.names, state, &origin, now)
            })
        }
    }

    #[test]
    fn several_tabs_sign_in_at_once() {
        let fixture = Fixture::new();
        let (one, first, _) = fixture.begin(&[], 1000);
        let (two, second, forgotten) = fixture.begin(std::slice::from_ref(&first), 1001);
        assert!(forgotten.is_empty());
        let both = [first, second];
        assert_eq!(fixture.resume(&both, &one.state, 1500), Some(one));
        assert_eq!(fixture.resume(&both, &two.state, 1500), Some(two));
    }

    #[test]
    fn an_answer_is_taken_only_by_the_browser_that_asked_and_in_time() {
        let fixture = Fixture::new();
        let (flow, cookie, _) = fixture.begin(&[], 1000);
        let own = [cookie.clone()];
        assert_eq!(fixture.resume(&[], &flow.state, 1000), None);
        assert_eq!(fixture.resume(&own, &flow.state, 1600), Some(flow.clone()));
        assert_eq!(fixture.resume(&own, &flow.state, 1601), None);
        assert_eq!(fixture.resume(&own, &flow.state, 999), None);
        // The name has only the beginning of the state.
        let similar = format!("{}{}", &flow.state[..8], &"A".repeat(35));
        assert_eq!(fixture.resume(&own, &similar, 1000), None);
        for state in ["", "A", "ä", &flow.state[..8]] {
            assert_eq!(fixture.resume(&own, state, 1000), None, "{state}");
        }
        // One cookie's value under another's name.
        let (other, _, _) = fixture.begin(&[], 1000);
        let sealed = cookie.split_once('=').unwrap().1;
        let moved = [format!("{}={sealed}", fixture.names.flow(&other.state))];
        assert_eq!(fixture.resume(&moved, &other.state, 1000), None);
    }

    #[test]
    fn a_sign_in_goes_on_only_where_it_began() {
        let fixture = Fixture::new();
        let (flow, cookie, _) = fixture.begin(&[], 1000);
        let request = http::Request::get("https://other.test/").header("cookie", &cookie);
        let view = crate::testing::view(&request.body(()).unwrap());
        let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        let origin = Origin::of(&check, None).unwrap();
        let (keys, names) = (&fixture.keys, &fixture.names);
        assert_eq!(
            Flow::resume(&check, keys, names, &flow.state, &origin, 1000),
            None
        );
    }

    #[test]
    fn the_oldest_sign_ins_make_room() {
        let fixture = Fixture::new();
        let mut cookies = vec!["__Host-s_flow_garbage=x".to_owned()];
        for number in 0..6 {
            cookies.push(fixture.begin(&[], 1000 - number).1);
        }
        let (_, cookie, forgotten) = fixture.begin(&cookies, 2000);
        assert!(forgotten.is_empty());
        cookies.push(cookie);
        let (_, _, forgotten) = fixture.begin(&cookies, 2001);
        assert_eq!(forgotten.len(), 1);
        assert!(forgotten[0].starts_with("__Host-s_flow_garbage=; Path=/; Max-Age=0"));
    }

    #[test]
    fn the_challenge_is_that_of_the_rfc() {
        // RFC 7636, appendix B.
        let (mut flow, _, _) = Fixture::new().begin(&[], 0);
        flow.verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".to_owned();
        assert_eq!(
            flow.challenge(),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }
}
