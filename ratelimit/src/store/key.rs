//! A counter's key on its way to the store.

use std::ops::Range;

/// Keys that are put together one after another, in one buffer: `<domain>_<key>_<value>_...`,
/// without the window.
#[derive(Debug)]
pub(crate) struct KeyText {
    text: String,
    /// Where the key begins that was begun last.
    begun: usize,
    /// Where the value of its last entry begins.
    value_at: usize,
}

impl Default for KeyText {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl KeyText {
    /// No key.
    pub(crate) const EMPTY: Self = Self {
        text: String::new(),
        begun: 0,
        value_at: 0,
    };

    /// Empties the buffer.
    pub(crate) fn clear(&mut self) {
        self.text.clear();
        self.begun = 0;
        self.value_at = 0;
    }

    /// Starts a key with a domain. An earlier key that was not kept is dropped.
    #[inline]
    pub(crate) fn begin(&mut self, domain: &str) {
        self.text.truncate(self.begun);
        self.text.push_str(domain);
        self.text.push('_');
        self.value_at = self.text.len();
    }

    /// Extends the key by one entry of a descriptor.
    ///
    /// Returns `<key>_<value>`, which is also the name that rules are looked up by.
    #[inline]
    pub(crate) fn entry(&mut self, key: &str, value: &str) -> &str {
        let start = self.text.len();
        self.text.push_str(key);
        self.text.push('_');
        self.value_at = self.text.len();
        self.text.push_str(value);
        let end = self.text.len();
        self.text.push('_');
        self.text.get(start..end).unwrap_or_default()
    }

    /// Puts `shared` in the place of the last entry's value: all values that it stands for have
    /// one counter.
    pub(crate) fn share(&mut self, shared: &str) {
        self.text.truncate(self.value_at);
        self.text.push_str(shared);
        self.text.push('_');
    }

    /// Puts down a whole key.
    pub(super) fn whole(&mut self, key: &str) {
        self.text.truncate(self.begun);
        self.text.push_str(key);
    }

    /// The key that was begun last.
    #[inline]
    pub(crate) fn key(&self) -> &str {
        self.text.get(self.begun..).unwrap_or_default()
    }

    /// Keeps the key that was begun last: the next one stands behind it.
    #[inline]
    pub(super) fn keep(&mut self) -> Range<usize> {
        let key = self.begun..self.text.len();
        self.begun = key.end;
        key
    }

    /// A key that was kept.
    #[inline]
    pub(super) fn kept(&self, key: &Range<usize>) -> &str {
        self.text.get(key.clone()).unwrap_or_default()
    }

    /// Bytes that the buffer holds on to.
    pub(crate) fn footprint(&self) -> usize {
        self.text.capacity()
    }
}
