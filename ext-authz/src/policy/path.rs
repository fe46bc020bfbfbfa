//! Reading a path the way every hop behind us will read it, or refusing it.
//!
//! A rule for `/admin` is worth nothing if `/x/../admin`, `//admin`, `/%61dmin` or
//! `/admin;a=b` gets around it and the application still takes it for `/admin`. So paths are
//! decoded before they are compared, and what different programs read differently is an error.

use std::borrow::Cow;

/// How ambiguous paths are read; by default they are refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// `//` is `/`.
    pub merge_slashes: bool,
    /// `.` and `..` are followed.
    pub resolve_dots: bool,
    /// `%2F` is an ordinary character; it stays encoded. Dots beside it are refused.
    pub allow_encoded_slash: bool,
    /// `;` is an ordinary character.
    pub allow_semicolon: bool,
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    /// Neither `*` nor something that starts with a slash.
    #[error("the path does not start with a slash")]
    Start,
    /// `%` without two hex digits, or what they stand for is not UTF-8.
    #[error("the path has a malformed percent-encoding")]
    Encoding,
    /// Decoded once there are percent-encodings still.
    #[error("the path is percent-encoded twice")]
    DoubleEncoding,
    /// A control character.
    #[error("the path has a control character")]
    Control,
    /// `\` or `%5C`.
    #[error("the path has a backslash")]
    Backslash,
    /// `%2F`.
    #[error("the path has an encoded slash")]
    EncodedSlash,
    /// `//`.
    #[error("the path has an empty segment")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the path has a dot segment")]
    DotSegment,
    /// `;`.
    #[error("the path has a semicolon")]
    Semicolon,
    /// `#`, in the path or in the query.
    #[error("the target has a fragment")]
    Fragment,
}

/// How a decoded path has the slash that is an ordinary character.
const ENCODED_SLASH: &str = "%2F";

/// The path (without query) as rules compare it: decoded, each character meaning itself.
///
/// # Errors
/// When it is ambiguous and `reading` does not say how to read it.
pub fn canonical(path: &str, reading: Reading) -> Result<Cow<'_, str>, Ambiguous> {
    if path == "*" {
        return Ok(path.into());
    }
    if !path.starts_with('/') {
        return Err(Ambiguous::Start);
    }
    let decoded = if path.contains('%') {
        Cow::Owned(decode(path, reading)?)
    } else {
        Cow::Borrowed(path)
    };
    if decoded.contains(char::is_control) {
        return Err(Ambiguous::Control);
    }
    if decoded.contains('\\') {
        return Err(Ambiguous::Backslash);
    }
    if decoded.contains(';') && !reading.allow_semicolon {
        return Err(Ambiguous::Semicolon);
    }
    let mut plain = true;
    let mut rest = decoded.get(1..).unwrap_or_default().split('/').peekable();
    while let Some(segment) = rest.next() {
        // The last segment is empty after a closing slash.
        if segment.is_empty() && rest.peek().is_some() {
            if !reading.merge_slashes {
                return Err(Ambiguous::EmptySegment);
            }
            plain = false;
        }
        // Some servers cut parameters off before they look for dots.
        let name = segment.split(';').next().unwrap_or(segment);
        // Where an encoded slash is one after all, dots beside it lead elsewhere.
        let mut parts = name.split(ENCODED_SLASH);
        if name.contains(ENCODED_SLASH) && parts.any(|part| matches!(part, "." | "..")) {
            return Err(Ambiguous::DotSegment);
        }
        if matches!(name, "." | "..") {
            if !reading.resolve_dots || name != segment {
                return Err(Ambiguous::DotSegment);
            }
            plain = false;
        }
    }
    if plain {
        Ok(decoded)
    } else {
        Ok(resolved(&decoded).into())
    }
}

/// Decodes once. `%2F`, where allowed, stays.
fn decode(path: &str, reading: Reading) -> Result<String, Ambiguous> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = bytes.next().and_then(|b| char::from(b).to_digit(16));
            digit
                .and_then(|d| u8::try_from(d).ok())
                .ok_or(Ambiguous::Encoding)
        };
        match digit()? << 4 | digit()? {
            b'/' if reading.allow_encoded_slash => {
                decoded.extend_from_slice(ENCODED_SLASH.as_bytes())
            }
            b'/' => return Err(Ambiguous::EncodedSlash),
            // What follows may make it an encoding of an encoding.
            b'%' => {
                let [a, b] = [bytes.clone().next(), bytes.clone().nth(1)];
                let hex = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_hexdigit() || b == b'%');
                if hex(a) && hex(b) {
                    return Err(Ambiguous::DoubleEncoding);
                }
                decoded.push(b'%');
            }
            byte => decoded.push(byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| Ambiguous::Encoding)
}

