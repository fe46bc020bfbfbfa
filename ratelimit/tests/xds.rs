//! Rules by discovery, against a control plane that speaks gRPC over real sockets.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../tests/src/discovery.rs"]
#[allow(dead_code, unreachable_pub)]
mod discovery;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use attache_proto::{
    ratelimit::RateLimitRequest,
    ratelimit_config::{RateLimitConfig, RateLimitDescriptor, RateLimitPolicy, RateLimitUnit},
};
use attache_ratelimit::{
    RateLimitServer,
    config::Merge,
    limiter::descriptor,
    server::xds::{Retry, XdsClient, XdsSettings, XdsStatus},
    store::MemoryStore,
};
use attache_service::{
    Address, Metrics,
    admin::Readiness,
    config::Errors,
    tls::{ALPN_H2, ServerFiles, ServerTls, TlsVersion},
};
use discovery::{ControlPlane, RULES};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// A running client: the names of the resources that were applied, one list a response.
struct Client {
    applied: Arc<Mutex<VecDeque<Vec<String>>>>,
    status: watch::Receiver<XdsStatus>,
    _running: AbortOnDropHandle<()>,
}

/// Refuses resources whose domain is `bad`.
fn judge(resources: &[RateLimitConfig]) -> Result<(), Errors> {
    let mut errors = Errors::new();
    for resource in resources.iter().filter(|resource| resource.domain == "bad") {
        errors.push_file(&*resource.name, "invalid rate limit unit ''");
    }
    errors.into_result(Some(()))
}

impl Client {
    fn start(client: XdsClient) -> Self {
        let applied = Arc::<Mutex<VecDeque<Vec<String>>>>::default();
        let status = client.status();
        let names = applied.clone();
        let running = client.run(move |resources| {
            judge(resources)?;
            let list = resources.iter().map(|resource| resource.name.clone());
            names.lock().unwrap().push_back(list.collect());
            Ok(())
        });
        Self {
            applied,
            status,
            _running: AbortOnDropHandle::new(tokio::spawn(running)),
        }
    }

    async fn until(&mut self, is_so: impl FnMut(&XdsStatus) -> bool) -> XdsStatus {
        within(self.status.wait_for(is_so)).await.unwrap().clone()
    }

    fn applied(&self) -> Vec<Vec<String>> {
        self.applied.lock().unwrap().iter().cloned().collect()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future)
        .await
        .unwrap_or_else(|_| panic!("did not happen in time"))
}

fn settings(server: &Address) -> XdsSettings {
    XdsSettings {
        retry: Retry {
            unreachable: Duration::from_millis(20),
            initial: Duration::from_millis(20),
            max: Duration::from_millis(50),
            random: 0.5,
        },
        ..XdsSettings::new(server.clone())
    }
}

fn resource(name: &str, domain: &str) -> RateLimitConfig {
    let limit = RateLimitPolicy {
        unit: RateLimitUnit::Minute.into(),
        requests_per_unit: 3,
        ..RateLimitPolicy::default()
    };
    RateLimitConfig {
        name: name.to_owned(),
        domain: domain.to_owned(),
        descriptors: vec![RateLimitDescriptor {
            key: "user".to_owned(),
            rate_limit: Some(limit),
            ..RateLimitDescriptor::default()
        }],
    }
}

