//! What is signed: the signature base (RFC 9421 §2.5).

use std::{borrow::Cow, fmt::Write as _};

use http::HeaderName;

use super::fields::{Bare, Item, Params};
use crate::server::CheckRequestView;

/// The base of a signature over these components. Errors are reasons for the log.
pub(super) fn base(
    request: &CheckRequestView,
    components: &[Item],
    params: &Params,
) -> Result<String, &'static str> {
    let mut base = String::new();
    for (nth, component) in components.iter().enumerate() {
        let Bare::String(name) = &component.bare else {
            return Err("malformed");
        };
        // Parameters ask for other readings of a component, none of which is offered.
        if !component.params.0.is_empty() {
            return Err("unsupported_component");
        }
        if components.iter().take(nth).any(|other| other == component) {
            return Err("repeated_component");
        }
        let value = match name.strip_prefix('@') {
            Some(derived) => self::derived(request, derived)?,
            None => header(request, name)?.into(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(base, "{component}: {value}");
    }
    let components: Vec<String> = components.iter().map(Item::to_string).collect();
    let _ = write!(
        base,
        "\"@signature-params\": ({}){params}",
        components.join(" ")
    );
    Ok(base)
}

/// Derived components (RFC 9421 §2.2), by the name without `@`.
fn derived<'a>(request: &'a CheckRequestView, name: &str) -> Result<Cow<'a, str>, &'static str> {
    const MISSING: &str = "missing_component";
    let target = || {
        // A fragment is not part of what is asked for.
        let target = request.path_and_query()?.split('#').next()?;
        (!target.is_empty()).then_some(target)
    };
    let found = match name {
        "method" => request.method().map(Cow::Borrowed),
        "authority" => authority(request),
        "scheme" => request
            .scheme()
            .map(|scheme| scheme.to_ascii_lowercase().into()),
        "path" => request
            .path()
            .filter(|path| !path.is_empty())
            .map(Cow::Borrowed),
        "query" => target().map(|_| format!("?{}", request.query().unwrap_or_default()).into()),
        "request-target" => target().map(Cow::Borrowed),
        "target-uri" => match (request.scheme(), authority(request), target()) {
            (Some(scheme), Some(authority), Some(target)) => {
                let scheme = scheme.to_ascii_lowercase();
                Some(format!("{scheme}://{authority}{target}").into())
            }
            _ => None,
        },
        _ => return Err("unsupported_component"),
    };
    found.ok_or(MISSING)
}

/// Lower case, without the port that the scheme implies.
fn authority(request: &CheckRequestView) -> Option<Cow<'_, str>> {
    let host = request.host().filter(|host| !host.is_empty())?;
    let implied = match request.scheme() {
        Some("http") => ":80",
        Some("https") => ":443",
        _ => "",
    };
    let host = host.strip_suffix(implied).unwrap_or(host);
    Some(host.to_ascii_lowercase().into())
}

fn header(request: &CheckRequestView, name: &str) -> Result<String, &'static str> {
    let malformed = |_| "malformed";
    HeaderName::from_lowercase(name.as_bytes()).map_err(|_| "malformed")?;
    let lines: Vec<&str> = request
        .header_lines(name)
        .map(|line| std::str::from_utf8(line).map(|line| line.trim_matches([' ', '\t'])))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    match lines.is_empty() {
        true => Err("missing_component"),
        false => Ok(lines.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::policy::identity::signature::fields::{Member, dictionary};

    fn base_of(request: http::request::Builder, input: &str) -> Result<String, &'static str> {
        let view = crate::testing::view(&request.body(()).unwrap());
        let members = dictionary(&format!("sig={input}")).unwrap();
        let Some((_, Member::List(components, params))) = members.first() else {
            panic!("{input}")
        };
        base(&view, components, params)
    }

    /// RFC 9421, B.2.5.
    #[test]
    fn the_base_of_the_standards_example_is_this() {
        let request = Request::post("http://example.com/foo?param=Value&Pet=dog")
            .header("date", "Tue, 20 Apr 2021 02:07:55 GMT")
            .header("content-type", "application/json");
        let input =
            r#"("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#;
        let expected = [
            r#""date": Tue, 20 Apr 2021 02:07:55 GMT"#,
            r#""@authority": example.com"#,
            r#""content-type": application/json"#,
            r#""@signature-params": ("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret""#,
        ];
        assert_eq!(base_of(request, input), Ok(expected.join("\n")));
    }

    #[test]
    fn components_are_derived_from_the_request() {
        for (uri, component, expected) in [
            ("http://H.example:80/a%20b?x=1", "@authority", "h.example"),
            ("http://h:8080/", "@authority", "h:8080"),
            ("http://h/a%20b?x=1", "@path", "/a%20b"),
            ("http://h/", "@path", "/"),
            ("http://h/?x=1&y", "@query", "?x=1&y"),
            ("http://h/", "@query", "?"),
            ("http://h/a?", "@query", "?"),
            ("http://h/a?x", "@request-target", "/a?x"),
            ("http://h/a?x", "@target-uri", "http://h/a?x"),
            ("http://h/", "@scheme", "http"),
            ("http://h/", "@method", "GET"),
            ("http://h/", "x-padded", "a, b"),
        ] {
            let request = Request::get(uri).header("x-padded", "  a, b ");
            let base = base_of(request, &format!("(\"{component}\")")).unwrap();
            let line = base.lines().next().unwrap();
            assert_eq!(line, format!("\"{component}\": {expected}"), "{uri}");
        }
    }

    #[test]
    fn components_that_are_missing_or_not_understood_are_refused() {
        for (input, reason) in [
            (r#"("x-none")"#, "missing_component"),
            (r#"("X-A")"#, "malformed"),
            (r#"(":path")"#, "malformed"),
            ("(token)", "malformed"),
            (r#"("@status")"#, "unsupported_component"),
            (r#"("@signature-params")"#, "unsupported_component"),
            (r#"("@method";req)"#, "unsupported_component"),
            (r#"("x-a";sf)"#, "unsupported_component"),
            (r#"("x-a" "x-a")"#, "repeated_component"),
        ] {
            let request = Request::get("http://h/").header("x-a", "1");
            assert_eq!(base_of(request, input), Err(reason), "{input}");
        }
    }
}
