//! `x-forwarded-client-cert` (XFCC), Envoy's own format: what proxies tell of client
//! certificates.
//!
//! Elements, one a proxy, are separated by commas, and their `Key=Value` pairs by semicolons.
//! Values with such characters stand in double quotes, in which a backslash takes the meaning
//! from the next character.

/// What one proxy tells of the client certificate that it saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForwardedCertificate {
    /// `By`: URIs of the certificate of the proxy itself.
    pub by: Vec<String>,
    /// `Hash`: SHA-256 of the client's certificate, in hexadecimal digits.
    pub hash: Option<String>,
    /// `Cert`: the client's certificate, URL-encoded PEM.
    pub cert: Option<String>,
    /// `Chain`: the client's certificate and what it was signed with, URL-encoded PEM.
    pub chain: Option<String>,
    /// `Subject`: its subject; may be empty.
    pub subject: Option<String>,
    /// `URI`: URIs among its alternative names.
    pub uri: Vec<String>,
    /// `DNS`: DNS names among its alternative names.
    pub dns: Vec<String>,
}

/// Why a header is no `x-forwarded-client-cert`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedError {
    /// The header is not UTF-8.
    #[error("x-forwarded-client-cert is not UTF-8")]
    NotText,
    /// A pair without `=`.
    #[error("x-forwarded-client-cert: `{0}` is not `Key=Value`")]
    Pair(String),
    /// A quote without its end, or something behind its end.
    #[error("x-forwarded-client-cert: the quotes of `{0}` do not match")]
    Quotes(String),
    /// A key that stands once stands twice.
    #[error("x-forwarded-client-cert: `{0}` stands twice in one element")]
    Repeated(&'static str),
}

/// Reads the header: the first element is of the proxy nearest to the client, the last of the
/// nearest to us. Keys of no meaning here are left out.
pub(super) fn parse(header: &str) -> Result<Vec<ForwardedCertificate>, ForwardedError> {
    let mut elements = Vec::new();
    for element in split(header, ',')? {
        let mut read = ForwardedCertificate::default();
        for pair in split(element, ';')? {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| ForwardedError::Pair(pair.trim().to_owned()))?;
            read.add(key.trim(), unquoted(value.trim())?)?;
        }
        elements.push(read);
    }
    Ok(elements)
}

impl ForwardedCertificate {
    fn add(&mut self, key: &str, value: String) -> Result<(), ForwardedError> {
        let key = key.to_ascii_lowercase();
        let list = match key.as_str() {
            "by" => Some(&mut self.by),
            "uri" => Some(&mut self.uri),
            "dns" => Some(&mut self.dns),
            _ => None,
        };
        if let Some(list) = list {
            list.push(value);
            return Ok(());
        }
        let (slot, name) = match key.as_str() {
            "hash" => (&mut self.hash, "Hash"),
            "cert" => (&mut self.cert, "Cert"),
            "chain" => (&mut self.chain, "Chain"),
            "subject" => (&mut self.subject, "Subject"),
            _ => return Ok(()),
        };
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(ForwardedError::Repeated(name)),
        }
    }
}

/// Splits at separators outside of quotes.
fn split(text: &str, separator: char) -> Result<Vec<&str>, ForwardedError> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c if c == separator && !quoted => {
                parts.extend(text.get(start..at));
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    if quoted {
        return Err(ForwardedError::Quotes(text.to_owned()));
    }
    parts.extend(text.get(start..));
    Ok(parts)
}

