//! What the two variants of the protocol have in common, seen from outside: messages as bytes.

use std::{collections::BTreeSet, fmt};

use attache_proto::core::Node;
use bytes::Bytes;
use prost::{DecodeError, Message};
use prost_types::Any;

use super::{
    delta::Delta,
    known::{Known, Refused},
    resource::{Answer, ResourceType, Update, Wanted},
    settings::Protocol,
    sotw::StateOfTheWorld,
};
use crate::channel::encode_message;

/// The subscription to one type in one variant of the protocol: what is said, without the stream.
pub(super) trait Variant: fmt::Debug + Send + 'static {
    /// The path of the call.
    const METHOD: &str;

    type Request: Message;
    type Response: Message + Default;

    fn new(known: Known) -> Self;

    fn known(&mut self) -> &mut Known;

    /// The request with who asks.
    fn by_node(request: Self::Request, node: Node) -> Self::Request;

    fn type_url(response: &Self::Response) -> &str;

    fn version(response: &Self::Response) -> &str;

    /// The first request of a stream, if there is anything to ask.
    fn begin(&mut self) -> Option<Self::Request>;

    /// Asks for these names from here on.
    fn want(&mut self, names: BTreeSet<String>) -> Option<Self::Request>;

    /// Takes a response; one that nobody could use is refused.
    fn take(&mut self, response: Self::Response, stream: u64) -> Result<Update, Refused>;

    /// Remembers what became of an update; the refusal, if it is one.
    fn answer(&mut self, update: &Update, answer: &Answer, on_this_stream: bool)
    -> Option<Refused>;

    /// Says that a response is accepted.
    fn accept(&mut self, update: &Update) -> Option<Self::Request>;

    /// Says that the latest response is refused; `None` when it is said already, or another
    /// response has come since.
    fn refuse(&mut self) -> Option<Self::Request>;
}

/// The subscriptions to all types, whichever variant is spoken. Requests are framed messages.
pub(super) trait Subscriptions: fmt::Debug + Send {
    fn method(&self) -> &'static str;

    /// The first requests of a stream.
    fn begin(&mut self) -> Vec<Bytes>;

    fn want(&mut self, resource_type: ResourceType, names: BTreeSet<String>) -> Option<Bytes>;

    fn resume(&mut self, resource_type: ResourceType, names: &mut dyn Iterator<Item = String>);

    fn take(&mut self, response: Bytes, stream: u64) -> Result<Taken, DecodeError>;

    fn answer(&mut self, update: &Update, answer: &Answer, on_this_stream: bool)
    -> Option<Refused>;

    fn accept(&mut self, update: &Update) -> Option<Bytes>;

    fn refuse(&mut self, resource_type: ResourceType) -> Option<Bytes>;

    /// How many resources are in force.
    fn in_force(&mut self, resource_type: ResourceType) -> usize;
}

/// What a response is.
#[derive(Debug)]
pub(super) enum Taken {
    Update(Update),
    /// Nobody could use it; its type and version.
    Refused(ResourceType, String, Refused),
    /// It is of a type that was not asked for.
    Foreign(String),
}

/// Subscriptions to these types.
pub(super) fn subscriptions(
    protocol: Protocol,
    node: Node,
    max: usize,
    types: impl IntoIterator<Item = (ResourceType, Wanted)>,
) -> Box<dyn Subscriptions> {
    let known = types
        .into_iter()
        .map(|(resource_type, wanted)| Known::new(resource_type, wanted, max));
    match protocol {
        Protocol::StateOfTheWorld => Box::new(Types::<StateOfTheWorld>::new(node, known)),
        Protocol::Delta => Box::new(Types::<Delta>::new(node, known)),
    }
}

#[derive(Debug)]
struct Types<V> {
    node: Node,
    types: Vec<(ResourceType, V)>,
}

impl<V: Variant> Types<V> {
    fn new(node: Node, known: impl Iterator<Item = Known>) -> Self {
        Self {
            node,
            types: known
                .map(|known| (known.resource_type, V::new(known)))
                .collect(),
        }
    }

    fn of(&mut self, resource_type: ResourceType) -> Option<&mut V> {
        let mut types = self.types.iter_mut();
        let found = types.find(|(own, _)| *own == resource_type);
        found.map(|(_, variant)| variant)
    }

    fn encode(&self, request: V::Request) -> Bytes {
        encode_message(&V::by_node(request, self.node.clone()))
    }
}

impl<V: Variant> Subscriptions for Types<V> {
    fn method(&self) -> &'static str {
        V::METHOD
    }

    fn begin(&mut self) -> Vec<Bytes> {
        let begun = self.types.iter_mut().map(|(_, variant)| variant.begin());
        let requests: Vec<_> = begun.collect();
        let requests = requests.into_iter().flatten();
        requests.map(|request| self.encode(request)).collect()
    }

    fn want(&mut self, resource_type: ResourceType, names: BTreeSet<String>) -> Option<Bytes> {
        let request = self.of(resource_type)?.want(names)?;
        Some(self.encode(request))
    }

    fn resume(&mut self, resource_type: ResourceType, names: &mut dyn Iterator<Item = String>) {
        if let Some(variant) = self.of(resource_type) {
            variant.known().resume(names);
        }
    }

    fn take(&mut self, response: Bytes, stream: u64) -> Result<Taken, DecodeError> {
        let response = V::Response::decode(response)?;
        let type_url = V::type_url(&response);
        let mut types = self.types.iter_mut();
        let Some((resource_type, variant)) = types.find(|(own, _)| own.type_url() == type_url)
        else {
            return Ok(Taken::Foreign(type_url.to_owned()));
        };
        let version = V::version(&response).to_owned();
        Ok(match variant.take(response, stream) {
            Ok(update) => Taken::Update(update),
            Err(refused) => Taken::Refused(*resource_type, version, refused),
        })
    }

    fn answer(
        &mut self,
        update: &Update,
        answer: &Answer,
        on_this_stream: bool,
    ) -> Option<Refused> {
        self.of(update.resource_type)?
            .answer(update, answer, on_this_stream)
    }

    fn accept(&mut self, update: &Update) -> Option<Bytes> {
        let request = self.of(update.resource_type)?.accept(update)?;
        Some(self.encode(request))
    }

    fn refuse(&mut self, resource_type: ResourceType) -> Option<Bytes> {
        let request = self.of(resource_type)?.refuse()?;
        Some(self.encode(request))
    }

    fn in_force(&mut self, resource_type: ResourceType) -> usize {
        self.of(resource_type)
            .map_or(0, |variant| variant.known().in_force.len())
    }
}

/// Whether a resource is of the type that was asked for.
pub(super) fn is_of_type(resource_type: ResourceType, content: &Any) -> Result<(), String> {
    let message = |type_url: &str| type_url.rsplit('/').next().unwrap_or_default().to_owned();
    let (got, wanted) = (
        message(&content.type_url),
        message(resource_type.type_url()),
    );
    match got == wanted {
        true => Ok(()),
        false => Err(format!(
            "mismatched message type: got \"{got}\" want \"{wanted}\""
        )),
    }
}
