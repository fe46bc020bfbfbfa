//! From a request to the entries of a descriptor.

use std::{borrow::Cow, net::IpAddr};

use attache_filter::{
    MessageHead, RequestContext, Route,
    format::{Exchange, Format},
    matcher::FieldMatcher,
    metadata::MetadataPath,
};
use attache_service::config::{Errors, Located};
use http::{HeaderName, request::Parts};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use prost_types::value::Kind;

use super::raw::{self, MetadataSource};

mod extension;
mod matchers;

pub use extension::{Input, Producer};
pub use matchers::{Matchers, ParameterMatch};

/// What actions look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The head of the request.
    pub head: &'a Parts,
    /// What else is known of it.
    pub context: &'a RequestContext,
    /// The same for formats.
    pub exchange: Exchange<'a>,
    /// The route of the request, if there is a router.
    pub route: Option<&'a Route>,
    /// The cluster that the proxy belongs to.
    pub source_cluster: &'a str,
}

/// One entry of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Key.
    pub key: &'a str,
    /// Value.
    pub value: Cow<'a, str>,
}

/// A compiled [`raw::Action`].
#[derive(Debug, Clone)]
pub enum Action {
    /// The cluster of the proxy.
    SourceCluster,
    /// The cluster of the route.
    DestinationCluster,
    /// The value of a header or pseudo-header.
    Header {
        /// Which.
        name: FieldName,
        /// Key of the entry.
        key: String,
        /// What an absent header means.
        absent: Absent,
    },
    /// The value of a query parameter.
    QueryParameter {
        /// Which.
        name: String,
        /// Key of the entry.
        key: String,
        /// What an absent parameter means.
        absent: Absent,
    },
    /// The client's address.
    RemoteAddress,
    /// The client's network, of this many bits.
    MaskedRemoteAddress {
        /// IPv4.
        v4: u8,
        /// IPv6.
        v6: u8,
    },
    /// Always the same.
    Literal {
        /// Key of the entry.
        key: String,
        /// Value of the entry.
        value: String,
    },
    /// A literal, when all matchers match, or when not all do.
    Match {
        /// Key of the entry.
        key: String,
        /// Value of the entry.
        value: String,
        /// Which of the two.
        expect: bool,
        /// What must match.
        matchers: Matchers,
    },
    /// A text in metadata.
    Metadata {
        /// Key of the entry.
        key: String,
        /// Whose metadata.
        source: MetadataSource,
        /// Where in it.
        path: MetadataPath,
        /// The value when there is none, or an empty one.
        default: Option<String>,
        /// What its absence means.
        absent: Absent,
    },
    /// A text with facts of the request, when the client's address is in one of the networks, or
    /// in none.
    AddressMatch {
        /// Key of the entry.
        key: String,
        /// Value of the entry.
        value: Format,
        /// The value when that is empty.
        default: Option<String>,
        /// The networks.
        networks: Vec<IpNet>,
        /// The address must be in none.
        invert: bool,
    },
    /// What an extension makes of the request.
    Extension {
        /// Key of the entry.
        key: String,
        /// The extension.
        producer: Producer,
    },
}

/// A header or a pseudo-header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldName {
    /// An ordinary header.
    Header(HeaderName),
    /// A pseudo-header, with its colon; `host` too.
    Pseudo(String),
}

/// What it means when a value is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// The descriptor is left out.
    DropDescriptor,
    /// The entry is left out.
    SkipEntry,
}

/// What an action made of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// An entry.
    Entry(Entry<'a>),
    /// No entry; the descriptor goes on without.
    Skip,
    /// No descriptor.
    Drop,
}

