//! `CONNECT`: what comes through the tunnel goes to a connection of its own.

use attache_filter::LocalReply;
use attache_service::cluster::breakers::Permit;
use http::{Response, StatusCode};
use tokio::time::Instant;

use super::{
    Received, Router,
    attempt::{note_connect, note_upstream},
    forward::{Answered, Forwarding},
    replies::{failed, local},
};
use crate::{
    body::ReplyBody,
    tunnel::{self, Side},
    upstream::{Cluster, Endpoint, Limits},
};

/// A `CONNECT` on its way to its endpoint.
pub(super) struct Connecting {
    pub(super) received: Box<Received>,
    pub(super) endpoint: Endpoint,
    /// Where the cluster limits requests.
    pub(super) permit: Option<Permit>,
    pub(super) limits: Limits,
}

impl Router {
    /// Ends a `CONNECT` here.
    pub(super) async fn connect(
        &self,
        by: &Forwarding<'_>,
        cluster: &Cluster,
        connecting: Connecting,
    ) -> Response<ReplyBody> {
        let Connecting {
            received,
            mut endpoint,
            permit,
            limits,
        } = connecting;
        let context = by.context;
        note_upstream(&endpoint, context);
        let Received {
            mut parts,
            mut body,
        } = *received;
        let through = tunnel::sent(&mut parts.extensions, &mut body, context);
        let Some(through) = through.filter(|_| by.forward.connect) else {
            let reply = LocalReply::new(StatusCode::FORBIDDEN, "connect_not_allowed");
            return local(context, by.form, reply);
        };
        let begun = Instant::now();
        let connected = endpoint.own.connect_plain().await;
        cluster.note_connect(&mut endpoint, &connected);
        note_connect(context, &endpoint, begun, &connected);
        let io = match connected {
            Ok(io) => io,
            Err(error) => {
                cluster.stats.failed.inc();
                return failed(&error, context, by.form);
            }
        };
        context.set_details("via_upstream");
        cluster.stats.count(StatusCode::OK);
        let answered = self.notes_upstream.then(|| Answered {
            endpoint: endpoint.endpoint.to_string(),
            after: limits.started.elapsed(),
        });
        let upstream = tunnel::Upstream {
            side: Side::Open(io),
            idle: limits.idle,
            lifetime: limits.lifetime,
            endpoint,
            lease: None,
            permit,
            context: context.clone(),
        };
        let mut response = Response::new(ReplyBody::Local(upstream.open(through)));
        if let Some(answered) = answered {
            response.extensions_mut().insert(answered);
        }
        response
    }
}
