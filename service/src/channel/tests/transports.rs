//! The same calls over every transport.

use super::*;
use crate::{
    Address, Shutdown,
    tls::{
        ClientTls, ServerTls,
        tests::{Authority, dns},
    },
};

/// Serves the scripted service and returns a channel to it.
async fn over(address: &str, tls: Option<(ServerTls, ClientTls)>) -> (Channel, Shutdown) {
    let (server, client) = tls.unzip();
    let mut host = host();
    if let Some(server) = server {
        host = host.tls(server);
    }
    let bound = host.bind(&address.parse().unwrap()).await.unwrap();
    let mut target: Address = bound.address().clone();
    if let Address::Tcp { host, .. } = &mut target {
        // By name, as in configurations.
        *host = "localhost".to_owned();
    }
    let shutdown = Shutdown::new();
    tokio::spawn(bound.serve(shutdown.clone()));
    let mut settings = ChannelSettings::new("policy", vec![Target::Address(target)]);
    settings.tls = client;
    (Channel::new(settings), shutdown)
}

#[tokio::test]
async fn calls_work_over_every_transport() {
    let directory = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", directory.path().join("a.sock").display());
    let authority = Authority::new();
    authority.issue("server", vec![dns("localhost")]);
    authority.issue("client", vec![dns("client")]);
    let mutual = (
        ServerTls::load(authority.server("server", true)).unwrap(),
        ClientTls::load(authority.client(Some("client"))).unwrap(),
    );
    for (name, (channel, shutdown)) in [
        ("tcp", over("127.0.0.1:0", None).await),
        ("unix", over(&socket, None).await),
        ("mutual tls", over("127.0.0.1:0", Some(mutual)).await),
        ("embedded", (embedded(), Shutdown::new())),
    ] {
        assert_eq!(ask(&channel, name, 0, None).await.unwrap(), name);
        // Far more than any window, and than one DATA frame.
        let large = ask(&channel, "large", 3 << 20, None).await.unwrap();
        assert!(
            large.len() == 3 << 20 && large.iter().all(|b| *b == 7),
            "{name}"
        );
        let long = "d".repeat(3 << 20);
        assert_eq!(ask(&channel, &long, 0, None).await.unwrap(), long, "{name}");
        let many = join_all((0..100).map(|i| {
            let channel = &channel;
            async move { ask(channel, &i.to_string(), 0, None).await.unwrap() == i.to_string() }
        }));
        assert!(many.await.into_iter().all(|same| same), "{name}");
        shutdown.trigger();
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_hears_that_it_is_unavailable() {
    let authority = Authority::new();
    authority.issue("server", vec![dns("localhost")]);
    let tls = (
        ServerTls::load(authority.server("server", true)).unwrap(),
        ClientTls::load(authority.client(None)).unwrap(),
    );
    let (channel, shutdown) = over("127.0.0.1:0", Some(tls)).await;
    let status = ask(&channel, "x", 0, None).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("`policy`"), "{status}");
    shutdown.trigger();
}
