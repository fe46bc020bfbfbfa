//! Cookies (RFC 6265bis): names, long values in pieces, and what of them the upstream sees.

use std::{borrow::Cow, time::Duration};

use crate::policy::check::Check;

/// Longest value of one cookie in bytes. Browsers take 4096 for name and value.
const MAX_PIECE: usize = 3800;
/// Pieces of a value. All cookies of a request have to fit its headers.
const MAX_PIECES: usize = 5;
/// What makes browsers accept a cookie only from this very host, over HTTPS, for all paths.
const HOST_PREFIX: &str = "__Host-";

/// The names of a source's cookies, for one scheme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    secure: bool,
    /// Of the session's first piece; the others end in `.1`, `.2`, ...
    pub(super) session: String,
}

impl Names {
    pub(super) fn new(base: &str, secure: bool) -> Self {
        let prefix = if secure { HOST_PREFIX } else { "" };
        Self {
            secure,
            session: format!("{prefix}{base}"),
        }
    }

    /// Of the cookie of a sign-in under way.
    pub(super) fn flow(&self, state: &str) -> String {
        let id = state.get(..8).unwrap_or(state);
        format!("{}{FLOW}{id}", self.session)
    }

    /// Whether this is a cookie of a sign-in under way.
    pub(super) fn is_flow(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.session.as_str());
        rest.is_some_and(|rest| rest.starts_with(FLOW))
    }

    /// The `set-cookie` line that makes a browser keep a cookie.
    pub(super) fn keep(&self, name: &str, value: &str, lifetime: Duration) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        let seconds = lifetime.as_secs();
        format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
    }

    /// The `set-cookie` line that makes a browser forget one.
    pub(super) fn forget(&self, name: &str) -> String {
        self.keep(name, "", Duration::ZERO)
    }

    /// The value that a browser keeps in pieces.
    pub(super) fn read<'a>(&self, check: &Check<'a>) -> Option<Cow<'a, str>> {
        let (count, first) = check.cookie(&self.session).next()?.split_once('.')?;
        let count = count.parse().ok().filter(|count| *count <= MAX_PIECES)?;
        if count == 1 {
            return Some(first.into());
        }
        let mut whole = first.to_owned();
        for number in 1..count {
            whole.push_str(check.cookie(&self.piece(number)).next()?);
        }
        Some(whole.into())
    }

    /// The `set-cookie` lines for a value, those for pieces that it does not fill among them.
    /// `None` when it is too long.
    pub(super) fn write(
        &self,
        check: &Check<'_>,
        value: &str,
        lifetime: Duration,
    ) -> Option<Vec<String>> {
        let pieces: Vec<&str> = pieces(value);
        if pieces.len() > MAX_PIECES {
            return None;
        }
        let mut lines = Vec::new();
        for (number, piece) in pieces.iter().enumerate() {
            let name = self.piece(number);
            lines.push(if number == 0 {
                self.keep(&name, &format!("{}.{piece}", pieces.len()), lifetime)
            } else {
                self.keep(&name, piece, lifetime)
            });
        }
        lines.extend(self.forget_from(check, pieces.len()));
        Some(lines)
    }

    /// The `set-cookie` lines that make a browser forget the value.
    pub(super) fn clear(&self, check: &Check<'_>) -> Vec<String> {
        self.forget_from(check, 0).collect()
    }

    fn forget_from(&self, check: &Check<'_>, first: usize) -> impl Iterator<Item = String> {
        let names = (first..MAX_PIECES).map(|number| self.piece(number));
        names
            .filter(|name| check.cookie(name).next().is_some())
            .map(|name| self.forget(&name))
    }

    fn piece(&self, number: usize) -> String {
        match number {
            0 => self.session.clone(),
            _ => format!("{}.{number}", self.session),
        }
    }
}

const FLOW: &str = "_flow_";

/// A value cut up; it is ASCII.
fn pieces(value: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = value;
    while let Some((piece, more)) = rest.split_at_checked(MAX_PIECE) {
        pieces.push(piece);
        rest = more;
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(rest);
    }
    pieces
}

