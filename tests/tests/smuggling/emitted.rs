//! What a front sent to an origin, read as strictly as RFC 9112 allows.

/// A request as some parser sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// The first `x-request-id`, and how many there are.
    pub(crate) id: String,
    pub(crate) ids: usize,
    /// Its body is there as well.
    pub(crate) complete: bool,
}

impl Request {
    /// Whether another parser means the same one.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        (&self.method, &self.target, &self.id) == (&other.method, &other.target, &other.id)
    }
}

/// The requests in the bytes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) requests: Vec<Request>,
    /// Why the bytes are no requests from some point on.
    pub(crate) fault: Option<String>,
    /// Where the request begins that is not complete.
    pub(crate) rest: usize,
}

impl Emitted {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let mut emitted = Self::default();
        while emitted.rest < bytes.len() {
            match request(&bytes[emitted.rest..]) {
                Ok(Some((request, length))) => {
                    let complete = request.complete;
                    emitted.requests.push(request);
                    if !complete {
                        break;
                    }
                    emitted.rest += length;
                }
                Ok(None) => break,
                Err(fault) => {
                    emitted.fault = Some(fault);
                    break;
                }
            }
        }
        emitted
    }

    /// Whether an origin may see one of them and not tell: the answer has no body, or it refuses
    /// the method and closes the connection.
    pub(crate) fn may_be_untold(&self) -> bool {
        let usual = ["GET", "POST", "PUT", "OPTIONS", "DELETE", "PATCH"];
        let unusual = |request: &Request| !usual.contains(&request.method.as_str());
        self.requests.iter().any(unusual)
    }
}

/// The request at the start of `bytes`, and its length. None where not even its head is there.
fn request(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = &bytes[..end];
    if head.contains(&0) {
        return Err("a zero in a head".to_owned());
    }
    let head = String::from_utf8_lossy(head).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    if head.replace("\r\n", "").contains(['\r', '\n']) {
        return Err(format!("a bare line end in {head:?}"));
    }
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(format!("no request line: {line:?}"));
    };
    let (mut length, mut chunked, mut ids, mut hosts) = (None, false, Vec::new(), 0);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            return Err(format!("no header: {line:?}"));
        };
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(token) {
            return Err(format!("no header name: {name:?}"));
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let number = value.parse::<usize>();
                let number = number.map_err(|_| format!("no length: {value:?}"))?;
                if length.replace(number).is_some() {
                    return Err("two lengths".to_owned());
                }
            }
            "transfer-encoding" if value == "chunked" && !chunked => chunked = true,
            "transfer-encoding" => return Err(format!("codings: {value:?}")),
            "x-request-id" => ids.push(value.to_owned()),
            "host" => hosts += 1,
            _ => {}
        }
    }
    if hosts != 1 {
        return Err(format!("{hosts} hosts"));
    }
    if chunked && length.is_some() {
        return Err("both lengths".to_owned());
    }
    let body = &bytes[end + 4..];
    let body = match length {
        _ if chunked => chunks(body)?,
        Some(length) => (body.len() >= length).then_some(length),
        None => Some(0),
    };
    let request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        ids: ids.len(),
        id: ids.into_iter().next().unwrap_or_default(),
        complete: body.is_some(),
    };
    Ok(Some((request, end + 4 + body.unwrap_or(0))))
}

/// The length of a chunked body; none where its end is not there.
fn chunks(bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        let Some(digits) = line.strip_suffix('\r') else {
            return Err(format!("a bare line feed behind {line:?}"));
        };
        let hex = digits.chars().all(|c| c.is_ascii_hexdigit());
        let size = usize::from_str_radix(digits, 16).ok().filter(|_| hex);
        let size = size.ok_or_else(|| format!("no size: {digits:?}"))?;
        at += end + 1;
        if size > 0 {
            match bytes.get(at + size..at + size + 2) {
                Some(b"\r\n") => at += size + 2,
                Some(_) => return Err("no line end behind a chunk".to_owned()),
                None => return Ok(None),
            }
            continue;
        }
        // Trailers.
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
                return Ok(None);
            };
            at += end + 2;
            if end == 0 {
                return Ok(Some(at));
            }
            if rest[..end].contains(&b'\n') {
                return Err("a bare line feed in trailers".to_owned());
            }
        }
    }
}

#[test]
fn requests_are_read_one_by_one() {
    let bytes = b"GET /a HTTP/1.1\r\nhost: a\r\nx-request-id: 1\r\n\r\n\
        POST /b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n\
        POST /c HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nab";
    let emitted = Emitted::parse(bytes);
    assert_eq!(emitted.fault, None);
    let seen: Vec<_> = emitted
        .requests
        .iter()
        .map(|r| (r.target.as_str(), r.id.as_str(), r.complete))
        .collect();
    assert_eq!(
        seen,
        [("/a", "1", true), ("/b", "", true), ("/c", "", false)]
    );
}

#[test]
fn what_is_ambiguous_is_a_fault() {
    for bytes in [
        "GET /a HTTP/1.1\r\nhost: a\nx: y\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
    ] {
        assert!(Emitted::parse(bytes.as_bytes()).fault.is_some(), "{bytes}");
    }
}
