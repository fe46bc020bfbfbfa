//! Names of statistics, as the reference service forms them.

/// Puts what metric systems take for separators out of a name: `:` and `|` become `_`, and so do
/// the dots of what looks like an IPv4 address.
pub(crate) fn sanitised(path: &str) -> Box<str> {
    let mut clean = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(character) = rest.chars().next() {
        if let Some(address) = address(rest) {
            for byte in address.chars() {
                clean.push(if byte == '.' { '_' } else { byte });
            }
            rest = rest.get(address.len()..).unwrap_or_default();
            continue;
        }
        clean.push(match character {
            ':' | '|' => '_',
            other => other,
        });
        rest = rest.get(character.len_utf8()..).unwrap_or_default();
    }
    clean.into()
}

/// The four groups of one to three digits that `text` begins with, if it does.
fn address(text: &str) -> Option<&str> {
    let mut at = 0;
    for group in 0..4 {
        if group > 0 {
            text.get(at..)?.strip_prefix('.')?;
            at += 1;
        }
        let digits = text.get(at..)?.bytes().take(3);
        let digits = digits.take_while(u8::is_ascii_digit).count();
        if digits == 0 {
            return None;
        }
        at += digits;
    }
    text.get(..at)
}

/// The path of a limit that a request brings itself: every key, and its value where it has one.
pub(crate) fn of_request<'e>(
    domain: &str,
    entries: impl Iterator<Item = (&'e str, &'e str)>,
) -> Box<str> {
    let mut path = domain.to_owned();
    path.push('.');
    for (number, (key, value)) in entries.enumerate() {
        if number > 0 {
            path.push('.');
        }
        path.push_str(key);
        if !value.is_empty() {
            path.push('_');
            path.push_str(value);
        }
    }
    sanitised(&path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_of_metric_systems_are_replaced() {
        let table = [
            ("path_/foo:*:bar", "path_/foo_*_bar"),
            ("a|b", "a_b"),
            ("d.ip_1.2.3.4", "d.ip_1_2_3_4"),
            ("d.ip_1.2.3.4.5", "d.ip_1_2_3_4.5"),
            ("1234.1.1.1", "1234_1_1_1"),
            ("1.1.1.1234", "1_1_1_1234"),
            ("1.2.3", "1.2.3"),
            ("1..2.3.4", "1..2.3.4"),
            ("é.1.2.3.4ü:", "é.1_2_3_4ü_"),
            ("", ""),
        ];
        for (path, expected) in table {
            assert_eq!(&*sanitised(path), expected, "{path}");
        }
    }

    #[test]
    fn limits_of_requests_are_named_by_their_entries() {
        let entries = [("key1", "value1"), ("subkey1", "")];
        assert_eq!(
            &*of_request("d", entries.into_iter()),
            "d.key1_value1.subkey1"
        );
        assert_eq!(&*of_request("d", [].into_iter()), "d.");
    }
}
