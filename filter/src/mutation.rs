//! Which headers a policy service may change: Envoy's `HeaderMutationRules`.

use attache_service::config::{Errors, Located};
use attache_service::config_struct;
use regex::Regex;

use crate::matcher::{RegexMatcher, full_match};

config_struct! {
    /// Envoy's `config.common.mutation_rules.v3.HeaderMutationRules`.
    pub struct HeaderMutationRules {
        /// Allow changes of `host`, `:authority`, `:method` and `:scheme`. Default false.
        pub allow_all_routing: Option<bool>,
        /// Allow changes of `x-envoy-*` headers. Default false.
        pub allow_envoy: Option<bool>,
        /// Forbid changes of headers whose name starts with `:`. Default false.
        pub disallow_system: Option<bool>,
        /// Forbid all changes that `allow_expression` does not allow. Default false.
        pub disallow_all: Option<bool>,
        /// Names that may be changed whatever the other rules but `disallow_expression` say.
        pub allow_expression: Option<Located<RegexMatcher>>,
        /// Names that may never be changed.
        pub disallow_expression: Option<Located<RegexMatcher>>,
        /// Treat a forbidden change as an error of the whole message. Default false.
        pub disallow_is_error: Option<bool>,
    }
}

/// What is to be done to a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Replace or add.
    Set,
    /// Add to what is there.
    Append,
    /// Remove.
    Remove,
}

/// What the rules say of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Allow,
    /// Skip it and count it as rejected.
    Ignore,
    /// Fail the whole message.
    Fail,
}

/// The rules, ready to be asked.
#[derive(Debug, Clone, Default)]
pub struct MutationRules {
    allow_all_routing: bool,
    allow_envoy: bool,
    disallow_system: bool,
    disallow_all: bool,
    allow_expression: Option<Regex>,
    disallow_expression: Option<Regex>,
    disallow_is_error: bool,
}

impl MutationRules {
    /// Compiles the rules; a bad regular expression is reported at its place.
    pub fn plan(raw: &HeaderMutationRules, errors: &mut Errors) -> Self {
        let mut compile = |matcher: &Option<Located<RegexMatcher>>| {
            matcher.as_ref().and_then(|m| match full_match(&m.regex) {
                Ok(regex) => Some(regex),
                Err(error) => {
                    errors.push(m, error.to_string());
                    None
                }
            })
        };
        Self {
            allow_expression: compile(&raw.allow_expression),
            disallow_expression: compile(&raw.disallow_expression),
            allow_all_routing: raw.allow_all_routing.unwrap_or(false),
            allow_envoy: raw.allow_envoy.unwrap_or(false),
            disallow_system: raw.disallow_system.unwrap_or(false),
            disallow_all: raw.disallow_all.unwrap_or(false),
            disallow_is_error: raw.disallow_is_error.unwrap_or(false),
        }
    }

    /// Judges one change. `name` is lower case; an invalid name is the caller's to refuse.
    pub fn check(&self, operation: Operation, name: &str) -> Verdict {
        let hard = match operation {
            Operation::Set => false,
            Operation::Append => name.starts_with(':'),
            Operation::Remove => name.starts_with(':') || name == "host",
        };
        if !hard && self.allows(name) {
            Verdict::Allow
        } else if self.disallow_is_error {
            Verdict::Fail
        } else {
            Verdict::Ignore
        }
    }

    /// The rules in Envoy's order: the first that speaks decides.
    fn allows(&self, name: &str) -> bool {
        let matches = |regex: &Option<Regex>| regex.as_ref().is_some_and(|r| r.is_match(name));
        if matches(&self.disallow_expression) {
            return false;
        }
        if matches(&self.allow_expression) {
            return true;
        }
        let routing = matches!(name, "host" | ":authority" | ":method" | ":scheme");
        !(self.disallow_all
            || (routing && !self.allow_all_routing)
            || (name.starts_with(':') && self.disallow_system)
            || (name.starts_with("x-envoy") && !self.allow_envoy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Append, Remove, Set};
    use Verdict::{Allow, Fail, Ignore};

    #[test]
    fn defaults_protect_routing_headers_and_envoy_headers() {
        let rules = MutationRules::default();
        for (operation, name, verdict) in [
            (Set, "x-a", Allow),
            (Set, ":path", Allow),
            (Set, ":status", Allow),
            (Set, "host", Ignore),
            (Set, ":authority", Ignore),
            (Set, ":method", Ignore),
            (Set, ":scheme", Ignore),
            (Set, "x-envoy-foo", Ignore),
            (Append, ":path", Ignore),
            (Remove, ":path", Ignore),
            (Remove, "host", Ignore),
            (Remove, "x-zz", Allow),
        ] {
            assert_eq!(
                rules.check(operation, name),
                verdict,
                "{operation:?} {name}"
            );
        }
    }

    #[test]
    fn routing_headers_can_be_allowed_but_never_removed() {
        let rules = MutationRules {
            allow_all_routing: true,
            allow_envoy: true,
            ..MutationRules::default()
        };
        assert_eq!(rules.check(Set, ":authority"), Allow);
        assert_eq!(rules.check(Set, "x-envoy-foo"), Allow);
        assert_eq!(rules.check(Remove, "host"), Ignore);
        assert_eq!(rules.check(Remove, ":method"), Ignore);
    }

    #[test]
    fn system_headers_can_be_forbidden_but_host_is_not_one() {
        let rules = MutationRules {
            allow_all_routing: true,
            disallow_system: true,
            ..MutationRules::default()
        };
        assert_eq!(rules.check(Set, ":path"), Ignore);
        assert_eq!(rules.check(Set, "host"), Allow);
    }

    #[test]
    fn expressions_match_whole_names_and_disallow_wins() {
        let rules = MutationRules {
            disallow_all: true,
            allow_expression: Some(full_match("x-ok.*").unwrap()),
            disallow_expression: Some(full_match("x-ok-not").unwrap()),
            ..MutationRules::default()
        };
        assert_eq!(rules.check(Set, "x-ok1"), Allow);
        assert_eq!(rules.check(Set, "x-ok-not"), Ignore);
        assert_eq!(rules.check(Set, "ax-ok"), Ignore);
    }

    #[test]
    fn a_forbidden_change_can_be_an_error() {
        let rules = MutationRules {
            disallow_is_error: true,
            ..MutationRules::default()
        };
        assert_eq!(rules.check(Set, ":method"), Fail);
        assert_eq!(rules.check(Remove, ":path"), Fail);
        assert_eq!(rules.check(Set, "x-a"), Allow);
    }
}