#[tokio::test]
async fn each_response_replaces_everything_and_is_answered() {
    let mut server = ControlPlane::start(None).await;
    let mut settings = settings(&server.address);
    settings.node.id = "limits-7".to_owned();
    settings
        .headers
        .insert("x-tenant", http::HeaderValue::from_static("blue"));
    let metrics = Metrics::default();
    let readiness = Readiness::default();
    let client = XdsClient::new(settings, &metrics).readiness(readiness.condition("rules", ""));
    let mut client = Client::start(client);
    let mut stream = server.stream().await;

    let first = stream.request().await;
    assert_eq!(first.type_url, RULES);
    assert_eq!(first.node.unwrap().id, "limits-7");
    assert_eq!(stream.headers.get("x-tenant").unwrap(), "blue");
    assert!(!readiness.is_ready());

    stream.respond("1", &[resource("a", "one"), resource("b", "two")]);
    let accepted = stream.request().await;
    assert_eq!(
        (&*accepted.version_info, &*accepted.response_nonce),
        ("1", "nonce-1")
    );
    assert_eq!(accepted.error_detail, None);
    assert!(readiness.is_ready());

    stream.respond("2", &[resource("a", "one"), resource("b", "bad")]);
    let refused = stream.request().await;
    assert_eq!(
        (&*refused.version_info, &*refused.response_nonce),
        ("1", "nonce-2")
    );
    assert_eq!(
        refused.error_detail.unwrap().message,
        "b: invalid rate limit unit ''"
    );
    assert!(readiness.is_ready());
    let status = client.until(|status| status.refused.is_some()).await;
    assert_eq!(status.accepted.unwrap().version, "1");

    // No resources at all are a state as any other.
    stream.respond("3", &[]);
    let accepted = stream.request().await;
    assert_eq!(
        (&*accepted.version_info, &*accepted.response_nonce),
        ("3", "nonce-3")
    );
    assert_eq!(accepted.error_detail, None);

    let lists: Vec<Vec<String>> = vec![vec!["a".into(), "b".into()], vec![]];
    assert_eq!(client.applied(), lists);
    let status = client.until(|status| status.refused.is_none()).await;
    assert!(status.connected);
    let text = metrics.render();
    for line in [
        "attache_ratelimit_xds_connected{} 1",
        "attache_ratelimit_xds_responses_total{result=\"accepted\"} 2",
        "attache_ratelimit_xds_responses_total{result=\"refused\"} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_lost_stream_is_made_anew_with_the_version_that_is_in_force() {
    let mut server = ControlPlane::start(None).await;
    let metrics = Metrics::default();
    let mut client = Client::start(XdsClient::new(settings(&server.address), &metrics));
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("1", &[resource("a", "one")]);
    stream.request().await;
    stream.respond("refused", &[resource("a", "bad")]);
    stream.request().await;

    stream.fail(Status::unavailable("restarting"));
    let mut stream = server.stream().await;
    let again = stream.request().await;
    assert_eq!((&*again.version_info, &*again.response_nonce), ("1", ""));
    assert!(again.node.is_some());

    // Ended without an error is lost as well.
    drop(stream);
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("2", &[resource("b", "one")]);
    stream.request().await;
    let status = client
        .until(|status| {
            status
                .accepted
                .as_ref()
                .is_some_and(|now| now.version == "2")
        })
        .await;
    assert!(status.lost.is_some());
    assert!(
        metrics
            .render()
            .contains("attache_ratelimit_xds_streams_lost_total{} 2")
    );
}

#[tokio::test]
async fn a_refused_response_that_comes_again_does_not_hold_up_the_next() {
    let mut server = ControlPlane::start(None).await;
    let client = Client::start(XdsClient::new(
        settings(&server.address),
        &Metrics::default(),
    ));
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("1", &[resource("a", "bad")]);
    assert_eq!(stream.request().await.response_nonce, "nonce-1");
    // The refusal of the second one waits, and is forgotten when the third comes.
    stream.respond("1", &[resource("a", "bad")]);
    stream.respond("2", &[resource("a", "one")]);
    let accepted = stream.request().await;
    assert_eq!(accepted.response_nonce, "nonce-2");
    assert_eq!(accepted.error_detail, None);
    assert_eq!(client.applied(), [["a"]]);
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    drop(listener);
    let metrics = Metrics::default();
    let mut client = Client::start(XdsClient::new(settings(&address), &metrics));
    let status = client.until(|status| status.lost.is_some()).await;
    assert!(!status.connected && !status.has_answer());
    assert!(
        status
            .lost
            .unwrap()
            .starts_with("Unavailable: cannot reach")
    );

    let mut server = ControlPlane::start_at(None, &address).await;
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("1", &[resource("a", "one")]);
    stream.request().await;
    assert_eq!(client.applied(), [["a"]]);
}

#[tokio::test]
async fn a_response_beyond_the_bound_costs_the_stream_and_changes_nothing() {
    let mut server = ControlPlane::start(None).await;
    let settings = XdsSettings {
        max_message_size: 1000,
        ..settings(&server.address)
    };
    let mut client = Client::start(XdsClient::new(settings, &Metrics::default()));
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("1", &[resource(&"a".repeat(2000), "one")]);
    let status = client.until(|status| status.lost.is_some()).await;
    assert!(status.lost.unwrap().starts_with("ResourceExhausted"));
    assert_eq!(status.accepted, None);
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("2", &[resource("a", "one")]);
    stream.request().await;
    assert_eq!(client.applied(), [["a"]]);
}

#[tokio::test]
async fn responses_of_up_to_16_mib_are_taken_unless_another_bound_is_set() {
    let mut server = ControlPlane::start(None).await;
    let settings = settings(&server.address);
    let mut client = Client::start(XdsClient::new(settings, &Metrics::default()));
    let mut stream = server.stream().await;
    stream.request().await;
    let large = "a".repeat(15 << 20);
    let accepted = stream.answer("1", &[resource(&large, "one")]).await;
    assert_eq!(accepted.error_detail, None);
    assert_eq!(client.applied(), [[large]]);
    stream.respond("2", &[resource(&"a".repeat(17 << 20), "one")]);
    let status = client.until(|status| status.lost.is_some()).await;
    assert!(status.lost.unwrap().starts_with("ResourceExhausted"));
}

/// Certificates of both ends, in files.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = || rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(params, key()).unwrap();
        let write = |name: &str, text: String| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("ca.pem", authority.pem());
        for name in ["server", "client"] {
            let own = key();
            let names = vec![format!("{name}.attache.example")];
            let certificate = rcgen::CertificateParams::new(names)
                .unwrap()
                .signed_by(&own, &authority)
                .unwrap();
            write(&format!("{name}.pem"), certificate.pem());
            write(&format!("{name}.key"), own.serialize_pem());
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn server(&self) -> ServerTls {
        ServerTls::load(ServerFiles {
            certificate: self.path("server.pem"),
            private_key: self.path("server.key"),
            client_ca: Some(self.path("ca.pem")),
            client_name: None,
            min_version: TlsVersion::Tls12,
            alpn: ALPN_H2.iter().map(|name| (*name).to_owned()).collect(),
        })
        .unwrap()
    }

    fn client(&self, server: &Address, identity: bool, name: &str) -> XdsSettings {
        let identity = identity.then(|| (self.path("client.pem"), self.path("client.key")));
        settings(server)
            .with_tls(Some(self.path("ca.pem")), identity, Some(name.to_owned()))
            .unwrap()
    }
}

#[tokio::test]
async fn both_ends_prove_who_they_are() {
    let certificates = Certificates::new();
    let mut server = ControlPlane::start(Some(certificates.server())).await;
    let right = certificates.client(&server.address, true, "server.attache.example");
    let client = Client::start(XdsClient::new(right, &Metrics::default()));
    let mut stream = server.stream().await;
    stream.request().await;
    stream.respond("1", &[resource("a", "one")]);
    stream.request().await;
    assert_eq!(client.applied(), [["a"]]);
    drop(client);

    for (what, identity, name) in [
        ("a server of another name", true, "other.attache.example"),
        (
            "a client without a certificate",
            false,
            "server.attache.example",
        ),
    ] {
        let wrong = certificates.client(&server.address, identity, name);
        let mut client = Client::start(XdsClient::new(wrong, &Metrics::default()));
        let status = client.until(|status| status.lost.is_some()).await;
        assert!(!status.has_answer(), "{what}: {status:?}");
    }
}

/// The limit that a request of this user has, by the rules in force.
async fn limit_of(server: &RateLimitServer<MemoryStore>, domain: &str) -> Option<u32> {
    let request = RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: vec![descriptor([("user", "alice")])],
        hits_addend: 0,
    };
    let answer = server.decide(&request).await.unwrap();
    let limit = answer.statuses[0].current_limit.as_ref();
    limit.map(|limit| limit.requests_per_unit)
}

