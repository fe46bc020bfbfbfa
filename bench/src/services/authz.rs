//! An auth service that lets everyone in, under one name.

use std::net::SocketAddr;

use attache_proto::auth::authorization_server::{Authorization, AuthorizationServer};
use attache_proto::auth::check_response::HttpResponse;
use attache_proto::auth::{CheckRequest, CheckResponse, OkHttpResponse};
use attache_proto::core::{HeaderValue, HeaderValueOption};
use attache_proto::rpc;
use tonic::{Request, Response, Status, async_trait};

use crate::{row, serve};

/// Serves until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let service = AuthorizationServer::new(AllowAll);
    let router = tonic::transport::Server::builder().add_service(service);
    serve::grpc(address, router).await
}

struct AllowAll;

#[async_trait]
impl Authorization for AllowAll {
    async fn check(
        &self,
        _request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let user = HeaderValueOption {
            header: Some(HeaderValue {
                key: row::AUTH_HEADER.to_owned(),
                value: "alice".to_owned(),
                ..HeaderValue::default()
            }),
            append: Some(false),
            ..HeaderValueOption::default()
        };
        Ok(Response::new(CheckResponse {
            status: Some(rpc::Status::default()),
            http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![user],
                ..OkHttpResponse::default()
            })),
            ..CheckResponse::default()
        }))
    }
}
