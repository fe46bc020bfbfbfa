//! Credentials that upstreams do not get to see.

use percent_encoding::percent_decode_str;

use super::{
    check::Check,
    identity::{Source, Spot, is_session_cookie},
};
use crate::server::Allow;

/// Where the sources of a pipeline look for secrets. All of these places are emptied, not only
/// the one that was believed: what nobody has verified is not for the upstream to believe either.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    headers: Vec<String>,
    parameters: Vec<String>,
    cookies: Vec<String>,
    /// Names that the cookies of sessions are made of.
    sessions: Vec<String>,
}

impl Hidden {
    /// What these sources hide. Browsers show their sessions to all pipelines, so they are hidden
    /// whichever of `all` sources they are of.
    pub(super) fn plan<'a>(sources: impl Iterator<Item = &'a Source>, all: &'a [Source]) -> Self {
        let mut hidden = Self::default();
        let sources: Vec<_> = sources.collect();
        let sessions = all.iter().filter_map(Source::session_cookie);
        hidden.sessions.extend(sessions.map(str::to_owned));
        for spot in sources.iter().flat_map(|source| source.hidden()) {
            let (list, name) = match spot {
                Spot::Header { name, .. } => (&mut hidden.headers, name),
                Spot::Query(name) => (&mut hidden.parameters, name),
                Spot::Cookie(name) => (&mut hidden.cookies, name),
            };
            if !list.contains(name) {
                list.push(name.clone());
            }
        }
        hidden
    }

    /// Takes the credentials out of an allowed request, except what it is given anyway. Headers go
    /// unseen, so that decisions do not depend on them.
    pub(super) fn hide(&self, check: &Check<'_>, mut allow: Allow) -> Allow {
        for name in &self.headers {
            if !allow.sets(name) && !allow.removes(name) {
                allow = allow.remove(name);
            }
        }
        if self.has_parameters(check)
            && let Some(query) = check.query()
        {
            for name in encoded_names(query, &self.parameters) {
                if !allow.sets_parameter(name) {
                    allow = allow.query_remove(name);
                }
            }
        }
        if allow.sets("cookie") || allow.removes("cookie") || !self.has_cookies(check) {
            return allow;
        }
        let Some(all) = check.header("cookie") else {
            // There is none, or one that is no text: an upstream could read it all the same.
            return allow.remove("cookie");
        };
        match without(&all, |name| self.is_cookie(name)) {
            None => allow,
            Some(rest) if rest.is_empty() => allow.remove("cookie"),
            Some(rest) => allow.set("cookie", rest),
        }
    }

    /// Whether there are parameters to hide. Only what has to be looked at is looked at.
    fn has_parameters(&self, check: &Check<'_>) -> bool {
        let mut names = self.parameters.iter();
        names.any(|name| check.parameter(name).next().is_some())
    }

    /// Whether there may be cookies to hide. Only what has to be looked at is looked at.
    fn has_cookies(&self, check: &Check<'_>) -> bool {
        let mut names = self.cookies.iter();
        !self.sessions.is_empty() || names.any(|name| check.cookie(name).next().is_some())
    }

    fn is_cookie(&self, name: &str) -> bool {
        self.cookies.iter().any(|hidden| hidden == name)
            || self
                .sessions
                .iter()
                .any(|base| is_session_cookie(name, base))
    }
}

/// The parameters with these names, as their names are encoded in the query.
fn encoded_names<'q>(query: &'q str, names: &[String]) -> Vec<&'q str> {
    let mut found = Vec::new();
    for parameter in query.split('&') {
        let name = parameter.split('=').next().unwrap_or(parameter);
        let spaced = name.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8_lossy();
        if names.iter().any(|hidden| *hidden == decoded) && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

/// A `cookie` header without the cookies that are `hidden`; `None` when none of them is in it.
/// Where the proxy has joined two lines with a comma, a semicolon is put.
fn without(header: &str, hidden: impl Fn(&str) -> bool) -> Option<String> {
    let mut kept = String::with_capacity(header.len());
    let (mut keeps, mut found) = (false, false);
    for cookie in header.split(';') {
        for (nth, piece) in cookie.split(',').enumerate() {
            // A comma without a name behind it is part of the value before it.
            let (value, name) = (nth > 0 && !piece.contains('='), piece.split('=').next());
            if value {
                if keeps {
                    kept.push(',');
                    kept.push_str(piece);
                }
                continue;
            }
            let name = name.unwrap_or(piece).trim();
            let hide = hidden(name);
            found |= hide;
            keeps = !name.is_empty() && !hide;
            if keeps {
                if !kept.is_empty() {
                    kept.push_str("; ");
                }
                kept.push_str(piece.trim());
            }
        }
    }
    found.then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_taken_out_of_their_header() {
        for (header, rest) in [
            ("key=s", ""),
            ("a=1; key=s; b=2", "a=1; b=2"),
            ("a=1;key=s", "a=1"),
            ("a=1,key=s", "a=1"),
            ("key=s,a=1,b=2", "a=1; b=2"),
            ("a=1,2; key=s,t; b=3", "a=1,2; b=3"),
            ("akey=s; key =t; keys=u", "akey=s; keys=u"),
            ("a; key=s", "a"),
            ("key=s; key=t", ""),
        ] {
            let found = without(header, |name| name == "key");
            assert_eq!(found.as_deref(), Some(rest), "{header}");
        }
        assert_eq!(without("a=1; keys=2", |name| name == "key"), None);
    }

    #[test]
    fn parameters_are_found_however_their_names_are_encoded() {
        let names = ["key".to_owned(), "a b".to_owned()];
        let found = encoded_names("key=1&x=2&%6bey=3&key&a+b=4&keys=5&Key=6", &names);
        assert_eq!(found, ["key", "%6bey", "a+b"]);
    }
}
