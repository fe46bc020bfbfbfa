//! Headers, changes and bodies as JSON that fits into a bound.
//!
//! A value is a string where it can be. Else it is an object: `{masked, mark}` for a secret;
//! `{text, of}` for one that was cut, where `of` tells its length, or that is not UTF-8: `text` is
//! a list then, of strings and of `{hex}` for bytes that are no text.

use attache_filter::{MessageHead, changes::HeaderChange, tap::Beginning};
use serde_json::{Map, Value, json};

use super::Masks;

/// How much of a request is shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of one value.
    value: usize,
    /// Bytes of all names and values, bodies apart.
    record: usize,
}

/// For all requests.
pub(super) const BRIEF: Bounds = Bounds {
    value: 1 << 10,
    record: 32 << 10,
};

/// For those that somebody wants to see in full.
pub(super) const FULL: Bounds = Bounds {
    value: 64 << 10,
    record: 512 << 10,
};

/// Writes what is shown of one request.
pub(super) struct Showing<'m> {
    masks: &'m Masks,
    bounds: Bounds,
    left: usize,
    /// Names and changes that had no room.
    left_out: usize,
}

impl<'m> Showing<'m> {
    pub(super) fn new(masks: &'m Masks, bounds: Bounds) -> Self {
        Self {
            masks,
            bounds,
            left: bounds.record,
            left_out: 0,
        }
    }

    /// How much had no room.
    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    /// Something that is no secret.
    pub(super) fn text(&mut self, value: &[u8]) -> Value {
        let shown = value.len().min(self.bounds.value);
        self.left = self.left.saturating_sub(shown);
        text(value.get(..shown).unwrap_or_default(), value.len())
    }

    /// Every field of a head, or of trailers, as `[name, value]`.
    pub(super) fn fields(&mut self, head: &dyn MessageHead) -> Value {
        let mut fields = Vec::new();
        head.for_each(&mut |name, value| {
            if self.takes(name, &[value]) {
                fields.push(json!([name, self.value(name, value)]));
            }
        });
        fields.into()
    }

    /// What was changed, as `[what, name, old values, new values]`.
    pub(super) fn changes(&mut self, changes: &[HeaderChange]) -> Value {
        let mut shown = Vec::new();
        for change in changes {
            let (what, name, old, new): (_, _, &[String], &[String]) = match change {
                HeaderChange::Added { name, value } => {
                    ("added", name, &[], std::slice::from_ref(value))
                }
                HeaderChange::Set { name, old, new } => ("set", name, old, new),
                HeaderChange::Removed { name, old } => ("removed", name, old, &[]),
            };
            let all: Vec<_> = old.iter().chain(new).map(String::as_bytes).collect();
            if self.takes(name, &all) {
                let values = |values: &[String]| -> Value {
                    let values = values.iter();
                    values.map(|v| self.value(name, v.as_bytes())).collect()
                };
                shown.push(json!([what, name, values(old), values(new)]));
            }
        }
        shown.into()
    }

    /// Whether there is room for these values of a name. Where there is, it is taken.
    fn takes(&mut self, name: &str, values: &[&[u8]]) -> bool {
        let shown = |value: &&[u8]| value.len().min(self.bounds.value);
        let shown: usize = values.iter().map(shown).sum();
        match self.left.checked_sub(name.len().saturating_add(shown)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                false
            }
        }
    }

    fn value(&self, name: &str, value: &[u8]) -> Value {
        if self.masks.has(name) {
            return json!({ "masked": value.len(), "mark": self.masks.mark(value) });
        }
        let shown = value.len().min(self.bounds.value);
        text(value.get(..shown).unwrap_or_default(), value.len())
    }
}

/// The beginning of a value that has `of` bytes.
fn text(shown: &[u8], of: usize) -> Value {
    let cut = shown.len() < of;
    let mut pieces: Vec<Value> = Vec::new();
    let mut whole = true;
    let mut chunks = shown.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        if !chunk.valid().is_empty() {
            pieces.push(chunk.valid().into());
        }
        // The last character may have been cut in two.
        let half = cut && chunks.peek().is_none();
        if !chunk.invalid().is_empty() && !half {
            whole = false;
            pieces.push(json!({ "hex": hex(chunk.invalid()) }));
        }
    }
    match (whole, cut) {
        (true, false) => pieces.pop().unwrap_or_else(|| "".into()),
        (_, false) => json!({ "text": pieces }),
        (_, true) => json!({ "text": pieces, "of": of }),
    }
}

