//! Signed requests: HTTP Message Signatures (RFC 9421) with `hmac-sha256`.

mod base;
mod digest;
mod fields;
mod replay;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use attache_service::{config::Located, metrics::Counter};
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderName;

use super::{
    Found, Identity, key_file,
    keys::{Hash, sha256},
};
use crate::{
    policy::{
        check::{Check, Read},
        config::HmacSignatures,
        planning::Planning,
    },
    server::CheckRequestView,
};

use fields::{Bare, Item, Member, Params, dictionary};
use replay::{Admission, Replays};

/// RFC 2104 §3: shorter secrets weaken the hash.
const MIN_SECRET: usize = 32;
/// More signatures in one request than anybody makes.
const MAX_SIGNATURES: usize = 8;
const MAX_NONCE: usize = 256;
const INPUT: &str = "signature-input";
const SIGNATURE: &str = "signature";
const CONTENT_DIGEST: &str = "content-digest";
const COMPONENTS: &[&str] = &["@method", "@authority", "@path", "@query", CONTENT_DIGEST];
const DERIVED: &[&str] = &[
    "@method",
    "@authority",
    "@scheme",
    "@target-uri",
    "@request-target",
    "@path",
    "@query",
];

/// The signatures of one source.
#[derive(Debug)]
pub(super) struct Signatures {
    keys: HashMap<String, Key>,
    required: Vec<String>,
    /// Seconds.
    max_age: i64,
    clock_skew: i64,
    require_nonce: bool,
    allow_unseen_body: bool,
    taken: Arc<Replays>,
    capacity: usize,
    full: Counter,
}

#[derive(Debug)]
struct Key {
    /// Does not show itself.
    secret: hmac::Key,
    identity: Arc<Identity>,
}

