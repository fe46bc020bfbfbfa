//! Whole files against declared types: what is accepted, what is said about the rest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{config_enum, config_oneof, config_struct};

config_enum! {
    /// Whether headers are sent.
    #[derive(Default)]
    enum Mode {
        /// As the phase has it.
        #[default]
        Default = "DEFAULT",
        /// Yes.
        Send = "SEND",
        /// No.
        Skip = "SKIP",
    }
    elsewhere {
        "GRPC" => "it was never implemented",
    }
}

config_struct! {
    /// Where a service is.
    struct Service {
        /// A cluster's name.
        cluster_name: String,
    }
}

config_oneof! {
    /// How a path is compared.
    enum PathMatch {
        /// Its beginning.
        Prefix(String) = "prefix",
        /// All of it.
        Exact(String) = "path",
        /// By parts.
        Parts(Vec<u8>) = "parts",
    }
    elsewhere {
        "connect_matcher" => "CONNECT is not proxied",
    }
}

config_oneof! {
    /// What to do.
    enum Action {
        /// A constant.
        Key(Service) = "generic_key",
        /// The peer.
        Peer(Empty) = "remote_address",
        /// All but this.
        Not(Box<Action>) = "not",
    }
    elsewhere {
        "dynamic_metadata" => "use `metadata`",
    }
}

config_struct! {
    /// Which requests.
    struct Match {
        /// Whether case counts.
        case_sensitive: Option<bool>,
    }
    oneof {
        /// The path.
        path: PathMatch,
        /// What happens.
        action: Option<Located<Action>>,
    }
}

config_struct! {
    /// A filter.
    ///
    /// With everything.
    struct Filter {
        /// The service.
        service: Service,
        /// Continue without it.
        failure_mode_allow: Option<bool>,
        timeout: Duration = Duration::from_millis(200),
        port: Option<Located<u16>>,
        ratio: Option<f64>,
        limit: Option<Size>,
        mode: Option<Mode>,
        r#match: Option<Match>,
        kind: Option<String> as "type",
        tags: BTreeMap<String, u32>,
        actions: Vec<Action>,
        file: Option<PathBuf>,
        header: Option<http::HeaderName>,
        any: Option<serde_json::Value>,
        node: Option<Node>,
    }
    envoy_type = "example.v3.Filter";
    elsewhere {
        "async_mode" => "Envoy never implemented it",
        "stat_prefix" => "names are taken from the configuration",
    }
}

config_struct! {
    /// Lists and maps that are something else when they are not there.
    struct Defaults {
        names: Option<Vec<String>>,
        tags: Option<BTreeMap<String, u32>>,
        kinds: Vec<String> = vec!["all".to_owned()],
        place: Option<Located<Box<Vec<String>>>>,
        plain: Vec<String>,
    }
    oneof {
        path: Option<PathMatch>,
    }
}

/// The least that decodes, to put one more line behind.
const LEAST: &str = "service: {cluster_name: a}\n";

