//! A subscription, kept over streams: what is said and heard, with the pauses between.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{pending, poll_fn},
    task::{Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use super::{
    resource::{Answer, ResourceType, Update, Wanted},
    retry::{Pauses, Reached},
    settings::AdsSettings,
    variant::{Subscriptions, Taken, subscriptions},
};
use crate::channel::{Channel, GrpcStream, Method};

/// A control plane may have nothing to say for days, so it has to be asked whether it is there: as
/// often as servers bear by default.
const KEEPALIVE: Duration = Duration::from_secs(340);

/// A subscription to resources of a control plane. It does something only while [`Discovery::next`]
/// is awaited; dropped, it ends the subscription.
///
/// It tells everything that happens and keeps no account of it: for that there is
/// [`AdsClient`](super::AdsClient).
pub struct Discovery {
    settings: AdsSettings,
    subscriptions: Box<dyn Subscriptions>,
    pauses: Pauses,
    phase: Phase,
    /// Numbers the streams.
    stream: u64,
    /// The refusals that wait, and until when.
    later: BTreeMap<ResourceType, Instant>,
}

enum Phase {
    /// There is no stream, until then.
    Apart(Option<Instant>),
    /// The call is on its way.
    Opening(Box<GrpcStream>),
    Open {
        stream: Box<GrpcStream>,
        reached: Reached,
        /// What came with the opening.
        first: Option<Bytes>,
    },
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// There is a stream.
    Connected,
    /// It has ended, or could not be had. The next attempt is after a pause.
    Lost {
        /// How far it came.
        reached: Reached,
        /// Why.
        reason: String,
        /// How long the pause is.
        pause: Duration,
    },
    /// A response. It has to be [answered](Discovery::answer).
    Update(Update),
    /// A response that nobody could use; that is said already, or will be after the pause.
    Refused(RefusedUpdate),
    /// A response of this type, which was not asked for.
    Foreign(String),
}

/// A response that is not in force, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedUpdate {
    /// The type of its resources.
    pub resource_type: ResourceType,
    /// Its version.
    pub version: String,
    /// Why, one reason a line.
    pub reason: String,
    /// How long the server is not told: not at all, unless it is the same as before.
    pub pause: Duration,
}

impl Discovery {
    /// A subscription to these types. On each new stream they are asked for in this order.
    pub fn new(
        mut settings: AdsSettings,
        types: impl IntoIterator<Item = (ResourceType, Wanted)>,
    ) -> Self {
        let node = settings.node.clone().into();
        settings.channel.keepalive.get_or_insert(KEEPALIVE);
        // The stream would stay on the old connection, where no sign of life is asked for.
        settings.channel.max_connection_duration = None;
        Self {
            subscriptions: subscriptions(settings.protocol, node, settings.max_resources, types),
            pauses: Pauses::new(settings.retry),
            settings,
            phase: Phase::Apart(None),
            stream: 0,
            later: BTreeMap::new(),
        }
    }

    /// See [`AdsClient::resume`](super::AdsClient::resume).
    pub fn resume(&mut self, resource_type: ResourceType, names: impl IntoIterator<Item = String>) {
        self.subscriptions
            .resume(resource_type, &mut names.into_iter());
    }

    /// See [`AdsClient::subscribe`](super::AdsClient::subscribe).
    pub fn subscribe(&mut self, resource_type: ResourceType, names: BTreeSet<String>) {
        let request = self.subscriptions.want(resource_type, names);
        self.send(request);
    }

    /// How many resources are in force.
    pub fn in_force(&mut self, resource_type: ResourceType) -> usize {
        self.subscriptions.in_force(resource_type)
    }

    /// Says what became of an update; what was refused of it, if anything.
    pub fn answer(&mut self, update: &Update, answer: &Answer) -> Option<RefusedUpdate> {
        let on_this_stream = update.stream == self.stream;
        let refused = self.subscriptions.answer(update, answer, on_this_stream);
        let Some(refused) = refused else {
            if on_this_stream {
                let request = self.subscriptions.accept(update);
                self.send(request);
            }
            return None;
        };
        if on_this_stream {
            self.refuse(update.resource_type, refused.pause);
        }
        Some(RefusedUpdate {
            resource_type: update.resource_type,
            version: update.version.clone(),
            reason: refused.reason,
            pause: refused.pause,
        })
    }

    fn refuse(&mut self, resource_type: ResourceType, pause: Duration) {
        if pause.is_zero() {
            let request = self.subscriptions.refuse(resource_type);
            self.send(request);
        } else {
            self.later.insert(resource_type, Instant::now() + pause);
        }
    }

    /// Without a stream nothing is said: the next one begins with all that counts then.
    fn send(&mut self, request: Option<Bytes>) {
        let (Phase::Opening(stream) | Phase::Open { stream, .. }) = &mut self.phase else {
            return;
        };
        if let Some(request) = request {
            stream.send(request);
        }
    }

