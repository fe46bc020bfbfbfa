//! API keys, known only by their hashes.

use std::{collections::HashMap, sync::Arc};

use attache_service::config::Located;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Map, Value};

use super::{Found, Identity, credential::Spot, key_file};
use crate::policy::{check::Check, config::ApiKeys, planning::Planning};

pub(in crate::policy) type Hash = [u8; 32];

pub(in crate::policy) fn sha256(data: &[u8]) -> Hash {
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
        planning: &mut Planning<'_>,
    ) -> Self {
        let default = Spot::Header {
            name: "x-api-key".to_owned(),
            scheme: String::new(),
        };
        let spots = Spot::plan(&raw.from, default, planning);
        let mut keys = HashMap::new();
        let mut add = |hash: Hash, id: &str, claims: Map<String, Value>, until| {
            let identity = Arc::new(Identity::named(source, id, claims, until));
            keys.insert(hash, identity).is_none()
        };
        for key in &raw.keys {
            let Some(hash) = parse_hash(&key.hash) else {
                planning
                    .errors
                    .push(&key.hash, "expected `sha256:` and 64 hex digits");
                continue;
            };
            let claims = key.claims.iter();
            let claims = claims
                .map(|(k, v)| (k.clone(), v.as_str().into()))
                .collect();
            let expires = key.expires.as_ref().and_then(|text| {
                let moment = key_file::moment(text);
                moment
                    .map_err(|problem| planning.errors.push(text, problem))
                    .ok()
            });
            if !add(hash, &key.id, claims, expires) {
                planning.errors.push(&key.hash, "the same key twice");
            }
        }
        if let Some(file) = &raw.keys_file
            && let Some(text) = planning.read_located(file)
        {
            for line in key_file::lines(&text) {
                let added = line.and_then(|line| {
                    // The line may be a key that someone forgot to hash: it is not shown.
                    let hash = parse_hash(line.key).ok_or_else(|| {
                        let number = line.number;
                        format!("line {number} is not `<id> sha256:<64 hex digits>`")
                    })?;
                    match add(hash, line.id, line.claims, line.expires) {
                        true => Ok(()),
                        false => Err(format!("the key of `{}` is there twice", line.id)),
                    }
                });
                if let Err(problem) = added {
                    let problem = format!("`{}`: {problem}", file.display());
                    planning.errors.push(file, problem);
                }
            }
        }
        if raw.keys.is_empty() && raw.keys_file.is_none() {
            planning
                .errors
                .push(name, "an `api_key` source needs `keys` or `keys_file`");
        }
        Self { spots, keys }
    }

    /// Where the keys are.
    pub(super) fn spots(&self) -> &[Spot] {
        &self.spots
    }

    pub(super) fn identify(&self, check: &Check<'_>) -> Found {
        let mut found = Found::Nothing;
        for key in self.spots.iter().filter_map(|spot| spot.find(check)) {
            match self.keys.get(&sha256(key.as_bytes())) {
                Some(identity) if identity.holds() => return Found::Good(identity.clone()),
                Some(_) => found = Found::Bad("expired_key"),
                None => found = Found::Bad("unknown_key"),
            }
        }
        found
    }
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
