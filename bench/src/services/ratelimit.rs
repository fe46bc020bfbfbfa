//! A rate-limit service without limits: it tells so in a response header.

use std::net::SocketAddr;

use attache_proto::core::HeaderValue;
use attache_proto::ratelimit::rate_limit_response::{Code, DescriptorStatus};
use attache_proto::ratelimit::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use attache_proto::ratelimit::{RateLimitRequest, RateLimitResponse};
use tonic::{Request, Response, Status, async_trait};

use crate::{row, serve};

/// Serves until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let service = RateLimitServiceServer::new(Unlimited);
    let router = tonic::transport::Server::builder().add_service(service);
    serve::grpc(address, router).await
}

struct Unlimited;

#[async_trait]
impl RateLimitService for Unlimited {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let status = DescriptorStatus {
            code: Code::Ok.into(),
            limit_remaining: 1_000_000,
            ..DescriptorStatus::default()
        };
        Ok(Response::new(RateLimitResponse {
            overall_code: Code::Ok.into(),
            statuses: vec![status; request.get_ref().descriptors.len()],
            response_headers_to_add: vec![HeaderValue {
                key: row::LIMITS_HEADER.to_owned(),
                value: "ok".to_owned(),
                ..HeaderValue::default()
            }],
            ..RateLimitResponse::default()
        }))
    }
}
