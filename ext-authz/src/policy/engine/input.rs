//! What a policy sees: the document that OPA-Envoy gives its policies, and who is calling.
//!
//! Only what the policy can read is built, and only that is read of the request.

use std::{collections::BTreeMap, net::IpAddr};

use attache_proto::auth::attribute_context::Peer;
use chrono::{DateTime, SecondsFormat, Utc};
use prost_types::value::Kind;
use regorus::Value;
use serde_json::Value as Json;

use super::{json, wants::Wants};
use crate::{
    policy::{check::Check, facts::Facts},
    server::Body,
};

/// An object on its way, of which some fields are wanted.
struct Object<'w> {
    wants: &'w Wants,
    fields: BTreeMap<Value, Value>,
}

impl<'w> Object<'w> {
    fn new(wants: &'w Wants) -> Self {
        Self {
            wants,
            fields: BTreeMap::new(),
        }
    }

    /// Sets a field, if it is wanted and there is a value.
    fn set<V: Into<Value>>(&mut self, name: &str, value: impl FnOnce(&'w Wants) -> Option<V>) {
        if let Some(wants) = self.wants.field(name)
            && let Some(value) = value(wants)
        {
            self.fields.insert(name.into(), value.into());
        }
    }

    /// As the JSON of protobuf has it, an empty text is no field.
    fn text<'a>(&mut self, name: &str, value: impl FnOnce() -> Option<&'a str>) {
        self.set(name, |_| value().filter(|text| !text.is_empty()));
    }

    fn done(self) -> Value {
        Value::from(self.fields)
    }
}

/// The input of a policy.
///
/// # Errors
/// When the policy wants the body parsed and it is not what its `content-type` says.
pub(super) fn input(facts: &Facts<'_>, wants: &Wants) -> Result<Value, String> {
    let check = facts.check;
    let mut failed = None;
    let mut input = Object::new(wants);
    input.set("attributes", |wants| Some(attributes(check, wants)));
    input.set("parsed_path", |_| {
        let path = check.path()?;
        let segments = path.trim_start_matches('/').split('/');
        Some(Value::from(segments.map(Value::from).collect::<Vec<_>>()))
    });
    input.set("parsed_query", |_| {
        Some(query(check.query().unwrap_or_default()))
    });
    input.set("parsed_body", |_| match body(check) {
        Ok(body) => Some(body),
        Err(problem) => {
            failed = Some(problem);
            None
        }
    });
    input.set("truncated_body", |_| {
        Some(matches!(check.body(), Body::Partial(_)))
    });
    input.set("version", |_| {
        let version = [("encoding", "protojson"), ("ext_authz", "v3")];
        Some(BTreeMap::from(version.map(|(name, value)| {
            (Value::from(name), Value::from(value))
        })))
    });
    input.set("identity", |wants| {
        let mut identity = Object::new(wants);
        identity.text("source", || Some(facts.source));
        identity.set("claims", |wants| {
            Some(match facts.caller.claims() {
                Some(claims) => from_json(claims, wants),
                None => Value::new_object(),
            })
        });
        Some(identity.done())
    });
    input.set("metadata", |wants| {
        let mut metadata = Object::new(wants);
        for (name, document) in facts.metadata.iter() {
            metadata.set(name, |wants| Some(from_json(document, wants)));
        }
        Some(metadata.done())
    });
    match failed {
        Some(problem) => Err(problem),
        None => Ok(input.done()),
    }
}

fn attributes(check: &Check<'_>, wants: &Wants) -> Value {
    let mut attributes = Object::new(wants);
    attributes.set("source", |wants| {
        let mut source = Object::new(wants);
        source.set("address", |wants| {
            let ip = check.source_ip()?;
            let port = || Some(check.request().source_address()?.port());
            Some(address(ip, port, wants))
        });
        source.text("principal", || check.principal());
        source.text("certificate", || Some(&source_peer(check)?.certificate));
        source.text("service", || Some(&source_peer(check)?.service));
        Some(source.done())
    });
    attributes.set("destination", |wants| {
        let request = check.request();
        let mut destination = Object::new(wants);
        destination.set("address", |wants| {
            let destination = request.destination_address()?;
            let port = || Some(destination.port());
            Some(address(destination.ip(), port, wants))
        });
        let peer = request.attributes().destination.as_ref();
        destination.text("principal", || Some(&peer?.principal));
        destination.text("service", || Some(&peer?.service));
        destination.set("labels", |_| {
            let labels = &peer?.labels;
            (!labels.is_empty()).then(|| texts(labels))
        });
        Some(destination.done())
    });
    attributes.set("request", |wants| {
        let mut request = Object::new(wants);
        request.set("time", |_| {
            let time: DateTime<Utc> = check.request().time()?.into();
            Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
        });
        request.set("http", |wants| http(check, wants));
        Some(request.done())
    });
    attributes.set("contextExtensions", |wants| {
        let extensions = match wants.fields() {
            Some(fields) => fields
                .filter_map(|(name, _)| Some((name.into(), check.context(name)?.into())))
                .collect(),
            None => texts(&check.request().attributes().context_extensions),
        };
        (!extensions.is_empty()).then_some(extensions)
    });
    attributes.set("metadataContext", |wants| {
        let mut context = Object::new(wants);
        context.set("filterMetadata", |wants| {
            let namespaces: BTreeMap<_, _> = match wants.fields() {
                Some(fields) => fields
                    .filter_map(|(name, _)| Some((name.into(), from_struct(check.metadata(name)?))))
                    .collect(),
                None => {
                    let context = &check.request().attributes().metadata_context;
                    let namespaces = context.iter().flat_map(|context| &context.filter_metadata);
                    namespaces
                        .map(|(name, fields)| (name.as_str().into(), from_struct(fields)))
                        .collect()
                }
            };
            (!namespaces.is_empty()).then_some(namespaces)
        });
        Some(context.done())
    });
    attributes.set("routeMetadataContext", |_| {
        let context = &check.request().attributes().route_metadata_context;
        let namespaces: BTreeMap<_, _> = context
            .iter()
            .flat_map(|context| &context.filter_metadata)
            .map(|(name, fields)| (Value::from(name.as_str()), from_struct(fields)))
            .collect();
        let mut context = BTreeMap::new();
        if !namespaces.is_empty() {
            context.insert(Value::from("filterMetadata"), Value::from(namespaces));
        }
        Some(context)
    });
    attributes.set("tlsSession", |wants| {
        let request = check.request();
        request.attributes().tls_session.as_ref()?;
        let mut session = Object::new(wants);
        session.text("sni", || request.sni());
        Some(session.done())
    });
    attributes.done()
}

