//! The result is read as the proxy will read it. What it refuses is taken out, so that the rest can
//! be used, and in such a way that nothing is served that was not served before: a listener goes as
//! a whole, and a route answers with 500 instead of leaving its requests to the routes behind it.
//! Where requests would go elsewhere all the same, the listeners that take them go.

use std::collections::BTreeSet;

use attache_service::config::{
    Document, Node, Span, Spanned, Value,
    json::{Value as Json, json, to_string_pretty},
};

use super::{
    Unprotected, address,
    dropped::{Effect, Findings},
    refusal,
};
use crate::{Config, config::NothingEmbedded};

/// Why a listener is left out of which nothing was refused.
pub(super) const OPEN: &str = "the whole listener is left out, since it would be open without \
    what protected it; `--unprotected` keeps it";

/// What was taken out may have been named by something else; chains of names are short.
const ROUNDS: usize = 32;
/// Files need not be on the machine where a configuration is made.
const FILES: [&str; 6] = [
    "certificate",
    "private_key",
    "client_ca",
    "ca",
    "filename",
    "endpoints_file",
];

/// What guards the whole process.
const GUARDS: [&str; 2] = ["overload", "max_active_downstream_connections"];

/// Takes out what the proxy would refuse. `root` is Envoy's file, in which names are looked up.
pub(super) fn take_out(
    mut config: Json,
    root: &Node,
    unprotected: Unprotected,
    found: &mut Findings,
) -> Json {
    for _ in 0..ROUNDS {
        let Ok(text) = to_string_pretty(&config) else {
            break;
        };
        let errors = match Document::parse("imported", text) {
            Ok(document) => match Config::read(&document, &NothingEmbedded) {
                Ok(_) => break,
                Err(errors) => located(&errors, document.root()),
            },
            Err(_) => break,
        };
        // From behind, so that the places of the others stay.
        let mut cuts = BTreeSet::new();
        for (way, why) in errors {
            if let Some(cut) = Cut::of(&way, &config)
                && cuts.insert(cut.clone())
            {
                let at = place(&cut.way, &config, root);
                let why = format!("`{}`: {why}: {}", written(&way), cut.result(&config));
                found.push(&at, cut.effect(), why);
            }
        }
        if cuts.is_empty() {
            break;
        }
        if unprotected == Unprotected::LeftOut {
            let lost = cuts.iter().filter(|cut| cut.effect() == Effect::Protection);
            let open: BTreeSet<_> = lost.flat_map(|cut| cut.opens(&config)).collect();
            for listener in open {
                let at = place(&listener.way, &config, root);
                if cuts.insert(listener) {
                    found.push(&at, Effect::Behaviour, OPEN);
                }
            }
        }
        for cut in cuts.iter().rev() {
            cut.make(&mut config);
        }
    }
    config
}

/// A step on the way to a part of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Key(String),
    Item(usize),
}

impl Step {
    fn name(&self) -> &str {
        match self {
            Self::Key(name) => name,
            Self::Item(_) => "",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It goes, and what it did is not done.
    Part,
    /// It goes, and requests that were its own go elsewhere.
    Matches,
    /// Its requests are answered with 500.
    Answers,
    /// It is a condition of a route. Without it the route takes more requests, and answers them
    /// with 500.
    Condition,
}

/// What has to be taken out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    way: Vec<Step>,
    kind: Kind,
}

impl Cut {
    /// The least that can be taken out for a mistake; `None` where that does not help.
    fn of(way: &[Step], config: &Json) -> Option<Self> {
        let names: Vec<_> = way.iter().map(Step::name).collect();
        if FILES.contains(names.last()?) {
            return None;
        }
        let cut = |len: usize, kind: Kind| {
            let way = way.get(..len)?.to_vec();
            Some(Self { way, kind })
        };
        // A listener's own table is as the one at the top.
        let table = match names.as_slice() {
            ["listeners", "", "route_config", ..] => 3,
            _ => 0,
        };
        match names.get(table..)? {
            // What is no condition of its own is the test of the path.
            ["virtual_hosts", "", "routes", "", "match", rest @ ..] => {
                let routes = at(config, way.get(..table + 3)?)?.as_array()?;
                let connects = |route: &&Json| !route["match"]["connect_matcher"].is_null();
                let connect = at(config, way.get(..table + 4)?).is_some_and(|one| connects(&one));
                match rest.first() {
                    Some(&("headers" | "query_parameters" | "cookies")) => {
                        cut(table + 6, Kind::Condition)
                    }
                    // Only another of its kind would take a `CONNECT`, which is refused then.
                    _ if connect && routes.iter().filter(connects).count() == 1 => {
                        cut(table + 4, Kind::Part)
                    }
                    Some(_) if !connect => cut(table + 6, Kind::Condition),
                    _ => cut(table + 4, Kind::Matches),
                }
            }
            ["virtual_hosts", "", "routes", "", ..] => {
                let answer = at(config, way.get(..table + 4)?)?;
                match *answer == refusal::route(&answer["match"]) {
                    true => cut(table + 4, Kind::Matches),
                    false => cut(table + 4, Kind::Answers),
                }
            }
            ["virtual_hosts", "", "domains", "", ..] => {
                let domains = at(config, way.get(..table + 3)?)?.as_array()?;
                match domains.len() {
                    1 => cut(table + 2, Kind::Matches),
                    _ => cut(table + 4, Kind::Matches),
                }
            }
            ["virtual_hosts", "", ..] => {
                let host = at(config, way.get(..table + 2)?)?;
                match *host == refusing(host) {
                    true => cut(table + 2, Kind::Matches),
                    false => cut(table + 2, Kind::Answers),
                }
            }
            ["listeners", "", "access_log", "", ..] => cut(4, Kind::Part),
            ["listeners" | "clusters", "", ..] | ["filters", _, ..] => cut(2, Kind::Part),
            // What is wrong with the whole of a listener's own table is wrong with the listener.
            [..] if table > 0 => cut(2, Kind::Part),
            [_, ..] => cut(1, Kind::Part),
            [] => None,
        }
    }

