//! The name that a TLS client asks for, read without answering the client.

use std::io;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most bytes of a ClientHello (Envoy's `max_client_hello_size`).
const MOST: usize = 16 << 10;

/// What a connection begins with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Beginning {
    /// The server name of its ClientHello; absent also when it has none, and when it is not TLS.
    pub(crate) server_name: Option<String>,
    /// All that was read.
    pub(crate) ahead: Bytes,
}

/// Reads a ClientHello, or as much as shows that there is none.
pub(crate) async fn read<IO: AsyncRead + Unpin>(io: &mut IO) -> io::Result<Beginning> {
    let mut acceptor = Acceptor::default();
    let mut ahead = BytesMut::with_capacity(2048);
    let mut shown = 0;
    let server_name = loop {
        if ahead.len() >= MOST || io.read_buf(&mut ahead).await? == 0 {
            break None;
        }
        // A record begins with its type: 22 is a handshake.
        if ahead.first() != Some(&22) {
            break None;
        }
        let mut fresh = ahead.get(shown..).unwrap_or_default();
        shown = ahead.len();
        while !fresh.is_empty() && acceptor.read_tls(&mut fresh).is_ok_and(|count| count > 0) {}
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                break name;
            }
            // TLS all the same, perhaps, but none that anybody here understands.
            Err(_) => break None,
        }
    };
    Ok(Beginning {
        server_name,
        ahead: ahead.freeze(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// The first bytes of a client.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn beginning(bytes: &[u8], piece: usize) -> Beginning {
        let (mut near, mut far) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut far, &bytes).await;
            // Stays open.
            let _ = far.read_u8().await;
        });
        let read = tokio::time::timeout(std::time::Duration::from_secs(10), read(&mut near));
        read.await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_name_is_read_however_the_bytes_arrive() {
        let bytes = hello("Db.Example.com");
        for piece in [1, 7, 100, 1 << 16] {
            let beginning = beginning(&bytes, piece).await;
            let name = beginning.server_name.unwrap().to_ascii_lowercase();
            assert_eq!(name, "db.example.com");
            assert_eq!(beginning.ahead, bytes);
        }
    }

    #[tokio::test]
    async fn what_is_not_tls_and_what_has_no_name_has_none() {
        let nameless = hello("127.0.0.1");
        for bytes in [
            &nameless[..],
            b"GET / HTTP/1.1\r\n",
            b"\x16\x03\x01\0\x04\x02\0\0\0",
        ] {
            let beginning = beginning(bytes, 1 << 16).await;
            assert_eq!(beginning.server_name, None);
            assert_eq!(beginning.ahead, bytes);
        }
    }

    #[tokio::test]
    async fn an_endless_hello_is_not_read_to_its_end() {
        // A record of 16 KiB that says it is a hello of 16 MiB, again and again.
        let mut record = vec![22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff];
        record.resize(5 + 0x4000, 0);
        let beginning = beginning(&record.repeat(8), 1 << 20).await;
        assert_eq!(beginning.server_name, None);
        assert!(
            beginning.ahead.len() < 2 * MOST + 4096,
            "{}",
            beginning.ahead.len()
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let bytes = [&[22, 3, 1][..], &bytes].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let beginning = runtime.block_on(read(&mut &bytes[..])).unwrap();
            proptest::prop_assert_eq!(&beginning.ahead[..], &bytes[..beginning.ahead.len()]);
        }
    }
}
