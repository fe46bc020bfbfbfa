//! Path normalisation, done once before routing and before any policy looks at the path.
//!
//! The rules are those that Envoy 1.40 was seen to follow with `normalize_path`: `.` and `..`
//! segments are resolved (also when written `%2e`, or followed by `;parameters`), `\` counts as
//! `/`, escapes of unreserved characters are undone, and characters that do not belong into a
//! path are escaped. The query is left alone.

use std::borrow::Cow;

use http::uri::PathAndQuery;

/// What to do with `%2F` and `%5C` in a path (`path_with_escaped_slashes_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    /// Leave them as they are. The default, as in Envoy.
    #[default]
    KeepUnchanged,
    /// Answer 400.
    RejectRequest,
    /// Answer 307 with the unescaped path.
    UnescapeAndRedirect,
    /// Go on with the unescaped path.
    UnescapeAndForward,
}

/// How paths are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOptions {
    /// `normalize_path`; on by default (Envoy: off).
    pub normalize: bool,
    /// `merge_slashes`: adjacent slashes become one. Off by default.
    pub merge_slashes: bool,
    /// `path_with_escaped_slashes_action`.
    pub escaped_slashes: EscapedSlashes,
}

impl Default for PathOptions {
    fn default() -> Self {
        Self {
            normalize: true,
            merge_slashes: false,
            escaped_slashes: EscapedSlashes::KeepUnchanged,
        }
    }
}

/// What becomes of a request's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Normalized {
    /// It is normal already.
    Same,
    /// Go on with this one.
    Changed(PathAndQuery),
    /// Send the client there.
    Redirect(PathAndQuery),
    /// Answer 400.
    Refused,
}

impl PathOptions {
    /// Normalises `target`, the path and query of a request.
    pub(crate) fn apply(&self, target: &PathAndQuery) -> Normalized {
        let path = target.path();
        if !needs_work(path.as_bytes()) {
            return Normalized::Same;
        }
        let mut redirect = false;
        let unescaped = match unescape_slashes(path) {
            Cow::Borrowed(path) => Cow::Borrowed(path),
            Cow::Owned(path) => match self.escaped_slashes {
                EscapedSlashes::KeepUnchanged => Cow::Borrowed(target.path()),
                EscapedSlashes::RejectRequest => return Normalized::Refused,
                EscapedSlashes::UnescapeAndForward => Cow::Owned(path),
                EscapedSlashes::UnescapeAndRedirect => {
                    redirect = true;
                    Cow::Owned(path)
                }
            },
        };
        let mut path = unescaped;
        if self.normalize {
            match canonical(&path) {
                Some(normal) => path = Cow::Owned(normal),
                None => return Normalized::Refused,
            }
        }
        if self.merge_slashes && path.contains("//") {
            path = Cow::Owned(merge_slashes(&path));
        }
        if path == target.path() {
            return Normalized::Same;
        }
        let mut path = path.into_owned();
        if let Some(query) = target.query() {
            path.push('?');
            path.push_str(query);
        }
        match PathAndQuery::try_from(path) {
            Ok(path) if redirect => Normalized::Redirect(path),
            Ok(path) => Normalized::Changed(path),
            Err(_) => Normalized::Refused,
        }
    }
}

/// Whether anything in the path could be changed by [`PathOptions::apply`].
fn needs_work(path: &[u8]) -> bool {
    let mut previous = 0;
    path.iter().any(|&byte| {
        let odd = match byte {
            b'.' | b'/' => previous == b'/',
            b'%' | b'\\' => true,
            _ => must_escape(byte) || !byte.is_ascii_graphic(),
        };
        previous = byte;
        odd
    })
}

fn must_escape(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'|' | b'^' | b'`' | b'"' | b'<' | b'>')
}

fn unescape_slashes(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut changed = false;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let slash = match escape.get(1..3) {
            Some("2f" | "2F") => Some('/'),
            Some("5c" | "5C") => Some('\\'),
            _ => None,
        };
        match slash {
            Some(slash) => {
                out.push(slash);
                changed = true;
                rest = escape.get(3..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = escape.get(1..).unwrap_or_default();
            }
        }
    }
    if !changed {
        return Cow::Borrowed(path);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The canonical form of a path that starts with a slash; `None` for what cannot be one.
fn canonical(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len() + 8);
    let bytes = path.as_bytes();
    let mut at = 0;
    // Where a `%` was kept that starts no escape: decoding just behind it could make one.
    let mut stray = None;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\\' => plain.push('/'),
            b'%' => match escaped(bytes.get(at..at + 2)) {
                Some(0) => return None,
                Some(b) if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => {
                    if stray.is_some_and(|stray| plain.len() - stray <= 2) {
                        return None;
                    }
                    plain.push(char::from(b));
                    at += 2;
                }
                Some(_) => plain.push('%'),
                None => {
                    stray = Some(plain.len());
                    plain.push('%');
                }
            },
            _ if must_escape(byte) => {
                plain.push('%');
                for nibble in [byte >> 4, byte & 15] {
                    plain.push(char::from_digit(nibble.into(), 16)?.to_ascii_uppercase());
                }
            }
            _ if byte.is_ascii_graphic() => plain.push(char::from(byte)),
            _ => return None,
        }
    }
    let mut segments: Vec<&str> = Vec::new();
    let mut pieces = plain.strip_prefix('/')?.split('/').peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        match piece.split(';').next() {
            Some(".") if last => segments.push(""),
            Some(".") => {}
            Some("..") => {
                segments.pop();
                if last {
                    segments.push("");
                }
            }
            _ => segments.push(piece),
        }
    }
    Some(
        segments
            .iter()
            .fold(String::with_capacity(plain.len()), |mut path, segment| {
                path.push('/');
                path.push_str(segment);
                path
            }),
    )
}