impl Action {
    /// Compiles an action; faults are reported at their place.
    pub fn plan(raw: &raw::Action, errors: &mut Errors) -> Option<Self> {
        Some(match raw {
            raw::Action::SourceCluster(_) => Self::SourceCluster,
            raw::Action::DestinationCluster(_) => Self::DestinationCluster,
            raw::Action::RemoteAddress(_) => Self::RemoteAddress,
            raw::Action::RequestHeaders(raw) => Self::Header {
                name: FieldName::plan(&raw.header_name, errors)?,
                key: not_empty(&raw.descriptor_key, "descriptor_key", errors)?,
                absent: Absent::plan(raw.skip_if_absent),
            },
            raw::Action::QueryParameters(raw) => Self::QueryParameter {
                name: not_empty(&raw.query_parameter_name, "query_parameter_name", errors)?,
                key: not_empty(&raw.descriptor_key, "descriptor_key", errors)?,
                absent: Absent::plan(raw.skip_if_absent),
            },
            raw::Action::MaskedRemoteAddress(raw) => Self::MaskedRemoteAddress {
                v4: bits(raw.v4_prefix_mask_len.as_ref(), 32, errors)?,
                v6: bits(raw.v6_prefix_mask_len.as_ref(), 128, errors)?,
            },
            raw::Action::GenericKey(raw) => Self::Literal {
                key: key(raw.descriptor_key.as_ref(), "generic_key"),
                value: not_empty(&raw.descriptor_value, "descriptor_value", errors)?,
            },
            raw::Action::HeaderValueMatch(raw) => {
                if raw.headers.value.is_empty() {
                    errors.push(&raw.headers, "`headers` needs at least one matcher");
                }
                let matchers = raw.headers.value.iter();
                let matchers: Option<_> = matchers
                    .map(|matcher| FieldMatcher::plan(matcher, errors))
                    .collect();
                Self::Match {
                    key: key(raw.descriptor_key.as_ref(), "header_match"),
                    value: not_empty(&raw.descriptor_value, "descriptor_value", errors)?,
                    expect: raw.expect_match.unwrap_or(true),
                    matchers: Matchers::Headers(matchers?),
                }
            }
            raw::Action::QueryParameterValueMatch(raw) => {
                let parameters = &raw.query_parameters;
                if parameters.value.is_empty() {
                    errors.push(parameters, "`query_parameters` needs at least one matcher");
                }
                let matchers = parameters.value.iter();
                let matchers: Option<_> = matchers
                    .map(|matcher| {
                        let matches = ParameterMatch::plan(matcher.matches.as_ref(), errors)?;
                        Some((matcher.name.clone(), matches))
                    })
                    .collect();
                Self::Match {
                    key: key(raw.descriptor_key.as_ref(), "query_match"),
                    value: not_empty(&raw.descriptor_value, "descriptor_value", errors)?,
                    expect: raw.expect_match.unwrap_or(true),
                    matchers: Matchers::QueryParameters(matchers?),
                }
            }
            raw::Action::Metadata(raw) => Self::Metadata {
                key: not_empty(&raw.descriptor_key, "descriptor_key", errors)?,
                source: raw.source.unwrap_or_default(),
                path: MetadataPath::plan(&raw.metadata_key, errors)?,
                default: some_text(raw.default_value.as_ref()),
                absent: Absent::plan(raw.skip_if_absent),
            },
            raw::Action::RemoteAddressMatch(raw) => {
                let networks = raw.address_matcher.ranges.iter();
                let networks: Vec<_> = networks.map(|range| range.plan(errors)).collect();
                let text = not_empty(&raw.descriptor_value, "descriptor_value", errors)?;
                let value = Format::parse(&text)
                    .map_err(|fault| errors.push(&raw.descriptor_value, fault))
                    .ok()?;
                Self::AddressMatch {
                    key: key(raw.descriptor_key.as_ref(), "remote_address_match"),
                    value,
                    default: some_text(raw.default_value.as_ref()),
                    networks: networks.into_iter().collect::<Option<_>>()?,
                    invert: raw.address_matcher.invert_match.unwrap_or(false),
                }
            }
            raw::Action::Extension(raw) => {
                let (key, producer) = Producer::plan(raw, errors)?;
                Self::Extension { key, producer }
            }
        })
    }

    /// Applies the action.
    pub fn apply<'a>(&'a self, subject: &Subject<'a>) -> Outcome<'a> {
        let Subject { head, context, .. } = *subject;
        let entry = |key: &'a str, value: Cow<'a, str>| Outcome::Entry(Entry { key, value });
        match self {
            Self::SourceCluster => entry("source_cluster", subject.source_cluster.into()),
            Self::DestinationCluster => match subject.route.and_then(|r| r.cluster.as_deref()) {
                Some(cluster) => entry("destination_cluster", cluster.into()),
                None => Outcome::Drop,
            },
            Self::Header { name, key, absent } => match name.first_value(head) {
                Some(value) => entry(key, value),
                None => absent.outcome(),
            },
            Self::QueryParameter { name, key, absent } => match query_value(head, name) {
                Some(value) => entry(key, value),
                None => absent.outcome(),
            },
            Self::RemoteAddress => match context.client_ip {
                Some(ip) => entry("remote_address", ip.to_canonical().to_string().into()),
                None => Outcome::Drop,
            },
            Self::MaskedRemoteAddress { v4, v6 } => {
                let network = context
                    .client_ip
                    .map(|ip| ip.to_canonical())
                    .and_then(|ip| {
                        let bits = if ip.is_ipv4() { *v4 } else { *v6 };
                        masked(ip, bits)
                    });
                match network {
                    Some(network) => entry("masked_remote_address", network.to_string().into()),
                    None => Outcome::Drop,
                }
            }
            Self::Literal { key, value } => entry(key, value.as_str().into()),
            Self::Match {
                key,
                value,
                expect,
                matchers,
            } => {
                if matchers.all_match(head) == *expect {
                    entry(key, value.as_str().into())
                } else {
                    Outcome::Drop
                }
            }
            Self::Metadata {
                key,
                source,
                path,
                default,
                absent,
            } => {
                let found = metadata_text(*source, path, subject).filter(|text| !text.is_empty());
                match found.or(default.as_deref().map(Cow::Borrowed)) {
                    Some(value) => entry(key, value),
                    None => absent.outcome(),
                }
            }
            Self::AddressMatch {
                key,
                value,
                default,
                networks,
                invert,
            } => {
                let Some(ip) = context.client_ip.map(|ip| ip.to_canonical()) else {
                    return Outcome::Drop;
                };
                if networks.iter().any(|network| network.contains(&ip)) == *invert {
                    return Outcome::Drop;
                }
                let text = match value.fixed() {
                    Some(text) => Cow::Borrowed(text),
                    None => lossy(value.value(&subject.exchange)),
                };
                let text = Some(text).filter(|text| !text.is_empty());
                match text.or(default.as_deref().map(Cow::Borrowed)) {
                    Some(value) => entry(key, value),
                    None => Outcome::Drop,
                }
            }
            Self::Extension { key, producer } => producer.outcome(key, subject),
        }
    }
}

