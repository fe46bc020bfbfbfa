//! The layer with a scripted auth service behind it, in memory.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use attache_filter::{
    Body, Channels, RequestContext, Route,
    calls::{CallResult, Recording},
    changes::HeaderChange,
    metadata::RouteMetadata,
};
use attache_proto::{
    auth::{
        CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
        attribute_context::HttpRequest,
        authorization_server::{Authorization, AuthorizationServer},
        check_response::HttpResponse,
    },
    core::QueryParameter,
    rpc, types,
};
use attache_service::{
    Channel, ChannelSettings, Metrics,
    channel::Target,
    config::{ConfigValue, Document, Errors, json},
    host::Host,
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::time::Instant;
use tonic::{Status, service::Routes};
use tower::{Layer as _, Service as _};

mod content;
mod decisions;
mod failures;
mod services;

use super::{
    ExtAuthzConfig, ExtAuthzLayer, ExtAuthzPerRoute, Filter, PerRoute,
    answer::tests::{hv, option},
    plan::AuthService,
};

type Answer = Result<CheckResponse, Status>;
type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Script {
    answer: Box<dyn Fn() -> Answering + Send + Sync>,
    seen: Arc<Mutex<Vec<CheckRequest>>>,
}

#[tonic::async_trait]
impl Authorization for Script {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, Status> {
        self.seen.lock().unwrap().push(request.into_inner());
        (self.answer)().await.map(tonic::Response::new)
    }
}

/// What the upstream got.
#[derive(Debug)]
struct Upstream {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

struct Fixture {
    filter: Arc<Filter>,
    channels: Channels,
    metrics: Metrics,
    checks: Arc<Mutex<Vec<CheckRequest>>>,
    route: Option<PerRoute>,
    route_metadata: RouteMetadata,
    /// Where the route leads.
    cluster: Option<&'static str>,
}

struct Outcome {
    response: Response<Bytes>,
    upstream: Option<Upstream>,
    context: Arc<RequestContext>,
}

fn decode<T: ConfigValue>(text: &str) -> T {
    let decoded = Document::parse("filter.yaml", text).and_then(|d| d.decode());
    decoded.unwrap_or_else(|errors| panic!("{errors}"))
}

fn plan(text: &str) -> Filter {
    let mut text = text.to_owned();
    if !text.contains("_service:") {
        text.push_str("\ngrpc_service: { envoy_grpc: { cluster_name: auth } }");
    }
    planned(&text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn planned(text: &str) -> Result<Filter, Errors> {
    let document = Document::parse("filter.yaml", text)?;
    let (raw, mut errors) = document.decode_partly::<ExtAuthzConfig>();
    let filter = raw.and_then(|raw| Filter::plan("auth", &raw, &mut errors));
    errors.into_result(filter)
}

fn per_route(text: &str) -> PerRoute {
    let mut errors = Errors::new();
    let planned = PerRoute::plan(&decode::<ExtAuthzPerRoute>(text), &mut errors);
    errors
        .into_result(planned)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

impl Fixture {
    fn answering<F>(config: &str, answer: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let checks = Arc::default();
        let script = Script {
            answer: Box::new(move || Box::pin(answer())),
            seen: Arc::clone(&checks),
        };
        let host = Host::new(Routes::new(AuthorizationServer::new(script)));
        let target = Target::Embedded(host.embedded());
        let channel = Channel::new(ChannelSettings::new("auth", vec![target]));
        Self {
            filter: Arc::new(plan(config)),
            channels: [channel].into_iter().collect(),
            metrics: Metrics::default(),
            checks,
            route: None,
            route_metadata: RouteMetadata::default(),
            cluster: None,
        }
    }

    fn new(config: &str, answer: Answer) -> Self {
        Self::answering(config, move || std::future::ready(answer.clone()))
    }

    fn route(mut self, route: PerRoute) -> Self {
        self.route = Some(route);
        self
    }

    async fn send<B: Into<Body>>(&self, request: http::request::Builder, body: B) -> Outcome {
        self.send_request(request.body(body.into()).unwrap()).await
    }

    async fn send_request(&self, mut request: Request<Body>) -> Outcome {
        let upstream = Arc::new(Mutex::new(None));
        let seen = upstream.clone();
        let inner = tower::service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let (parts, body) = request.into_parts();
                let path = parts.uri.path_and_query().map(ToString::to_string);
                *seen.lock().unwrap() = Some(Upstream {
                    path: path.unwrap_or_default(),
                    headers: parts.headers,
                    body: body.collect().await.unwrap().to_bytes(),
                });
                let response = Response::builder().header("x-r", "u1").header("x-r", "u2");
                Ok::<_, Infallible>(response.body(Body::from("hello")).unwrap())
            }
        });
        let layer = ExtAuthzLayer::new(self.filter.clone(), &self.channels, &self.metrics);
        let known = request.extensions().get::<Arc<RequestContext>>().cloned();
        let context = known.unwrap_or_else(|| {
            let mut context = RequestContext::new(Arc::default(), request.version());
            context.recording = Recording::Changes;
            Arc::new(context)
        });
        request.extensions_mut().insert(context.clone());
        let mut route = Route {
            cluster: self.cluster.map(Into::into),
            metadata: self.route_metadata.clone(),
            ..Route::default()
        };
        if let Some(settings) = &self.route {
            route.filters.insert("auth", settings.clone());
        }
        context.set_route(Some(Arc::new(route)));
        let response = layer.layer(inner).call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Outcome {
            response: Response::from_parts(parts, body),
            upstream: upstream.lock().unwrap().take(),
            context,
        }
    }

    async fn get(&self) -> Outcome {
        self.send(get(), Body::empty()).await
    }

    fn shown(&self) -> HttpRequest {
        let checks = self.checks.lock().unwrap();
        let attributes = checks.last().unwrap().attributes.clone().unwrap();
        attributes.request.unwrap().http.unwrap()
    }

    fn checks(&self) -> usize {
        self.checks.lock().unwrap().len()
    }

    /// The counters that are not zero.
    fn counted(&self) -> Vec<(String, String)> {
        let text = self.metrics.render();
        let lines = text.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("attache_ext_authz_")?.rsplit_once(' ')?;
            let (name, _) = name.split_once("_total")?;
            (value != "0").then(|| (name.to_owned(), value.to_owned()))
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    }
}

fn get() -> http::request::Builder {
    Request::get("http://example.com/p?z=1").header("x-e", "old")
}

fn post() -> http::request::Builder {
    Request::post("http://example.com/p")
}

fn counts(names: &[&str]) -> Vec<(String, String)> {
    names
        .iter()
        .map(|name| ((*name).to_owned(), "1".to_owned()))
        .collect()
}

fn ok(ok: OkHttpResponse) -> Answer {
    Ok(CheckResponse {
        http_response: Some(HttpResponse::OkResponse(ok)),
        ..CheckResponse::default()
    })
}

fn denied_parts(status: i32, body: &str) -> DeniedHttpResponse {
    DeniedHttpResponse {
        status: Some(types::HttpStatus { code: status }),
        headers: vec![hv("x-d", "1")],
        body: body.to_owned(),
    }
}

fn with_code(code: i32, http: HttpResponse) -> Answer {
    Ok(CheckResponse {
        status: Some(rpc::Status {
            code,
            ..rpc::Status::default()
        }),
        http_response: Some(http),
        dynamic_metadata: None,
    })
}

fn denied(status: i32, body: &str) -> Answer {
    with_code(7, HttpResponse::DeniedResponse(denied_parts(status, body)))
}

fn failed(status: i32, body: &str) -> Answer {
    with_code(13, HttpResponse::ErrorResponse(denied_parts(status, body)))
}

fn flags(outcome: &Outcome) -> Vec<&'static str> {
    outcome
        .context
        .flags()
        .iter()
        .map(|flag| flag.short())
        .collect()
}
