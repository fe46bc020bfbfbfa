use std::sync::Mutex;

use futures_util::future::ready;

use super::*;
use crate::Metrics;

/// What the resolver answers next.
#[derive(Clone, Default)]
struct Answers(Arc<Mutex<Vec<&'static str>>>);

impl Answers {
    fn set(&self, addresses: &[&'static str]) {
        *self.0.lock().unwrap() = addresses.to_vec();
    }

    fn dns(&self, kind: DnsType) -> Dns {
        let answers = self.clone();
        Dns {
            kind,
            resolver: Arc::new(move |_, port| {
                let all = answers.0.lock().unwrap().clone();
                let answer = match all.as_slice() {
                    ["error"] => Err(io::Error::other("the server has failed")),
                    all => Ok(all
                        .iter()
                        .map(|ip| SocketAddr::new(ip.parse().unwrap(), port))
                        .collect()),
                };
                ready(answer).boxed()
            }),
            ..Dns::default()
        }
    }
}

fn named(text: &str) -> Described {
    Described::from(text.parse::<Address>().unwrap())
}

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let members = endpoints.members();
    members.iter().map(|m| m.endpoint.to_string()).collect()
}

/// The endpoints of `a.test:80`, looked up once.
async fn followed(answers: &Answers, kind: DnsType) -> (Arc<Endpoints>, Metrics) {
    let metrics = Metrics::default();
    let endpoints = Endpoints::new("web", Vec::<Described>::new());
    endpoints.describe(&metrics);
    let source = Source {
        named: Named::Here(vec![named("a.test:80"), named("10.9.9.9:81")]),
        dns: answers.dns(kind),
    };
    let mut asked = endpoints.follow(source);
    asked.wait_for(|asked| *asked).await.unwrap();
    (endpoints, metrics)
}

async fn refreshed(endpoints: &Endpoints) {
    let version = endpoints.version();
    endpoints.changed(version).await;
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_name_is_an_endpoint_and_addresses_stay_as_they_are() {
    let answers = Answers::default();
    answers.set(&["10.0.0.1", "10.0.0.2"]);
    let (endpoints, _) = followed(&answers, DnsType::Strict).await;
    assert_eq!(
        addresses(&endpoints),
        ["10.0.0.1:80", "10.0.0.2:80", "10.9.9.9:81"]
    );
    let members = endpoints.members();
    assert_eq!(members[0].endpoint.hostname(), "a.test");

    answers.set(&["10.0.0.3", "10.0.0.2"]);
    let before = tokio::time::Instant::now();
    refreshed(&endpoints).await;
    assert_eq!(before.elapsed().as_secs(), 5);
    let after = endpoints.members();
    assert_eq!(addresses(&endpoints)[0], "10.0.0.3:80");
    assert!(Arc::ptr_eq(&members[1].endpoint, &after[1].endpoint));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_or_finds_nothing_leaves_the_last_good_set() {
    let answers = Answers::default();
    answers.set(&["10.0.0.1"]);
    let (endpoints, metrics) = followed(&answers, DnsType::Strict).await;
    for bad in [&["error"][..], &[]] {
        answers.set(bad);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(addresses(&endpoints), ["10.0.0.1:80", "10.9.9.9:81"]);
    }
    let text = metrics.render();
    assert!(
        text.contains("membership_updates_total{cluster=\"web\",result=\"failed\"} 4"),
        "{text}"
    );
    answers.set(&["10.0.0.2"]);
    refreshed(&endpoints).await;
    assert_eq!(addresses(&endpoints)[0], "10.0.0.2:80");
}

#[tokio::test(start_paused = true)]
async fn a_logical_name_is_one_endpoint_that_moves() {
    let answers = Answers::default();
    answers.set(&["10.0.0.1", "10.0.0.2"]);
    let (endpoints, _) = followed(&answers, DnsType::Logical).await;
    assert_eq!(addresses(&endpoints), ["10.0.0.1:80", "10.9.9.9:81"]);
    let before = endpoints.members();

    answers.set(&["10.0.0.2", "10.0.0.1"]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(addresses(&endpoints), ["10.0.0.2:80", "10.9.9.9:81"]);
    assert!(Arc::ptr_eq(
        &before[0].endpoint,
        &endpoints.members()[0].endpoint
    ));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_is_given_up() {
    let endpoints = Endpoints::new("web", Vec::<Described>::new());
    let dns = Dns {
        resolver: Arc::new(|_, _| std::future::pending().boxed()),
        ..Dns::default()
    };
    let mut asked = endpoints.follow(Source {
        named: Named::Here(vec![named("a.test:80")]),
        dns,
    });
    asked.wait_for(|asked| *asked).await.unwrap();
    assert!(addresses(&endpoints).is_empty());
}

#[test]
fn the_family_says_which_addresses_are_used() {
    let both: Vec<SocketAddr> = vec!["[::1]:80".parse().unwrap(), "10.0.0.1:80".parse().unwrap()];
    let (v6, v4) = (vec![both[0]], vec![both[1]]);
    for (family, found, used) in [
        (LookupFamily::Auto, &both, &v6),
        (LookupFamily::Auto, &v4, &v4),
        (LookupFamily::V4Preferred, &both, &v4),
        (LookupFamily::V4Preferred, &v6, &v6),
        (LookupFamily::V4Only, &v6, &Vec::new()),
        (LookupFamily::V6Only, &both, &v6),
        (LookupFamily::All, &both, &both),
    ] {
        assert_eq!(&family.choose(found.clone()), used, "{family:?}");
    }
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.yaml");
    std::fs::write(&path, "- 10.0.0.1:80\n").unwrap();
    let metrics = Metrics::default();
    let endpoints = Endpoints::new("web", Vec::<Described>::new());
    endpoints.describe(&metrics);
    let source = Source {
        named: Named::File(path.clone()),
        dns: Dns::default(),
    };
    let mut asked = endpoints.follow(source);
    asked.wait_for(|asked| *asked).await.unwrap();
    assert_eq!(addresses(&endpoints), ["10.0.0.1:80"]);

    for (failures, bad) in [(1, "- nonsense\n"), (2, "[]\n")] {
        std::fs::write(&path, bad).unwrap();
        let failed =
            format!("membership_updates_total{{cluster=\"web\",result=\"failed\"}} {failures}");
        while !metrics.render().contains(&failed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(addresses(&endpoints), ["10.0.0.1:80"]);
    }

    std::fs::write(&path, "[10.0.0.1:80, 10.0.0.2:80]\n").unwrap();
    refreshed(&endpoints).await;
    assert_eq!(addresses(&endpoints), ["10.0.0.1:80", "10.0.0.2:80"]);
}
