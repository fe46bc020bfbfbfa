use std::time::Duration;

use proptest::{arbitrary::any, collection::vec};

use super::{super::resource::Refusal, *};

const CLUSTER: ResourceType = ResourceType::CLUSTER;
const ROUTES: ResourceType = ResourceType::ROUTE_CONFIGURATION;

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn all(resource_type: ResourceType) -> StateOfTheWorld {
    StateOfTheWorld::new(Known::new(resource_type, Wanted::All, 100))
}

fn named(names: &[&str]) -> StateOfTheWorld {
    StateOfTheWorld::new(Known::new(ROUTES, Wanted::Named(set(names)), 100))
}

fn resource(resource_type: ResourceType, name: &str) -> Any {
    let name = name.to_owned();
    Any {
        type_url: resource_type.type_url().to_owned(),
        value: OnlyName { name }.encode_to_vec(),
    }
}

/// A response whose nonce is its version.
fn response(resource_type: ResourceType, version: &str, names: &[&str]) -> DiscoveryResponse {
    let resources = names.iter().map(|name| resource(resource_type, name));
    DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: version.to_owned(),
        type_url: resource_type.type_url().to_owned(),
        resources: resources.collect(),
        ..DiscoveryResponse::default()
    }
}

fn names(update: &Update) -> Vec<&str> {
    update.resources.iter().map(|one| &*one.name).collect()
}

fn refuse(name: &str) -> Answer {
    Answer::Partly(vec![Refusal {
        name: name.to_owned(),
        reason: "lb_policy: not supported".to_owned(),
    }])
}

/// Takes a response and accepts it; what is said to it.
fn accept(state: &mut StateOfTheWorld, response: DiscoveryResponse) -> DiscoveryRequest {
    let update = state.take(response, 1).unwrap();
    assert_eq!(state.answer(&update, &Answer::Accepted, true), None);
    state.accept(&update).unwrap()
}

fn said(request: &DiscoveryRequest) -> (&str, &str, Option<&str>) {
    let error = request.error_detail.as_ref();
    (
        &request.version_info,
        &request.response_nonce,
        error.map(|error| &*error.message),
    )
}

#[test]
fn everything_is_asked_for_without_names_and_what_is_accepted_is_acknowledged() {
    let mut state = all(CLUSTER);

    let first = state.begin().unwrap();
    let update = state.take(response(CLUSTER, "1", &["a", "b"]), 1).unwrap();
    let refused = state.answer(&update, &Answer::Accepted, true);
    let request = state.accept(&update).unwrap();

    assert_eq!(said(&first), ("", "", None));
    assert_eq!(first.resource_names, Vec::<String>::new());
    assert_eq!(first.type_url, CLUSTER.type_url());
    assert_eq!((names(&update), refused), (vec!["a", "b"], None));
    assert_eq!(said(&request), ("1", "1", None));
}

#[test]
fn what_is_missing_is_gone_where_a_response_has_everything() {
    let mut state = all(CLUSTER);
    state.begin();
    accept(&mut state, response(CLUSTER, "1", &["a", "b", "c"]));

    let update = state.take(response(CLUSTER, "2", &["b", "d"]), 1).unwrap();

    assert_eq!(update.removed, ["a", "c"]);
}

#[test]
fn what_is_missing_stays_where_a_response_may_have_a_part() {
    let mut state = named(&["a", "b"]);
    state.begin();
    accept(&mut state, response(ROUTES, "1", &["a", "b"]));

    let update = state.take(response(ROUTES, "2", &["b"]), 1).unwrap();

    assert_eq!(update.removed, Vec::<String>::new());
}

#[test]
fn what_another_source_has_brought_is_gone_when_the_server_does_not_have_it() {
    let mut state = all(CLUSTER);
    state.known().resume(["a".to_owned(), "b".to_owned()]);

    let first = state.begin().unwrap();
    let update = state.take(response(CLUSTER, "1", &["b"]), 1).unwrap();

    assert_eq!(first.version_info, "");
    assert_eq!(update.removed, ["a"]);
}

