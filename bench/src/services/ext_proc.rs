//! A processor that sets one header each way and turns response bodies into
//! capitals, chunk by chunk, so that every answer shows that it was here. Written as one usually
//! is: on tonic's stubs, served by tonic on a runtime of several threads.

use std::net::SocketAddr;
use std::pin::Pin;

use attache_proto::core::header_value_option::HeaderAppendAction;
use attache_proto::core::{HeaderValue, HeaderValueOption};
use attache_proto::ext_proc::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use attache_proto::ext_proc::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody,
    ProcessingRequest, ProcessingResponse, TrailersResponse, body_mutation, processing_request,
    processing_response,
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{row, serve};

/// Serves until standard input ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let service = ExternalProcessorServer::new(Processor);
    let router = tonic::transport::Server::builder().add_service(service);
    serve::grpc(address, router).await
}

struct Processor;

#[async_trait]
impl ExternalProcessor for Processor {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let answers = request.into_inner().map(|message| answer(message?));
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer(message: ProcessingRequest) -> Result<ProcessingResponse, Status> {
    use processing_request::Request as Asked;
    use processing_response::Response as Said;
    let said = match message.request {
        Some(Asked::RequestHeaders(_)) => Said::RequestHeaders(set(row::PROC_REQUEST_HEADER)),
        Some(Asked::ResponseHeaders(_)) => Said::ResponseHeaders(set(row::PROC_RESPONSE_HEADER)),
        Some(Asked::ResponseBody(body)) => Said::ResponseBody(capitals(&body)),
        Some(Asked::RequestBody(_)) => Said::RequestBody(BodyResponse::default()),
        Some(Asked::RequestTrailers(_)) => Said::RequestTrailers(TrailersResponse::default()),
        Some(Asked::ResponseTrailers(_)) => Said::ResponseTrailers(TrailersResponse::default()),
        _ => return Err(Status::invalid_argument("a message without a phase")),
    };
    Ok(ProcessingResponse {
        response: Some(said),
        ..ProcessingResponse::default()
    })
}

fn set(name: &str) -> HeadersResponse {
    let header = HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            raw_value: "1".into(),
            ..HeaderValue::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    HeadersResponse {
        response: Some(CommonResponse {
            header_mutation: Some(HeaderMutation {
                set_headers: vec![header],
                ..HeaderMutation::default()
            }),
            ..CommonResponse::default()
        }),
    }
}

fn capitals(body: &HttpBody) -> BodyResponse {
    let capitals = body.body.to_ascii_uppercase();
    BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(body_mutation::Mutation::Body(capitals.into())),
            }),
            ..CommonResponse::default()
        }),
    }
}
