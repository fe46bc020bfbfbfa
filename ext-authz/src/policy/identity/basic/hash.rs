//! Password hashes as `htpasswd` files have them.

use argon2::{
    Argon2,
    password_hash::{PasswordVerifier as _, phc::PasswordHash},
};

/// More expensive bcrypt hashes (2 to the power of it) take longer than any check may.
const MAX_BCRYPT_COST: u32 = 15;
/// More memory for one Argon2 hash, in KiB, is more than a service has to spare.
const MAX_ARGON2_MEMORY: u32 = 256 << 10;
const MAX_ARGON2_PASSES: u32 = 64;

/// The hash of a password.
#[derive(Clone)]
pub(super) enum Stored {
    /// As text. Of passwords longer than 72 bytes bcrypt reads the beginning.
    Bcrypt(String),
    Argon2id(Box<PasswordHash>),
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bcrypt(_) => "Bcrypt",
            Self::Argon2id(_) => "Argon2id",
        })
    }
}

impl Stored {
    /// Reads a hash. Errors do not show it: it may be a password.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with("$argon2id$") {
            return parse_argon2id(text);
        }
        if text.starts_with("$2y$") || text.starts_with("$2b$") {
            return parse_bcrypt(text);
        }
        Err(if text.starts_with("$apr1$") || text.starts_with("$1$") {
            "hashes of MD5 are too easy to guess from; use `htpasswd -B`"
        } else if text.starts_with("{SHA}") {
            "hashes of SHA-1 are too easy to guess from; use `htpasswd -B`"
        } else if text.starts_with("$argon2") {
            "of Argon2 only `$argon2id$` is accepted"
        } else {
            "neither a hash of bcrypt (`$2y$`, `$2b$`; `htpasswd -B`) nor of Argon2id (`$argon2id$`)"
        })
    }

    /// Whether it is the hash of this password. Slow.
    pub(super) fn verify(&self, password: &str) -> bool {
        match self {
            Self::Bcrypt(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Argon2id(hash) => Argon2::default()
                .verify_password(password.as_bytes(), hash.as_ref())
                .is_ok(),
        }
    }
}

fn parse_bcrypt(text: &str) -> Result<Stored, &'static str> {
    let parts: bcrypt::HashParts = text.parse().map_err(|_| "a malformed hash of bcrypt")?;
    match parts.get_cost() {
        4..=MAX_BCRYPT_COST => Ok(Stored::Bcrypt(text.to_owned())),
        _ => Err("the cost of a bcrypt hash has to be 4 to 15"),
    }
}

fn parse_argon2id(text: &str) -> Result<Stored, &'static str> {
    const MALFORMED: &str = "a malformed hash of Argon2id";
    let hash = PasswordHash::new(text).map_err(|_| MALFORMED)?;
    let params = argon2::Params::try_from(&hash).map_err(|_| MALFORMED)?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(MALFORMED);
    }
    if params.m_cost() > MAX_ARGON2_MEMORY || params.t_cost() > MAX_ARGON2_PASSES {
        return Err("an Argon2id hash takes more than 256 MiB or 64 passes");
    }
    Ok(Stored::Argon2id(Box::new(hash)))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of "secret", by crypt(3).
    const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
    // Of "password", from the tests of the reference implementation.
    const ARGON2ID: &str =
        "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4";

    #[test]
    fn hashes_made_by_others_are_verified() {
        for (hash, password) in [
            (BCRYPT, "secret"),
            (&BCRYPT.replace("$2b$", "$2y$"), "secret"),
            (ARGON2ID, "password"),
        ] {
            let stored = Stored::parse(hash).unwrap();
            assert!(stored.verify(password), "{hash}");
            for wrong in ["", "Secret", "password ", "secre"] {
                assert!(!stored.verify(wrong), "{hash} {wrong}");
            }
        }
    }

    #[test]
    fn weak_malformed_and_immoderate_hashes_are_refused() {
        for (hash, problem) in [
            ("$apr1$salt$7Zd5aKNFfMBGpCUV7zVVP.", "MD5"),
            ("{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "SHA-1"),
            ("rqXexS6ZhobKA", "neither"),
            (
                "$6$salt$IxDD3jeSOb5eB1CX5LBsqZFVkJdido3OUILO5Ifz5iwMuTS4XMS1",
                "neither",
            ),
            ("secret", "neither"),
            ("", "neither"),
            ("$argon2i$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65", "argon2id"),
            ("$argon2id$v=19$m=256,t=2,p=1", "malformed"),
            ("$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ", "malformed"),
            ("$2y$04$short", "malformed"),
            (&BCRYPT.replace("$04$", "$16$"), "cost"),
            (&ARGON2ID.replace("m=256", "m=4000000"), "256 MiB"),
            (&ARGON2ID.replace("t=2", "t=100"), "64 passes"),
        ] {
            let told = Stored::parse(hash).unwrap_err();
            assert!(told.contains(problem), "{hash}: {told}");
        }
    }
}
