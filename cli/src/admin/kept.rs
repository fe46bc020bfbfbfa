//! What a reload cannot change: it stays as it was at the start.

use std::collections::{BTreeMap, btree_map::Entry};

use attache_service::config::Node;

/// Fields whose value counts at the start alone, by the way to them; none where it is not written.
pub(crate) type Fields = BTreeMap<String, Option<Node>>;

/// The values in use of fields that only a start changes.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `workers` is given on the command line, and the file's does not count.
    workers_are_given: bool,
    /// By what they belong to: a socket keeps its mode as long as its address stands in the file.
    in_use: BTreeMap<String, Option<Node>>,
}

/// A field of a file.
struct Field {
    /// What it belongs to.
    of: String,
    /// The way to it in this file.
    way: String,
    value: Option<Node>,
}

impl Kept {
    /// Those of the file that is there at the start.
    pub(crate) fn new(root: &Node, workers_are_given: bool) -> Self {
        let mut kept = Self {
            workers_are_given,
            in_use: BTreeMap::new(),
        };
        kept.otherwise_in(root);
        kept
    }

    /// The fields of another file that is in use from now on that say something else, with what is
    /// in use instead.
    pub(crate) fn otherwise_in(&mut self, root: &Node) -> Fields {
        let fields = self.fields(root);
        let there = |of: &String| fields.iter().any(|field| field.of == *of);
        self.in_use.retain(|of, _| there(of));
        let mut otherwise = Fields::new();
        for Field { of, way, value } in fields {
            match self.in_use.entry(of) {
                Entry::Vacant(new) => {
                    new.insert(value);
                }
                Entry::Occupied(used) if text(used.get()) != text(&value) => {
                    otherwise.insert(way, used.get().clone());
                }
                Entry::Occupied(_) => {}
            }
        }
        otherwise
    }

    fn fields(&self, root: &Node) -> Vec<Field> {
        let top = |name: &str| Field {
            of: name.to_owned(),
            way: name.to_owned(),
            value: root.get(name).cloned(),
        };
        let mut fields = vec![top("admin")];
        if !self.workers_are_given {
            fields.push(top("workers"));
        }
        let listeners = root.get("listeners").and_then(Node::as_seq);
        for (index, listener) in listeners.unwrap_or_default().iter().enumerate() {
            let address = listener.get("address").and_then(Node::text);
            if let Some(address) = address.filter(|address| address.starts_with("unix:")) {
                fields.push(Field {
                    of: address.to_owned(),
                    way: format!("listeners[{index}].mode"),
                    value: listener.get("mode").cloned(),
                });
            }
        }
        fields
    }
}

fn text(value: &Option<Node>) -> Option<&str> {
    value.as_ref().and_then(Node::text)
}

#[cfg(test)]
mod tests {
    use attache_service::config::Document;

    use super::*;

    fn file(text: &str) -> Document {
        Document::parse("edge.yaml", text).unwrap()
    }

    fn said(fields: &Fields) -> Vec<(&str, Option<&str>)> {
        let said = fields.iter().map(|(way, value)| (&**way, text(value)));
        said.collect()
    }

    #[test]
    fn what_only_a_start_changes_is_told_as_long_as_it_differs() {
        let mut kept = Kept::new(file("{ workers: 2, drain: { min: 1s } }").root(), false);

        let otherwise =
            kept.otherwise_in(file("{ workers: 3, admin: '127.0.0.1:1', node: {} }").root());

        assert_eq!(said(&otherwise), [("admin", None), ("workers", Some("2"))]);
        let again = kept.otherwise_in(file("{ workers: 4 }").root());
        assert_eq!(said(&again), [("workers", Some("2"))]);
        assert_eq!(said(&kept.otherwise_in(file("{ workers: 2 }").root())), []);
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let mut kept = Kept::new(file("{ workers: 2 }").root(), true);

        assert_eq!(said(&kept.otherwise_in(file("{ workers: 3 }").root())), []);
    }

    #[test]
    fn a_socket_keeps_its_mode_until_it_is_gone() {
        let with = |rest: &str| file(&format!("listeners: [{{ address: 'a:1' }}{rest}]"));
        let mut kept = Kept::new(with(", { address: 'unix:/a', mode: '0600' }").root(), false);

        let otherwise = kept.otherwise_in(with(", { address: 'unix:/a', mode: '0660' }").root());

        assert_eq!(said(&otherwise), [("listeners[1].mode", Some("0600"))]);
        kept.otherwise_in(with("").root());
        let bound_again = kept.otherwise_in(with(", { address: 'unix:/a', mode: '0660' }").root());
        assert_eq!(said(&bound_again), []);
    }
}