#[tokio::test]
async fn a_service_goes_by_the_rules_of_the_control_plane() {
    for (merge, merged) in [(Merge::Refuse, false), (Merge::Domains, true)] {
        let mut plane = ControlPlane::start(None).await;
        let none = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let server = RateLimitServer::load(none.path(), MemoryStore::default(), &metrics).unwrap();
        let client = XdsClient::new(settings(&plane.address), &metrics);
        let applied = server.clone();
        let running = client.run(move |resources| applied.apply(resources, merge));
        let _running = AbortOnDropHandle::new(tokio::spawn(running));
        let mut stream = plane.stream().await;
        stream.request().await;
        assert_eq!(limit_of(&server, "shop").await, None);

        let shop = resource("shop", "shop");
        stream.respond("1", std::slice::from_ref(&shop));
        assert_eq!(stream.request().await.error_detail, None);
        assert_eq!(limit_of(&server, "shop").await, Some(3));

        let mut bad = resource("bad", "other");
        bad.descriptors[0].rate_limit.as_mut().unwrap().unit = 0;
        stream.respond("2", &[bad]);
        let detail = stream.request().await.error_detail.unwrap();
        assert_eq!(detail.message, "bad: invalid rate limit unit 'UNKNOWN'");
        assert_eq!(limit_of(&server, "shop").await, Some(3));

        let mut more = resource("more", "shop");
        more.descriptors[0].key = "route".to_owned();
        stream.respond("3", &[shop, more]);
        let detail = stream.request().await.error_detail;
        assert_eq!(
            detail.map(|detail| detail.message),
            (!merged).then(|| "more: duplicate domain 'shop' in config file".to_owned())
        );

        stream.respond("4", &[]);
        assert_eq!(stream.request().await.error_detail, None);
        assert_eq!(limit_of(&server, "shop").await, None);
    }
}
