//! Copies of requests to other clusters (`request_mirror_policies`): sent and forgotten.
//!
//! A copy shares the bytes of the body with its request and never holds it up: when the copy's
//! upstream takes them too slowly, the copy is cut off. Nothing that happens to a copy touches
//! its request.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use attache_filter::{Body, BoxError, RequestContext, head};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Version, request};
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::Instant,
};

use crate::{
    route::{Changes, Forward, Mirror, MirrorHost},
    router::{fit, say_empty},
    stats::ClusterStats,
    upstream::{
        Cluster, Endpoint, Limits, UploadBody, UpstreamBody, Waited, exchange, note, within,
    },
};

/// Copies that one worker may have under way at a time; more are left out.
const MOST_RUNNING: usize = 1024;
/// Bytes of a body that a copy may lag behind its request; more and it is cut off.
const MOST_PENDING: usize = 1 << 20;
/// What a frame counts beside its bytes.
const FRAME: usize = 64;

/// The copies of one worker that are under way.
#[derive(Debug, Default, Clone)]
pub(crate) struct Mirrors {
    running: Arc<AtomicUsize>,
}

impl Mirrors {
    /// Sends the copies of a request that is ready for its upstream. The body that is given back
    /// takes the place of `body`.
    pub(crate) fn copy(
        &self,
        forward: &Forward,
        clusters: &[Arc<Cluster>],
        parts: &request::Parts,
        body: Body,
        context: &RequestContext,
    ) -> Body {
        let chosen = forward.mirrors.iter();
        let chosen = chosen.filter(|mirror| mirror.fraction.sample());
        let mut feeds = Vec::new();
        let empty = body.is_end_stream();
        for mirror in chosen {
            let Some(cluster) = clusters.get(mirror.cluster) else {
                continue;
            };
            let Some(running) = Running::begin(&self.running) else {
                cluster.stats.mirrors_dropped.inc();
                continue;
            };
            let wanted = cluster.wanted(None, &parts.headers, context);
            let Some(endpoint) = cluster.pick(&wanted, 0) else {
                cluster.stats.failed.inc();
                continue;
            };
            cluster.stats.mirrored.inc();
            let copy = match empty {
                true => Body::empty(),
                false => {
                    let (feed, body) = feed(cluster.stats.clone());
                    feeds.push(feed);
                    Body::new(body)
                }
            };
            let parts = mirror.parts(parts, cluster, context);
            let sending = Sending {
                endpoint,
                stats: cluster.stats.clone(),
                timeout: forward.timeout,
                idle: forward.idle_timeout,
                _running: running,
            };
            tokio::spawn(sending.run(parts, copy));
        }
        match feeds.is_empty() {
            true => body,
            false => copied(body, feeds),
        }
    }
}

impl Mirror {
    /// The head of the copy.
    fn parts(
        &self,
        parts: &request::Parts,
        cluster: &Cluster,
        context: &RequestContext,
    ) -> request::Parts {
        let mut copy = parts.clone();
        let host = match &self.host {
            MirrorHost::Same => None,
            MirrorHost::Literal(host) => Some(host.clone()),
            MirrorHost::Shadow => head::authority(parts).and_then(shadow),
        };
        let changes = Changes {
            request: self.changes.clone(),
            response: Vec::new(),
        };
        changes.request(&mut copy, context);
        fit(&mut copy, cluster, context, host, None);
        copy
    }
}

/// A host with `-shadow` behind its name.
fn shadow(host: &str) -> Option<HeaderValue> {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            (name, Some(port))
        }
        _ => (host, None),
    };
    let host = match port {
        Some(port) => format!("{name}-shadow:{port}"),
        None => format!("{name}-shadow"),
    };
    HeaderValue::try_from(host).ok()
}

/// Counts a copy as under way until dropped.
struct Running(Arc<AtomicUsize>);

