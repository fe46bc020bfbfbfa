//! One type by the state of the world: what is said on a stream, without the stream.

use std::collections::BTreeSet;

use attache_proto::{
    core::Node,
    discovery::{self, DiscoveryRequest, DiscoveryResponse},
};
use prost::Message as _;
use prost_types::Any;

use super::{
    known::{Known, Refused},
    refusal,
    resource::{Absence, Answer, Resource, ResourceType, Update, Wanted},
    variant::{Variant, is_of_type},
};

/// A resource in this type has its name and version around it.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The name of a resource of any type: each has it as its first field.
#[derive(Clone, PartialEq, prost::Message)]
struct OnlyName {
    #[prost(string, tag = "1")]
    name: String,
}

/// The subscription to one type.
#[derive(Debug)]
pub(super) struct StateOfTheWorld {
    known: Known,
    /// The version accepted last; empty before, and while only a part of one is in force.
    version: String,
    stream: OnStream,
}

/// What counts for one stream alone.
#[derive(Debug, Default)]
struct OnStream {
    /// A request was sent.
    asked: bool,
    /// Names the latest response.
    nonce: String,
    /// The latest response has no answer yet; a change of the names goes with it.
    unanswered: bool,
    /// Why the latest response is refused, until it is said.
    unsaid: Option<String>,
}

impl Variant for StateOfTheWorld {
    const METHOD: &str =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(known: Known) -> Self {
        Self {
            known,
            version: String::new(),
            stream: OnStream::default(),
        }
    }

    fn known(&mut self) -> &mut Known {
        &mut self.known
    }

    fn by_node(request: DiscoveryRequest, node: Node) -> DiscoveryRequest {
        DiscoveryRequest {
            node: Some(node),
            ..request
        }
    }

    fn type_url(response: &DiscoveryResponse) -> &str {
        &response.type_url
    }

    fn version(response: &DiscoveryResponse) -> &str {
        &response.version_info
    }

    /// A server that still has the version of before has nothing to say.
    fn begin(&mut self) -> Option<DiscoveryRequest> {
        self.stream = OnStream::default();
        self.known.asks().then(|| self.request())
    }

    fn want(&mut self, names: BTreeSet<String>) -> Option<DiscoveryRequest> {
        self.known.want(names)?;
        // Without names, the first request of a stream would ask for everything.
        let idle = !self.stream.asked && !self.known.asks();
        (!idle && !self.stream.unanswered).then(|| self.request())
    }

    fn take(&mut self, response: DiscoveryResponse, stream: u64) -> Result<Update, Refused> {
        self.stream.nonce = response.nonce;
        self.stream.unanswered = true;
        self.stream.unsaid = None;
        let version = response.version_info;
        let read = resources(self.known.resource_type, &version, response.resources);
        let checked = read.and_then(|mut resources| {
            resources.retain(|resource| self.known.wants(&resource.name));
            let removed = self.missing(&resources);
            self.known.check(&resources, &removed)?;
            Ok((resources, removed))
        });
        match checked {
            Ok((resources, removed)) => Ok(Update {
                resource_type: self.known.resource_type,
                version,
                resources,
                removed,
                nonce: self.stream.nonce.clone(),
                stream,
            }),
            Err(reason) => {
                let refused = self.known.refuse(&version, reason);
                self.answered(Some(&refused));
                Err(refused)
            }
        }
    }

    fn answer(
        &mut self,
        update: &Update,
        answer: &Answer,
        on_this_stream: bool,
    ) -> Option<Refused> {
        let refused = self.known.settle(update, answer);
        match (&refused, answer) {
            (None, _) => self.version.clone_from(&update.version),
            (Some(_), Answer::Refused(_)) => {}
            // Parts of two states of the world are neither: whichever comes next has to be sent.
            (Some(_), _) => self.version.clear(),
        }
        if on_this_stream && update.nonce == self.stream.nonce {
            self.answered(refused.as_ref());
        }
        refused
    }

    /// Not said of a response that another one has followed.
    fn accept(&mut self, _: &Update) -> Option<DiscoveryRequest> {
        (!self.stream.unanswered).then(|| self.request())
    }

    fn refuse(&mut self) -> Option<DiscoveryRequest> {
        self.stream.unsaid.is_some().then(|| self.request())
    }
}

impl StateOfTheWorld {
    /// What is in force and not among these, where that is a removal.
    fn missing(&self, resources: &[Resource]) -> Vec<String> {
        match self.known.resource_type.absence() {
            Absence::Nothing => Vec::new(),
            Absence::Removal => {
                let there: BTreeSet<&str> = resources.iter().map(|one| &*one.name).collect();
                let in_force = self.known.in_force.keys();
                in_force
                    .filter(|name| !there.contains(&***name))
                    .cloned()
                    .collect()
            }
        }
    }

    fn answered(&mut self, refused: Option<&Refused>) {
        self.stream.unanswered = false;
        self.stream.unsaid = refused.map(|refused| refused.reason.clone());
    }

    fn request(&mut self) -> DiscoveryRequest {
        // On a new stream, a server that has this version would not send what is not in force.
        let complete = match &self.known.wanted {
            Wanted::All => true,
            Wanted::Named(names) => names
                .iter()
                .all(|name| self.known.in_force.contains_key(name)),
        };
        let version_info = match self.stream.asked || complete {
            true => self.version.clone(),
            false => String::new(),
        };
        self.stream.asked = true;
        DiscoveryRequest {
            version_info,
            resource_names: self.known.names(),
            type_url: self.known.resource_type.type_url().to_owned(),
            response_nonce: self.stream.nonce.clone(),
            error_detail: self.stream.unsaid.take().as_deref().map(refusal::detail),
            ..DiscoveryRequest::default()
        }
    }
}

fn resources(
    resource_type: ResourceType,
    version: &str,
    resources: Vec<Any>,
) -> Result<Vec<Resource>, String> {
    let named = resources.into_iter().map(|any| {
        let (name, content) = match any.type_url == WRAPPER {
            false => (None, any),
            true => {
                let wrapped = discovery::Resource::decode(&*any.value).map_err(unreadable)?;
                let content = wrapped
                    .resource
                    .ok_or_else(|| format!("{}: the resource has no content", wrapped.name))?;
                (Some(wrapped.name), content)
            }
        };
        is_of_type(resource_type, &content)?;
        let name = match name {
            Some(name) => name,
            None => OnlyName::decode(&*content.value).map_err(unreadable)?.name,
        };
        Ok(Resource {
            name,
            version: version.to_owned(),
            content,
        })
    });
    named.collect()
}

fn unreadable(error: prost::DecodeError) -> String {
    format!("a resource cannot be read: {error}")
}

#[cfg(test)]
mod tests;
