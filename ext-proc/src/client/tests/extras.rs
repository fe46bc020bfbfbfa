//! Attributes and dynamic metadata beside the messages; the flavour over plain HTTP.

use std::sync::Arc;

use attache_filter::{FilterConfigs, RequestContext, Route};
use attache_proto::ext_proc::{
    ProcessingRequest, ProcessingResponse, processing_request::Request as Part,
};
use attache_service::config::{Document, Errors};
use prost_types::{Struct, Value, value::Kind};

use super::support::*;
use crate::client::{
    Filter, PerRoute,
    config::{ExtProcPerRoute, ExternalProcessor},
};

fn filter(text: &str) -> Filter {
    try_filter(&format!(
        "grpc_service: {{ envoy_grpc: {{ cluster_name: processor }} }}\n{text}"
    ))
    .unwrap()
}

fn try_filter(text: &str) -> Result<Filter, String> {
    let document = Document::parse("f.yaml", text).unwrap();
    let (raw, mut errors) = document.decode_partly::<ExternalProcessor>();
    let planned = raw.and_then(|raw| Filter::plan("f", &raw, &mut errors));
    errors.into_result(planned).map_err(|e| e.to_string())
}

fn on_route(text: &str) -> Route {
    let raw: ExtProcPerRoute = Document::parse("r.yaml", text).unwrap().decode().unwrap();
    let mut errors = Errors::new();
    let planned = PerRoute::plan(&raw, &mut errors).unwrap();
    let mut filters = FilterConfigs::default();
    filters.insert("f", planned);
    Route {
        filters,
        ..Route::default()
    }
}

