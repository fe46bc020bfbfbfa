//! Texts with facts of the exchange in them: Envoy's access log formatters, as far as policies
//! use them.
//!
//! `%%` is a percent sign. What is absent is empty; in a line of the access log it is `-`.
//!
//! | formatter | value |
//! |---|---|
//! | `%REQ(X?Y):Z%` | header `X` of the request, else `Y`; at most `Z` bytes |
//! | `%RESP(X?Y):Z%` | the same of the response |
//! | `%PROTOCOL%` | `HTTP/1.1`, `HTTP/2`, ... |
//! | `%DOWNSTREAM_REMOTE_ADDRESS%` | the client's address and port; `_WITHOUT_PORT` without |
//! | `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%` | the same of who is connected, be it a proxy |
//! | `%DOWNSTREAM_LOCAL_ADDRESS%` | our side of that connection |
//! | `%REQUESTED_SERVER_NAME%` | the server name that the client asked for |
//! | `%ROUTE_NAME%`, `%UPSTREAM_CLUSTER%`, `%UPSTREAM_HOST%` | where the request goes |
//! | `%DYNAMIC_METADATA(namespace:key:key)%` | what filters have left; what is no text is JSON |
//! | `%CEL(expression)%` | the value of an expression over [`crate::attributes`] |
//! | `%RESPONSE_CODE%` | the status; 0 while there is none |
//! | `%RESPONSE_CODE_DETAILS%` | why it is so |
//! | `%RESPONSE_FLAGS%` | what went wrong, with commas between; `-` for nothing |
//! | `%BYTES_RECEIVED%`, `%BYTES_SENT%` | bytes of the bodies of request and response, so far |
//! | `%DURATION%` | milliseconds since the request came |
//!
//! In the access log there are those of [`log`] too.

pub mod log;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, request, response};
use prost_types::{Struct, value::Kind};

use crate::{
    MessageHead,
    attributes::{Expression, Facts, Value, protocol},
    context::ResponseFlag,
    metadata::{find, to_json},
};

pub use log::Finished;
use log::LogPart;

/// What formatters are filled in from.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// Heads of the messages, connection, route, metadata.
    pub facts: Facts<'a>,
    /// Bytes of the body of the request, so far.
    pub bytes_received: u64,
    /// Bytes of the body of the response, so far.
    pub bytes_sent: u64,
    /// What is known once it is over.
    pub finished: Option<&'a Finished>,
}

impl<'a> From<Facts<'a>> for Exchange<'a> {
    /// Before any body.
    fn from(facts: Facts<'a>) -> Self {
        Self {
            facts,
            bytes_received: 0,
            bytes_sent: 0,
            finished: None,
        }
    }
}

/// A text with formatters in it.
#[derive(Debug, Clone)]
pub struct Format(Vec<Part>);

/// A formatter on its own, for its value as a number.
#[derive(Debug, Clone)]
pub struct Formatter(Part);

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Request(Header),
    Response(Header),
    Protocol,
    Address {
        of: Peer,
        port: bool,
    },
    ServerName,
    RouteName,
    Cluster,
    Upstream,
    Metadata {
        namespace: String,
        path: Vec<String>,
    },
    Expression(Box<Expression>),
    Status,
    Details,
    Flags,
    BytesReceived,
    BytesSent,
    Duration,
    Log(LogPart),
}

#[derive(Debug, Clone, Copy)]
enum Peer {
    Client,
    Direct,
    Local,
}

#[derive(Debug, Clone)]
struct Header {
    name: String,
    instead: Option<String>,
    max: Option<usize>,
}

const KNOWN: &str = "`%REQ(name)%`, `%RESP(name)%`, `%PROTOCOL%`, `%DOWNSTREAM_REMOTE_ADDRESS%`, \
    `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%` and `%DOWNSTREAM_LOCAL_ADDRESS%` (with `_WITHOUT_PORT` \
    too), `%REQUESTED_SERVER_NAME%`, `%ROUTE_NAME%`, `%UPSTREAM_CLUSTER%`, `%UPSTREAM_HOST%`, \
    `%DYNAMIC_METADATA(namespace:key)%`, `%CEL(expression)%`, `%RESPONSE_CODE%`, \
    `%RESPONSE_CODE_DETAILS%`, `%RESPONSE_FLAGS%`, `%BYTES_RECEIVED%`, `%BYTES_SENT%` and \
    `%DURATION%`";