/// Whether a cookie is one of a source whose cookies have the name `base`.
pub(in crate::policy) fn is_session_cookie(name: &str, base: &str) -> bool {
    let name = name.strip_prefix(HOST_PREFIX).unwrap_or(name);
    let Some(rest) = name.strip_prefix(base) else {
        return false;
    };
    let piece = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    rest.is_empty() || rest.starts_with(FLOW) || rest.strip_prefix('.').is_some_and(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{explain::Trail, path::Reading};

    const HOUR: Duration = Duration::from_secs(3600);

    /// What a browser sends after these `set-cookie` lines.
    fn browser(lines: &[String]) -> String {
        let kept = lines.iter().filter(|line| !line.contains("Max-Age=0"));
        let pairs: Vec<_> = kept.filter_map(|line| line.split(';').next()).collect();
        pairs.join("; ")
    }

    fn with_check<T>(cookies: &str, test: impl FnOnce(&Check<'_>) -> T) -> T {
        let request = http::Request::get("http://h/").header("cookie", cookies);
        let view = crate::testing::view(&request.body(()).unwrap());
        test(&Check::new(&view, Reading::default(), Trail::default()).unwrap())
    }

    #[test]
    fn cookies_are_for_this_host_alone_and_hidden_from_scripts() {
        let names = Names::new("s", true);
        assert_eq!(
            names.keep(&names.session, "v", HOUR),
            "__Host-s=v; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure"
        );
        // Without HTTPS browsers refuse the prefix and `Secure`.
        let names = Names::new("s", false);
        assert_eq!(
            names.keep(&names.session, "v", HOUR),
            "s=v; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"
        );
    }

    #[test]
    fn values_of_any_length_come_back_or_are_refused() {
        let names = Names::new("s", true);
        for (length, pieces) in [
            (0, Some(1)),
            (1, Some(1)),
            (MAX_PIECE, Some(1)),
            (MAX_PIECE + 1, Some(2)),
            (MAX_PIECE * MAX_PIECES, Some(MAX_PIECES)),
            (MAX_PIECE * MAX_PIECES + 1, None),
        ] {
            let value: String = ('a'..='z').cycle().take(length).collect();
            let lines = with_check("a=1", |check| names.write(check, &value, HOUR));
            assert_eq!(lines.as_ref().map(Vec::len), pieces, "{length}");
            let Some(lines) = lines else { continue };
            assert!(lines.iter().all(|line| line.len() < 4096));
            let read = with_check(&browser(&lines), |check| {
                names.read(check).map(Cow::into_owned)
            });
            assert_eq!(read.as_deref(), Some(value.as_str()), "{length}");
        }
    }

    #[test]
    fn pieces_that_a_shorter_value_does_not_need_are_forgotten() {
        let names = Names::new("s", false);
        let old = "s=3.a; s.1=b; s.2=c";
        let lines = with_check(old, |check| names.write(check, "short", HOUR).unwrap());
        assert_eq!(lines.len(), 3);
        assert_eq!(browser(&lines), "s=1.short");
        assert!(lines[2].starts_with("s.2=; Path=/; Max-Age=0;"));
        let gone = with_check(old, |check| names.clear(check));
        assert_eq!((gone.len(), browser(&gone).as_str()), (3, ""));
    }

    #[test]
    fn values_with_a_piece_missing_are_none() {
        let names = Names::new("s", false);
        for cookies in [
            "s=2.a", "s=a", "s=9.a", "s=x.a", "s.1=b", "s=-1.a", "s=", "t=1.a",
        ] {
            with_check(cookies, |check| {
                assert_eq!(names.read(check), None, "{cookies}")
            });
        }
        // A count of nothing reads as nothing more than the first.
        with_check("s=0.a", |check| {
            assert_eq!(names.read(check).as_deref(), Some("a"))
        });
    }

    #[test]
    fn session_cookies_are_known_by_their_names() {
        for (name, expected) in [
            ("s", true),
            ("__Host-s", true),
            ("s.1", true),
            ("__Host-s_flow_abc", true),
            ("session", false),
            ("s.x", false),
            ("s.", false),
            ("s_flow", false),
            ("x_s", false),
        ] {
            assert_eq!(is_session_cookie(name, "s"), expected, "{name}");
        }
    }
}
