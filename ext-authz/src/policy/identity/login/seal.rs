//! Values that only we can read and make: AES-256-GCM under keys that rotate.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_URL_SAFE_NO_PAD as B64,
};

/// More than any rotation needs; each is tried with what the first does not open.
const MAX_KEYS: usize = 16;

/// Keys in the order in which they are tried; the first one seals.
pub(super) struct Keys(Vec<RandomizedNonceKey>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl Keys {
    /// Reads keys, one a line: 32 bytes in base64. `#` begins a comment.
    ///
    /// # Errors
    /// Which line is no key, or that there is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let padded =
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let base64 = GeneralPurpose::new(&STANDARD, padded);
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let key = base64.decode(line).ok().filter(|key| key.len() == 32);
            let key = key.and_then(|key| RandomizedNonceKey::new(&AES_256_GCM, &key).ok());
            let number = number.saturating_add(1);
            keys.push(key.ok_or_else(|| {
                format!("line {number} is no key: 32 bytes in base64, `openssl rand -base64 32`")
            })?);
        }
        match keys.len() {
            0 => Err("there is no key in it; `openssl rand -base64 32` makes one".to_owned()),
            1..=MAX_KEYS => Ok(Self(keys)),
            count => Err(format!("{count} keys are more than {MAX_KEYS}")),
        }
    }

    /// Seals a value so that it opens only with the same `purpose`. `None` when the machine has
    /// no randomness.
    pub(super) fn seal(&self, purpose: &str, mut value: Vec<u8>) -> Option<String> {
        let nonce = self
            .0
            .first()?
            .seal_in_place_append_tag(Aad::from(purpose), &mut value)
            .ok()?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut value);
        Some(B64.encode(sealed))
    }

    /// What was sealed for this `purpose` with one of the keys.
    pub(super) fn open(&self, purpose: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = B64.decode(sealed).ok()?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        self.0.iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut value = sealed.to_vec();
            let length = key
                .open_in_place(nonce, Aad::from(purpose), &mut value)
                .ok()?
                .len();
            value.truncate(length);
            Some(value)
        })
    }
}

/// Text of 256 random bits. `None` when the machine has no randomness.
pub(super) fn random() -> Option<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).ok()?;
    Some(B64.encode(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NEW: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8";

    fn keys(lines: &[&str]) -> Keys {
        Keys::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_for_its_purpose_alone() {
        let keys = keys(&["# ours", OLD, ""]);
        let sealed = keys.seal("session a", b"secret".to_vec()).unwrap();
        assert_eq!(keys.open("session a", &sealed).unwrap(), b"secret");
        assert_eq!(keys.open("session b", &sealed), None);
        assert_ne!(keys.seal("session a", b"secret".to_vec()).unwrap(), sealed);
    }

    #[test]
    fn a_change_of_any_character_is_noticed() {
        let keys = keys(&[OLD]);
        let sealed = keys.seal("p", b"secret".to_vec()).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(keys.open("p", &changed), None, "{at}");
        }
        for cut in 0..sealed.len() {
            assert_eq!(keys.open("p", &sealed[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn rotated_keys_open_what_older_ones_sealed_until_they_are_gone() {
        let sealed = keys(&[OLD]).seal("p", b"x".to_vec()).unwrap();
        let both = keys(&[NEW, OLD]);
        assert_eq!(both.open("p", &sealed).unwrap(), b"x");
        let resealed = both.seal("p", b"x".to_vec()).unwrap();
        assert_eq!(keys(&[NEW]).open("p", &resealed).unwrap(), b"x");
        assert_eq!(keys(&[NEW]).open("p", &sealed), None);
    }

    #[test]
    fn key_files_name_the_line_that_is_wrong() {
        let wrong = |text: &str| Keys::parse(text).unwrap_err();
        assert!(wrong("# none\n").contains("no key"));
        assert!(wrong(&format!("{OLD}\nc2hvcnQ=\n")).contains("line 2"));
        assert!(wrong(&[OLD; 17].join("\n")).contains("17 keys"));
        // The message does not tell the key.
        assert!(!wrong("not base64!").contains("not base64!"));
    }

    proptest! {
        #[test]
        fn any_text_opens_or_not_without_harm(text in ".{0,200}") {
            prop_assert_eq!(keys(&[OLD]).open("p", &text), None);
        }

        #[test]
        fn any_value_comes_back(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let keys = keys(&[OLD]);
            let sealed = keys.seal("p", value.clone()).unwrap();
            prop_assert_eq!(keys.open("p", &sealed), Some(value));
        }
    }
}
