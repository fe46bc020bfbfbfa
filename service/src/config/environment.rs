//! `${NAME}` and `${NAME:-default}` as whole scalars.

use super::parse::Lookup;

/// What a scalar becomes.
#[derive(Debug, PartialEq)]
pub(crate) enum Substitution {
    /// It has nothing to substitute.
    None,
    /// It was a variable with this value.
    Value(String),
    /// It stands for this text: `$${` escaped a `${`.
    Literal(String),
    /// It cannot be substituted.
    Refused(String),
}

/// Looks a scalar's text over.
pub(crate) fn substitute(text: &str, env: Lookup<'_>) -> Substitution {
    let Some(at) = text.find("${") else {
        return Substitution::None;
    };
    if at == 0
        && let Some((name, rest)) = variable(text)
        && let Some((default, "")) = rest.split_once('}')
    {
        let default = default.strip_prefix(":-");
        return match (env(name), default) {
            (Some(value), None) => Substitution::Value(value),
            (Some(value), Some(_)) if !value.is_empty() => Substitution::Value(value),
            (_, Some(default)) => Substitution::Value(default.into()),
            (None, None) => Substitution::Refused(format!(
                "the environment variable `{name}` is not set, and has no default (`${{{name}:-default}}`)"
            )),
        };
    }
    let mut escaped = false;
    for (at, _) in text.match_indices("${") {
        if text.get(..at).is_some_and(|before| before.ends_with('$')) {
            escaped = true;
        } else if let Some((name, _)) = text.get(at..).and_then(variable) {
            return Substitution::Refused(format!(
                "`${{{name}}}` is replaced only where it is the whole value; write `$${{{name}}}` to mean the text"
            ));
        }
    }
    if escaped {
        Substitution::Literal(text.replace("$${", "${"))
    } else {
        Substitution::None
    }
}

/// Splits `${NAME}…` or `${NAME:-…` behind the name.
fn variable(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix("${")?;
    let end = inner.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))?;
    let (name, rest) = inner.split_at_checked(end)?;
    let named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (named && (rest.starts_with('}') || rest.starts_with(":-"))).then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Substitution {
        substitute(text, &|name| match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn whole_scalars_are_replaced() {
        let value = |text: &str| Substitution::Value(text.into());
        assert_eq!(run("${SET}"), value("value"));
        assert_eq!(run("${SET:-other}"), value("value"));
        assert_eq!(run("${EMPTY}"), value(""));
        assert_eq!(run("${EMPTY:-other}"), value("other"));
        assert_eq!(run("${UNSET:-unix:/run/x.sock}"), value("unix:/run/x.sock"));
        assert_eq!(run("${UNSET:-}"), value(""));
    }

    #[test]
    fn a_variable_without_value_is_refused() {
        assert_eq!(
            run("${UNSET}"),
            Substitution::Refused(
                "the environment variable `UNSET` is not set, and has no default (`${UNSET:-default}`)"
                    .into()
            )
        );
    }

    #[test]
    fn parts_of_scalars_are_not_replaced() {
        for text in ["0.0.0.0:${SET}", "${SET}/x", "${SET}${SET}", "${A:-x}y}"] {
            assert!(matches!(run(text), Substitution::Refused(_)), "{text}");
        }
    }

    #[test]
    fn what_is_no_variable_is_text() {
        for text in ["plain", "$SET", "${}", "${1}", "a${b c}", "^/${", "${SET"] {
            assert_eq!(run(text), Substitution::None, "{text}");
        }
        assert_eq!(run("$${SET}"), Substitution::Literal("${SET}".into()));
        assert_eq!(run("a$${SET}b"), Substitution::Literal("a${SET}b".into()));
    }
}