/// A value without its quotes; of escapes only `\"` is one of this format, others (of a subject,
/// for instance) stay as they are.
fn unquoted(value: &str) -> Result<String, ForwardedError> {
    let Some(rest) = value.strip_prefix('"') else {
        return match value.contains('"') {
            true => Err(ForwardedError::Quotes(value.to_owned())),
            false => Ok(value.to_owned()),
        };
    };
    let wrong = || ForwardedError::Quotes(value.to_owned());
    let inner = rest.strip_suffix('"').ok_or_else(wrong)?;
    let mut text = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Err(wrong()),
            '\\' => match chars.next().ok_or_else(wrong)? {
                '"' => text.push('"'),
                other => text.extend(['\\', other]),
            },
            c => text.push(c),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    #[test]
    fn elements_of_several_proxies_are_read_in_their_order() {
        let header = r#"By=spiffe://a/x;By=http://b;Hash=468e;Subject="/C=US/ST=CA/L=\"SF\", x;y=1/CN=Test";URI=spiffe://a/c;DNS=c.example;DNS=www.c.example, by="x";hash=00;Subject="";Cert="-----BEGIN%20";Chain=%0A;New=1"#;
        let read = parse(header).unwrap();
        assert_eq!(
            read,
            [
                ForwardedCertificate {
                    by: vec!["spiffe://a/x".into(), "http://b".into()],
                    hash: Some("468e".into()),
                    subject: Some(r#"/C=US/ST=CA/L="SF", x;y=1/CN=Test"#.into()),
                    uri: vec!["spiffe://a/c".into()],
                    dns: vec!["c.example".into(), "www.c.example".into()],
                    ..ForwardedCertificate::default()
                },
                ForwardedCertificate {
                    by: vec!["x".into()],
                    hash: Some("00".into()),
                    subject: Some(String::new()),
                    cert: Some("-----BEGIN%20".into()),
                    chain: Some("%0A".into()),
                    ..ForwardedCertificate::default()
                },
            ]
        );
        // RFC 2253 escapes in a subject are not this format's.
        let subject = |header: &str| parse(header).unwrap()[0].subject.clone().unwrap();
        assert_eq!(subject(r#"Subject="CN=a\,b\\";Hash=1"#), r"CN=a\,b\\");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for (header, error) in [
            ("", ForwardedError::Pair(String::new())),
            ("By", ForwardedError::Pair("By".into())),
            ("By=a,", ForwardedError::Pair(String::new())),
            ("By=a;;Hash=1", ForwardedError::Pair(String::new())),
            ("Hash=1;HASH=2", ForwardedError::Repeated("Hash")),
            (
                r#"Subject="a"#,
                ForwardedError::Quotes(r#"Subject="a"#.into()),
            ),
            (
                r#"Subject="a\""#,
                ForwardedError::Quotes(r#"Subject="a\""#.into()),
            ),
            (r#"Subject="a"b"#, ForwardedError::Quotes(r#""a"b"#.into())),
            (r#"URI=a"b,c""#, ForwardedError::Quotes(r#"a"b,c""#.into())),
        ] {
            assert_eq!(parse(header), Err(error), "{header}");
        }
    }

    fn written(elements: &[ForwardedCertificate]) -> String {
        let pair = |key: &str, value: &String| format!("{key}=\"{}\"", value.replace('"', "\\\""));
        let element = |e: &ForwardedCertificate| {
            let many = |key: &'static str, values: &[String]| {
                values.iter().map(|v| pair(key, v)).collect::<Vec<_>>()
            };
            let mut pairs = many("By", &e.by);
            pairs.extend(e.hash.iter().map(|v| pair("Hash", v)));
            pairs.extend(e.cert.iter().map(|v| pair("Cert", v)));
            pairs.extend(e.subject.iter().map(|v| pair("Subject", v)));
            pairs.extend(many("URI", &e.uri));
            pairs.extend(many("DNS", &e.dns));
            pairs.join(";")
        };
        elements.iter().map(element).collect::<Vec<_>>().join(",")
    }

    fn element() -> impl Strategy<Value = ForwardedCertificate> {
        let text = || r#"[a-z"=;, /é]{0,8}"#;
        (
            vec(text(), 1..3),
            option::of(text()),
            option::of(text()),
            option::of(text()),
            vec(text(), 0..3),
            vec(text(), 0..3),
        )
            .prop_map(|(by, hash, cert, subject, uri, dns)| ForwardedCertificate {
                by,
                hash,
                cert,
                chain: None,
                subject,
                uri,
                dns,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(elements in vec(element(), 1..4)) {
            prop_assert_eq!(parse(&written(&elements)), Ok(elements));
        }

        #[test]
        fn nothing_is_too_odd_to_be_read_or_refused(header in r#"[BbyYash=;,"\\ é]{0,24}"#) {
            let _ = parse(&header);
        }
    }
}
