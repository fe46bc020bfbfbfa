//! Whether a browser asks for one of the endpoint's own pages.

use http::{HeaderMap, Uri, header};

/// Whether a request comes from a page of this very host and port, or from what is no browser.
///
/// What changes something, or costs something, asks this: a page on the web can have a browser
/// send such requests, although it does not see the answers. Browsers say where they come from in
/// `Sec-Fetch-Site`, and in `Origin` with all methods but GET and HEAD.
pub fn is_same_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| {
        let value = headers.get(name)?;
        Some(value.to_str().unwrap_or("?"))
    };
    match text("sec-fetch-site") {
        Some("same-origin" | "none") | None => {}
        Some(_) => return false,
    }
    let Some(origin) = text(header::ORIGIN.as_str()) else {
        return true;
    };
    let origin = origin.parse::<Uri>().ok();
    let origin = origin.as_ref().and_then(Uri::authority);
    match (origin, text(header::HOST.as_str())) {
        (Some(origin), Some(host)) => origin.as_str().eq_ignore_ascii_case(host),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_pages_and_programs_are_of_the_same_site() {
        for (headers, same) in [
            (&[("host", "localhost:9901")][..], true),
            (
                &[
                    ("host", "localhost:9901"),
                    ("origin", "http://localhost:9901"),
                ],
                true,
            ),
            (
                &[
                    ("host", "localhost:9901"),
                    ("sec-fetch-site", "same-origin"),
                ],
                true,
            ),
            (
                &[("host", "localhost:9901"), ("sec-fetch-site", "none")],
                true,
            ),
            (
                &[("host", "localhost:9901"), ("sec-fetch-site", "same-site")],
                false,
            ),
            (
                &[("host", "localhost:9901"), ("sec-fetch-site", "cross-site")],
                false,
            ),
            (
                &[
                    ("host", "localhost:9901"),
                    ("origin", "http://localhost:80"),
                ],
                false,
            ),
            (
                &[
                    ("host", "localhost:9901"),
                    ("origin", "http://evil.example"),
                ],
                false,
            ),
            (&[("host", "localhost:9901"), ("origin", "null")], false),
            (&[("origin", "http://localhost:9901")], false),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            assert_eq!(is_same_site(&map), same, "{headers:?}");
        }
    }
}
