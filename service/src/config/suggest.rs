//! "Did you mean …?"

/// Longer names are not worth comparing: nothing we know is near them.
const MAX_NAME: usize = 64;
/// A longer list of alternatives would bury the message.
const MAX_LISTED: usize = 12;

/// The valid name nearest to what was written, if any is near.
///
/// Case, dashes and camelCase do not count as distance, so `prefixRewrite` finds
/// `prefix_rewrite`. Of equally near names the first declared wins.
pub fn nearest<'a>(written: &str, valid: &[&'a str]) -> Option<&'a str> {
    if written.len() > MAX_NAME {
        return None;
    }
    let written = normal(written);
    valid
        .iter()
        .map(|name| (strsim::osa_distance(&written, &normal(name)), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The tail of an "unknown name" message: the nearest name, else all of them if they are few.
pub(crate) fn hint(written: &str, valid: &[&str]) -> String {
    if let Some(name) = nearest(written, valid) {
        return format!("; did you mean `{name}`?");
    }
    match valid {
        [] => String::new(),
        [only] => format!("; expected `{only}`"),
        _ if valid.len() <= MAX_LISTED => format!("; expected one of {}", listed(valid)),
        _ => String::new(),
    }
}

/// Names in backticks, separated by commas.
pub(crate) fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

fn normal(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    let mut after_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && after_lower {
            out.push('_');
        }
        after_lower = c.is_lowercase() || c.is_ascii_digit();
        if c == '-' {
            out.push('_');
        } else {
            out.extend(c.to_lowercase());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found() {
        let valid = [
            "prefix",
            "path",
            "safe_regex",
            "prefix_rewrite",
            "SEND",
            "id",
        ];
        assert_eq!(nearest("prefx", &valid), Some("prefix"));
        assert_eq!(nearest("pth", &valid), Some("path"));
        assert_eq!(nearest("apth", &valid), Some("path"));
        assert_eq!(nearest("prefixRewrite", &valid), Some("prefix_rewrite"));
        assert_eq!(nearest("safe-regex", &valid), Some("safe_regex"));
        assert_eq!(nearest("send", &valid), Some("SEND"));
        assert_eq!(nearest("ids", &valid), Some("id"));
        assert_eq!(nearest("cluster", &valid), None);
        assert_eq!(nearest(&"prefix".repeat(1000), &valid), None);
    }

    #[test]
    fn without_a_near_name_a_short_list_is_shown() {
        assert_eq!(hint("zzz", &[]), "");
        assert_eq!(hint("zzz", &["name"]), "; expected `name`");
        assert_eq!(
            hint("zzz", &["name", "rate"]),
            "; expected one of `name`, `rate`"
        );
        assert_eq!(hint("zzz", &["name"; 13]), "");
    }
}