fn escaped(digits: Option<&[u8]>) -> Option<u8> {
    let [high, low] = digits? else {
        return None;
    };
    let digit = |b: &u8| char::from(*b).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn apply(options: PathOptions, path: &str) -> String {
        let target: PathAndQuery = path.parse().unwrap();
        match options.apply(&target) {
            Normalized::Same => path.to_owned(),
            Normalized::Changed(path) => path.to_string(),
            Normalized::Redirect(path) => format!("redirect {path}"),
            Normalized::Refused => "refused".to_owned(),
        }
    }

    #[test]
    fn paths_are_normalised_as_envoy_was_seen_to_do() {
        for (given, wanted) in [
            ("/a/../b//c/%2e%2e/d", "/b//d"),
            ("/%41%42", "/AB"),
            ("/%7e~", "/~~"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb%5Cc", "/a%2fb%5Cc"),
            ("/a\\b", "/a/b"),
            ("/..", "/"),
            ("/../..", "/"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/./b?x=/../y", "/a/b?x=/../y"),
            ("/%zz", "/%zz"),
            // Envoy lets this through as `/%2e`, which the next server would decode again.
            ("/%%32e", "refused"),
            ("/%2%65", "refused"),
            ("/%", "/%"),
            ("/%00", "refused"),
            ("/a%20b", "/a%20b"),
            ("/%2E%2e/x", "/x"),
            ("/.%2e/x", "/x"),
            ("/a/...", "/a/..."),
            ("/A%3a%3A", "/A%3a%3A"),
            ("/%C3%A9", "/%C3%A9"),
            ("/a;b=%21%27", "/a;b=%21%27"),
            ("/a//b", "/a//b"),
            ("//a", "//a"),
            ("/a/.;/b", "/a/b"),
            ("/a/b/..;/c", "/a/c"),
            ("/a/.;x/b", "/a/b"),
            ("/a/.;", "/a/"),
            ("/a/..;x", "/"),
            ("/a/.;%2f../b", "/a/b"),
            ("/a/%2e%2e%2fb", "/a/..%2fb"),
            ("/a\\..\\b", "/b"),
            ("/..//a", "//a"),
            ("//../a", "/a"),
            ("/a/b/../../../c", "/c"),
            ("/%2d%5f%2E%7E%30", "/-_.~0"),
            ("/%5b%7B%7C", "/%5b%7B%7C"),
            ("/x{y}|^`<>", "/x%7By%7D%7C%5E%60%3C%3E"),
        ] {
            if given.contains(['<', '`', '^']) && given.parse::<PathAndQuery>().is_err() {
                continue;
            }
            assert_eq!(apply(PathOptions::default(), given), wanted, "{given}");
        }
    }

    #[test]
    fn escaped_slashes_follow_the_configured_action() {
        for (action, wanted) in [
            (EscapedSlashes::KeepUnchanged, "/a%2f..%5Cb"),
            (EscapedSlashes::RejectRequest, "refused"),
            (EscapedSlashes::UnescapeAndForward, "/b"),
            (EscapedSlashes::UnescapeAndRedirect, "redirect /b"),
        ] {
            let options = PathOptions {
                escaped_slashes: action,
                ..PathOptions::default()
            };
            assert_eq!(apply(options, "/a%2f..%5Cb"), wanted, "{action:?}");
            assert_eq!(apply(options, "/a?b%2f"), "/a?b%2f", "{action:?}");
        }
    }

    #[test]
    fn slashes_are_merged_only_when_asked_for() {
        let merge = PathOptions {
            merge_slashes: true,
            ..PathOptions::default()
        };
        assert_eq!(apply(merge, "//a///b/"), "/a/b/");
        assert_eq!(apply(PathOptions::default(), "//a"), "//a");
    }

    #[test]
    fn normalisation_can_be_off() {
        let off = PathOptions {
            normalize: false,
            ..PathOptions::default()
        };
        assert_eq!(apply(off, "/a/../b"), "/a/../b");
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_as_it_is(path in "/[a-c./%23eEfF5cC;\\\\]{0,24}") {
            let once = apply(PathOptions::default(), &path);
            if once != "refused" {
                prop_assert!(!once.split('/').any(|s| s == ".." || s == "."), "{}", once);
                prop_assert_eq!(apply(PathOptions::default(), &once), once);
            }
        }
    }
}
