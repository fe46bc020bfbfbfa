//! The rows of the comparison: which filters a proxy runs, what is asked of
//! it, and what every single answer must look like.

use clap::ValueEnum;

use crate::protocol::Protocol;
use crate::response::Expected;

/// What the auth service sets on the request.
pub(crate) const AUTH_HEADER: &str = "x-auth-user";
/// What the rate-limit service sets on the response.
pub(crate) const LIMITS_HEADER: &str = "x-limits";
/// What the processor sets on the request.
pub(crate) const PROC_REQUEST_HEADER: &str = "x-proc-request";
/// What the processor sets on the response.
pub(crate) const PROC_RESPONSE_HEADER: &str = "x-proc-response";
/// Where the origin tells what it saw of the above.
pub(crate) const SAW_HEADER: &str = "x-origin-saw";

/// The path of the small body.
pub(crate) const SMALL_PATH: &str = "/small";
/// The path of the large body.
pub(crate) const LARGE_PATH: &str = "/large";
/// The path of the huge body.
pub(crate) const HUGE_PATH: &str = "/huge";

/// How the processor gets the response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Not at all.
    None,
    /// Each piece is answered.
    Streamed,
    /// The answers are a stream of their own.
    FullDuplexStreamed,
}

/// One row of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Row {
    /// Proxying alone
    Plain,
    /// Proxying alone, for clients that speak HTTP/2
    Http2,
    /// Proxying alone, for clients that speak HTTP/1.1 over TLS
    Tls,
    /// External authorization over gRPC
    ExtAuthz,
    /// Rate limit
    RateLimit,
    /// External processing of the headers, both ways
    ExtProc,
    /// External processing of headers and of a streamed 64 KiB response body
    ExtProcBody,
    /// External processing of headers and of a 1 MiB response body in full duplex
    ExtProcDuplex,
    /// Authorization, rate limit and header processing together
    All,
}

impl Row {
    /// The row's name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Row::Plain => "plain",
            Row::Http2 => "h2 downstream",
            Row::Tls => "TLS downstream",
            Row::ExtAuthz => "ext_authz",
            Row::RateLimit => "rate limit",
            Row::ExtProc => "ext_proc, headers",
            Row::ExtProcBody => "ext_proc, 64 KiB body",
            Row::ExtProcDuplex => "ext_proc, 1 MiB duplex",
            Row::All => "all three",
        }
    }

    /// Whether the proxy asks the auth service.
    pub(crate) fn auth(self) -> bool {
        matches!(self, Row::ExtAuthz | Row::All)
    }

    /// Whether the proxy asks the rate-limit service.
    pub(crate) fn limits(self) -> bool {
        matches!(self, Row::RateLimit | Row::All)
    }

    /// Whether the proxy asks the processor.
    pub(crate) fn processed(self) -> bool {
        matches!(
            self,
            Row::ExtProc | Row::ExtProcBody | Row::ExtProcDuplex | Row::All
        )
    }

    /// What clients speak.
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Row::Http2 => Protocol::Http2,
            Row::Tls => Protocol::Tls1,
            _ => Protocol::Http1,
        }
    }

    /// How the processor gets the response body.
    pub(crate) fn shown(self) -> Shown {
        match self {
            Row::ExtProcBody => Shown::Streamed,
            Row::ExtProcDuplex => Shown::FullDuplexStreamed,
            Row::Plain
            | Row::Http2
            | Row::Tls
            | Row::ExtAuthz
            | Row::RateLimit
            | Row::ExtProc
            | Row::All => Shown::None,
        }
    }

    /// What is asked for.
    pub(crate) fn path(self) -> &'static str {
        match self.shown() {
            Shown::None => SMALL_PATH,
            Shown::Streamed => LARGE_PATH,
            Shown::FullDuplexStreamed => HUGE_PATH,
        }
    }

    /// What every answer must be.
    pub(crate) fn expected(self) -> Expected {
        let mut headers = vec![(SAW_HEADER, saw(self.auth(), self.processed()))];
        if self.limits() {
            headers.push((LIMITS_HEADER, "ok"));
        }
        if self.processed() {
            headers.push((PROC_RESPONSE_HEADER, "1"));
        }
        let body = match self.shown() {
            Shown::None => small_body(),
            Shown::Streamed => large_body().to_ascii_uppercase(),
            Shown::FullDuplexStreamed => huge_body().to_ascii_uppercase(),
        };
        Expected {
            status: 200,
            headers,
            body,
        }
    }
}

/// What the origin says that it saw.
pub(crate) fn saw(auth: bool, processed: bool) -> &'static str {
    match (auth, processed) {
        (false, false) => "-",
        (false, true) => "proc",
        (true, false) => "auth",
        (true, true) => "auth+proc",
    }
}

/// 256 bytes.
pub(crate) fn small_body() -> Vec<u8> {
    body(256)
}

/// 64 KiB.
pub(crate) fn large_body() -> Vec<u8> {
    body(64 * 1024)
}

/// 1 MiB.
pub(crate) fn huge_body() -> Vec<u8> {
    body(1024 * 1024)
}

/// Small letters in an order that repeats late, so that a chunk lost, doubled
/// or out of place shows.
fn body(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let letters = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b'a' + (state >> 24) as u8 % 26
    });
    letters.take(length).collect()
}
