//! Texts, well-formed and not.

use super::super::Document;
use super::*;
use proptest::prelude::*;

fn read(text: &str) -> (Option<serde_json::Value>, String) {
    match Document::parse_with("f.yaml", text, &|_| None) {
        Ok(document) => (
            Some(document.root().to_json()),
            document.errors().to_string(),
        ),
        Err(errors) => (None, errors.to_string()),
    }
}

/// The first line of the only error, whether or not parsing could go on.
fn error(text: &str) -> String {
    let (_, errors) = read(text);
    errors.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn yaml_and_json_are_the_same() {
    let json = "{\n\t\"a\": [1, 2.5, \"x\\u00e9\\/\"],\n\t\"b\": {\"c\": null, \"d\":true}\n}\n";
    let yaml = "a:\n- 1\n- 2.5\n- xé/\nb: {c: null, d: true}\n";
    let (tree, errors) = read(json);
    assert_eq!(errors, "");
    assert_eq!(tree, serde_json::from_str(json).ok());
    assert_eq!(read(yaml).0, tree);
}

#[test]
fn an_empty_file_is_null() {
    for text in ["", "\n", "# nothing\n", "---\n"] {
        assert_eq!(read(text), (Some(serde_json::Value::Null), String::new()));
    }
}

#[test]
fn places_are_exact() {
    let text = "\u{feff}ä: 'x'\r\nlist:\r\n- {b: [é, 12]}\r\n";
    let document = Document::parse("f.yaml", text).unwrap();
    let at = |node: &Node| (node.span.start, node.span.end);
    let root = document.root();
    assert_eq!(at(root.get("ä").unwrap()), ((1, 4), (1, 7)));
    let item = &root.get("list").unwrap().as_seq().unwrap()[0];
    assert_eq!(at(item), ((3, 3), (3, 15)));
    assert_eq!(item.label(), Some("list[0]"));
    let b = item.get("b").unwrap();
    assert_eq!(b.label(), Some("b"));
    assert_eq!(at(b), ((3, 7), (3, 14)));
    let number = &b.as_seq().unwrap()[1];
    assert_eq!(at(number), ((3, 11), (3, 13)));
    assert_eq!(number.label(), Some("b[1]"));
}

#[test]
fn aliases_repeat_a_value() {
    let (tree, errors) = read("a: &x {k: [1]}\nb: *x\nc: [*x, &y 5, *y]\n");
    assert_eq!(errors, "");
    let x = serde_json::json!({ "k": [1] });
    assert_eq!(
        tree,
        Some(serde_json::json!({ "a": x, "b": x, "c": [x, 5, 5] }))
    );
}

#[test]
fn structure_errors_are_located() {
    for (text, expected) in [
        (
            "a: 1\nb:\n\tc: 1\n",
            "3:1: a tab; YAML is indented with spaces only",
        ),
        (
            "a: 1\nb: 2\na: 3\n",
            "3:1: duplicate key `a`, already on line 1",
        ),
        (
            "{\"a\": 1, \"a\": 2}",
            "1:10: duplicate key `a`, already on line 1",
        ),
        ("a: *b\n", "1:4: alias of an anchor `&b` that is not above"),
        (
            "a: &a [*a]\n",
            "1:8: an alias inside its own anchor never ends",
        ),
        ("&a k: *a\n", "1:7: an alias of a key; anchor a value"),
        ("a: &a 1\n*a : 2\n", "2:1: an alias cannot be a key"),
        ("? [a]\n: 1\n", "1:3: a key has to be plain text"),
        (": 1\n", "1:1: a key is missing before this `:`"),
        (
            "<<: {a: 1}\n",
            "1:1: merge keys (`<<`) are not supported: write the fields out, or use `*alias` for a whole value",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "2:1: a file holds one document; a second one begins",
        ),
        ("a: !secret 1\n", "1:12: the tag `!secret` is not supported"),
        ("a: @x\n", "1:4: text cannot begin with `@`; quote it"),
        (
            "a: b: c\n",
            "1:5: no `key: value` can stand here; check the indentation, and quote text that has a `: `",
        ),
        (
            "a: {b: ${X}}\n",
            "1:9: while parsing a flow mapping, did not find expected ',' or '}' (inside `[ ]` and `{ }`, `${NAME}` has to be quoted)",
        ),
        (
            "a: ${X}\n",
            "1:4: the environment variable `X` is not set, and has no default (`${X:-default}`)",
        ),
        (
            "a: \"b${X}\"\n",
            "1:4: `${X}` is replaced only where it is the whole value; write `$${X}` to mean the text",
        ),
    ] {
        assert_eq!(error(text), format!("f.yaml:{expected}"), "{text}");
    }
}

#[test]
fn reading_goes_on_behind_what_does_not_break_the_structure() {
    let (tree, errors) = read("a: ${X}\nb: *b\nc: 1\nc: 2\nd: !t [3]\n");
    assert!(tree.is_some());
    assert_eq!(
        errors
            .lines()
            .filter(|line| line.starts_with("f.yaml"))
            .count(),
        4
    );
}

#[test]
fn block_text_is_left_alone() {
    let (tree, errors) = read("a: |\n  x ${Y}\n  $${Z}\n");
    assert_eq!(errors, "");
    assert_eq!(tree, Some(serde_json::json!({ "a": "x ${Y}\n$${Z}\n" })));
}

#[test]
fn bombs_are_refused() {
    let mut bomb = String::from("a0: &a0 [x]\n");
    for i in 1..20 {
        let list = vec![format!("*a{}", i - 1); 9].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    assert!(error(&bomb).ends_with("more than 500000 values, counting what aliases repeat"));

    let mut text = format!("a: &a {}\nb:\n", "x".repeat(1 << 20));
    text.push_str(&"- *a\n".repeat(100));
    assert!(error(&text).ends_with("bytes of text, counting what aliases repeat"));

    let mut deep = String::from("a0: &a0 x\n");
    for i in 1..50 {
        deep.push_str(&format!("a{i}: &a{i} [[[*a{}]]]\n", i - 1));
    }
    assert!(error(&deep).ends_with("nested more than 100 levels deep"));
    let deep: String = (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert!(error(&deep).ends_with("nested more than 100 levels deep"));
    assert_ne!(error(&"[".repeat(100_000)), "");
    assert_ne!(error(&"{a: ".repeat(100_000)), "");

    let huge = "a".repeat(super::super::MAX_FILE_BYTES + 1);
    assert_eq!(error(&huge), "f.yaml: larger than 8 MiB");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_breaks_the_parser(text in any::<String>()) {
        read(&text);
    }

    #[test]
    fn no_yaml_like_text_breaks_the_parser(
        text in r#"([\-?:,\[\]{}#&*!|>'"%@`~<$ \t\r\n]|a|b: |- |\*a|&a |\$\{A\}|1|null|--- |é){0,60}"#
    ) {
        read(&text);
    }

    #[test]
    fn json_is_read_as_json(keys in proptest::collection::vec("[a-z ${}:\\-\\PC]{0,8}", 0..5), n in any::<i64>()) {
        let tree: serde_json::Map<_, _> = keys
            .into_iter()
            .map(|key| (key, serde_json::json!([n, n as f64 / 3.0, null, { "x": true }])))
            .collect();
        let tree = serde_json::Value::Object(tree);
        let (read, errors) = read(&tree.to_string());
        prop_assert_eq!(errors, "");
        prop_assert_eq!(read, Some(tree));
    }
}
