//! What belongs to the name that a TLS client asks for.

use std::collections::HashMap;

/// Values by server name: whole names, and `*.example.com` for every name below `example.com`
/// (Envoy's `filter_chain_match.server_names`).
#[derive(Debug)]
pub struct ServerNames<T> {
    values: Vec<T>,
    /// Where the value of a name is; wildcards without their asterisk.
    names: HashMap<String, usize>,
}

impl<T> Default for ServerNames<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            names: HashMap::new(),
        }
    }
}

/// Why a name cannot be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerNameError {
    /// It is no name of a host.
    #[error("`{0}` is no server name: write a host name, or `*.` and a domain")]
    Malformed(String),
    /// It belongs to another value.
    #[error("`{0}` stands here twice")]
    Twice(String),
}

impl<T> ServerNames<T> {
    /// Adds a value, without names.
    pub fn push(&mut self, value: T) {
        self.values.push(value);
    }

    /// Gives the value that was added last this name.
    ///
    /// # Errors
    /// See [`ServerNameError`].
    pub fn name(&mut self, name: &str) -> Result<(), ServerNameError> {
        let lower = name.to_ascii_lowercase();
        let key = lower.strip_prefix('*').unwrap_or(&lower);
        let host = key.strip_prefix('.').filter(|_| lower.starts_with('*'));
        let host = host.unwrap_or(&lower);
        let label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        if !host.split('.').all(label) {
            return Err(ServerNameError::Malformed(name.to_owned()));
        }
        let last = self.values.len().saturating_sub(1);
        match self.names.insert(key.to_owned(), last) {
            None => Ok(()),
            Some(_) => Err(ServerNameError::Twice(name.to_owned())),
        }
    }

    /// The value of a name: the whole name goes before wildcards, and the longest of these first.
    pub fn get(&self, name: &str) -> Option<&T> {
        let name = name.to_ascii_lowercase();
        let below = name
            .match_indices('.')
            .filter_map(|(dot, _)| name.get(dot..));
        let at = [name.as_str()]
            .into_iter()
            .chain(below)
            .find_map(|key| self.names.get(key))?;
        self.values.get(*at)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_name_goes_first_then_the_longest_wildcard() {
        let mut names = ServerNames::default();
        for (value, own) in [
            (1, vec!["a.example.com", "b.test"]),
            (2, vec!["*.example.com"]),
            (3, vec!["*.sub.example.com"]),
        ] {
            names.push(value);
            for name in own {
                names.name(name).unwrap();
            }
        }
        for (name, value) in [
            ("a.example.com", Some(1)),
            ("A.Example.com", Some(1)),
            ("b.test", Some(1)),
            ("c.example.com", Some(2)),
            ("x.y.example.com", Some(2)),
            ("x.sub.example.com", Some(3)),
            ("sub.example.com", Some(2)),
            ("example.com", None),
            ("c.b.test", None),
            ("", None),
        ] {
            assert_eq!(names.get(name).copied(), value, "{name}");
        }
    }

    #[test]
    fn names_are_host_names_and_stand_once() {
        let mut names = ServerNames::default();
        names.push(());
        for wrong in [
            "", "*", "*.", "a*.test", "*a.test", ".a.test", "a..b", "a b", "a:1",
        ] {
            assert!(names.name(wrong).is_err(), "{wrong}");
        }
        names.name("a.test").unwrap();
        assert_eq!(
            names.name("A.test"),
            Err(ServerNameError::Twice("A.test".to_owned()))
        );
    }
}