    fn effect(&self) -> Effect {
        // Headers that are set replace what a client says of itself.
        let protects = |step: &Step| step.name().contains("_headers_to_");
        match self.kind {
            Kind::Matches => Effect::Protection,
            Kind::Part if self.way.iter().any(protects) => Effect::Protection,
            Kind::Part if self.guards() => Effect::Protection,
            Kind::Part | Kind::Answers | Kind::Condition => Effect::Behaviour,
        }
    }

    /// Whether it guards the whole process.
    fn guards(&self) -> bool {
        matches!(self.way.as_slice(), [Step::Key(guard)] if GUARDS.contains(&guard.as_str()))
    }

    /// The listeners whose requests are treated otherwise without it, each as what has to be cut.
    fn opens(&self, config: &Json) -> Vec<Self> {
        let listener = |index: usize| Self {
            way: vec![Step::Key("listeners".into()), Step::Item(index)],
            kind: Kind::Part,
        };
        match self.way.as_slice() {
            [Step::Key(list), Step::Item(index), ..] if list == "listeners" => {
                vec![listener(*index)]
            }
            _ if self.guards() => Vec::new(),
            _ => {
                let all = config.get("listeners").and_then(Json::as_array);
                let all = all.into_iter().flatten().enumerate();
                all.filter(|(_, one)| shares_routes(one))
                    .map(|(index, _)| listener(index))
                    .collect()
            }
        }
    }

    fn result(&self, config: &Json) -> String {
        let what = match self.way.iter().rev().find(|step| !step.name().is_empty()) {
            _ if self.way.len() == 1 => "it",
            Some(Step::Key(list)) => match list.as_str() {
                "listeners" => "the whole listener",
                "clusters" => "the whole cluster",
                "virtual_hosts" => "the virtual host",
                "routes" => "the route",
                "domains" => "the domain",
                "access_log" => "the access log",
                _ => "the filter",
            },
            _ => "it",
        };
        match self.kind {
            Kind::Part | Kind::Matches => format!("{what} is left out"),
            Kind::Answers => format!("{what} answers with 500"),
            Kind::Condition => {
                let matches = self.way.split_last().and_then(|(_, way)| at(config, way));
                let name = self.way.last().map(Step::name).unwrap_or_default();
                let wider = matches.map(|matches| without(matches, name));
                refusal::result(&wider.unwrap_or_default()).to_owned()
            }
        }
    }

    fn make(&self, config: &mut Json) {
        let Some((last, way)) = self.way.split_last() else {
            return;
        };
        if let (Kind::Condition, Some(route)) = (self.kind, way.split_last().map(|(_, way)| way)) {
            if let Some(route) = at_mut(config, route) {
                *route = refusal::route(&without(&route["match"], last.name()));
            }
            return;
        }
        if self.kind == Kind::Answers {
            if let Some(part) = at_mut(config, &self.way) {
                *part = match part.get("domains") {
                    Some(_) => refusing(part),
                    None => refusal::route(&part["match"]),
                };
            }
            return;
        }
        match (at_mut(config, way), last) {
            (Some(Json::Object(map)), Step::Key(name)) => {
                map.remove(name);
            }
            (Some(Json::Array(items)), Step::Item(index)) if *index < items.len() => {
                items.remove(*index);
            }
            _ => {}
        }
    }
}

/// A match that takes all that this one takes, and does not say this.
fn without(matches: &Json, condition: &str) -> Json {
    let mut wider = matches.clone();
    if let Some(conditions) = wider.as_object_mut() {
        conditions.remove(condition);
        if !refusal::PATHS
            .iter()
            .any(|path| conditions.contains_key(*path))
        {
            conditions.insert("prefix".into(), "/".into());
        }
    }
    wider
}

/// Whether a listener has the routes at the top.
fn shares_routes(listener: &Json) -> bool {
    let own = ["route_config", "route_config_name", "tcp"];
    own.iter().all(|field| listener[*field].is_null())
        && (listener["tls_passthrough"].is_null() || !listener["tls"].is_null())
}

/// The virtual host that refuses what another took.
fn refusing(host: &Json) -> Json {
    json!({
        "name": host["name"],
        "domains": host["domains"],
        "routes": [refusal::route(&json!({ "prefix": "/" }))],
    })
}

fn at<'c>(config: &'c Json, way: &[Step]) -> Option<&'c Json> {
    way.iter().try_fold(config, |part, step| match step {
        Step::Key(name) => part.get(name),
        Step::Item(index) => part.get(index),
    })
}

