//! What a policy has changed in headers, told by comparing them before and after.

use http::HeaderMap;

use crate::MessageHead;

/// One name whose values are others than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderChange {
    /// A value was added; those that were there, if any, stay.
    Added {
        /// The header's name, lower case; `:path` and the like for what is no header.
        name: String,
        /// The value, with what is not UTF-8 replaced.
        value: String,
    },
    /// All values were replaced.
    Set {
        /// The header's name.
        name: String,
        /// The values before.
        old: Vec<String>,
        /// The values after.
        new: Vec<String>,
    },
    /// All values were removed.
    Removed {
        /// The header's name.
        name: String,
        /// The values before.
        old: Vec<String>,
    },
}

/// The fields of a head or of trailers at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot(Vec<(String, Vec<String>)>);

impl Snapshot {
    /// Of a head, pseudo-headers included.
    pub fn of(head: &dyn MessageHead) -> Self {
        let mut snapshot = Self::default();
        head.for_each(&mut |name, value| snapshot.put(name, value));
        snapshot
    }

    /// Of headers or trailers alone.
    pub fn of_map(headers: &HeaderMap) -> Self {
        let mut snapshot = Self::default();
        for (name, value) in headers {
            snapshot.put(name.as_str(), value.as_bytes());
        }
        snapshot
    }

    fn put(&mut self, name: &str, value: &[u8]) {
        let value = String::from_utf8_lossy(value).into_owned();
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn values(&self, name: &str) -> &[String] {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map_or(&[], |(_, values)| values)
    }

    /// What is different in `after`: changed and removed names in the order of this, then new
    /// ones in the order of `after`.
    pub fn changes_to(&self, after: &Self) -> Vec<HeaderChange> {
        let mut changes = Vec::new();
        let added = |name: &String, values: &[String], changes: &mut Vec<HeaderChange>| {
            changes.extend(values.iter().map(|value| HeaderChange::Added {
                name: name.clone(),
                value: value.clone(),
            }));
        };
        for (name, old) in &self.0 {
            let new = after.values(name);
            if new.is_empty() {
                changes.push(HeaderChange::Removed {
                    name: name.clone(),
                    old: old.clone(),
                });
            } else if let Some(more) = new.strip_prefix(&**old) {
                added(name, more, &mut changes);
            } else {
                changes.push(HeaderChange::Set {
                    name: name.clone(),
                    old: old.clone(),
                    new: new.to_vec(),
                });
            }
        }
        for (name, values) in &after.0 {
            if self.values(name).is_empty() {
                added(name, values, &mut changes);
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn snapshot(path: &str, headers: &[(&str, &str)]) -> Snapshot {
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Snapshot::of(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn names_are_added_set_or_removed() {
        let before = snapshot("/a", &[("x-a", "1"), ("x-b", "2"), ("x-c", "3")]);
        let after = snapshot(
            "/b",
            &[("x-a", "1"), ("x-a", "4"), ("x-c", "5"), ("x-d", "6")],
        );
        let strings = |values: &[&str]| values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
        let name = |name: &str| name.to_owned();
        assert_eq!(
            before.changes_to(&after),
            [
                HeaderChange::Set {
                    name: name(":path"),
                    old: strings(&["/a"]),
                    new: strings(&["/b"])
                },
                HeaderChange::Added {
                    name: name("x-a"),
                    value: name("4")
                },
                HeaderChange::Removed {
                    name: name("x-b"),
                    old: strings(&["2"])
                },
                HeaderChange::Set {
                    name: name("x-c"),
                    old: strings(&["3"]),
                    new: strings(&["5"])
                },
                HeaderChange::Added {
                    name: name("x-d"),
                    value: name("6")
                },
            ]
        );
        assert_eq!(before.changes_to(&before), []);
    }
}