/// The attributes of a message: `name=value`.
fn attributes(message: &ProcessingRequest) -> Vec<String> {
    assert!(message.attributes.len() <= 1);
    let fields = message.attributes.get("envoy.filters.http.ext_proc");
    let fields = fields.into_iter().flat_map(|fields| &fields.fields);
    fields
        .map(|(name, value)| match value.kind.as_ref().unwrap() {
            Kind::StringValue(text) => format!("{name}={text}"),
            Kind::NumberValue(number) => format!("{name}={number}"),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// The untyped metadata of a message by namespace, each with its keys.
fn metadata(message: &ProcessingRequest) -> Vec<(String, Vec<String>)> {
    let context = message.metadata_context.as_ref().unwrap();
    let namespaces = context.filter_metadata.iter();
    namespaces
        .map(|(name, fields)| (name.clone(), fields.fields.keys().cloned().collect()))
        .collect()
}

fn object(fields: &[(&str, Value)]) -> Struct {
    let fields = fields.iter().cloned();
    Struct {
        fields: fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    }
}

fn value(kind: Kind) -> Value {
    Value { kind: Some(kind) }
}

/// Continues, and sets `key` in each of `namespaces`.
fn pass_with_metadata(part: &Part, namespaces: &[&str], key: &str) -> Act {
    let fields = object(&[(key, value(Kind::BoolValue(true)))]);
    let namespace = value(Kind::StructValue(fields));
    let namespaces: Vec<_> = namespaces.iter().map(|n| (*n, namespace.clone())).collect();
    Act::Raw(Box::new(ProcessingResponse {
        response: Some(answer(part, Default::default())),
        dynamic_metadata: Some(object(&namespaces)),
        ..ProcessingResponse::default()
    }))
}

#[tokio::test]
async fn attributes_come_with_the_first_message_of_each_direction_only() {
    let planned = filter(
        "processing_mode: { request_body_mode: BUFFERED, response_body_mode: BUFFERED }\n\
         request_attributes: [request.path, \"request.headers['x-none']\"]\n\
         response_attributes: [response.code]\n",
    );
    let seen = setup(|f| *f = planned, |part| vec![pass(part)])
        .send(post_hello())
        .await;
    let shown: Vec<_> = seen.messages.iter().map(attributes).collect();
    let nothing = Vec::<String>::new;
    assert_eq!(
        shown,
        [
            vec!["request.path=/p".to_owned()],
            nothing(),
            vec!["response.code=200".to_owned()],
            nothing()
        ]
    );
}

#[tokio::test]
async fn a_head_that_is_not_shown_is_still_read_for_attributes() {
    let planned = filter(
        "processing_mode: { request_header_mode: SKIP, request_body_mode: BUFFERED }\n\
         request_attributes: [request.method]\n\
         response_attributes: [request.path]\n",
    );
    let seen = setup(|f| *f = planned, |part| vec![pass(part)])
        .send(post_hello())
        .await;
    assert_eq!(attributes(&seen.messages[0]), ["request.method=POST"]);
    assert_eq!(attributes(&seen.messages[1]), ["request.path=/p"]);
}

#[tokio::test]
async fn responses_see_the_request_as_it_went_on() {
    let planned = filter("response_attributes: [\"request.headers['x-set']\"]\n");
    let script = |part: &Part| match part {
        Part::RequestHeaders(_) => vec![Act::Send(answer(part, set(&[("x-set", "yes")])))],
        part => vec![pass(part)],
    };
    let seen = setup(|f| *f = planned, script).send(get()).await;
    let shown = attributes(&seen.messages[1]);
    assert_eq!(shown, ["request.headers['x-set']=yes"]);
}

#[tokio::test]
async fn a_route_maps_attributes_in_place_of_all_others() {
    let planned = filter("request_attributes: [request.path]\n");
    let route = on_route(
        "overrides: { processing_request_modifier: { name: m, typed_config: { \
         \"@type\": type.googleapis.com/envoy.extensions.http.ext_proc.\
         processing_request_modifiers.mapped_attribute_builder.v3.MappedAttributeBuilder, \
         mapped_request_attributes: { way: request.url_path } } } }",
    );
    let mut request = get();
    RequestContext::of(&mut request).set_route(Some(Arc::new(route)));
    let seen = setup(|f| *f = planned, |part| vec![pass(part)])
        .send(request)
        .await;
    assert_eq!(attributes(&seen.messages[0]), ["way=/p"]);
}

#[tokio::test]
async fn metadata_is_taken_and_shown_in_its_namespaces_only() {
    let planned = filter(
        "metadata_options:\n\
         \x20 forwarding_namespaces: { untyped: [a, c] }\n\
         \x20 receiving_namespaces: { untyped: [a, b] }\n",
    );
    let script = |part: &Part| vec![pass_with_metadata(part, &["a", "b", "c"], "k")];
    let seen = setup(|f| *f = planned, script).send(get()).await;
    assert_eq!(metadata(&seen.messages[0]), []);
    let shown = [("a".to_owned(), vec!["k".to_owned()])];
    assert_eq!(metadata(&seen.messages[1]), shown);
    assert!(seen.context.metadata("b").is_some());
    assert!(seen.context.metadata("c").is_none());
}

#[tokio::test]
async fn a_list_of_namespaces_on_a_route_replaces_the_filters() {
    let planned = filter(
        "metadata_options:\n\
         \x20 forwarding_namespaces: { untyped: [a] }\n\
         \x20 receiving_namespaces: { untyped: [a, b] }\n",
    );
    let route =
        on_route("overrides: { metadata_options: { forwarding_namespaces: { untyped: [b] } } }");
    let mut request = get();
    RequestContext::of(&mut request).set_route(Some(Arc::new(route)));
    let script = |part: &Part| vec![pass_with_metadata(part, &["a", "b"], "k")];
    let seen = setup(|f| *f = planned, script).send(request).await;
    let shown = [("b".to_owned(), vec!["k".to_owned()])];
    assert_eq!(metadata(&seen.messages[1]), shown);
}

#[tokio::test]
async fn metadata_without_settings_changes_nothing() {
    let script = |part: &Part| vec![pass_with_metadata(part, &["a"], "k")];
    let seen = setup(|_| {}, script).send(get()).await;
    assert_eq!(seen.status, 200);
    assert!(seen.context.metadata("a").is_none());
}

const HTTP: &str = "http_service: { http_service: { http_uri: \
                    { uri: \"http://p/x\", cluster: p, timeout: 1s } } }\n";

#[tokio::test]
async fn an_http_processor_whose_cluster_is_not_there_is_a_failure() {
    for (allow, status) in [(false, 500), (true, 200)] {
        let planned = try_filter(HTTP).unwrap();
        let seen = setup(
            |f| {
                *f = planned;
                f.failure_mode_allow = allow;
            },
            |part| vec![pass(part)],
        )
        .send(get())
        .await;
        assert_eq!(seen.status, status);
        if !allow {
            assert_eq!(seen.details.as_deref(), Some("ext_proc_error_HTTP_ERROR"));
        }
    }
}

#[test]
fn services_are_checked() {
    let both = format!("{HTTP}grpc_service: {{ envoy_grpc: {{ cluster_name: p }} }}\n");
    let bodies = format!("{HTTP}processing_mode: {{ request_body_mode: BUFFERED }}\n");
    let no_host = HTTP.replace("http://p/x", "/x");
    let of_request = HTTP.replace(
        ", timeout: 1s }",
        ", timeout: 1s }, request_headers_to_add: [{ header: { key: a, value: \"%PROTOCOL%\" } }]",
    );
    for (text, reason) in [
        (&*of_request, "not filled in here"),
        ("failure_mode_allow: true\n", "needs a `grpc_service`"),
        (&both, "exclude each other"),
        (&bodies, "headers only"),
        (&no_host, "expected a URI with a host"),
    ] {
        let error = try_filter(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}
