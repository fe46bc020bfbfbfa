//! Signatures of bundles: a token with the digests of all files, as `opa sign` makes it.

use std::{collections::BTreeMap, path::PathBuf};

use attache_service::config::Located;
use aws_lc_rs::digest;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use regorus::Value;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::policy::{
    config::{Signature, SignatureAlgorithm},
    planning::Planning,
};

/// The file with the signatures.
const FILE: &str = ".signatures.json";

/// Who may sign a bundle.
pub(super) struct Signers {
    keys: Vec<Key>,
    scope: Option<String>,
}

struct Key {
    id: Option<String>,
    /// Of its file.
    digest: digest::Digest,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<String>,
}

/// What is signed.
#[derive(Deserialize)]
struct Payload {
    files: Vec<File>,
    #[serde(default)]
    scope: String,
    keyid: Option<String>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    hash: String,
    algorithm: String,
}

impl Signers {
    /// What is wrong with the keys is reported.
    pub(super) fn plan(raw: &Located<Signature>, planning: &mut Planning<'_>) -> Self {
        if raw.keys.is_empty() {
            planning.errors.push(raw, "at least one key is needed");
        }
        let keys = raw.keys.iter().filter_map(|raw| {
            let text = planning.read_located(&raw.key_file)?;
            let (algorithm, key) = match raw.algorithm {
                SignatureAlgorithm::Hs256 => {
                    // An editor's last line break is no part of a secret.
                    let secret = text.trim_end_matches(['\r', '\n']);
                    if secret.is_empty() {
                        planning.errors.push(&raw.key_file, "the secret is empty");
                    }
                    (
                        Algorithm::HS256,
                        Ok(DecodingKey::from_secret(secret.as_bytes())),
                    )
                }
                SignatureAlgorithm::Rs256 => {
                    (Algorithm::RS256, DecodingKey::from_rsa_pem(text.as_bytes()))
                }
                SignatureAlgorithm::Es256 => {
                    (Algorithm::ES256, DecodingKey::from_ec_pem(text.as_bytes()))
                }
            };
            let located: &Located<PathBuf> = &raw.key_file;
            let problem = "this is no public key of that algorithm in PEM";
            let key = key
                .map_err(|_| planning.errors.push(located, problem))
                .ok()?;
            Some(Key {
                id: raw.id.clone(),
                digest: digest::digest(&digest::SHA256, text.as_bytes()),
                algorithm,
                key,
            })
        });
        Self {
            keys: keys.collect(),
            scope: raw.scope.clone(),
        }
    }

    /// What changes when the keys do.
    pub(super) fn digest(&self) -> String {
        let digests = self.keys.iter().map(|key| format!("{:?}", key.digest));
        digests.collect()
    }

    /// Checks that all files of a bundle are signed, and nothing else is.
    ///
    /// # Errors
    /// When they are not.
    pub(super) fn verify(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<(), String> {
        let signatures = files.get(FILE).ok_or("the bundle is not signed")?;
        let signatures: Signatures = serde_json::from_slice(signatures)
            .map_err(|_| "the bundle's signatures cannot be read")?;
        // Whoever can add a signature could have signed something else too.
        let [token] = signatures.signatures.as_slice() else {
            return Err("the bundle has not exactly one signature".to_owned());
        };
        let payload = self.signed(token)?;
        if self
            .scope
            .as_ref()
            .is_some_and(|scope| *scope != payload.scope)
        {
            return Err("the bundle is signed for another scope".to_owned());
        }
        let mut signed = BTreeMap::new();
        for file in &payload.files {
            signed.insert(file.name.trim_start_matches('/'), file);
        }
        for (name, content) in files.iter().filter(|(name, _)| *name != FILE) {
            let file = signed.remove(name.as_str());
            let file = file.ok_or_else(|| format!("`{name}` of the bundle is not signed"))?;
            if digest_of(name, content, &file.algorithm)? != file.hash.to_ascii_lowercase() {
                return Err(format!("`{name}` of the bundle is not what was signed"));
            }
        }
        match signed.keys().next() {
            Some(name) => Err(format!("`{name}` is signed and not in the bundle")),
            None => Ok(()),
        }
    }

    /// The payload of a token that one of the keys has signed.
    fn signed(&self, token: &str) -> Result<Payload, String> {
        let header = decode_header(token).map_err(|_| "the bundle's signature is malformed")?;
        for key in self.keys.iter().filter(|key| key.algorithm == header.alg) {
            let mut validation = Validation::new(key.algorithm);
            validation.required_spec_claims.clear();
            validation.validate_aud = false;
            let Ok(token) = decode::<Payload>(token, &key.key, &validation) else {
                continue;
            };
            let said = header.kid.as_ref().or(token.claims.keyid.as_ref());
            if said.is_none() || key.id.is_none() || said == key.id.as_ref() {
                return Ok(token.claims);
            }
        }
        Err("the bundle is not signed by any of the keys".to_owned())
    }
}

/// The digest of a file, in hexadecimal. Of data that is what it means, not how it is written.
fn digest_of(path: &str, content: &[u8], algorithm: &str) -> Result<String, String> {
    let algorithm = match algorithm {
        "SHA-256" => &digest::SHA256,
        "SHA-384" => &digest::SHA384,
        "SHA-512" => &digest::SHA512,
        other => return Err(format!("the digest `{other}` is not accepted")),
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    let problem = |problem: String| format!("`{path}` of the bundle: {problem}");
    let digest = match name {
        "data.json" | ".manifest" => {
            let json =
                serde_json::from_slice(content).map_err(|error| problem(error.to_string()))?;
            let mut text = String::new();
            canonical(json, &mut text).map_err(|error| problem(error.to_string()))?;
            digest::digest(algorithm, text.as_bytes())
        }
        "data.yaml" | "data.yml" => {
            let text = std::str::from_utf8(content).map_err(|error| problem(error.to_string()))?;
            let value = Value::from_yaml_str(text).map_err(|error| problem(error.to_string()))?;
            let json = serde_json::to_string(&value).map_err(|error| problem(error.to_string()))?;
            digest::digest(algorithm, json.as_bytes())
        }
        _ => digest::digest(algorithm, content),
    };
    let hex = digest.as_ref().iter().map(|byte| format!("{byte:02x}"));
    Ok(hex.collect())
}

/// JSON without blanks and with its keys sorted; numbers stay as they are written.
fn canonical(json: &RawValue, out: &mut String) -> Result<(), serde_json::Error> {
    let text = json.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
            out.push('{');
            for (index, (name, value)) in fields.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&string(&name)?);
                out.push(':');
                canonical(value, out)?;
            }
            out.push('}');
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text)?;
            out.push('[');
            for (index, value) in items.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                canonical(value, out)?;
            }
            out.push(']');
        }
        Some(b'"') => out.push_str(&string(&serde_json::from_str::<String>(text)?)?),
        _ => out.push_str(text),
    }
    Ok(())
}

fn string(text: &str) -> Result<String, serde_json::Error> {
    let quoted = serde_json::to_string(text)?;
    Ok(quoted
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}