#[test]
fn a_refusal_says_the_version_of_before_and_names_the_resource_and_the_field() {
    let mut state = all(CLUSTER);
    state.begin();
    accept(&mut state, response(CLUSTER, "1", &["a"]));
    let update = state.take(response(CLUSTER, "2", &["a"]), 1).unwrap();

    let refused = state.answer(&update, &Answer::Refused("a: type: no".to_owned()), true);
    let request = state.refuse().unwrap();

    assert_eq!(refused.unwrap().pause, Duration::ZERO);
    assert_eq!(said(&request), ("1", "2", Some("a: type: no")));
    assert_eq!(request.error_detail.unwrap().code, 3);
    // It is said once.
    assert_eq!(state.refuse(), None);
}

#[test]
fn a_refused_resource_stays_as_it_was_and_the_others_come_into_force() {
    let mut state = all(CLUSTER);
    state.begin();
    accept(&mut state, response(CLUSTER, "1", &["a", "b"]));
    let update = state.take(response(CLUSTER, "2", &["a", "c"]), 1).unwrap();
    assert_eq!(update.removed, ["b"]);

    state.answer(&update, &refuse("a"), true);
    let request = state.refuse().unwrap();

    let in_force = [("a", "1"), ("c", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(state.known().in_force, in_force.into());
    // Neither version is in force: a server that goes back to the first one has to send it.
    assert_eq!(
        said(&request),
        ("", "2", Some("a: lb_policy: not supported"))
    );
}

#[test]
fn a_new_stream_says_the_version_in_force_and_no_nonce() {
    let mut state = all(CLUSTER);
    state.begin();
    accept(&mut state, response(CLUSTER, "1", &["a"]));
    let update = state.take(response(CLUSTER, "2", &["a"]), 1).unwrap();
    state.answer(&update, &Answer::Refused("no".to_owned()), true);

    let again = state.begin().unwrap();

    assert_eq!(said(&again), ("1", "", None));
}

#[test]
fn a_new_stream_says_no_version_while_a_wanted_name_is_not_in_force() {
    let mut state = named(&["a"]);
    state.begin();
    accept(&mut state, response(ROUTES, "1", &["a"]));
    assert_eq!(state.begin().unwrap().version_info, "1");

    state.want(set(&["a", "b"]));

    assert_eq!(state.begin().unwrap().version_info, "");
}

#[test]
fn an_update_of_a_lost_stream_comes_into_force_and_is_not_answered_on_the_next() {
    let mut state = all(CLUSTER);
    state.begin();
    let update = state.take(response(CLUSTER, "1", &["a"]), 1).unwrap();
    state.begin();

    state.answer(&update, &Answer::Accepted, false);

    assert_eq!(said(&state.begin().unwrap()), ("1", "", None));
}

#[test]
fn nothing_is_asked_before_there_are_names() {
    let mut state = named(&[]);

    assert_eq!(state.begin(), None);
    let first = state.want(set(&["a"])).unwrap();

    assert_eq!(first.resource_names, ["a"]);
    assert_eq!(said(&first), ("", "", None));
    // An empty list after that asks for nothing.
    let none = state.want(set(&[])).unwrap();
    assert_eq!(none.resource_names, Vec::<String>::new());
}

#[test]
fn names_that_change_are_said_whole_with_the_latest_nonce() {
    let mut state = named(&["a", "b"]);
    state.begin();
    accept(&mut state, response(ROUTES, "1", &["a", "b"]));

    let request = state.want(set(&["b", "c"])).unwrap();

    assert_eq!(request.resource_names, ["b", "c"]);
    assert_eq!(said(&request), ("1", "1", None));
    assert_eq!(state.want(set(&["b", "c"])), None);
    assert_eq!(state.known().in_force.len(), 1);
}

#[test]
fn names_that_change_before_an_answer_go_with_it() {
    let mut state = named(&["a"]);
    state.begin();
    let update = state.take(response(ROUTES, "1", &["a"]), 1).unwrap();

    assert_eq!(state.want(set(&["a", "b"])), None);
    state.answer(&update, &Answer::Accepted, true);
    let request = state.accept(&update).unwrap();

    assert_eq!(request.resource_names, ["a", "b"]);
    assert_eq!(said(&request), ("1", "1", None));
}

#[test]
fn a_refusal_that_waits_goes_with_a_change_of_the_names() {
    let mut state = named(&["a"]);
    state.begin();
    let update = state.take(response(ROUTES, "1", &["a"]), 1).unwrap();
    state.answer(&update, &Answer::Refused("no".to_owned()), true);

    let request = state.want(set(&["a", "b"])).unwrap();

    assert_eq!(said(&request), ("", "1", Some("no")));
    assert_eq!(state.refuse(), None);
}

#[test]
fn a_response_that_another_has_followed_is_not_answered() {
    let mut state = all(CLUSTER);
    state.begin();
    let first = state.take(response(CLUSTER, "1", &["a"]), 1).unwrap();
    let second = state.take(response(CLUSTER, "2", &["a"]), 1).unwrap();

    state.answer(&first, &Answer::Accepted, true);
    assert_eq!(state.accept(&first), None);
    state.answer(&second, &Answer::Accepted, true);

    assert_eq!(said(&state.accept(&second).unwrap()), ("2", "2", None));
}

#[test]
fn resources_that_are_not_wanted_are_left_out() {
    let mut state = named(&["a"]);
    state.begin();

    let update = state.take(response(ROUTES, "1", &["a", "x"]), 1).unwrap();

    assert_eq!(names(&update), ["a"]);
}

#[test]
fn resources_may_have_their_name_around_them() {
    let mut state = all(CLUSTER);
    state.begin();
    let wrapped = discovery::Resource {
        name: "outer".to_owned(),
        resource: Some(resource(CLUSTER, "inner")),
        ..discovery::Resource::default()
    };
    let mut sent = response(CLUSTER, "1", &[]);
    sent.resources.push(Any {
        type_url: WRAPPER.to_owned(),
        value: wrapped.encode_to_vec(),
    });

    let update = state.take(sent, 1).unwrap();

    assert_eq!(names(&update), ["outer"]);
    assert_eq!(update.resources[0].content, resource(CLUSTER, "inner"));
}

#[test]
fn what_nobody_could_use_is_refused_as_a_whole() {
    let foreign = resource(ROUTES, "a");
    let broken = Any {
        type_url: CLUSTER.type_url().to_owned(),
        value: vec![0xff],
    };
    let twice = resource(CLUSTER, "good");
    let mismatch = "mismatched message type: got \"envoy.config.route.v3.RouteConfiguration\" \
                    want \"envoy.config.cluster.v3.Cluster\"";
    for (resource, reason) in [
        (foreign, mismatch),
        (broken, "a resource cannot be read"),
        (twice, "good: the resource is there more than once"),
    ] {
        let mut state = all(CLUSTER);
        state.begin();
        let mut sent = response(CLUSTER, "1", &["good"]);
        sent.resources.push(resource);

        let refused = state.take(sent, 1).unwrap_err();
        let request = state.refuse().unwrap();

        assert!(refused.reason.starts_with(reason), "{refused:?}");
        assert_eq!(said(&request), ("", "1", Some(&*refused.reason)));
    }
}

#[test]
fn more_resources_than_are_allowed_are_refused() {
    let mut state = StateOfTheWorld::new(Known::new(CLUSTER, Wanted::All, 2));
    state.begin();
    accept(&mut state, response(CLUSTER, "1", &["a", "b"]));
    accept(&mut state, response(CLUSTER, "2", &["b", "c"]));

    let refused = state.take(response(CLUSTER, "3", &["a", "b", "c"]), 1);

    assert_eq!(refused.unwrap_err().reason, "3 resources; 2 are allowed");
}

proptest::proptest! {
    #[test]
    fn nothing_that_a_server_sends_panics(
        responses in vec(
            ("[0-9]?", "[a-c]?", vec((any::<bool>(), vec(any::<u8>(), 0..16)), 0..4)),
            0..4,
        ),
    ) {
        let mut state = all(CLUSTER);
        state.begin();
        for (version_info, nonce, resources) in responses {
            let resources = resources.into_iter().map(|(wrapped, value)| {
                let type_url = if wrapped { WRAPPER } else { CLUSTER.type_url() };
                Any { type_url: type_url.to_owned(), value }
            });
            let response = DiscoveryResponse {
                version_info,
                nonce,
                resources: resources.collect(),
                ..DiscoveryResponse::default()
            };
            let nonce = response.nonce.clone();
            let request = match state.take(response, 1) {
                Err(_) => state.refuse(),
                Ok(update) => {
                    state.answer(&update, &Answer::Accepted, true);
                    state.accept(&update)
                }
            };
            assert_eq!(request.unwrap().response_nonce, nonce);
        }
    }
}