impl Format {
    /// Reads a text.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, Part::parse)
    }

    /// Reads a text for the access log, where more is known.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse_log(text: &str) -> Result<Self, String> {
        Self::parse_with(text, |command| match LogPart::parse(command)? {
            Some(part) => Ok(Part::Log(part)),
            None => Part::parse(command).map_err(|fault| log::suggest(command, fault)),
        })
    }

    fn parse_with(
        text: &str,
        parse: impl Fn(&str) -> Result<Part, String>,
    ) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('%') {
            literal.push_str(before);
            let (command, after) =
                split_command(after).ok_or("a `%` without its second; a percent sign is `%%`")?;
            if command.is_empty() {
                literal.push('%');
            } else {
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal)));
                }
                parts.push(parse(command)?);
            }
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }

    /// The value, if it is the same for all requests.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Whether something in it is known only when the response is there.
    pub fn reads_response(&self) -> bool {
        self.0.iter().any(Part::reads_response)
    }

    /// Whether it says something of the request's head.
    pub fn reads_request(&self) -> bool {
        self.0.iter().any(|part| {
            let log = matches!(part, Part::Log(log) if log.reads_request());
            log || matches!(part, Part::Request(_) | Part::Expression(_))
        })
    }

    /// Whether it needs points in time that the context keeps on demand.
    pub fn reads_times(&self) -> bool {
        let mut parts = self.0.iter();
        parts.any(|part| matches!(part, Part::Log(log) if log.reads_times()))
    }

    /// Writes a line of the access log, or a part of one: what is absent is `-`, or nothing where
    /// empty values are to be left out.
    pub fn write_line(&self, exchange: &Exchange<'_>, omit_empty: bool, to: &mut Vec<u8>) {
        for part in &self.0 {
            if !part.write(exchange, to) && !omit_empty {
                to.push(b'-');
            }
        }
    }

    /// The value in a JSON access log: a number where the text is one formatter that gives a
    /// number, `null` where it is one whose value is absent.
    pub fn json(&self, exchange: &Exchange<'_>, omit_empty: bool) -> serde_json::Value {
        let mut text = Vec::new();
        if let [part] = self.0.as_slice() {
            if let Part::Log(log) = part
                && let Some(value) = log.json(exchange)
            {
                return value;
            }
            if !part.write(exchange, &mut text) {
                return serde_json::Value::Null;
            }
            let text = String::from_utf8_lossy(&text);
            return match part.is_number().then(|| text.parse::<u64>()) {
                Some(Ok(number)) => number.into(),
                _ => text.into(),
            };
        }
        self.write_line(exchange, omit_empty, &mut text);
        String::from_utf8_lossy(&text).into()
    }

    /// Whether it is one formatter and nothing else.
    pub fn is_single(&self) -> bool {
        !matches!(self.0.as_slice(), [] | [Part::Text(_)] | [_, _, ..])
    }

    /// The value.
    pub fn value(&self, exchange: &Exchange<'_>) -> Vec<u8> {
        let mut value = Vec::new();
        for part in &self.0 {
            part.write(exchange, &mut value);
        }
        value
    }
}

impl Formatter {
    /// Reads a text that is one formatter and nothing else.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        match <[Part; 1]>::try_from(Format::parse(text)?.0) {
            Ok([Part::Text(_)]) | Err(_) => {
                Err("exactly one formatter is needed, such as `%REQ(x-hits)%`".to_owned())
            }
            Ok([part]) => Ok(Self(part)),
        }
    }

    /// The value as a number; texts are read as one. `None` where it is absent or none.
    pub fn number(&self, exchange: &Exchange<'_>) -> Option<f64> {
        let facts = &exchange.facts;
        match &self.0 {
            Part::Metadata { namespace, path } => {
                facts
                    .context
                    .with_metadata(namespace, |fields| match &find(fields?, path)?.kind {
                        Some(Kind::NumberValue(number)) => Some(*number),
                        Some(Kind::StringValue(text)) => text.trim().parse().ok(),
                        _ => None,
                    })
            }
            Part::Expression(expression) => match expression.evaluate(facts)? {
                // As metadata, which knows no whole numbers.
                Value::Int(number) => Some(number as f64),
                Value::Uint(number) => Some(number as f64),
                Value::Double(number) => Some(number),
                Value::Text(text) => text.trim().parse().ok(),
                _ => None,
            },
            part => {
                let mut text = Vec::new();
                part.write(exchange, &mut text);
                str::from_utf8(&text).ok()?.trim().parse().ok()
            }
        }
    }
}

