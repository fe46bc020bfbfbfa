//! Bounds on what a file may make us hold.

use super::node::{Node, Value};

/// Larger files are refused.
pub const MAX_FILE_BYTES: usize = 8 << 20;
/// Deeper nesting is refused; everything after the parser may recurse.
pub const MAX_DEPTH: usize = 100;
/// More values are refused. Anchors count twice, aliases as often as they are used.
pub const MAX_NODES: usize = 500_000;
/// More text is refused. Aliases count as often as they are used.
pub const MAX_TEXT_BYTES: usize = 4 * MAX_FILE_BYTES;

/// What a subtree adds to the limits.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cost {
    pub(crate) nodes: usize,
    pub(crate) text: usize,
    pub(crate) depth: usize,
}

impl Cost {
    /// The cost of a finished subtree.
    pub(crate) fn of(node: &Node) -> Self {
        let mut cost = Cost {
            nodes: 1,
            text: node.text().map_or(0, str::len),
            depth: 0,
        };
        match &node.value {
            Value::Seq(items) => {
                cost.depth = 1;
                items.iter().for_each(|item| cost.add(Cost::of(item), 1));
            }
            Value::Map(entries) => {
                cost.depth = 1;
                for entry in entries {
                    cost.nodes += 1;
                    cost.text += entry.key.name.len();
                    cost.add(Cost::of(&entry.value), 1);
                }
            }
            _ => {}
        }
        cost
    }

    /// Adds a subtree that hangs `at` levels deep.
    pub(crate) fn add(&mut self, other: Cost, at: usize) {
        self.nodes = self.nodes.saturating_add(other.nodes);
        self.text = self.text.saturating_add(other.text);
        self.depth = self.depth.max(at.saturating_add(other.depth));
    }

    /// The limit that is exceeded, in words.
    pub(crate) fn exceeded(&self) -> Option<String> {
        if self.depth > MAX_DEPTH {
            Some(format!("nested more than {MAX_DEPTH} levels deep"))
        } else if self.nodes > MAX_NODES {
            Some(format!(
                "more than {MAX_NODES} values, counting what aliases repeat"
            ))
        } else if self.text > MAX_TEXT_BYTES {
            Some(format!(
                "more than {MAX_TEXT_BYTES} bytes of text, counting what aliases repeat"
            ))
        } else {
            None
        }
    }
}
