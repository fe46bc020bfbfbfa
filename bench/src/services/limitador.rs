//! Limitador's engine with its counters in memory, behind a plain tonic service.

use std::collections::HashMap;
use std::net::SocketAddr;

use attache_proto::ratelimit::rate_limit_response::Code;
use attache_proto::ratelimit::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse};
use limitador::RateLimiter;
use limitador::limit::{Context, Expression, Limit, Namespace, Predicate};
use tonic::{Request, Response, Status, async_trait};

use crate::{limits, serve};

/// Counters held: more than there are keys.
const COUNTERS: u64 = 1_000_000;

/// Serves until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let engine = RateLimiter::new(COUNTERS);
    let value = Expression::parse(format!("descriptors[0].{}", limits::KEY))?;
    let limit = u64::from(limits::REQUESTS_PER_HOUR);
    let all = std::iter::empty::<Predicate>();
    engine.add_limit(Limit::new(limits::DOMAIN, limit, 3600, all, [value]));
    let service = RateLimitServiceServer::new(Limitador(engine));
    let router = tonic::transport::Server::builder().add_service(service);
    serve::grpc(address, router).await
}

struct Limitador(RateLimiter);

#[async_trait]
impl RateLimitService for Limitador {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let hits = u64::from(request.hits_addend.max(1));
        let namespace = Namespace::from(request.domain);
        let descriptors = request.descriptors.into_iter().map(|descriptor| {
            let entries = descriptor.entries.into_iter();
            entries.map(|entry| (entry.key, entry.value)).collect()
        });
        let descriptors: Vec<HashMap<String, String>> = descriptors.collect();
        let mut context = Context::default();
        context.list_binding("descriptors".to_owned(), descriptors);
        let checked = self
            .0
            .check_rate_limited_and_update(&namespace, &context, hits)
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let code = if checked.limited {
            Code::OverLimit
        } else {
            Code::Ok
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: code.into(),
            ..RateLimitResponse::default()
        }))
    }
}
