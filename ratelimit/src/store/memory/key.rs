//! A counter's name, in the place where the counter is.

use std::fmt;

/// Keys up to this long need no memory of their own, and no second look into it.
const INLINE: usize = 30;

/// A text that lies with its counter when it is short, as most are.
#[derive(Clone)]
pub(super) struct Key(Kept);

#[derive(Clone)]
enum Kept {
    Inline { length: u8, bytes: [u8; INLINE] },
    Apart(Box<[u8]>),
}

impl Key {
    pub(super) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        Self(
            match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
                (Some(place), Ok(length)) => {
                    place.copy_from_slice(text.as_bytes());
                    Kept::Inline { length, bytes }
                }
                _ => Kept::Apart(text.as_bytes().into()),
            },
        )
    }

    #[inline]
    pub(super) fn is(&self, text: &str) -> bool {
        self.bytes() == text.as_bytes()
    }

    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kept::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Kept::Apart(bytes) => bytes,
        }
    }
}

/// The text that it was made of.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(self.bytes()).unwrap_or_default())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_any_length_are_themselves() {
        for length in [0, 1, INLINE - 1, INLINE, INLINE + 1, 300] {
            let text = "ä".repeat(length / 2) + &"x".repeat(length % 2);
            let key = Key::new(&text);
            assert!(key.is(&text), "{length}");
            assert_eq!(key.to_string(), text);
            assert!(!key.is(&format!("{text}x")), "{length}");
        }
    }

    #[test]
    fn a_key_fills_no_more_than_half_a_cache_line() {
        assert_eq!(size_of::<Key>(), 32);
    }
}