/// The command up to its closing `%`, which may stand in the expression of a `%CEL(...)%` or the
/// form of a time too.
fn split_command(text: &str) -> Option<(&str, &str)> {
    if text.starts_with("CEL(") || text.starts_with("START_TIME(") {
        let (command, rest) = text.split_once(")%")?;
        return text
            .get(..command.len().saturating_add(1))
            .map(|command| (command, rest));
    }
    text.split_once('%')
}

impl Part {
    fn parse(command: &str) -> Result<Self, String> {
        let unknown = || format!("`%{command}%` is not known here; there are {KNOWN}");
        Ok(match command {
            "PROTOCOL" => Self::Protocol,
            "REQUESTED_SERVER_NAME" => Self::ServerName,
            "ROUTE_NAME" => Self::RouteName,
            "UPSTREAM_CLUSTER" => Self::Cluster,
            "UPSTREAM_HOST" => Self::Upstream,
            "RESPONSE_CODE" => Self::Status,
            "RESPONSE_CODE_DETAILS" => Self::Details,
            "RESPONSE_FLAGS" => Self::Flags,
            "BYTES_RECEIVED" => Self::BytesReceived,
            "BYTES_SENT" => Self::BytesSent,
            "DURATION" => Self::Duration,
            _ => {
                if let Some(address) = Self::address(command) {
                    return Ok(address);
                }
                let (name, rest) = command.split_once('(').ok_or_else(unknown)?;
                let (argument, after) = rest.rsplit_once(')').ok_or_else(unknown)?;
                match (name, after) {
                    ("REQ", max) => Self::Request(Header::parse(argument, max, &unknown)?),
                    ("RESP", max) => Self::Response(Header::parse(argument, max, &unknown)?),
                    ("DYNAMIC_METADATA", "") => {
                        let mut names = argument.split(':').map(str::to_owned);
                        Self::Metadata {
                            namespace: names.next().unwrap_or_default(),
                            path: names.collect(),
                        }
                    }
                    ("CEL", "") => Self::Expression(Box::new(Expression::compile(argument)?)),
                    _ => return Err(unknown()),
                }
            }
        })
    }

    fn address(command: &str) -> Option<Self> {
        let (of, rest) = [
            (Peer::Client, "DOWNSTREAM_REMOTE_ADDRESS"),
            (Peer::Direct, "DOWNSTREAM_DIRECT_REMOTE_ADDRESS"),
            (Peer::Local, "DOWNSTREAM_LOCAL_ADDRESS"),
        ]
        .into_iter()
        .find_map(|(of, name)| Some((of, command.strip_prefix(name)?)))?;
        match rest {
            "" => Some(Self::Address { of, port: true }),
            "_WITHOUT_PORT" => Some(Self::Address { of, port: false }),
            _ => None,
        }
    }

    fn reads_response(&self) -> bool {
        matches!(
            self,
            Self::Response(_)
                | Self::Status
                | Self::Details
                | Self::Flags
                | Self::BytesReceived
                | Self::BytesSent
                | Self::Duration
                | Self::Upstream
                | Self::Log(_)
        )
    }

    /// Whether its value is a number.
    fn is_number(&self) -> bool {
        match self {
            Self::Status | Self::BytesReceived | Self::BytesSent | Self::Duration => true,
            Self::Log(log) => log.is_number(),
            _ => false,
        }
    }