/// A body: `text` where it looks like one, else `hex`; `of` tells its length.
pub(super) fn body(body: &Beginning) -> Value {
    let mut shown = Map::new();
    let bytes = &body.bytes;
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => Some(text),
        // The last character may have been cut in two.
        Err(error) if error.error_len().is_none() && body.total > bytes.len() as u64 => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(valid).ok()
        }
        Err(_) => None,
    };
    let plain = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    match text.filter(|text| text.chars().all(plain)) {
        Some(text) => shown.insert("text".to_owned(), text.into()),
        None => shown.insert("hex".to_owned(), hex(bytes).into()),
    };
    shown.insert("kept".to_owned(), bytes.len().into());
    shown.insert("of".to_owned(), body.total.into());
    shown.into()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn fields(headers: &[(&'static str, &[u8])], bounds: Bounds) -> (Value, usize) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        let masks = Masks::default();
        let mut showing = Showing::new(&masks, bounds);
        (showing.fields(&map), showing.left_out())
    }

    #[test]
    fn values_are_strings_where_they_can_be() {
        let (shown, left_out) = fields(
            &[
                ("x-a", b"<b>1</b>"),
                ("x-b", "\u{202e}é".as_bytes()),
                ("x-c", b"a\xff\xfeb"),
                ("x-d", b""),
            ],
            BRIEF,
        );
        assert_eq!(
            shown,
            json!([
                ["x-a", "<b>1</b>"],
                ["x-b", "\u{202e}é"],
                ["x-c", { "text": ["a", { "hex": "ff" }, { "hex": "fe" }, "b"] }],
                ["x-d", ""],
            ])
        );
        assert_eq!(left_out, 0);
    }

    #[test]
    fn secrets_are_told_apart_and_not_told() {
        let (shown, _) = fields(
            &[
                ("authorization", b"Bearer one"),
                ("set-cookie", b"Bearer one"),
                ("set-cookie", b"Bearer two"),
            ],
            FULL,
        );
        assert!(!shown.to_string().contains("Bearer"), "{shown}");
        let mark = |at: usize| shown[at][1]["mark"].as_str().unwrap().to_owned();
        assert_eq!(shown[0][1]["masked"], 10);
        assert_eq!(mark(0), mark(1));
        assert_ne!(mark(1), mark(2));
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let long = "é".repeat(30 << 10);
        let (shown, _) = fields(&[("x-a", format!("a{long}").as_bytes())], BRIEF);
        let value = &shown[0][1];
        assert_eq!(value["of"], (60 << 10) + 1);
        let text = value["text"][0].as_str().unwrap();
        assert_eq!(
            (text.len(), value["text"].as_array().unwrap().len()),
            (1023, 1)
        );
    }

    #[test]
    fn what_has_no_room_is_left_out_and_counted() {
        let value = [b'x'; 1000];
        let headers = [("x-many", &value[..]); 100];
        let (shown, left_out) = fields(&headers, BRIEF);
        let kept = shown.as_array().unwrap().len();
        assert_eq!((kept, left_out), (32, 68));
    }

    #[test]
    fn bodies_are_text_or_hex() {
        let beginning = |bytes: &[u8], total| Beginning {
            bytes: bytes.to_vec(),
            total,
        };
        let shown = |bytes, total| body(&beginning(bytes, total));
        assert_eq!(
            shown("{\"a\":\"é\"}\n".as_bytes(), 11),
            json!({ "text": "{\"a\":\"é\"}\n", "kept": 11, "of": 11 })
        );
        assert_eq!(
            shown(b"a\xc3", 9),
            json!({ "text": "a", "kept": 2, "of": 9 })
        );
        assert_eq!(
            shown(b"\x1f\x8b\x08", 3),
            json!({ "hex": "1f8b08", "kept": 3, "of": 3 })
        );
        assert_eq!(shown(b"a\xc3", 2)["hex"], "61c3");
    }
}
