//! What one watcher is told: a stream of server-sent events.
//!
//! | event | data |
//! |---|---|
//! | `request` | one request, as it is known; its id counts up |
//! | `status` | who watches, what was lost, which taps wait |

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{Live, ring::Stage};

/// Requests are told together that come within this time.
const PACE: Duration = Duration::from_millis(50);
/// How often a watcher hears that nothing happens.
const SILENCE: Duration = Duration::from_secs(5);
/// How long one stream lasts: less than a connection of the admin endpoint. The page asks for
/// another then, where this one ended.
const LIFETIME: Duration = Duration::from_secs(240);

/// Somebody who watches, until dropped.
pub(super) struct Watcher {
    live: Live,
    news: watch::Receiver<()>,
    /// The last that it was told.
    at: u64,
    /// Of the requests that were over since it came: those that it was told.
    told: u64,
    /// Requests that were over when it came, and those that had not been noted.
    before: (u64, u64),
    until: Instant,
    greeted: bool,
}

impl Watcher {
    /// One more, if there are not too many. `seen` is the last event of an earlier stream.
    pub(super) fn enter(live: &Live, seen: Option<&str>) -> Option<Self> {
        let news = live.enter()?;
        let skipped = live.skipped();
        let over = live.state().over;
        let seen = seen.and_then(|seen| {
            let (born, at) = seen.split_once('-')?;
            (born.parse() == Ok(live.0.born))
                .then_some(at)?
                .parse()
                .ok()
        });
        Some(Self {
            live: live.clone(),
            news,
            at: seen.unwrap_or(0),
            told: 0,
            before: (over, skipped),
            until: Instant::now() + LIFETIME,
            greeted: false,
        })
    }

    /// The events, as the text of their protocol.
    pub(super) fn events(self) -> impl Stream<Item = Bytes> + Send {
        futures_util::stream::unfold(self, |mut watcher| async move {
            let text = watcher.next().await?;
            Some((Bytes::from(text), watcher))
        })
    }

    async fn next(&mut self) -> Option<String> {
        if !self.greeted {
            self.greeted = true;
            self.news.mark_unchanged();
            return Some(self.tell());
        }
        if Instant::now() >= self.until {
            return None;
        }
        // Time that passes in silence is told too.
        let heard = timeout_at(Instant::now() + SILENCE, self.news.changed()).await;
        if heard.is_ok() {
            sleep(PACE).await;
            self.news.mark_unchanged();
        }
        Some(self.tell())
    }

    /// Everything that it does not know.
    fn tell(&mut self) -> String {
        let (entries, over, taps, watchers) = {
            let state = self.live.state();
            let entries = state.ring.after(self.at);
            (entries, state.over, state.taps.show(), state.watchers)
        };
        self.live.make_room();
        let mut text = String::new();
        let born = self.live.0.born;
        for entry in entries {
            self.at = self.at.max(entry.at);
            if entry.stage != Stage::Running && entry.over > self.before.0 {
                self.told = self.told.saturating_add(1);
            }
            let (at, data) = (entry.at, entry.text);
            text.push_str(&format!(
                "event: request\nid: {born}-{at}\ndata: {data}\n\n"
            ));
        }
        let (before, skipped) = self.before;
        let passed = over.saturating_sub(before);
        let lost = passed.saturating_sub(self.told);
        let lost = lost.saturating_add(self.live.skipped().saturating_sub(skipped));
        let status =
            json!({ "born": born.to_string(), "watchers": watchers, "lost": lost, "taps": taps });
        text.push_str(&format!("event: status\ndata: {status}\n\n"));
        text
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.live.leave();
    }
}
