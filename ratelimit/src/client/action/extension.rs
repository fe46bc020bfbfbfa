//! Entries made by extensions: expressions, and inputs of matchers.

use std::{borrow::Cow, net::SocketAddr};

use attache_filter::{
    MessageHead,
    attributes::{Expression, Fields},
};
use attache_service::config::Errors;

use super::{Absent, Entry, FieldName, Outcome, Subject, not_empty, query_value};
use crate::client::raw;

/// What makes the value of an entry.
#[derive(Debug, Clone)]
pub enum Producer {
    /// The value of an expression; what it means that it has none.
    Expression(Expression, Absent),
    /// An input of matchers.
    Input(Input),
}

/// An input of matchers. Without a value the descriptor is left out; with an empty one, the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// All values of a header, with commas between.
    Header(FieldName),
    /// The first value of a query parameter.
    QueryParameter(String),
    /// The client's address.
    SourceIp,
    /// The client's port.
    SourcePort,
    /// The address of who is connected.
    DirectSourceIp,
    /// Our address.
    DestinationIp,
    /// Our port.
    DestinationPort,
    /// The server name that the client asked for.
    ServerName,
}

impl Producer {
    /// Compiles an extension, with the key of its entries; faults are reported at their place.
    pub(super) fn plan(raw: &raw::Extension, errors: &mut Errors) -> Option<(String, Self)> {
        let input = match &raw.typed_config {
            raw::Producer::Expr(expr) => {
                let key = not_empty(&expr.descriptor_key, "descriptor_key", errors)?;
                let expression = Expression::compile(&expr.text)
                    .map_err(|fault| errors.push(&expr.text, fault))
                    .ok()?;
                let absent = Absent::plan(expr.skip_if_error);
                return Some((key, Self::Expression(expression, absent)));
            }
            raw::Producer::Header(input) => {
                Input::Header(FieldName::plan(&input.header_name, errors)?)
            }
            raw::Producer::QueryParameter(input) => {
                Input::QueryParameter(not_empty(&input.query_param, "query_param", errors)?)
            }
            raw::Producer::SourceIp(_) => Input::SourceIp,
            raw::Producer::SourcePort(_) => Input::SourcePort,
            raw::Producer::DirectSourceIp(_) => Input::DirectSourceIp,
            raw::Producer::DestinationIp(_) => Input::DestinationIp,
            raw::Producer::DestinationPort(_) => Input::DestinationPort,
            raw::Producer::ServerName(_) => Input::ServerName,
        };
        let key = not_empty(&raw.name, "name", errors)?;
        Some((key, Self::Input(input)))
    }

    pub(super) fn outcome<'a>(&'a self, key: &'a str, subject: &Subject<'a>) -> Outcome<'a> {
        match self {
            Self::Expression(expression, absent) => {
                match expression.evaluate(&subject.exchange.facts) {
                    Some(value) => Outcome::Entry(Entry {
                        key,
                        value: value.text().into_owned().into(),
                    }),
                    None => absent.outcome(),
                }
            }
            Self::Input(input) => match input.value(subject) {
                Some(value) if value.is_empty() => Outcome::Skip,
                Some(value) => Outcome::Entry(Entry { key, value }),
                None => Outcome::Drop,
            },
        }
    }
}

impl Input {
    fn value<'a>(&self, subject: &Subject<'a>) -> Option<Cow<'a, str>> {
        let ip = |address: SocketAddr| Cow::Owned(address.ip().to_canonical().to_string());
        let port = |address: SocketAddr| Cow::Owned(address.port().to_string());
        let connection = &subject.context.connection;
        match self {
            Self::Header(FieldName::Pseudo(name)) => subject.head.pseudo(name),
            Self::Header(FieldName::Header(name)) => Fields::of(subject.head).get(name.as_str()),
            Self::QueryParameter(name) => query_value(subject.head, name),
            Self::SourceIp => {
                let ip = subject.context.client_ip?;
                Some(Cow::Owned(ip.to_canonical().to_string()))
            }
            Self::SourcePort => connection.peer.map(port),
            Self::DirectSourceIp => connection.peer.map(ip),
            Self::DestinationIp => connection.local.map(ip),
            Self::DestinationPort => connection.local.map(port),
            Self::ServerName => {
                let tls = connection.tls.as_ref()?;
                Some(Cow::Owned(tls.sni.clone()?))
            }
        }
    }
}