fn document(text: &str) -> Document {
    let env = |name: &str| match name {
        "PORT" => Some("8080".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        "NULL" => Some("null".to_owned()),
        _ => None,
    };
    Document::parse_with("f.yaml", text, &env).unwrap()
}

fn decode(line: &str) -> Filter {
    let text = format!("{LEAST}{line}");
    document(&text)
        .decode()
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors of a file without their excerpts.
fn errors(text: &str) -> Vec<String> {
    let errors = document(text).decode::<Filter>().unwrap_err();
    errors
        .iter()
        .map(|error| {
            let (line, column) = (error.line().unwrap(), error.column().unwrap());
            format!("{line}:{column}: {}", error.message())
        })
        .collect()
}

/// The one error that a line behind [`LEAST`] causes.
fn error(line: &str) -> String {
    let errors = errors(&format!("{LEAST}{line}"));
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.concat()
}

#[test]
fn an_empty_list_or_map_is_written_where_without_it_there_would_be_another() {
    let empty = "{names: [], tags: {}, kinds: [], place: [], plain: [], parts: []}";
    let defaults: Defaults = document(empty).decode().unwrap();
    let json = json!({ "names": [], "tags": {}, "kinds": [], "place": [], "parts": [] });
    assert_eq!(defaults.encode(), Some(json.clone()));
    let again: Defaults = document(&json.to_string()).decode().unwrap();
    assert_eq!(again, defaults);

    let left_out: Defaults = document("{}").decode().unwrap();
    assert_eq!(left_out.encode(), Some(json!({ "kinds": ["all"] })));
}

#[test]
fn everything_is_read() {
    let filter = decode(
        "failure_mode_allow: true\ntimeout: 0.5s\nport: 80\nratio: 1\nlimit: 64KiB\nmode: SKIP\n\
         match: {prefix: /, case_sensitive: false, remote_address: {}}\ntype: 1.0\n\
         tags: {b: 2, a: 1}\nactions: [{generic_key: {cluster_name: no}}, {not: {remote_address: {}}}]\n\
         file: x/y\nheader: X-Tag\nany: [1, {a: null}]\nnode: 0123\n\
         \"@type\": type.googleapis.com/example.v3.Filter\n",
    );
    assert_eq!(filter.timeout, Duration::from_millis(500));
    assert_eq!(filter.port.as_ref().map(|port| port.value), Some(80));
    assert_eq!(
        filter.port.as_ref().map(|port| port.span.to_string()),
        Some("f.yaml:4:7".into())
    );
    assert_eq!(filter.limit, Some(Size(65_536)));
    assert_eq!(filter.kind.as_deref(), Some("1.0"));
    assert_eq!(
        filter.node.as_ref().and_then(|node| node.text()),
        Some("0123")
    );
    let json = json!({
        "service": { "cluster_name": "a" },
        "failure_mode_allow": true,
        "timeout": "0.5s",
        "port": 80,
        "ratio": 1.0,
        "limit": 65536,
        "mode": "SKIP",
        "match": { "prefix": "/", "case_sensitive": false, "remote_address": {} },
        "type": "1.0",
        "tags": { "a": 1, "b": 2 },
        "actions": [
            { "generic_key": { "cluster_name": "no" } },
            { "not": { "remote_address": {} } },
        ],
        "file": "x/y",
        "header": "x-tag",
        "any": [1, { "a": null }],
        "node": 123,
    });
    assert_eq!(filter.encode(), Some(json.clone()));
    let mut typed = json;
    typed["@type"] = "type.googleapis.com/example.v3.Filter".into();
    assert_eq!(filter.encode_typed(), Some(typed.clone()));
    // What is written can be read again.
    let again: Filter = document(&typed.to_string()).decode().unwrap();
    assert_eq!(again.encode(), filter.encode());
}

#[test]
fn what_is_missing_has_its_default() {
    let filter = decode("");
    assert_eq!(filter.timeout, Duration::from_millis(200));
    assert_eq!(filter.failure_mode_allow, None);
    assert!(filter.tags.is_empty() && filter.actions.is_empty());
    assert_eq!(
        filter.encode(),
        Some(json!({ "service": { "cluster_name": "a" }, "timeout": "0.2s" }))
    );
    assert_eq!(Mode::default().as_str(), "DEFAULT");
}

#[test]
fn variables_have_types_and_stay_secret() {
    assert_eq!(decode("port: ${PORT}").port.unwrap().value, 8080);
    assert_eq!(decode("port: ${X:-90}").port.unwrap().value, 90);
    // JSON has no other way than quotes.
    assert_eq!(
        decode("{\"port\": \"${PORT}\"}".trim_matches(['{', '}']))
            .port
            .unwrap()
            .value,
        8080
    );
    assert_eq!(decode("type: ${PORT}").kind.as_deref(), Some("8080"));
    assert_eq!(decode("type: ${NULL}").kind.as_deref(), Some("null"));
    assert_eq!(decode("type: ${X:-}").kind.as_deref(), Some(""));
    assert_eq!(
        error("timeout: ${SECRET}"),
        "2:10: expected a duration such as `0.25s`, `250ms`, `5m` or `1h` for `timeout`, found the value of `${SECRET}`"
    );
    for line in [
        "mode: ${SECRET}",
        "header: ${SECRET} x",
        "port: ${SECRET}",
        "limit: ${SECRET}",
        "match: ${SECRET}",
    ] {
        assert!(!error(line).contains("hunter2"), "{line}");
    }
}

#[test]
fn wrappers_are_taken_off() {
    let text = "\
name: envoy.filters.http.example
typed_config:
  \"@type\": type.googleapis.com/example.v3.Filter
  service: {cluster_name: a}
";
    let wrapped = document(text);
    let mut errors = Errors::new();
    let typed = unwrap_typed_config(wrapped.root(), &mut errors).unwrap();
    assert_eq!(typed.name.unwrap().value, "envoy.filters.http.example");
    assert_eq!(envoy::message_of(typed.config), Some("example.v3.Filter"));
    let filter: Option<Filter> = decode_typed(wrapped.root(), &mut errors);
    assert_eq!(filter, Some(decode("")));
    let bare = document(LEAST);
    assert_eq!(decode_typed::<Filter>(bare.root(), &mut errors), filter);
    assert!(errors.is_empty());

    let wrong = document("typed_config: {}\nis_optional: true\nnmae: x\n");
    assert_eq!(decode_typed::<Filter>(wrong.root(), &mut errors), None);
    let messages: Vec<&str> = errors.iter().map(ConfigError::message).collect();
    assert_eq!(
        messages,
        [
            "missing field `service` in `typed_config`",
            "`is_optional` is not supported: every configured filter has to work",
            "unknown field `nmae`; did you mean `name`?",
        ]
    );
}

#[test]
fn files_that_cannot_be_read_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.yaml");
    let report = Document::load(&path).unwrap_err().to_string();
    assert_eq!(
        report,
        format!(
            "{}: cannot be read: No such file or directory (os error 2)",
            path.display()
        )
    );
    std::fs::write(&path, b"a: 1\nb: \xff\n").unwrap();
    let report = Document::load(&path).unwrap_err().to_string();
    assert_eq!(
        report,
        format!("{}: line 2 is not UTF-8 text", path.display())
    );
    std::fs::write(&path, LEAST).unwrap();
    let document = Document::load(&path).unwrap();
    assert_eq!(document.decode::<Filter>(), Ok(decode("")));
    assert_eq!(document.resolve("x.pem"), directory.path().join("x.pem"));
    assert_eq!(document.resolve("/x.pem"), PathBuf::from("/x.pem"));
}

#[test]
fn schemas_describe_the_types() {
    let schema = json_schema::<Filter>("Filters");
    assert_eq!(schema["title"], "Filters");
    assert_eq!(schema["$ref"], "#/$defs/Filter");
    let defs = &schema["$defs"];
    let filter = &defs["Filter"];
    assert_eq!(filter["description"], "A filter.\n\nWith everything.");
    assert_eq!(filter["required"], json!(["service"]));
    assert_eq!(filter["additionalProperties"], json!(false));
    let properties = &filter["properties"];
    assert_eq!(
        properties["service"],
        json!({ "$ref": "#/$defs/Service", "description": "The service." })
    );
    assert_eq!(properties["timeout"]["default"], "0.2s");
    assert_eq!(properties["port"]["maximum"], 65535);
    assert!(properties.get("type").is_some() && properties.get("match").is_some());
    assert_eq!(
        properties["@type"]["const"],
        "type.googleapis.com/example.v3.Filter"
    );
    assert_eq!(
        defs["Mode"]["oneOf"][1],
        json!({ "const": "SEND", "description": "Yes." })
    );
    let groups = &defs["Match"]["allOf"];
    assert_eq!(groups[0]["oneOf"][0], json!({ "required": ["prefix"] }));
    assert_eq!(
        groups[1]["oneOf"][3]["not"]["anyOf"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    // A type that contains itself is a reference to itself.
    assert_eq!(
        defs["Action"]["properties"]["not"]["$ref"],
        "#/$defs/Action"
    );
}

mod mistakes;

mod properties {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_breaks_decoding(
            text in r#"((service|timeout|port|match|mode|tags|actions|limit|typed_config|prefix|a|- |\{|\}|\[|\]|&a |\*a|'|"|\$\{A\}|-?[0-9]{1,22}(\.[0-9]{1,22})?|s|ms|h|KiB|é|, |: |:\n  |\n|\n  )){0,40}"#
        ) {
            if let Ok(document) = Document::parse_with("f.yaml", text, &|_| None) {
                let (_, errors) = document.decode_partly::<Filter>();
                let _ = errors.to_string();
                let mut errors = Errors::new();
                let _ = decode_typed::<Match>(document.root(), &mut errors);
            }
        }

        #[test]
        fn durations_survive_a_round_trip(nanos in 0..u64::MAX) {
            let duration = Duration::from_nanos(nanos);
            let text = format!("{LEAST}timeout: {}", format_duration(duration));
            prop_assert_eq!(document(&text).decode::<Filter>().map(|filter| filter.timeout), Ok(duration));
        }
    }
}
