//! API keys, known only by their hashes.

use std::{collections::HashMap, path::Path, sync::Arc};

use attache_service::config::{Errors, Located};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};

use super::{
    config::ApiKeys,
    credential::Spot,
    identity::{Found, Identity},
};
use crate::server::CheckRequestView;

pub(super) type Hash = [u8; 32];

pub(super) fn sha256(data: &[u8]) -> Hash {
    let mut hash = Hash::default();
    let digest = digest(&SHA256, data);
    for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    hash
}

/// The keys of one source.
#[derive(Debug)]
pub(super) struct Keys {
    spots: Vec<Spot>,
    /// By hash: what a lookup's timing could tell is about hashes, which tell nothing of keys.
    keys: HashMap<Hash, Arc<Identity>>,
}

impl Keys {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &ApiKeys,
        read: &dyn Fn(&Path) -> Result<String, String>,
        errors: &mut Errors,
    ) -> Self {
        let default = Spot::Header {
            name: "x-api-key".to_owned(),
            scheme: String::new(),
        };
        let spots = Spot::plan(&raw.from, default, errors);
        let mut keys = HashMap::new();
        let mut add = |hash: Hash, id: &str, more: Map<String, Value>| {
            let mut claims = more;
            claims.insert("sub".to_owned(), id.into());
            let identity = Identity {
                source,
                claims: Value::Object(claims),
            };
            keys.insert(hash, Arc::new(identity)).is_none()
        };
        for key in &raw.keys {
            let Some(hash) = parse_hash(&key.hash) else {
                errors.push(&key.hash, "expected `sha256:` and 64 hex digits");
                continue;
            };
            let claims = key.claims.iter();
            let claims = claims
                .map(|(k, v)| (k.clone(), v.as_str().into()))
                .collect();
            if !add(hash, &key.id, claims) {
                errors.push(&key.hash, "the same key twice");
            }
        }
        match raw
            .keys_file
            .as_ref()
            .map(|file| (file, read_file(file, read)))
        {
            None => {}
            Some((file, Err(problem))) => errors.push(file, problem),
            Some((file, Ok(listed))) => {
                for (hash, id) in listed {
                    if !add(hash, &id, Map::new()) {
                        errors.push(file, format!("the key of `{id}` is there twice"));
                    }
                }
            }
        }
        if raw.keys.is_empty() && raw.keys_file.is_none() {
            errors.push(name, "an `api_key` source needs `keys` or `keys_file`");
        }
        Self { spots, keys }
    }

    pub(super) fn identify(&self, request: &CheckRequestView) -> Found<Arc<Identity>> {
        let mut found = Found::Nothing;
        for key in self.spots.iter().filter_map(|spot| spot.find(request)) {
            match self.keys.get(&sha256(key.as_bytes())) {
                Some(identity) => return Found::Good(identity.clone()),
                None => found = Found::Bad("unknown_key"),
            }
        }
        found
    }
}

fn read_file(
    file: &Path,
    read: &dyn Fn(&Path) -> Result<String, String>,
) -> Result<Vec<(Hash, String)>, String> {
    let text = read(file)?;
    let mut listed = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        // The line itself may be a key that someone forgot to hash: it is not shown.
        let (id, hash) = line
            .split_once(char::is_whitespace)
            .and_then(|(id, hash)| Some((id, parse_hash(hash.trim())?)))
            .ok_or_else(|| {
                format!(
                    "line {} of it is not `<id> sha256:<64 hex digits>`",
                    number + 1
                )
            })?;
        listed.push((hash, id.to_owned()));
    }
    Ok(listed)
}

fn parse_hash(text: &str) -> Option<Hash> {
    let hex = text.strip_prefix("sha256:")?;
    if hex.len() != 64 {
        return None;
    }
    let mut hash = Hash::default();
    let mut digits = hex.chars();
    for byte in &mut hash {
        let digits = (digits.next()?.to_digit(16)?, digits.next()?.to_digit(16)?);
        *byte = u8::try_from(digits.0 << 4 | digits.1).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_sha256_in_hex() {
        // The first test vector of FIPS 180-2.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(parse_hash(&format!("sha256:{abc}")), Some(sha256(b"abc")));
        for bad in [
            abc,
            "sha256:ba78",
            "md5:abc",
            "sha256:",
            &format!("sha256:{}g", &abc[1..]),
        ] {
            assert_eq!(parse_hash(bad), None, "{bad}");
        }
    }
}
