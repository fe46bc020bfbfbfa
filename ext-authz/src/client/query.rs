//! Edits of the query string, as Envoy makes them: the whole query is written anew.

use std::{borrow::Cow, collections::BTreeMap};

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What can never stand in a request line, or would end the query. Everything else goes as the
/// service wrote it, `&` and `=` included.
const UNWRITABLE: &AsciiSet = &CONTROLS.add(b' ').add(b'#').add(b'"').add(b'<').add(b'>');

/// `path` with parameters set, then removed.
///
/// Keys come out sorted, a key without `=` gets one, encodings stay as they are, and names are
/// compared as written. Without any parameter left the `?` goes too.
pub fn edit(path: &str, set: &[(String, String)], remove: &[String]) -> String {
    let (base, query) = path.split_once('?').unwrap_or((path, ""));
    let mut parameters: BTreeMap<&str, Vec<Cow<'_, str>>> = BTreeMap::new();
    if !query.is_empty() {
        // An `&` at the end is not followed by a parameter.
        for parameter in query.strip_suffix('&').unwrap_or(query).split('&') {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parameters.entry(key).or_default().push(value.into());
        }
    }
    for (key, value) in set {
        let value = utf8_percent_encode(value, UNWRITABLE).into();
        parameters.insert(key, vec![value]);
    }
    for key in remove {
        parameters.remove(key.as_str());
    }
    let mut edited = base.to_owned();
    let mut separator = '?';
    for (key, values) in parameters {
        for value in values {
            edited.push(separator);
            // Keys that were there can stand there; for them this changes nothing.
            edited.extend(utf8_percent_encode(key, UNWRITABLE));
            edited.push('=');
            edited.push_str(&value);
            separator = '&';
        }
    }
    edited
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(set: &[(&str, &str)]) -> Vec<(String, String)> {
        set.iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect()
    }

    #[test]
    fn queries_are_written_anew_as_envoy_does() {
        for (path, set, remove, expected) in [
            (
                "/p?z=1&a=1&b=2&a=3&e=&f",
                &[("a", "new")][..],
                &["b"][..],
                "/p?a=new&e=&f=&z=1",
            ),
            ("/p", &[("a", "1")], &[], "/p?a=1"),
            ("/p?a=1", &[], &["a"], "/p"),
            ("/p?a=1", &[], &["A"], "/p?a=1"),
            ("/p?a=0", &[("a", "1"), ("a", "2")], &[], "/p?a=2"),
            ("/p?a=0", &[("a", "1")], &["a"], "/p"),
            ("/p?a=%20%2b", &[("b", "%41")], &[], "/p?a=%20%2b&b=%41"),
            ("/p?q={x}|y", &[("b", "1")], &[], "/p?b=1&q={x}|y"),
            ("/p?b=2&a=1&", &[], &["x"], "/p?a=1&b=2"),
            ("/p?a=1?b", &[("c", "")], &[], "/p?a=1?b&c="),
            // Envoy writes these raw, which breaks the request line or cuts the query off.
            ("/p", &[("c d", "e&f")], &[], "/p?c%20d=e&f"),
            (
                "/p",
                &[("a", "1 HTTP/1.1\r\nx: y")],
                &[],
                "/p?a=1%20HTTP/1.1%0D%0Ax:%20y",
            ),
            ("/p", &[("a", "x#y")], &[], "/p?a=x%23y"),
        ] {
            let remove: Vec<String> = remove.iter().map(|key| (*key).to_owned()).collect();
            assert_eq!(edit(path, &pairs(set), &remove), expected, "{path} {set:?}");
        }
    }

    proptest! {
        #[test]
        fn an_edited_path_can_always_stand_in_a_request_line(
            query in "[a-z0-9=&%+{}|?/.;:@,]{0,40}",
            key in any::<String>(),
            value in any::<String>(),
            removed in any::<String>(),
        ) {
            let edited = edit(&format!("/p?{query}"), &[(key, value)], &[removed]);
            let parsed = http::uri::PathAndQuery::try_from(edited.as_str()).unwrap();
            // Not cut off at a fragment either.
            prop_assert_eq!(parsed.as_str(), edited);
        }

        #[test]
        fn a_set_parameter_is_there_once_and_others_keep_their_values(
            values in proptest::collection::vec(("[a-c]", "[0-9]{0,3}"), 0..8),
        ) {
            let query: Vec<String> = values.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let path = format!("/p?{}", query.join("&"));
            let edited = edit(&path, &pairs(&[("b", "new")]), &[]);
            let (_, edited) = edited.split_once('?').unwrap();
            let of = |key: &str| -> Vec<&str> {
                edited
                    .split('&')
                    .filter_map(|p| p.split_once('='))
                    .filter(|(k, _)| *k == key)
                    .map(|(_, v)| v)
                    .collect()
            };
            prop_assert_eq!(of("b"), vec!["new"]);
            for key in ["a", "c"] {
                let before: Vec<&str> =
                    values.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect();
                prop_assert_eq!(of(key), before);
            }
        }
    }
}
