//! How TCP sends between two processes of one host.

use std::net::SocketAddr;

use tokio::net::TcpStream;

/// Between two processes of one host no link can be congested, while an algorithm that paces what
/// is sent, as BBR does, spends timers and small segments on it.
#[cfg(target_os = "linux")]
pub(crate) fn send_unpaced_on_this_host(io: &TcpStream, peer: SocketAddr) {
    if peer.ip().to_canonical().is_loopback() {
        // Where it may not be chosen, all goes on as the host has it.
        let _ = socket2::SockRef::from(io).set_tcp_congestion(b"reno");
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn send_unpaced_on_this_host(_: &TcpStream, _: SocketAddr) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use crate::{
        Address,
        channel::Target,
        cluster::{Endpoints, Opened},
        listen::{Listener, Socket},
    };

    #[tokio::test]
    async fn nothing_is_paced_between_processes_of_one_host() {
        let any = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let listener = Listener::bind(&any).await.unwrap();
        let target = Target::Address(listener.address().clone());
        let endpoints = Endpoints::new("here", [target]);
        let members = endpoints.members();

        let (opened, accepted) = tokio::join!(members[0].endpoint.open(), listener.accept());

        let (Ok(Opened::Tcp(opened)), Socket::Tcp(accepted)) = (opened, accepted) else {
            panic!("not TCP");
        };
        for io in [opened, accepted] {
            let algorithm = socket2::SockRef::from(&io).tcp_congestion().unwrap();
            assert!(algorithm.starts_with(b"reno"), "{algorithm:?}");
        }
    }
}