impl Signatures {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &HmacSignatures,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let mut bounded = |raw: &Option<Located<Duration>>, default: u64, most: u64| {
            let seconds = raw.as_ref().map_or(default, |raw| {
                if raw.value > Duration::from_secs(most) {
                    let problem = format!("more than {most} s is too long");
                    planning.errors.push(raw, problem);
                }
                raw.as_secs()
            });
            i64::try_from(seconds.min(most)).unwrap_or_default()
        };
        let max_age = bounded(&raw.max_age, 300, 3600);
        let clock_skew = bounded(&raw.clock_skew, 30, 300);
        for component in &raw.components {
            let known = match component.starts_with('@') {
                true => DERIVED.contains(&component.as_str()),
                false => HeaderName::from_lowercase(component.as_bytes()).is_ok(),
            };
            if !known {
                let problem = format!(
                    "`{}` is neither the name of a header in lower case nor one of {}",
                    component.value,
                    DERIVED.join(", ")
                );
                planning.errors.push(component, problem);
            }
        }
        let configured = raw.components.iter().map(|name| name.value.clone());
        let mut required: Vec<String> = configured.collect();
        if required.is_empty() {
            required = COMPONENTS.iter().map(|name| (*name).to_owned()).collect();
        }
        let capacity = raw.replay_memory.as_ref().map_or(100_000, |capacity| {
            if capacity.value == 0 {
                let problem = "without a memory signatures could be used again";
                planning.errors.push(capacity, problem);
            }
            capacity.value as usize
        });
        for name in [INPUT, SIGNATURE] {
            planning.credential(Read::Header(name.to_owned()));
        }
        let file = &raw.keys_file;
        key_file::warn_if_readable_by_all(&planning.resolve(file));
        let text = planning.read_located(file)?;
        let mut keys = HashMap::new();
        for line in key_file::lines(&text) {
            let added = line.and_then(|line| {
                let number = line.number;
                let secret = STANDARD.decode(line.key).ok();
                let secret = secret.filter(|secret| secret.len() >= MIN_SECRET);
                let secret = secret.ok_or_else(|| {
                    format!("line {number} is not `<keyid> <base64 of {MIN_SECRET} bytes or more>`")
                })?;
                let identity = Identity::named(source, line.id, line.claims, line.expires);
                let key = Key {
                    secret: hmac::Key::new(hmac::HMAC_SHA256, &secret),
                    identity: Arc::new(identity),
                };
                match keys.insert(line.id.to_owned(), key) {
                    None => Ok(()),
                    Some(_) => Err(format!("line {number}: `{}` is there twice", line.id)),
                }
            });
            if let Err(problem) = added {
                let problem = format!("`{}`: {problem}", file.display());
                planning.errors.push(file, problem);
            }
        }
        Some(Self {
            keys,
            required,
            max_age,
            clock_skew,
            require_nonce: raw.require_nonce.unwrap_or(false),
            allow_unseen_body: raw.allow_unseen_body.unwrap_or(false),
            taken: planning.kept(format!("signatures {}", name.value), Replays::default),
            capacity,
            full: planning.metrics.counter(
                "attache_auth_replay_memory_full",
                "Signed requests refused because no more signatures can be remembered.",
                &[("source", name)],
            ),
        })
    }

    pub(super) fn identify(&self, check: &Check<'_>) -> Found {
        let (inputs, signatures) = match (check.header(INPUT), check.header(SIGNATURE)) {
            (None, None) => return Found::Nothing,
            (Some(inputs), Some(signatures)) => (inputs, signatures),
            _ => return Found::Bad("incomplete"),
        };
        // A signature may cover any part of the request, and none holds twice: nothing that is
        // decided here may be decided again from memory.
        let request = check.request();
        check.holds_once();
        let (Ok(inputs), Ok(signatures)) = (dictionary(&inputs), dictionary(&signatures)) else {
            return Found::Bad("malformed");
        };
        if inputs.len() > MAX_SIGNATURES {
            return Found::Bad("too_many_signatures");
        }
        let mut found = Found::Nothing;
        for (label, input) in &inputs {
            let Member::List(components, params) = input else {
                return Found::Bad("malformed");
            };
            // Signatures of other kinds are for others.
            let other = params
                .get("alg")
                .is_some_and(|alg| !matches!(alg, Bare::String(name) if name == "hmac-sha256"));
            if other {
                continue;
            }
            let signature = signatures.iter().find_map(|(key, member)| match member {
                Member::Item(Item {
                    bare: Bare::Bytes(bytes),
                    ..
                }) if key == label => Some(bytes),
                _ => None,
            });
            let Some(signature) = signature else {
                return Found::Bad("incomplete");
            };
            match self.verify(request, components, params, signature, now()) {
                Ok(good) => return good,
                Err(reason) => found = Found::Bad(reason),
            }
        }
        found
    }

    /// Whether a signature holds at this second. Errors are reasons for the log.
    fn verify(
        &self,
        request: &CheckRequestView,
        components: &[Item],
        params: &Params,
        signature: &[u8],
        now: i64,
    ) -> Result<Found, &'static str> {
        let Some(Bare::String(id)) = params.get("keyid") else {
            return Err("unknown_key");
        };
        let key = self.keys.get(id).ok_or("unknown_key")?;
        if !key.identity.holds() {
            return Err("expired_key");
        }
        let end = self.end(params, now)?;
        let nonce = match params.get("nonce") {
            Some(Bare::String(nonce)) if nonce.len() <= MAX_NONCE => Some(nonce),
            Some(_) => return Err("malformed"),
            None if self.require_nonce => return Err("no_nonce"),
            None => None,
        };
        for required in &self.required {
            let dispensable = required == CONTENT_DIGEST && !digest::has_body(request);
            if !dispensable && !covers(components, required) {
                return Err("component_not_covered");
            }
        }
        let base = base::base(request, components, params)?;
        hmac::verify(&key.secret, base.as_bytes(), signature).map_err(|_| "bad_signature")?;
        if covers(components, CONTENT_DIGEST) {
            digest::verify(request, self.allow_unseen_body)?;
        }
        // A nonce is of its key; a signature is of its key by itself.
        let once = match nonce {
            Some(nonce) => sha256(format!("nonce {} {id} {nonce}", id.len()).as_bytes()),
            None => sha256(signature),
        };
        match self.taken.take(once, end, now, self.capacity) {
            Admission::Taken => Ok(Found::Good(key.identity.clone())),
            Admission::Seen => Err("replayed"),
            Admission::Full => {
                self.full.inc();
                Ok(Found::Failed(
                    "no more signatures can be remembered".to_owned(),
                ))
            }
        }
    }

    /// The last second of a signature's life.
    fn end(&self, params: &Params, now: i64) -> Result<i64, &'static str> {
        let Some(Bare::Integer(created)) = params.get("created") else {
            return Err("no_creation_time");
        };
        if *created > now.saturating_add(self.clock_skew) {
            return Err("not_yet_valid");
        }
        let mut end = created.saturating_add(self.max_age);
        match params.get("expires") {
            None => {}
            Some(Bare::Integer(expires)) => end = end.min(*expires),
            Some(_) => return Err("malformed"),
        }
        if end < now { Err("expired") } else { Ok(end) }
    }
}

/// Whether a component is among these, by itself or as part of a larger one.
fn covers(components: &[Item], required: &str) -> bool {
    let larger: &[&str] = match required {
        "@path" | "@query" => &["@target-uri", "@request-target"],
        "@authority" | "@scheme" | "@request-target" => &["@target-uri"],
        _ => &[],
    };
    components.iter().any(|component| {
        let name = match &component.bare {
            Bare::String(name) => name.as_str(),
            _ => return false,
        };
        component.params.0.is_empty() && (name == required || larger.contains(&name))
    })
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
