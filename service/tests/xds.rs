//! The client of control planes, against one that says what the test says, over real sockets.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../tests/src/discovery.rs"]
#[allow(dead_code, unreachable_pub)]
mod discovery;

use std::{collections::BTreeSet, time::Duration};

use attache_proto::discovery::{
    DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use attache_service::{
    Address, ChannelSettings, Metrics,
    channel::Target,
    xds::{AdsClient, AdsSettings, Answer, Protocol, Refusal, ResourceType, Retry, Update, Wanted},
};
use discovery::{ControlPlane, Conversation};
use prost_types::Any;
use tonic::Status;

const CLUSTER: ResourceType = ResourceType::CLUSTER;
const ENDPOINTS: ResourceType = ResourceType::CLUSTER_LOAD_ASSIGNMENT;

fn settings(servers: &[&Address]) -> AdsSettings {
    let targets = servers
        .iter()
        .map(|server| Target::Address((*server).clone()));
    let mut settings = AdsSettings::new(ChannelSettings::new("control-plane", targets.collect()));
    settings.node.id = "edge-1".to_owned();
    settings.retry = Retry {
        unreachable: Duration::from_millis(20),
        initial: Duration::from_millis(20),
        max: Duration::from_millis(50),
        random: 0.0,
    };
    settings
}

/// Of all clusters, and of endpoints by name.
fn client(settings: AdsSettings, metrics: &Metrics) -> AdsClient {
    let types = [
        (CLUSTER, Wanted::All),
        (ENDPOINTS, Wanted::Named(BTreeSet::new())),
    ];
    AdsClient::new(settings, types, metrics)
}

/// A message with this in its first field, which is the name of every resource.
fn content(resource_type: ResourceType, name: &str) -> Any {
    let mut value = vec![0x0a, u8::try_from(name.len()).unwrap()];
    value.extend(name.bytes());
    Any {
        type_url: resource_type.type_url().to_owned(),
        value,
    }
}

/// All there is, under a nonce that is the type and the version.
fn state(resource_type: ResourceType, version: &str, names: &[&str]) -> DiscoveryResponse {
    let resources = names.iter().map(|name| content(resource_type, name));
    DiscoveryResponse {
        version_info: version.to_owned(),
        nonce: format!("{resource_type}-{version}"),
        type_url: resource_type.type_url().to_owned(),
        resources: resources.collect(),
        ..DiscoveryResponse::default()
    }
}

fn changes(nonce: &str, names: &[&str], removed: &[&str]) -> DeltaDiscoveryResponse {
    let resources = names.iter().map(|name| Resource {
        name: (*name).to_owned(),
        version: nonce.to_owned(),
        resource: Some(content(CLUSTER, name)),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        nonce: nonce.to_owned(),
        type_url: CLUSTER.type_url().to_owned(),
        resources: resources.collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("did not happen in time"))
}

async fn next(client: &mut AdsClient) -> Update {
    within(client.next()).await
}

/// Does this, while the client does what it does by itself.
async fn meanwhile<T>(client: &mut AdsClient, done: impl Future<Output = T>) -> T {
    tokio::select! {
        done = within(done) => done,
        update = client.next() => panic!("unexpected: {update:?}"),
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn said(request: &DiscoveryRequest) -> (&str, &str, &str) {
    (
        request.type_url.rsplit('.').next().unwrap(),
        &request.version_info,
        &request.response_nonce,
    )
}

/// Takes this and accepts it; what is said to it.
async fn accepted(
    client: &mut AdsClient,
    stream: &mut Conversation,
    response: DiscoveryResponse,
) -> DiscoveryRequest {
    stream.send(response);
    let update = next(client).await;
    client.answer(&update, &Answer::Accepted);
    meanwhile(client, stream.request()).await
}

#[tokio::test]
async fn several_types_go_over_one_stream_each_with_its_own_versions() {
    let mut server = ControlPlane::start(None).await;
    let metrics = Metrics::default();
    let mut client = client(settings(&[&server.address]), &metrics);

    let mut stream = meanwhile(&mut client, server.stream()).await;
    let first = stream.request().await;
    assert_eq!(said(&first), ("Cluster", "", ""));
    let node = first.node.unwrap();
    assert_eq!((&*node.id, &*node.user_agent_name), ("edge-1", "attache"));

    let said_to = accepted(&mut client, &mut stream, state(CLUSTER, "1", &["a"])).await;
    assert_eq!(said(&said_to), ("Cluster", "1", "Cluster-1"));
    client.subscribe(ENDPOINTS, set(&["a"]));
    let asked = meanwhile(&mut client, stream.request()).await;
    assert_eq!(said(&asked), ("ClusterLoadAssignment", "", ""));
    assert_eq!(asked.resource_names, ["a"]);
    accepted(&mut client, &mut stream, state(ENDPOINTS, "7", &["a"])).await;
    let refusal = Refusal {
        name: "b".to_owned(),
        reason: "lb_policy: not supported".to_owned(),
    };
    stream.send(state(CLUSTER, "2", &["a", "b"]));
    let update = next(&mut client).await;
    client.answer(&update, &Answer::Partly(vec![refusal]));
    let refused = meanwhile(&mut client, stream.request()).await;
    assert_eq!(
        refused.error_detail.unwrap().message,
        "b: lb_policy: not supported"
    );

    let status = client.status().borrow().clone();
    assert!(status.connected);
    let clusters = &status.types["Cluster"];
    assert_eq!((clusters.accepted, clusters.rejected), (1, 1));
    assert_eq!(
        (clusters.version.as_deref(), clusters.resources),
        (Some("1"), 1)
    );
    assert_eq!(clusters.refused.as_ref().unwrap().version, "2");
    assert_eq!(status.types["ClusterLoadAssignment"].refused, None);
    let text = metrics.render();
    for line in [
        "attache_xds_connected{} 1",
        "attache_xds_updates_total{type=\"Cluster\",result=\"accepted\"} 1",
        "attache_xds_updates_total{type=\"Cluster\",result=\"rejected\"} 1",
        "attache_xds_updates_total{type=\"ClusterLoadAssignment\",result=\"accepted\"} 1",
        "attache_xds_last_update_timestamp_seconds{type=\"Cluster\"} ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_lost_stream_is_made_anew_and_says_what_is_in_force_of_each_type() {
    let mut server = ControlPlane::start(None).await;
    let metrics = Metrics::default();
    let mut client = client(settings(&[&server.address]), &metrics);
    let mut stream = meanwhile(&mut client, server.stream()).await;
    stream.request().await;
    accepted(&mut client, &mut stream, state(CLUSTER, "1", &["a"])).await;
    client.subscribe(ENDPOINTS, set(&["a"]));
    meanwhile(&mut client, stream.request()).await;
    accepted(&mut client, &mut stream, state(ENDPOINTS, "7", &["a"])).await;

    stream.fail(Status::unavailable("restarting"));
    let mut stream = meanwhile(&mut client, server.stream()).await;

    let requests = [stream.request().await, stream.request().await];
    assert_eq!(
        requests.each_ref().map(said),
        [("Cluster", "1", ""), ("ClusterLoadAssignment", "7", "")]
    );
    assert_eq!(requests[1].resource_names, ["a"]);
    let lost = client.status().borrow().lost.clone();
    assert_eq!(lost.as_deref(), Some("Unavailable: restarting"));
    assert!(
        metrics
            .render()
            .contains("attache_xds_streams_lost_total{} 1")
    );
}

#[tokio::test]
async fn an_update_that_is_answered_on_the_next_stream_counts_and_is_not_said_there() {
    let mut server = ControlPlane::start(None).await;
    let mut client = client(settings(&[&server.address]), &Metrics::default());
    let mut stream = meanwhile(&mut client, server.stream()).await;
    stream.request().await;
    stream.send(state(CLUSTER, "1", &["a"]));
    let update = next(&mut client).await;
    stream.fail(Status::unavailable("restarting"));
    let mut stream = meanwhile(&mut client, server.stream()).await;
    assert_eq!(said(&stream.request().await), ("Cluster", "", ""));

    client.answer(&update, &Answer::Accepted);

    let said_to = accepted(&mut client, &mut stream, state(CLUSTER, "2", &["b"])).await;
    assert_eq!(said(&said_to), ("Cluster", "2", "Cluster-2"));
    assert_eq!(client.status().borrow().types["Cluster"].resources, 1);
}

#[tokio::test]
async fn changes_come_alone_and_a_new_stream_says_the_versions() {
    let mut server = ControlPlane::start(None).await;
    let settings = AdsSettings {
        protocol: Protocol::Delta,
        ..settings(&[&server.address])
    };
    let mut client = client(settings, &Metrics::default());
    let mut stream = meanwhile(&mut client, server.delta_stream()).await;
    let first = stream.request().await;
    assert_eq!(first.type_url, CLUSTER.type_url());
    assert!(first.resource_names_subscribe.is_empty());

    for response in [changes("1", &["a", "b"], &[]), changes("2", &["c"], &["a"])] {
        let nonce = response.nonce.clone();
        stream.send(response);
        let update = next(&mut client).await;
        client.answer(&update, &Answer::Accepted);
        let said = meanwhile(&mut client, stream.request()).await;
        assert_eq!((said.response_nonce, said.error_detail), (nonce, None));
    }
    stream.send(changes("3", &["b"], &[]));
    let update = next(&mut client).await;
    client.answer(
        &update,
        &Answer::Refused("b: type: not supported".to_owned()),
    );
    let said = meanwhile(&mut client, stream.request()).await;
    assert_eq!(said.error_detail.unwrap().message, "b: type: not supported");

    stream.fail(Status::unavailable("restarting"));
    let mut stream = meanwhile(&mut client, server.delta_stream()).await;

    let versions = stream.request().await.initial_resource_versions;
    let versions: Vec<_> = versions.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(versions, [("b", "1"), ("c", "2")]);
}

#[tokio::test]
async fn a_refusal_that_repeats_itself_waits_and_is_said_at_last() {
    let mut server = ControlPlane::start(None).await;
    let mut client = client(settings(&[&server.address]), &Metrics::default());
    let mut stream = meanwhile(&mut client, server.stream()).await;
    stream.request().await;
    let mut began = tokio::time::Instant::now();

    for pause in [Duration::ZERO, Duration::from_secs(1)] {
        stream.send(state(CLUSTER, "1", &["a"]));
        let update = next(&mut client).await;
        client.answer(&update, &Answer::Refused("no".to_owned()));
        let said = meanwhile(&mut client, stream.request()).await;
        assert_eq!(said.error_detail.unwrap().message, "no");
        assert!(began.elapsed() >= pause, "{:?}", began.elapsed());
        began = tokio::time::Instant::now();
    }
}

#[tokio::test]
async fn of_several_servers_one_that_is_there_is_used() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    drop(listener);
    let mut server = ControlPlane::start(None).await;
    let mut client = client(settings(&[&nobody, &server.address]), &Metrics::default());

    let mut stream = meanwhile(&mut client, server.stream()).await;

    assert_eq!(said(&stream.request().await), ("Cluster", "", ""));
}

#[tokio::test]
async fn a_response_beyond_the_bound_costs_the_stream_and_changes_nothing() {
    let mut server = ControlPlane::start(None).await;
    let mut settings = settings(&[&server.address]);
    settings.channel.max_message_size = 1000;
    let mut client = client(settings, &Metrics::default());
    let mut status = client.status();
    let mut stream = meanwhile(&mut client, server.stream()).await;
    stream.request().await;
    let names: Vec<_> = (0..100).map(|number| format!("cluster-{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();

    stream.send(state(CLUSTER, "1", &names));
    let lost = meanwhile(&mut client, status.wait_for(|status| status.lost.is_some()))
        .await
        .unwrap()
        .lost
        .clone();

    assert!(lost.unwrap().starts_with("ResourceExhausted"));
    let mut stream = meanwhile(&mut client, server.stream()).await;
    assert_eq!(said(&stream.request().await), ("Cluster", "", ""));
    let said_to = accepted(&mut client, &mut stream, state(CLUSTER, "2", &["a"])).await;
    assert_eq!(said(&said_to), ("Cluster", "2", "Cluster-2"));
}

#[tokio::test]
async fn responses_of_other_types_are_passed_over_and_unusable_ones_refused() {
    let mut server = ControlPlane::start(None).await;
    let metrics = Metrics::default();
    let mut client = client(settings(&[&server.address]), &metrics);
    let mut stream = meanwhile(&mut client, server.stream()).await;
    stream.request().await;

    stream.send(state(ResourceType::LISTENER, "1", &["a"]));
    stream.send(state(CLUSTER, "1", &["a", "a"]));
    let refused = meanwhile(&mut client, stream.request()).await;

    assert_eq!(said(&refused), ("Cluster", "", "Cluster-1"));
    assert_eq!(
        refused.error_detail.unwrap().message,
        "a: the resource is there more than once"
    );
    assert!(
        metrics
            .render()
            .contains("attache_xds_updates_ignored_total{} 1")
    );
    assert_eq!(client.status().borrow().types["Cluster"].rejected, 1);
}