fn at_mut<'c>(config: &'c mut Json, way: &[Step]) -> Option<&'c mut Json> {
    way.iter().try_fold(config, |part, step| match step {
        Step::Key(name) => part.get_mut(name),
        Step::Item(index) => part.get_mut(index),
    })
}

/// Where each mistake stands.
fn located(errors: &attache_service::config::Errors, root: &Node) -> Vec<(Vec<Step>, String)> {
    let mut all = Vec::new();
    for error in errors {
        let mut way = Vec::new();
        if find(root, error.span(), &mut way) {
            all.push((way, error.message().to_owned()));
        }
    }
    all
}

fn find(node: &Node, wanted: &Span, way: &mut Vec<Step>) -> bool {
    let is = |span: &Span| (span.line(), span.column()) == (wanted.line(), wanted.column());
    let mut inside = |step: Step, node: &Node, key: Option<&Span>| {
        way.push(step);
        let found = key.is_some_and(is) || find(node, wanted, way);
        if !found {
            way.pop();
        }
        found
    };
    let found = match &node.value {
        Value::Map(entries) => entries.iter().any(|entry| {
            let step = Step::Key(entry.key.name.to_string());
            inside(step, &entry.value, Some(&entry.key.span))
        }),
        Value::Seq(items) => {
            let mut items = items.iter().enumerate();
            items.any(|(index, item)| inside(Step::Item(index), item, None))
        }
        _ => false,
    };
    found || is(node.span())
}

fn written(way: &[Step]) -> String {
    let mut text = String::new();
    for step in way {
        match step {
            Step::Key(name) if text.is_empty() => text.push_str(name),
            Step::Key(name) => text.push_str(&format!(".{name}")),
            Step::Item(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Where in Envoy's file stands what was made from it: the thing of that name, in a list of that
/// name, of the same listener.
fn place(way: &[Step], config: &Json, root: &Node) -> Span {
    let listeners = config.get("listeners").and_then(Json::as_array);
    let listener = match way {
        [Step::Key(list), Step::Item(index), ..] if list == "listeners" => {
            listeners.and_then(|all| all.get(*index))
        }
        [Step::Key(list), ..] if list == "virtual_hosts" => {
            listeners.and_then(|all| all.iter().find(|one| shares_routes(one)))
        }
        _ => None,
    };
    let listener = listener.and_then(|listener| origin(listener, root));
    let within = listener.unwrap_or(root);
    let resources = root.entry("static_resources");
    let mut best = listener
        .map(|node| node.span.clone())
        .or_else(|| resources.map(|entry| entry.key.span.clone()));
    for (len, pair) in way.windows(2).enumerate() {
        let name = match pair {
            [Step::Key(_), Step::Item(_)] => way.get(..len + 2).and_then(|way| at(config, way)),
            _ => None,
        };
        let name = name
            .and_then(|part| part.get("name"))
            .and_then(Json::as_str);
        let list = pair.first().map(Step::name).unwrap_or_default();
        if let Some(node) = name.and_then(|name| named(within, list, name)) {
            best = Some(node.span.clone());
        }
        if let [Step::Key(list), Step::Key(name)] = pair
            && list == "filters"
            && let Some(node) = named(root, "http_filters", name)
        {
            best = Some(node.span.clone());
        }
    }
    best.unwrap_or_else(|| root.span.clone())
}

/// The listener of Envoy's that became this one; names alone may be missing.
fn origin<'n>(listener: &Json, root: &'n Node) -> Option<&'n Node> {
    let of = |field: &str| listener.get(field).and_then(Json::as_str);
    let all = root.get("static_resources")?.get("listeners")?.as_seq()?;
    all.iter().find(|node| {
        // What cannot be told of it was said when it was read.
        let address = node
            .get("address")
            .and_then(|address| address::text(address, &mut Findings::default()));
        let name = node.get("name").and_then(Node::text);
        address.as_deref() == of("address") && (name.is_none() || name == of("name"))
    })
}

fn named<'n>(node: &'n Node, list: &str, name: &str) -> Option<&'n Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find_map(|entry| {
            let items = entry.value.as_seq().filter(|_| &*entry.key.name == list);
            let mut items = items.unwrap_or_default().iter();
            items
                .find(|item| item.get("name").and_then(Node::text) == Some(name))
                .or_else(|| named(&entry.value, list, name))
        }),
        Value::Seq(items) => items.iter().find_map(|item| named(item, list, name)),
        _ => None,
    }
}
