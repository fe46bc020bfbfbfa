//! One type by its changes: what is said on a stream, without the stream.

use std::collections::BTreeSet;

use attache_proto::{
    core::Node,
    discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

use super::{
    known::{Known, Refused},
    refusal,
    resource::{Answer, Resource, ResourceType, Update, Wanted},
    variant::{Variant, is_of_type},
};

/// The subscription to one type.
#[derive(Debug)]
pub(super) struct Delta {
    known: Known,
    /// A request was sent on this stream.
    asked: bool,
    /// The refusal that waits: the response's name, and the reason.
    unsaid: Option<(String, String)>,
}

impl Variant for Delta {
    const METHOD: &str =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(known: Known) -> Self {
        Self {
            known,
            asked: false,
            unsaid: None,
        }
    }

    fn known(&mut self) -> &mut Known {
        &mut self.known
    }

    fn by_node(request: DeltaDiscoveryRequest, node: Node) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node),
            ..request
        }
    }

    fn type_url(response: &DeltaDiscoveryResponse) -> &str {
        &response.type_url
    }

    fn version(response: &DeltaDiscoveryResponse) -> &str {
        &response.system_version_info
    }

    /// It says what is in force, so that only what is different comes.
    fn begin(&mut self) -> Option<DeltaDiscoveryRequest> {
        self.asked = self.known.asks();
        self.unsaid = None;
        if !self.asked {
            return None;
        }
        let in_force = self.known.in_force.iter();
        let wanted = in_force.filter(|(name, _)| self.known.wants(name));
        Some(DeltaDiscoveryRequest {
            resource_names_subscribe: self.known.names(),
            initial_resource_versions: wanted
                .map(|(name, version)| (name.clone(), version.clone()))
                .collect(),
            ..self.request()
        })
    }

    fn want(&mut self, names: BTreeSet<String>) -> Option<DeltaDiscoveryRequest> {
        let before = self.known.want(names)?;
        if !self.asked {
            return self.begin();
        }
        let Wanted::Named(names) = &self.known.wanted else {
            return None;
        };
        Some(DeltaDiscoveryRequest {
            resource_names_subscribe: names.difference(&before).cloned().collect(),
            resource_names_unsubscribe: before.difference(names).cloned().collect(),
            ..self.request()
        })
    }

    fn take(&mut self, response: DeltaDiscoveryResponse, stream: u64) -> Result<Update, Refused> {
        self.unsaid = None;
        let version = response.system_version_info;
        let mut removed = response.removed_resources;
        removed.retain(|name| self.known.wants(name));
        let read = resources(self.known.resource_type, response.resources);
        let checked = read.and_then(|mut resources| {
            resources.retain(|resource| self.known.wants(&resource.name));
            self.known.check(&resources, &removed)?;
            Ok(resources)
        });
        match checked {
            Ok(resources) => Ok(Update {
                resource_type: self.known.resource_type,
                version,
                resources,
                removed,
                nonce: response.nonce,
                stream,
            }),
            Err(reason) => {
                let refused = self.known.refuse(&version, reason);
                self.unsaid = Some((response.nonce, refused.reason.clone()));
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
        if on_this_stream && let Some(refused) = &refused {
            self.unsaid = Some((update.nonce.clone(), refused.reason.clone()));
        }
        refused
    }

    fn accept(&mut self, update: &Update) -> Option<DeltaDiscoveryRequest> {
        Some(DeltaDiscoveryRequest {
            response_nonce: update.nonce.clone(),
            ..self.request()
        })
    }

    fn refuse(&mut self) -> Option<DeltaDiscoveryRequest> {
        let (nonce, reason) = self.unsaid.take()?;
        Some(DeltaDiscoveryRequest {
            response_nonce: nonce,
            error_detail: Some(refusal::detail(&reason)),
            ..self.request()
        })
    }
}

impl Delta {
    fn request(&self) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            type_url: self.known.resource_type.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

fn resources(
    resource_type: ResourceType,
    resources: Vec<discovery::Resource>,
) -> Result<Vec<Resource>, String> {
    let resources = resources.into_iter().map(|resource| {
        let name = resource.name;
        let Some(content) = resource.resource else {
            return Err(format!("{name}: the resource has no content"));
        };
        is_of_type(resource_type, &content).map_err(|why| format!("{name}: {why}"))?;
        Ok(Resource {
            name,
            version: resource.version,
            content,
        })
    });
    resources.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use prost_types::Any;

    use super::{super::resource::Refusal, *};

    const CLUSTER: ResourceType = ResourceType::CLUSTER;
    const ROUTES: ResourceType = ResourceType::ROUTE_CONFIGURATION;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn all() -> Delta {
        Delta::new(Known::new(CLUSTER, Wanted::All, 3))
    }

    fn named(names: &[&str]) -> Delta {
        Delta::new(Known::new(ROUTES, Wanted::Named(set(names)), 3))
    }

    /// A response with resources in versions, and removals.
    fn response(
        resource_type: ResourceType,
        nonce: &str,
        resources: &[(&str, &str)],
        removed: &[&str],
    ) -> DeltaDiscoveryResponse {
        let resources = resources.iter().map(|(name, version)| discovery::Resource {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            resource: Some(Any {
                type_url: resource_type.type_url().to_owned(),
                value: Vec::new(),
            }),
            ..discovery::Resource::default()
        });
        DeltaDiscoveryResponse {
            nonce: nonce.to_owned(),
            resources: resources.collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    fn accept(delta: &mut Delta, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let update = delta.take(response, 1).unwrap();
        assert_eq!(delta.answer(&update, &Answer::Accepted, true), None);
        delta.accept(&update).unwrap()
    }

    fn versions<const N: usize>(versions: [(&str, &str); N]) -> BTreeMap<String, String> {
        let owned = versions.map(|(name, version)| (name.to_owned(), version.to_owned()));
        owned.into()
    }

    #[test]
    fn everything_is_asked_for_without_names_and_each_response_is_acknowledged_by_its_nonce() {
        let mut delta = all();

        let first = delta.begin().unwrap();
        let request = accept(&mut delta, response(CLUSTER, "n", &[("a", "1")], &[]));

        assert_eq!(first.type_url, CLUSTER.type_url());
        assert_eq!(first.resource_names_subscribe, Vec::<String>::new());
        assert_eq!(first.initial_resource_versions, versions([]));
        assert_eq!(request.response_nonce, "n");
        assert_eq!(request.error_detail, None);
        assert_eq!(request.resource_names_subscribe, Vec::<String>::new());
        assert_eq!(request.initial_resource_versions, versions([]));
    }

    #[test]
    fn a_new_stream_says_the_versions_that_are_in_force() {
        let mut delta = all();
        delta.begin();
        accept(
            &mut delta,
            response(CLUSTER, "1", &[("a", "1"), ("b", "1")], &[]),
        );
        accept(&mut delta, response(CLUSTER, "2", &[("c", "1")], &["b"]));
        let update = delta.take(response(CLUSTER, "3", &[("a", "2"), ("c", "2")], &[]), 1);
        let refusals = vec![Refusal {
            name: "a".to_owned(),
            reason: "type: not supported".to_owned(),
        }];
        delta.answer(&update.unwrap(), &Answer::Partly(refusals), true);

        let again = delta.begin().unwrap();

        // Of what was refused, the version of before.
        assert_eq!(
            again.initial_resource_versions,
            versions([("a", "1"), ("c", "2")])
        );
        assert_eq!(again.response_nonce, "");
    }

    #[test]
    fn what_another_source_has_brought_is_said_without_a_version() {
        let mut delta = all();
        delta.known().resume(["a".to_owned()]);

        let first = delta.begin().unwrap();

        assert_eq!(first.initial_resource_versions, versions([("a", "")]));
    }

    #[test]
    fn a_refusal_names_the_response_the_resource_and_the_field() {
        let mut delta = all();
        delta.begin();
        let update = delta
            .take(response(CLUSTER, "n", &[("a", "1")], &[]), 1)
            .unwrap();
        let refusals = vec![Refusal {
            name: "a".to_owned(),
            reason: "type: not supported".to_owned(),
        }];

        delta.answer(&update, &Answer::Partly(refusals), true);
        let request = delta.refuse().unwrap();

        assert_eq!(request.response_nonce, "n");
        let error = request.error_detail.unwrap();
        assert_eq!((error.code, &*error.message), (3, "a: type: not supported"));
        assert_eq!(delta.refuse(), None);
    }

    #[test]
    fn of_what_is_refused_as_a_whole_nothing_is_in_force_nor_gone() {
        let mut delta = all();
        delta.begin();
        accept(&mut delta, response(CLUSTER, "1", &[("a", "1")], &[]));
        let update = delta
            .take(response(CLUSTER, "2", &[("b", "1")], &["a"]), 1)
            .unwrap();

        delta.answer(&update, &Answer::Refused("no".to_owned()), true);

        assert_eq!(delta.known().in_force, versions([("a", "1")]));
    }

    #[test]
    fn names_that_change_are_said_by_what_is_different() {
        let mut delta = named(&[]);

        assert_eq!(delta.begin(), None);
        let first = delta.want(set(&["a", "b"])).unwrap();
        accept(&mut delta, response(ROUTES, "1", &[("a", "1")], &[]));
        let change = delta.want(set(&["b", "c"])).unwrap();

        assert_eq!(first.resource_names_subscribe, ["a", "b"]);
        assert_eq!(change.resource_names_subscribe, ["c"]);
        assert_eq!(change.resource_names_unsubscribe, ["a"]);
        // It answers nothing.
        assert_eq!(change.response_nonce, "");
        assert_eq!(delta.known().in_force, versions([]));
        assert_eq!(delta.want(set(&["b", "c"])), None);
        let last = delta.want(set(&[])).unwrap();
        assert_eq!(last.resource_names_unsubscribe, ["b", "c"]);
    }

    #[test]
    fn a_name_that_does_not_exist_is_said_to_be_gone() {
        let mut delta = named(&["a"]);
        delta.begin();

        let update = delta.take(response(ROUTES, "1", &[], &["a", "x"]), 1);

        assert_eq!(update.unwrap().removed, ["a"]);
    }

    #[test]
    fn what_comes_after_it_was_wanted_is_left_out() {
        let mut delta = named(&["a"]);
        delta.begin();
        let update = delta
            .take(response(ROUTES, "1", &[("a", "1"), ("x", "1")], &[]), 1)
            .unwrap();
        assert_eq!(update.resources.len(), 1);

        // Nor does it come into force when it was given up before the answer.
        delta.want(set(&["b"]));
        delta.answer(&update, &Answer::Accepted, true);

        assert_eq!(delta.known().in_force, versions([]));
    }

    #[test]
    fn what_nobody_could_use_is_refused_as_a_whole() {
        let mut empty = response(CLUSTER, "n", &[("a", "1")], &[]);
        empty.resources[0].resource = None;
        let cases = [
            (empty, "a: the resource has no content"),
            (
                response(ROUTES, "n", &[("a", "1")], &[]),
                "a: mismatched message type: got \"envoy.config.route.v3.RouteConfiguration\"",
            ),
            (
                response(CLUSTER, "n", &[("a", "1"), ("a", "2")], &[]),
                "a: the resource is there more than once",
            ),
            (
                response(CLUSTER, "n", &[("a", "1")], &["a"]),
                "a: the resource is there more than once",
            ),
            (
                response(CLUSTER, "n", &[("b", "1"), ("c", "1"), ("d", "1")], &[]),
                "4 resources; 3 are allowed",
            ),
        ];
        for (sent, reason) in cases {
            let mut delta = all();
            delta.begin();
            accept(&mut delta, response(CLUSTER, "0", &[("z", "1")], &[]));

            let refused = delta.take(sent, 1).unwrap_err();
            let request = delta.refuse().unwrap();

            assert!(refused.reason.starts_with(reason), "{refused:?}");
            assert_eq!(request.response_nonce, "n");
            assert_eq!(request.error_detail.unwrap().message, refused.reason);
            assert_eq!(delta.known().in_force, versions([("z", "1")]));
        }
    }

    proptest::proptest! {
        /// Whatever a server sends, a client that accepts it all has what a map would have.
        #[test]
        fn what_is_accepted_is_in_force(
            responses in vec((vec(("[a-d]", "[12]"), 0..4), vec("[a-d]", 0..3)), 0..8),
        ) {
            let mut delta = Delta::new(Known::new(CLUSTER, Wanted::All, usize::MAX));
            delta.begin();
            let mut model = BTreeMap::<String, String>::new();
            for (resources, removed) in responses {
                let resources: Vec<_> =
                    resources.iter().map(|(name, version)| (&**name, &**version)).collect();
                let removed: Vec<_> = removed.iter().map(|name| &**name).collect();
                let sent = response(CLUSTER, "n", &resources, &removed);
                if let Ok(update) = delta.take(sent, 1) {
                    for name in removed {
                        model.remove(name);
                    }
                    model.extend(versions_of(&resources));
                    delta.answer(&update, &Answer::Accepted, true);
                }
                assert_eq!(delta.known().in_force, model);
                assert_eq!(delta.begin().unwrap().initial_resource_versions, model);
            }
        }
    }

    fn versions_of(resources: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = resources
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
        owned.collect()
    }
}