    /// Writes the value; false when there is none.
    fn write(&self, exchange: &Exchange<'_>, to: &mut Vec<u8>) -> bool {
        let facts = &exchange.facts;
        let context = facts.context;
        let mut text = |text: Option<&str>| {
            to.extend_from_slice(text.unwrap_or_default().as_bytes());
            text.is_some()
        };
        match self {
            Self::Text(literal) => text(Some(literal)),
            Self::Protocol => text(protocol(context.protocol)),
            Self::Address { of, port } => {
                let address = match of {
                    Peer::Client => facts.source(),
                    Peer::Direct => context.connection.peer,
                    Peer::Local => context.connection.local,
                };
                text(address.map(|address| shown(address, *port)).as_deref())
            }
            Self::ServerName => {
                let tls = context.connection.tls.as_ref();
                text(tls.and_then(|tls| tls.sni.as_deref()))
            }
            Self::RouteName => {
                let route = context.route();
                let name = route.as_ref().map(|route| route.name.as_str());
                text(name.filter(|name| !name.is_empty()))
            }
            Self::Cluster => text(
                context
                    .route()
                    .and_then(|route| route.cluster.clone())
                    .as_deref(),
            ),
            Self::Upstream => text(
                context
                    .upstream()
                    .map(|upstream| upstream.to_string())
                    .as_deref(),
            ),
            Self::Metadata { namespace, path } => context.with_metadata(namespace, |fields| {
                let value = fields.and_then(|fields| metadata_text(fields, path));
                text(value.as_deref())
            }),
            Self::Expression(expression) => {
                let value = expression.evaluate(facts);
                text(value.as_ref().map(Value::text).as_deref())
            }
            Self::Status => {
                let status = facts
                    .response
                    .map_or(0, |response| response.status.as_u16());
                text(Some(&status.to_string()))
            }
            Self::Details => {
                let of_http = protocol(context.protocol).is_some();
                let finished = exchange.finished.is_some() && of_http;
                let known = facts.response.is_some() || finished;
                let details = context.details().filter(|_| known);
                text(details.as_deref())
            }
            Self::Flags => {
                let flags = context.flags();
                let flags: Vec<_> = flags.into_iter().map(ResponseFlag::short).collect();
                text(Some(if flags.is_empty() { "-" } else { "" }));
                text(Some(&flags.join(",")))
            }
            Self::BytesReceived => text(Some(&exchange.bytes_received.to_string())),
            Self::BytesSent => text(Some(&exchange.bytes_sent.to_string())),
            Self::Duration => {
                let finished = exchange.finished;
                let took = finished.map_or_else(|| context.started.elapsed(), |f| f.duration);
                text(Some(&took.as_millis().to_string()))
            }
            Self::Request(header) => header.write(facts.request, request_value, to),
            Self::Response(header) => header.write(facts.response, response_value, to),
            Self::Log(log) => log.write(exchange, to),
        }
    }
}

fn shown(address: SocketAddr, port: bool) -> String {
    match port {
        true => address.to_string(),
        false => address.ip().to_string(),
    }
}

fn metadata_text(fields: &Struct, path: &[String]) -> Option<String> {
    let value = match path {
        [] => crate::metadata::struct_to_json(fields),
        path => match &find(fields, path)?.kind {
            Some(Kind::StringValue(text)) => return Some(text.clone()),
            _ => to_json(find(fields, path)?),
        },
    };
    Some(value.to_string())
}

impl Header {
    fn parse(names: &str, max: &str, unknown: &dyn Fn() -> String) -> Result<Self, String> {
        let max = match max.strip_prefix(':') {
            Some(max) => Some(max.parse().map_err(|_| unknown())?),
            None if max.is_empty() => None,
            None => return Err(unknown()),
        };
        let names = names.to_ascii_lowercase();
        let (name, instead) = match names.split_once('?') {
            Some((name, instead)) => (name, Some(instead)),
            None => (names.as_str(), None),
        };
        let valid = |name: &str| {
            HeaderName::from_bytes(name.strip_prefix(':').unwrap_or(name).as_bytes()).is_ok()
        };
        if !valid(name) || !instead.is_none_or(valid) {
            return Err(format!("`{names}` is not the name of a header"));
        }
        Ok(Self {
            name: name.to_owned(),
            instead: instead.map(str::to_owned),
            max,
        })
    }

    fn write<H>(
        &self,
        head: Option<&H>,
        write: fn(&H, &str, &mut Vec<u8>) -> bool,
        to: &mut Vec<u8>,
    ) -> bool {
        let Some(head) = head else { return false };
        let start = to.len();
        let mut found = write(head, &self.name, to);
        if let Some(instead) = self.instead.as_deref().filter(|_| !found) {
            found = write(head, instead, to);
        }
        if let Some(max) = self.max {
            to.truncate(start.saturating_add(max));
        }
        found
    }
}

/// Writes the first value of a header, or a pseudo-header. False when there is none.
fn request_value(head: &request::Parts, name: &str, to: &mut Vec<u8>) -> bool {
    first_value(head, name == "host", name, to)
}

fn trailer_value(trailers: &HeaderMap, name: &str, to: &mut Vec<u8>) -> bool {
    let value = trailers.get(name);
    to.extend_from_slice(value.map_or(b"", HeaderValue::as_bytes));
    value.is_some()
}

fn response_value(head: &response::Parts, name: &str, to: &mut Vec<u8>) -> bool {
    first_value(head, false, name, to)
}

fn first_value(head: &dyn MessageHead, pseudo: bool, name: &str, to: &mut Vec<u8>) -> bool {
    if pseudo || name.starts_with(':') {
        let value = head.pseudo(name);
        to.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        value.is_some()
    } else {
        let value = head.headers().get(name);
        to.extend_from_slice(value.map_or(b"", HeaderValue::as_bytes));
        value.is_some()
    }
}

#[cfg(test)]
mod tests;