/// A text in metadata; what is no text counts as absent.
fn metadata_text<'a>(
    source: MetadataSource,
    path: &MetadataPath,
    subject: &Subject<'a>,
) -> Option<Cow<'a, str>> {
    let text = |value: &'a prost_types::Value| match &value.kind {
        Some(Kind::StringValue(text)) => Some(Cow::Borrowed(text.as_str())),
        _ => None,
    };
    match source {
        MetadataSource::Dynamic => subject.context.with_metadata(&path.namespace, |fields| {
            match &attache_filter::metadata::find(fields?, &path.path)?.kind {
                Some(Kind::StringValue(text)) => Some(Cow::Owned(text.clone())),
                _ => None,
            }
        }),
        MetadataSource::RouteEntry => path.in_route(&subject.route?.metadata).and_then(text),
        MetadataSource::ClusterEntry => path
            .in_route(&subject.route?.cluster_metadata)
            .and_then(text),
        MetadataSource::ClusterLocalityEntry => None,
    }
}

/// Bytes that are not UTF-8 are replaced, as in headers.
fn lossy<'a>(bytes: Vec<u8>) -> Cow<'a, str> {
    let text = String::from_utf8(bytes);
    Cow::Owned(text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

impl FieldName {
    fn plan(raw: &Located<String>, errors: &mut Errors) -> Option<Self> {
        let name = raw.value.to_ascii_lowercase();
        if name.starts_with(':') || name == "host" {
            return Some(Self::Pseudo(name));
        }
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Some(Self::Header(name)),
            Err(_) => {
                errors.push(raw, format!("`{}` is not a valid header name", raw.value));
                None
            }
        }
    }

    /// The first value; bytes that are not UTF-8 are replaced. (Envoy sends them as they are; the
    /// service cannot read the message then, and with the default failure mode the request passes
    /// unlimited.)
    fn first_value<'a>(&self, head: &'a Parts) -> Option<Cow<'a, str>> {
        match self {
            Self::Header(name) => head
                .headers
                .get(name)
                .map(|value| String::from_utf8_lossy(value.as_bytes())),
            Self::Pseudo(name) => head.pseudo(name),
        }
    }
}

impl Absent {
    fn plan(skip_if_absent: Option<bool>) -> Self {
        if skip_if_absent == Some(true) {
            Self::SkipEntry
        } else {
            Self::DropDescriptor
        }
    }

    fn outcome<'a>(self) -> Outcome<'a> {
        match self {
            Self::DropDescriptor => Outcome::Drop,
            Self::SkipEntry => Outcome::Skip,
        }
    }
}

/// The first value of a query parameter, decoded.
fn query_value<'a>(head: &'a Parts, name: &str) -> Option<Cow<'a, str>> {
    let query = head.uri.query()?;
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decode_str(key).decode_utf8_lossy();
        (key == name).then(|| percent_decode_str(value).decode_utf8_lossy())
    })
}

fn masked(ip: IpAddr, bits: u8) -> Option<IpNet> {
    IpNet::new(ip, bits).ok().map(|network| network.trunc())
}

fn key(raw: Option<&String>, default: &str) -> String {
    match raw {
        Some(key) if !key.is_empty() => key.clone(),
        _ => default.to_owned(),
    }
}

fn some_text(raw: Option<&String>) -> Option<String> {
    raw.filter(|text| !text.is_empty()).cloned()
}

fn not_empty(raw: &Located<String>, field: &str, errors: &mut Errors) -> Option<String> {
    if raw.value.is_empty() {
        errors.push(raw, format!("`{field}` must not be empty"));
        return None;
    }
    Some(raw.value.clone())
}

fn bits(raw: Option<&Located<u8>>, most: u8, errors: &mut Errors) -> Option<u8> {
    match raw {
        None => Some(most),
        Some(bits) if bits.value <= most => Some(bits.value),
        Some(bits) => {
            errors.push(bits, format!("a prefix of at most {most} bits is possible"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
