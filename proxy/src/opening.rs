//! How a downstream connection begins: PROXY protocol, TLS, and what it speaks.

use std::{future::ready, pin::Pin, sync::Arc, time::Instant};

use attache_filter::{
    ConnectionInfo,
    context::{Handshake, TlsInfo},
};
use attache_service::{Io, tls};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    ahead::Ahead,
    client_hello,
    connection::{self, Broken, Counted, Serving},
    edge::Edge,
    plan::Codec,
    proxy_protocol::{self, Header},
    socket::detect,
    tcp::{Passage, TcpPlan},
};

/// What is found out of a connection at its beginning; gone with all of its state once it is.
type Opening = Pin<Box<dyn Future<Output = Result<Serving, Broken>> + Send>>;

/// Begins a connection. `edge` is what the listener does at this moment.
///
/// Looks first at what comes before everything else, where a listener has that.
pub(crate) fn open<IO>(
    counted: Arc<Counted>,
    edge: Arc<Edge>,
    io: IO,
    mut info: ConnectionInfo,
) -> Opening
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if edge.plan.proxy_protocol.is_none() && edge.plan.tls_passthrough.is_none() {
        return Box::pin(start(counted, edge, io, info));
    }
    // Of one type from here, as the program need not have its code twice.
    let io: Box<dyn Io> = Box::new(io);
    Box::pin(async move {
        let limit = edge.plan.limits.header_timeout;
        let looked = tokio::time::timeout(limit, look_ahead(&edge, io, &mut info)).await;
        let (io, passed_on) = looked.map_err(|_| Broken::SlowStart)??;
        match passed_on {
            Some(plan) => Ok(Box::pin(pass_on(counted, edge, plan, io, info)) as Serving),
            None => start(counted, edge, io, info).await,
        }
    })
}

/// Reads what stands before TLS and HTTP, and decides whether the connection is passed on.
async fn look_ahead(
    edge: &Edge,
    mut io: Box<dyn Io>,
    info: &mut ConnectionInfo,
) -> Result<(Ahead<Box<dyn Io>>, Option<TcpPlan>), Broken> {
    let mut ahead = Bytes::new();
    if let Some(settings) = &edge.plan.proxy_protocol {
        if !settings.lets(info.peer.map(|peer| peer.ip())) {
            return Err(proxy_protocol::Refused::Stranger.into());
        }
        let header;
        (header, ahead) = proxy_protocol::read(&mut io, settings).await?;
        if let Header::Proxied {
            source,
            destination,
        } = header
        {
            info.peer = Some(source);
            info.local = Some(destination);
        }
    }
    let mut io = Ahead { ahead, io };
    let Some(names) = &edge.plan.tls_passthrough else {
        return Ok((io, None));
    };
    let beginning = client_hello::read(&mut io).await?;
    let name = beginning.server_name;
    let plan = name.as_deref().and_then(|name| names.get(name)).cloned();
    if plan.is_none() && !edge.plan.opens() {
        return Err(Broken::ServerName(name));
    }
    if plan.is_some() && edge.log.is_some() {
        info.tls = Some(TlsInfo {
            sni: name,
            ..TlsInfo::default()
        });
    }
    let io = Ahead {
        ahead: beginning.ahead,
        io: match io.ahead.is_empty() {
            true => io.io,
            false => Box::new(io),
        },
    };
    Ok((io, plan))
}

/// Passes a connection on as it is, as long as its listener may.
async fn pass_on<IO>(
    counted: Arc<Counted>,
    edge: Arc<Edge>,
    plan: TcpPlan,
    io: IO,
    info: ConnectionInfo,
) -> Result<(), Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Some(stats) = &edge.tcp_stats else {
        return Ok(());
    };
    let passage = Passage::new(&edge, &plan, info);
    tokio::select! {
        biased;
        () = passage.run(&plan, stats, io) => {}
        () = counted.listening.drain.cut_off() => {}
    }
    Ok(())
}

/// Begins with TLS or HTTP.
async fn start<IO>(
    counted: Arc<Counted>,
    edge: Arc<Edge>,
    mut io: IO,
    mut info: ConnectionInfo,
) -> Result<Serving, Broken>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limit = edge.plan.limits.header_timeout;
    let tcp = edge.plan.tcp.clone();
    let Some(tls) = &edge.plan.tls else {
        if let Some(plan) = tcp {
            return Ok(Box::pin(pass_on(counted, edge, plan, io, info)));
        }
        let detected = tokio::select! {
            detected = tokio::time::timeout(limit, detect(&mut io)) => detected,
            // Nothing has begun that could be finished.
            () = counted.listening.drain.ending() => return Ok(Box::pin(ready(Ok(())))),
        };
        let (http2, ahead) = detected.map_err(|_| Broken::SlowStart)??;
        let http2 = match edge.plan.codec {
            Codec::Auto => http2,
            Codec::Http1 => false,
            Codec::Http2 if http2 => true,
            Codec::Http2 => return Err(Broken::OtherVersion),
        };
        let io = Box::new(io);
        return Ok(connection::http(counted, &edge, io, info, http2, ahead));
    };
    let begun = edge.notes.times.then(Instant::now);
    let accepted = tokio::time::timeout(limit, tls.accept(io)).await;
    let io = accepted.map_err(|_| Broken::SlowStart)??;
    let peer = tls::Peer::of(io.get_ref().1);
    let local = tls.local_identity(peer.sni.as_deref());
    let http2 = match edge.plan.codec {
        Codec::Auto => peer.alpn.as_deref() == Some("h2"),
        Codec::Http1 => false,
        Codec::Http2 => true,
    };
    info.tls = Some(TlsInfo {
        peer_principal: peer.principal().map(str::to_owned),
        sni: peer.sni,
        alpn: peer.alpn,
        version: peer.version,
        peer_certificate: peer.certificate,
        peer: peer.identity,
        local_principal: local.as_deref().map(|ours| ours.principal().to_owned()),
        local,
        handshake: begun.map(|begun| Handshake {
            begun,
            ended: Instant::now(),
        }),
    });
    Ok(match tcp {
        Some(plan) => Box::pin(pass_on(counted, edge, plan, io, info)),
        None => connection::http(counted, &edge, Box::new(io), info, http2, Bytes::new()),
    })
}