    /// What happens next. Nothing is lost when this is dropped before it is ready.
    pub async fn next(&mut self) -> Event {
        loop {
            let stepped = match &mut self.phase {
                Phase::Apart(until) => {
                    if let Some(until) = *until {
                        sleep_until(until).await;
                    }
                    self.open();
                    None
                }
                Phase::Opening(stream) => {
                    let opened = opened(stream).await;
                    Some(self.opened(opened))
                }
                Phase::Open { stream, first, .. } => {
                    let due = self.later.values().min().copied();
                    let message = match first.take() {
                        Some(first) => Some(Ok(first)),
                        None => tokio::select! {
                            message = received(stream) => Some(message),
                            () = at(due) => None,
                        },
                    };
                    match message {
                        Some(Ok(message)) => Some(self.heard(message)),
                        Some(Err(end)) => Some(self.lost(&end)),
                        None => {
                            self.refuse_late();
                            None
                        }
                    }
                }
            };
            if let Some(event) = stepped {
                return event;
            }
        }
    }

    /// A stream on a connection of its own.
    fn open(&mut self) {
        let channel = Channel::new(self.settings.channel.clone());
        let mut method = Method::new(self.subscriptions.method());
        if let Some(authority) = &self.settings.authority {
            method = method.authority(authority.clone());
        }
        let mut stream = channel.stream(&method, self.settings.headers.clone());
        for request in self.subscriptions.begin() {
            stream.send(request);
        }
        self.stream = self.stream.wrapping_add(1);
        self.later.clear();
        self.phase = Phase::Opening(Box::new(stream));
    }

    fn opened(&mut self, opened: Result<Option<Bytes>, Status>) -> Event {
        match (
            opened,
            std::mem::replace(&mut self.phase, Phase::Apart(None)),
        ) {
            (Ok(first), Phase::Opening(stream)) => {
                self.phase = Phase::Open {
                    stream,
                    reached: Reached::Stream,
                    first,
                };
                Event::Connected
            }
            (Err(end), _) => self.lost(&end),
            (Ok(_), _) => self.lost(&ended()),
        }
    }

    fn heard(&mut self, message: Bytes) -> Event {
        if let Phase::Open { reached, .. } = &mut self.phase {
            *reached = Reached::Responses;
        }
        match self.subscriptions.take(message, self.stream) {
            Ok(Taken::Update(update)) => {
                self.later.remove(&update.resource_type);
                Event::Update(update)
            }
            Ok(Taken::Refused(resource_type, version, refused)) => {
                self.later.remove(&resource_type);
                self.refuse(resource_type, refused.pause);
                Event::Refused(RefusedUpdate {
                    resource_type,
                    version,
                    reason: refused.reason,
                    pause: refused.pause,
                })
            }
            Ok(Taken::Foreign(type_url)) => Event::Foreign(type_url),
            Err(error) => {
                let text = format!("the response cannot be read: {error}");
                self.lost(&Status::internal(text))
            }
        }
    }

    fn refuse_late(&mut self) {
        let now = Instant::now();
        let due = self.later.iter().filter(|(_, at)| **at <= now);
        let due: Vec<_> = due.map(|(resource_type, _)| *resource_type).collect();
        for resource_type in due {
            self.later.remove(&resource_type);
            let request = self.subscriptions.refuse(resource_type);
            self.send(request);
        }
    }

    fn lost(&mut self, end: &Status) -> Event {
        let reached = match &self.phase {
            Phase::Open { reached, .. } => *reached,
            Phase::Opening(_) | Phase::Apart(_) => Reached::Nothing,
        };
        let pause = self.pauses.after(reached);
        self.phase = Phase::Apart(Some(Instant::now() + pause));
        let reason = match end.code() {
            tonic::Code::Ok => end.message().to_owned(),
            code => format!("{code:?}: {}", end.message()),
        };
        Event::Lost {
            reached,
            reason,
            pause,
        }
    }
}

/// Waits until the subscription is on its way; the first message may be there already.
async fn opened(stream: &mut GrpcStream) -> Result<Option<Bytes>, Status> {
    poll_fn(|cx| stream.poll_capacity(cx)).await;
    // Without a connection the stream has ended by now.
    poll_fn(|cx| {
        Poll::Ready(match stream.poll_message(cx) {
            Poll::Pending => Ok(None),
            Poll::Ready(Some(first)) => first.map(Some),
            Poll::Ready(None) => Err(ended()),
        })
    })
    .await
}

async fn received(stream: &mut GrpcStream) -> Result<Bytes, Status> {
    poll_fn(|cx| {
        let message = ready!(stream.poll_message(cx));
        Poll::Ready(message.unwrap_or_else(|| Err(ended())))
    })
    .await
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

fn ended() -> Status {
    Status::ok("the server has ended the stream")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ChannelSettings, channel::Target};

    #[tokio::test(start_paused = true)]
    async fn a_frozen_control_plane_is_noticed() {
        let frozen = Target::Embedded(Arc::new(|| {
            let (near, far) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(far).await.unwrap();
                let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
                let head = http::Response::builder().header("content-type", "application/grpc");
                let _body = respond.send_response(head.body(()).unwrap(), false);
                // Nothing more is read or written but what is on its way.
                let served = tokio::time::timeout(Duration::from_secs(1), connection.accept());
                let _ = served.await;
                std::future::pending::<()>().await;
            });
            near
        }));
        let settings = AdsSettings::new(ChannelSettings::new("control-plane", vec![frozen]));
        let mut discovery = Discovery::new(settings, [(ResourceType::CLUSTER, Wanted::All)]);
        assert!(matches!(discovery.next().await, Event::Connected));
        let since = Instant::now();

        let event = discovery.next().await;

        assert!(matches!(event, Event::Lost { .. }), "{event:?}");
        let noticed = since.elapsed().as_secs();
        assert!((300..390).contains(&noticed), "{noticed}");
    }
}
