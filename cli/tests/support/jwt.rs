//! JSON web tokens made by others.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// A token for grace, an admin, and the key set that verifies it.
pub struct Token {
    pub maker: &'static str,
    pub token: String,
    pub jwks: String,
}

const CLAIMS: &str = r#"{"iss":"https://demo.attache.example","aud":"demo","sub":"grace","role":"admin","exp":4102444800}"#;

const PYTHON: &str = "
import json, sys
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
jwk.update(kid='other', alg='RS256', use='sig')
print(json.dumps({'keys': [jwk]}))
print(jwt.encode(json.loads(sys.argv[1]), key, algorithm='RS256', headers={'kid': 'other'}))
";

const NODE: &str = "
const crypto = require('crypto');
const { privateKey, publicKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'other', alg: 'ES256', use: 'sig' };
const part = text => Buffer.from(text).toString('base64url');
const signed = part(JSON.stringify({ alg: 'ES256', kid: 'other', typ: 'JWT' })) + '.' + part(process.argv[1]);
const signature = crypto.sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
console.log(JSON.stringify({ keys: [jwk] }));
console.log(signed + '.' + signature.toString('base64url'));
";

/// Tokens of every maker that this machine has.
pub fn tokens() -> Vec<Token> {
    let made = [
        two_lines("PyJWT", "python3", &["-c", PYTHON, CLAIMS]),
        two_lines("Node", "node", &["-e", NODE, CLAIMS]),
        openssl(),
    ];
    made.into_iter().flatten().collect()
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // A program that reads nothing may have gone already.
    let _closed = child.stdin.take()?.write_all(input);
    let output = child.wait_with_output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// A program that prints the key set and the token.
fn two_lines(maker: &'static str, program: &str, args: &[&str]) -> Option<Token> {
    let output = String::from_utf8(run(program, args, b"")?).ok()?;
    let (jwks, token) = output.trim().split_once('\n')?;
    Some(Token {
        maker,
        token: token.to_owned(),
        jwks: jwks.to_owned(),
    })
}

fn openssl() -> Option<Token> {
    let folder = tempfile::tempdir().ok()?;
    let key = folder.path().join("key.pem");
    run("openssl", &["genrsa", "-out", text(&key), "2048"], b"")?;
    let modulus = run(
        "openssl",
        &["rsa", "-in", text(&key), "-noout", "-modulus"],
        b"",
    )?;
    let modulus = String::from_utf8(modulus).ok()?;
    let digits = modulus.trim().strip_prefix("Modulus=")?;
    let modulus: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok())
        .collect();
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let signed = format!(
        "{}.{}",
        part(br#"{"alg":"RS256","kid":"other"}"#),
        part(CLAIMS.as_bytes())
    );
    let signature = run(
        "openssl",
        &["dgst", "-sha256", "-sign", text(&key)],
        signed.as_bytes(),
    )?;
    let jwks = format!(
        r#"{{"keys":[{{"kty":"RSA","kid":"other","alg":"RS256","use":"sig","e":"AQAB","n":"{}"}}]}}"#,
        part(&modulus?)
    );
    Some(Token {
        maker: "OpenSSL",
        token: format!("{signed}.{}", part(&signature)),
        jwks,
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