impl Running {
    fn begin(running: &Arc<AtomicUsize>) -> Option<Self> {
        if running.load(Ordering::Relaxed) >= MOST_RUNNING {
            return None;
        }
        running.fetch_add(1, Ordering::Relaxed);
        Some(Self(running.clone()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A copy on its way.
struct Sending {
    endpoint: Endpoint,
    stats: ClusterStats,
    timeout: Option<Duration>,
    idle: Option<Duration>,
    _running: Running,
}

impl Sending {
    async fn run(mut self, mut parts: request::Parts, body: Body) {
        let (body, upload) = UploadBody::new(body, None);
        if upload.is_none() {
            say_empty(&mut parts);
        }
        let mut request = Request::from_parts(parts, body);
        let started = Instant::now();
        let limits = Limits {
            started,
            timeout: self.timeout,
            idle: self.idle,
            attempt: started,
            attempt_timeout: None,
            attempt_idle: None,
            lifetime: None,
        };
        let ended = {
            let exchange = pin!(exchange(&self.endpoint.own, &mut request));
            within(exchange, limits, upload.as_deref()).await
        };
        note(&mut self.endpoint, &ended);
        let Waited::Done(Ok((response, lease))) = ended else {
            self.stats.failed.inc();
            return;
        };
        self.stats.count(response.status());
        // What becomes of the copy is no matter of the request's access log.
        let context = Arc::new(RequestContext::new(Arc::default(), Version::HTTP_11));
        let body = response.into_body();
        let mut body = pin!(UpstreamBody::new(
            body,
            self.endpoint,
            lease,
            None,
            upload,
            &limits,
            context
        ));
        while let Some(Ok(_)) = body.frame().await {}
    }
}

/// A piece of a body, or its end.
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// The end of a copy's body that is written to.
struct Feed {
    pieces: UnboundedSender<Piece>,
    pending: Arc<AtomicUsize>,
    stats: ClusterStats,
    open: bool,
}

/// The end that the copy's upstream reads. Without its last piece the copy is broken off, never
/// ended.
struct Fed {
    pieces: UnboundedReceiver<Piece>,
    pending: Arc<AtomicUsize>,
    ended: bool,
}

fn feed(stats: ClusterStats) -> (Feed, Fed) {
    let (sender, receiver) = unbounded_channel();
    let pending = Arc::new(AtomicUsize::new(0));
    let feed = Feed {
        pieces: sender,
        pending: pending.clone(),
        stats,
        open: true,
    };
    let fed = Fed {
        pieces: receiver,
        pending,
        ended: false,
    };
    (feed, fed)
}

impl Feed {
    fn send(&mut self, piece: Piece, length: usize) {
        let weight = length.saturating_add(FRAME);
        if !self.open {
            return;
        }
        let before = self.pending.fetch_add(weight, Ordering::Relaxed);
        if before.saturating_add(weight) > MOST_PENDING {
            self.stats.mirrors_cut_off.inc();
            self.close();
        } else if self.pieces.send(piece).is_err() {
            self.open = false;
        }
    }

    /// Without an end, the copy breaks off.
    fn close(&mut self) {
        self.open = false;
        self.pieces = unbounded_channel().0;
    }
}

/// The body of a request that copies are made of.
fn copied(body: Body, mut feeds: Vec<Feed>) -> Body {
    body.watched(move |frame, ended| {
        for feed in &mut feeds {
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        feed.send(Piece::Data(data.clone()), data.len());
                    } else if let Some(trailers) = frame.trailers_ref() {
                        feed.send(Piece::Trailers(trailers.clone()), 0);
                    }
                }
                Some(Err(_)) => feed.close(),
                None => {}
            }
            if ended {
                feed.send(Piece::End, 0);
            }
        }
    })
}

impl HttpBody for Fed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        Poll::Ready(match piece {
            Some(Piece::Data(data)) => {
                let weight = data.len().saturating_add(FRAME);
                self.pending.fetch_sub(weight, Ordering::Relaxed);
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => {
                self.ended = true;
                Some(Err("the request that is copied broke off".into()))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use attache_service::Metrics;

    use super::*;

    fn stats() -> (ClusterStats, Metrics) {
        let metrics = Metrics::default();
        (ClusterStats::new("copy", &metrics), metrics)
    }

    #[test]
    fn the_shadow_of_a_host_keeps_its_port() {
        for (host, wanted) in [
            ("a.test", "a.test-shadow"),
            ("a.test:80", "a.test-shadow:80"),
            ("[::1]:80", "[::1]-shadow:80"),
        ] {
            assert_eq!(shadow(host).unwrap(), wanted);
        }
    }

    #[tokio::test]
    async fn a_copy_gets_the_whole_body_and_the_request_does_too() {
        let (feed, fed) = feed(stats().0);
        let copied = copied(Body::from("hello"), vec![feed]);
        assert_eq!(copied.collect().await.unwrap().to_bytes(), "hello");
        assert_eq!(fed.collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn a_copy_that_lags_behind_is_cut_off_and_the_request_goes_on() {
        let (stats, metrics) = stats();
        let (mut feed, mut fed) = feed(stats);
        let piece = Bytes::from(vec![0; MOST_PENDING / 2]);
        feed.send(Piece::Data(piece.clone()), piece.len());
        feed.send(Piece::Data(piece.clone()), piece.len());
        feed.send(Piece::End, 0);
        assert!(fed.frame().await.unwrap().is_ok());
        assert!(fed.frame().await.unwrap().is_err());
        assert!(
            metrics
                .render()
                .contains("mirrors_cut_off_total{cluster=\"copy\"} 1")
        );
    }

    #[tokio::test]
    async fn a_request_that_breaks_off_breaks_its_copy_off() {
        let (feed, mut fed) = feed(stats().0);
        drop(copied(Body::from("hello"), vec![feed]));
        assert!(fed.frame().await.unwrap().is_err());
        assert!(fed.frame().await.is_none());
    }
}
