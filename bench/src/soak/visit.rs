//! What clients ask for, and what they must get.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::row;

/// The path that the auth service allows nobody.
pub(crate) const FORBIDDEN_PATH: &str = "/forbidden";
/// The path whose request body comes back.
pub(crate) const ECHO_PATH: &str = "/echo";
/// The path of the origins that are killed.
pub(crate) const API_PATH: &str = "/api";
/// The header with the number of the configuration.
pub(crate) const GENERATION_HEADER: &str = "x-generation";
/// The tenant without a limit.
pub(crate) const TENANT: &str = "acme";
/// Requests that any other tenant may make.
pub(crate) const LIMIT: u64 = 5;
/// Requests that it makes.
const ATTEMPTS: u64 = 8;

/// One kind of visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visit {
    /// A small answer of the origins that are shut down politely.
    Small,
    /// A small answer of the origins that are killed.
    Api,
    /// A request body of 8 KiB, which comes back.
    Echo,
    /// An answer of 64 KiB, which the processor turns into capitals.
    Large,
    /// What the auth service refuses.
    Denied,
    /// A tenant that comes more often than it may: so many get through, and no more.
    Limited,
}

impl Visit {
    /// All, in the order of the table.
    pub(crate) const ALL: [Visit; 6] = [
        Visit::Small,
        Visit::Api,
        Visit::Echo,
        Visit::Large,
        Visit::Denied,
        Visit::Limited,
    ];

    /// The visit of a turn: 61 % are small, 20 % go to the origins that are killed, 10 % have a
    /// body, 4 % are large, 4 % denied; every hundredth is eight requests of one tenant.
    pub(crate) fn of(turn: u64) -> Visit {
        match turn % 100 {
            13 => Visit::Limited,
            turn if turn % 25 == 7 => Visit::Denied,
            turn if turn % 25 == 19 => Visit::Large,
            turn if turn % 10 == 3 || turn == 50 => Visit::Echo,
            turn if turn % 5 == 1 => Visit::Api,
            _ => Visit::Small,
        }
    }

    /// Its name in the table.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Visit::Small => "small",
            Visit::Api => "small, killed origins",
            Visit::Echo => "request body",
            Visit::Large => "large, streamed",
            Visit::Denied => "denied",
            Visit::Limited => "limited",
        }
    }

    /// How many requests it has.
    pub(crate) fn requests(self) -> u64 {
        match self {
            Visit::Limited => ATTEMPTS,
            _ => 1,
        }
    }

    /// What is asked for.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Visit::Small | Visit::Limited => row::SMALL_PATH,
            Visit::Api => API_PATH,
            Visit::Echo => ECHO_PATH,
            Visit::Large => row::LARGE_PATH,
            Visit::Denied => FORBIDDEN_PATH,
        }
    }

    /// How.
    pub(crate) fn method(self) -> Method {
        match self {
            Visit::Echo => Method::POST,
            _ => Method::GET,
        }
    }

    /// The status of its request of this number, counted from 0.
    fn status(self, number: u64) -> StatusCode {
        match self {
            Visit::Denied => StatusCode::UNAUTHORIZED,
            Visit::Limited if number >= LIMIT => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::OK,
        }
    }
}

/// The bodies, made once.
#[derive(Debug)]
pub(crate) struct Bodies {
    small: Bytes,
    capitals: Bytes,
    echo: Bytes,
}

impl Bodies {
    /// Makes them.
    pub(crate) fn new() -> Bodies {
        let mut echo = row::large_body();
        echo.truncate(8 * 1024);
        Bodies {
            small: row::small_body().into(),
            capitals: row::large_body().to_ascii_uppercase().into(),
            echo: echo.into(),
        }
    }

    /// The body of a request.
    pub(crate) fn request(&self, visit: Visit) -> Bytes {
        match visit {
            Visit::Echo => self.echo.clone(),
            _ => Bytes::new(),
        }
    }

    /// Looks at an answer to the request of this number of a visit; what is wrong with it, if
    /// anything is.
    pub(crate) fn check(
        &self,
        visit: Visit,
        number: u64,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(), String> {
        let wanted = visit.status(number);
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if status != wanted {
            let said = String::from_utf8_lossy(body.get(..80).unwrap_or(body)).into_owned();
            return Err(format!("{} instead of {wanted}: {said}", status.as_u16()));
        }
        let passed = wanted == StatusCode::OK;
        let saw = passed.then_some(row::saw(true, true));
        if value(row::SAW_HEADER) != saw {
            return Err(format!("{}: {:?}", row::SAW_HEADER, value(row::SAW_HEADER)));
        }
        if !passed {
            return Ok(());
        }
        if value(row::PROC_RESPONSE_HEADER) != Some("1") {
            return Err("the response was not processed".to_owned());
        }
        let whole = match visit {
            Visit::Small | Visit::Api | Visit::Limited => &self.small,
            Visit::Echo => &self.echo,
            Visit::Large => &self.capitals,
            Visit::Denied => return Ok(()),
        };
        match body == whole {
            true => Ok(()),
            false => Err(format!(
                "a wrong body of {} bytes; {} are right",
                body.len(),
                whole.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visits_come_in_their_shares() {
        let share = |visit| (0..100).filter(|turn| Visit::of(*turn) == visit).count();
        let shares = Visit::ALL.map(share);
        assert_eq!(shares.iter().sum::<usize>(), 100);
        assert_eq!(shares, [61, 20, 10, 4, 4, 1]);
    }

    #[test]
    fn a_tenant_gets_exactly_its_limit() {
        let bodies = Bodies::new();
        let mut headers = HeaderMap::new();
        headers.insert(row::SAW_HEADER, "auth+proc".parse().unwrap());
        headers.insert(row::PROC_RESPONSE_HEADER, "1".parse().unwrap());
        let check = |number, status, headers: &HeaderMap, body: &[u8]| {
            bodies.check(Visit::Limited, number, status, headers, body)
        };
        let (ok, many) = (StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
        let body = row::small_body();
        assert_eq!(check(LIMIT - 1, ok, &headers, &body), Ok(()));
        assert_eq!(check(LIMIT, many, &HeaderMap::new(), b""), Ok(()));
        assert!(check(LIMIT, ok, &headers, &body).is_err());
        assert!(check(LIMIT - 1, many, &HeaderMap::new(), b"").is_err());
    }

    #[test]
    fn an_answer_that_no_policy_touched_or_that_lost_a_byte_is_wrong() {
        let bodies = Bodies::new();
        let body = row::small_body();
        let mut headers = HeaderMap::new();
        headers.insert(row::SAW_HEADER, "auth".parse().unwrap());
        let check = |headers: &HeaderMap, body: &[u8]| {
            bodies.check(Visit::Small, 0, StatusCode::OK, headers, body)
        };
        assert!(check(&headers, &body).unwrap_err().contains("x-origin-saw"));
        headers.insert(row::SAW_HEADER, "auth+proc".parse().unwrap());
        assert!(check(&headers, &body).is_err());
        headers.insert(row::PROC_RESPONSE_HEADER, "1".parse().unwrap());
        assert_eq!(check(&headers, &body), Ok(()));
        let less = body.get(1..).unwrap();
        assert!(check(&headers, less).unwrap_err().contains("255 bytes"));
    }
}