fn source_peer<'a>(check: &Check<'a>) -> Option<&'a Peer> {
    check.request().attributes().source.as_ref()
}

fn http(check: &Check<'_>, wants: &Wants) -> Option<Value> {
    // Of a TCP connection there is nothing to tell.
    check.method()?;
    let mut http = Object::new(wants);
    http.text("id", || check.request().id());
    http.text("method", || check.method());
    http.set("headers", |wants| Some(headers(check, wants)));
    http.text("path", || check.target());
    http.text("host", || check.authority());
    http.text("scheme", || check.scheme());
    http.text("protocol", || check.request().protocol());
    http.set("size", |_| {
        let size = check
            .request()
            .attributes()
            .request
            .as_ref()?
            .http
            .as_ref()?
            .size;
        // As the JSON of protobuf has it, large numbers are text.
        (size != 0).then(|| size.to_string())
    });
    http.text("body", || match check.body() {
        Body::Whole(body) | Body::Partial(body) => std::str::from_utf8(body).ok(),
        Body::Absent => None,
    });
    Some(http.done())
}

/// Headers by their names in lower case.
fn headers(check: &Check<'_>, wants: &Wants) -> BTreeMap<Value, Value> {
    let mut headers = BTreeMap::new();
    let mut add = |name: &str| {
        if let Some(value) = check.header(name) {
            headers.insert(Value::from(name), Value::from(value.as_ref()));
        }
    };
    match wants.fields() {
        Some(fields) => fields
            // There are none of another case, though HTTP would not mind.
            .filter(|(name, _)| !name.bytes().any(|byte| byte.is_ascii_uppercase()))
            .for_each(|(name, _)| add(name)),
        None => {
            for (name, _) in check.request().headers() {
                add(&name.to_ascii_lowercase());
            }
        }
    }
    headers
}

fn address(ip: IpAddr, port: impl FnOnce() -> Option<u16>, wants: &Wants) -> Value {
    let mut outer = Object::new(wants);
    outer.set("socketAddress", |wants| {
        let mut inner = Object::new(wants);
        inner.set("address", |_| Some(ip.to_string()));
        inner.set("portValue", |_| port().map(u32::from));
        Some(inner.done())
    });
    outer.done()
}

fn query(query: &str) -> Value {
    let mut parameters: BTreeMap<Value, Vec<Value>> = BTreeMap::new();
    for (name, value) in crate::server::form_pairs(query) {
        let values = parameters.entry(name.as_ref().into()).or_default();
        values.push(value.as_ref().into());
    }
    let parameters = parameters.into_iter();
    Value::from(BTreeMap::from_iter(
        parameters.map(|(name, values)| (name, Value::from(values))),
    ))
}

/// The body by its `content-type`; `null` when that is none that is known, or when a part of it
/// is missing.
fn body(check: &Check<'_>) -> Result<Value, String> {
    let Body::Whole(body) = check.body() else {
        return Ok(Value::Null);
    };
    let kind = check.header("content-type").unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let text = || std::str::from_utf8(body).map_err(|_| "the body is not UTF-8".to_owned());
    if kind.eq_ignore_ascii_case("application/json") {
        return json::parse(text()?).ok_or_else(|| "the body is not JSON".to_owned());
    }
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(query(text()?));
    }
    Ok(Value::Null)
}

fn texts<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> BTreeMap<Value, Value> {
    let entries = map.into_iter();
    entries
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect()
}

fn from_struct(fields: &prost_types::Struct) -> Value {
    let fields = fields.fields.iter();
    Value::from(BTreeMap::from_iter(fields.map(|(name, value)| {
        (Value::from(name.as_str()), from_proto(value))
    })))
}

fn from_proto(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::from(*value),
        Some(Kind::NumberValue(value)) => json::fraction(*value),
        Some(Kind::StringValue(value)) => Value::from(value.as_str()),
        Some(Kind::StructValue(fields)) => from_struct(fields),
        Some(Kind::ListValue(list)) => {
            Value::from(list.values.iter().map(from_proto).collect::<Vec<_>>())
        }
    }
}

/// Of an object, the fields that are wanted.
fn from_json(value: &Json, wants: &Wants) -> Value {
    let Json::Object(fields) = value else {
        return json::value(value);
    };
    let fields = fields.iter().filter_map(|(name, value)| {
        let wants = wants.field(name)?;
        Some((Value::from(name.as_str()), from_json(value, wants)))
    });
    Value::from(BTreeMap::from_iter(fields))
}