/// Without empty segments and dots; `..` at the root stays there.
fn resolved(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in path.split('/') {
        directory = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            name => segments.push(name),
        }
    }
    let mut path = format!("/{}", segments.join("/"));
    if directory && !segments.is_empty() {
        path.push('/');
    }
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRICT: Reading = Reading {
        merge_slashes: false,
        resolve_dots: false,
        allow_encoded_slash: false,
        allow_semicolon: false,
    };
    const LENIENT: Reading = Reading {
        merge_slashes: true,
        resolve_dots: true,
        allow_encoded_slash: true,
        allow_semicolon: true,
    };

    #[test]
    fn paths_are_decoded_and_ambiguous_ones_refused() {
        use Ambiguous::{
            Backslash, Control, DotSegment, DoubleEncoding, EmptySegment, EncodedSlash, Encoding,
            Semicolon, Start,
        };
        for (path, expected) in [
            ("/", Ok("/")),
            ("*", Ok("*")),
            ("/a/b/", Ok("/a/b/")),
            ("/%61dmin", Ok("/admin")),
            ("/a%20b", Ok("/a b")),
            ("/caf%C3%A9", Ok("/café")),
            ("/100%25", Ok("/100%")),
            ("/...", Ok("/...")),
            ("/a%3Fb", Ok("/a?b")),
            ("", Err(Start)),
            ("admin", Err(Start)),
            ("/%", Err(Encoding)),
            ("/%zz", Err(Encoding)),
            ("/%e9", Err(Encoding)),
            ("/%2561dmin", Err(DoubleEncoding)),
            ("/%25%36%31dmin", Err(DoubleEncoding)),
            ("/%00", Err(Control)),
            ("/a%0d%0ab", Err(Control)),
            ("/a\\b", Err(Backslash)),
            ("/a%5cb", Err(Backslash)),
            ("/a%2Fb", Err(EncodedSlash)),
            ("//a", Err(EmptySegment)),
            ("/a//", Err(EmptySegment)),
            ("/a/../b", Err(DotSegment)),
            ("/a/%2e%2E/b", Err(DotSegment)),
            ("/a/.", Err(DotSegment)),
            ("/a/..", Err(DotSegment)),
            ("/a%2F..%2Fb", Err(EncodedSlash)),
            ("/a;x=1", Err(Semicolon)),
            ("/a/..;/b", Err(Semicolon)),
        ] {
            assert_eq!(
                canonical(path, STRICT).as_deref(),
                expected.as_deref(),
                "{path}"
            );
        }
    }

    #[test]
    fn each_ambiguity_can_be_given_a_meaning() {
        for (path, expected) in [
            ("//a///b", "/a/b"),
            ("/a/./../b/", "/b/"),
            ("/../../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a%2fb", "/a%2Fb"),
            ("/a;b=1/c", "/a;b=1/c"),
        ] {
            assert_eq!(canonical(path, LENIENT).as_deref(), Ok(expected), "{path}");
        }
        // No reading makes this safe.
        assert_eq!(canonical("/a/..;/b", LENIENT), Err(Ambiguous::DotSegment));
        assert_eq!(canonical("/a/..;x/b", LENIENT), Err(Ambiguous::DotSegment));
    }

    proptest! {
        #[test]
        fn a_canonical_path_has_nothing_to_be_misread(path in "/[a-c/.%;\\\\250FfEe]{0,16}") {
            for reading in [STRICT, LENIENT] {
                if let Ok(canonical) = canonical(&path, reading) {
                    let canonical = canonical.into_owned();
                    prop_assert!(canonical.starts_with('/'));
                    prop_assert!(!canonical.contains("//") && !canonical.contains('\\'));
                    prop_assert!(!canonical.split('/').any(|s| matches!(s, "." | "..")));
                    // Whoever decodes again reads the same, but for `%2F`.
                    let again = percent_encoding::percent_decode_str(&canonical).decode_utf8_lossy();
                    prop_assert_eq!(again.replace("/", "%2F"), canonical.replace("/", "%2F"));
                }
            }
        }
    }
}
