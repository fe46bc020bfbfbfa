//! One check under way: the request as the stages of a pipeline see it, and what they leave
//! behind beside the decision.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use attache_service::trace::Span;

use super::{
    cache::Fingerprint,
    effects::Effects,
    explain::{Stage, Trail},
    identity::SignedIn,
    path::{Ambiguous, Reading, canonical},
    rule::host_name,
};
use crate::server::{Body, CheckRequestView, ForwardedCertificate, ForwardedError};

/// A part of a request that a decision can depend on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Read {
    Method,
    /// Canonical, without the query.
    Path,
    /// All of it, as it came.
    Query,
    /// All values of one parameter, by its decoded name.
    Parameter(String),
    /// Path and query as they came.
    Target,
    Host,
    /// Host and port as they came.
    Authority,
    Scheme,
    /// By its name in lower case.
    Header(String),
    /// All values of one cookie, by its name.
    Cookie(String),
    /// The address of the proxy's peer.
    Source,
    /// Who the proxy's TLS peer is.
    Principal,
    Certificate,
    Body,
    /// A context extension of the route.
    Context(String),
    /// Dynamic metadata of a namespace.
    Metadata(String),
    /// The time: no two checks are alike.
    Time,
    /// Everything else: no two requests are alike.
    Everything,
}

impl Read {
    /// Whether two requests can be alike in it.
    pub(super) fn comparable(&self) -> bool {
        !matches!(self, Self::Time | Self::Everything)
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method => f.write_str("method"),
            Self::Path => f.write_str("path"),
            Self::Query => f.write_str("query"),
            Self::Parameter(name) => write!(f, "query parameter `{name}`"),
            Self::Target => f.write_str("path and query"),
            Self::Host => f.write_str("host"),
            Self::Authority => f.write_str("authority"),
            Self::Scheme => f.write_str("scheme"),
            Self::Header(name) => write!(f, "header `{name}`"),
            Self::Cookie(name) => write!(f, "cookie `{name}`"),
            Self::Source => f.write_str("source address"),
            Self::Principal => f.write_str("source principal"),
            Self::Certificate => f.write_str("source certificate"),
            Self::Body => f.write_str("body"),
            Self::Context(key) => write!(f, "context `{key}`"),
            Self::Metadata(namespace) => write!(f, "metadata `{namespace}`"),
            Self::Time => f.write_str("time"),
            Self::Everything => f.write_str("everything"),
        }
    }
}

/// How long what was decided holds.
#[derive(Debug, Default, Clone)]
pub(super) struct Holds {
    /// At most until then.
    pub(super) until: Option<SystemTime>,
    /// For this one check only.
    pub(super) once: bool,
    /// Only while this session is not over.
    pub(super) session: Option<SignedIn>,
}

/// One check under way. All that a stage asks of a request it asks here, so that what a decision
/// depends on is known.
pub(super) struct Check<'a> {
    request: &'a CheckRequestView,
    path: Option<Cow<'a, str>>,
    host: Option<String>,
    trail: Trail,
    /// Kept only when somebody wants to know.
    reads: Option<Mutex<BTreeSet<Read>>>,
    holds: Mutex<Holds>,
    effects: Mutex<Effects>,
}

impl<'a> Check<'a> {
    /// Reads the path, once for all stages.
    ///
    /// # Errors
    /// When proxies and applications could read it in different ways.
    pub(super) fn new(
        request: &'a CheckRequestView,
        reading: Reading,
        trail: Trail,
    ) -> Result<Self, Ambiguous> {
        // A fragment is nothing that clients send (RFC 9110 §4.2.5); whoever takes it for a part of
        // the path reads another one.
        if request
            .path_and_query()
            .is_some_and(|target| target.contains('#'))
        {
            return Err(Ambiguous::Fragment);
        }
        // CONNECT has an empty path, a TCP connection none: nothing for path rules to match.
        let connect = || matches!(request.method(), Some("CONNECT"));
        let path = match (request.path_and_query(), request.path()) {
            (Some(""), _) if connect() => None,
            (_, Some(path)) => Some(canonical(path, reading)?),
            (_, None) => None,
        };
        Ok(Self {
            request,
            path,
            host: request.host().map(host_name),
            trail,
            reads: None,
            holds: Mutex::default(),
            effects: Mutex::default(),
        })
    }

    /// Notes from now on what is read of the request.
    pub(super) fn record(&mut self) {
        self.reads = Some(Mutex::default());
    }

    /// The same check, by itself: what is read there is not noted, nor what is found.
    pub(super) fn aside(&self) -> Check<'_> {
        Check {
            request: self.request,
            path: self.path.as_deref().map(Cow::Borrowed),
            host: self.host.clone(),
            trail: Trail::default(),
            reads: None,
            holds: Mutex::default(),
            effects: Mutex::default(),
        }
    }

    /// What has been read; `None` when nobody wanted to know.
    pub(super) fn reads(&self) -> Option<BTreeSet<Read>> {
        self.reads.as_ref().map(|reads| lock(reads).clone())
    }

    fn read(&self, part: impl FnOnce() -> Read) {
        if let Some(reads) = &self.reads {
            lock(reads).insert(part());
        }
    }

    /// What was decided holds no longer than this.
    pub(super) fn holds_until(&self, time: SystemTime) {
        let mut holds = lock(&self.holds);
        holds.until = Some(holds.until.map_or(time, |until| until.min(time)));
    }

    /// What was decided holds for this check only, as with a credential that is good for one use.
    pub(super) fn holds_once(&self) {
        lock(&self.holds).once = true;
    }

    /// What was decided holds until the user signs out. Who keeps nothing need not know.
    pub(super) fn holds_while(&self, session: impl FnOnce() -> SignedIn) {
        if self.reads.is_some() {
            lock(&self.holds).session = Some(session());
        }
    }

    /// How long what was decided holds.
    pub(super) fn holds(&self) -> Holds {
        lock(&self.holds).clone()
    }

    /// The span of the check.
    pub(super) fn span(&self) -> &'a Span {
        self.request.span()
    }

    /// What the decision takes along, to be added to.
    pub(super) fn effects(&self) -> MutexGuard<'_, Effects> {
        lock(&self.effects)
    }

    /// What the decision takes along, once.
    pub(super) fn take_effects(&self) -> Effects {
        std::mem::take(&mut *lock(&self.effects))
    }

    /// Says what a stage found, for whoever asked for an explanation.
    pub(super) fn note(&self, stage: Stage, name: &str, found: impl FnOnce() -> String) {
        self.trail.note(stage, name, found);
    }

    /// The explanation as far as it goes; empty when nobody asked for one.
    pub(super) fn trail(&self) -> &Trail {
        &self.trail
    }

    /// Adds to a fingerprint what a part of this request is; false when no two requests are
    /// alike in it.
    pub(super) fn print(&self, part: &Read, print: &mut Fingerprint) -> bool {
        let request = self.request;
        match part {
            Read::Method => print.value(request.method()),
            Read::Path => print.value(self.path.as_deref()),
            Read::Query => print.value(request.query()),
            Read::Parameter(name) => {
                print.values(request.query_values(name).map(Cow::into_owned));
            }
            Read::Target => print.value(request.path_and_query()),
            Read::Host => print.value(self.host.as_deref()),
            Read::Authority => print.value(request.host()),
            Read::Scheme => print.value(request.scheme()),
            Read::Header(name) => print.value(request.header(name).as_deref()),
            Read::Cookie(name) => {
                let cookies = request.cookies();
                print.values(cookies.filter_map(|(key, value)| (key == name).then_some(value)));
            }
            Read::Source => {
                let source = request.source_address();
                print.value(source.map(|source| source.ip().to_canonical().to_string()));
            }
            Read::Principal => print.value(request.principal()),
            Read::Certificate => {
                let source = request.attributes().source.as_ref();
                print.value(source.map(|source| &source.certificate));
            }
            Read::Body => match request.body() {
                Body::Absent => print.value(None::<&str>),
                Body::Whole(body) => print.values([&b"whole"[..], body]),
                Body::Partial(body) => print.values([&b"partial"[..], body]),
            },
            Read::Context(key) => print.value(request.context_extension(key)),
            Read::Metadata(namespace) => {
                let metadata = request.metadata(namespace);
                // Fields are in the order of their names.
                print.value(metadata.map(prost::Message::encode_to_vec));
            }
            Read::Time | Read::Everything => return false,
        }
        true
    }

    /// The time. Whoever asks depends on it.
    pub(super) fn time(&self) -> SystemTime {
        self.read(|| Read::Time);
        SystemTime::now()
    }

    /// The request as it came. Whoever looks there depends on all of it.
    pub(super) fn request(&self) -> &'a CheckRequestView {
        self.read(|| Read::Everything);
        self.request
    }

    pub(super) fn method(&self) -> Option<&'a str> {
        self.read(|| Read::Method);
        self.request.method()
    }

    /// Decoded and unambiguous, without the query.
    pub(super) fn path(&self) -> Option<&str> {
        self.read(|| Read::Path);
        self.path.as_deref()
    }

    pub(super) fn query(&self) -> Option<&'a str> {
        self.read(|| Read::Query);
        self.request.query()
    }

    /// The values of a query parameter, decoded.
    pub(super) fn parameter(&self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.read(|| Read::Parameter(name.to_owned()));
        self.request.query_values(name)
    }

    /// Path and query as they came. Who decides by them has to know how others read them.
    pub(super) fn target(&self) -> Option<&'a str> {
        self.read(|| Read::Target);
        self.request.path_and_query()
    }

    /// Host and port as they came.
    pub(super) fn authority(&self) -> Option<&'a str> {
        self.read(|| Read::Authority);
        self.request.host()
    }

    /// Lower case, without port.
    pub(super) fn host(&self) -> Option<&str> {
        self.read(|| Read::Host);
        self.host.as_deref()
    }

    pub(super) fn scheme(&self) -> Option<&'a str> {
        self.read(|| Read::Scheme);
        self.request.scheme()
    }

    /// A header by its name in lower case, repeated lines joined with commas.
    pub(super) fn header(&self, name: &str) -> Option<Cow<'a, str>> {
        self.read(|| Read::Header(name.to_owned()));
        self.request.header(name)
    }

    /// The values of a cookie: more than one when several are called so.
    pub(super) fn cookie(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.read(|| Read::Cookie(name.to_owned()));
        let cookies = self.request.cookies();
        cookies.filter_map(move |(key, value)| (key == name).then_some(value))
    }

    /// The address of the proxy's peer, an IPv4 one as such.
    pub(super) fn source_ip(&self) -> Option<IpAddr> {
        self.read(|| Read::Source);
        let source = self.request.source_address()?;
        Some(source.ip().to_canonical())
    }

    /// Who the proxy's TLS peer is: a URI or DNS name of its certificate, else its subject.
    pub(super) fn principal(&self) -> Option<&'a str> {
        self.read(|| Read::Principal);
        self.request.principal()
    }

    /// The certificate of the proxy's TLS peer, URL-encoded PEM.
    pub(super) fn certificate(&self) -> Option<&'a str> {
        self.read(|| Read::Certificate);
        let source = self.request.attributes().source.as_ref()?;
        (!source.certificate.is_empty()).then_some(source.certificate.as_str())
    }

    /// What proxies tell of client certificates.
    pub(super) fn forwarded_certificates(
        &self,
    ) -> Result<&'a [ForwardedCertificate], ForwardedError> {
        self.read(|| Read::Header("x-forwarded-client-cert".to_owned()));
        self.request.forwarded_certificates()
    }

    pub(super) fn body(&self) -> Body<'a> {
        self.read(|| Read::Body);
        self.request.body()
    }

    pub(super) fn context(&self, key: &str) -> Option<&'a str> {
        self.read(|| Read::Context(key.to_owned()));
        self.request.context_extension(key)
    }

    pub(super) fn metadata(&self, namespace: &str) -> Option<&'a prost_types::Struct> {
        self.read(|| Read::Metadata(namespace.to_owned()));
        self.request.metadata(namespace)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_read_and_nothing_else_is_what_a_decision_depends_on() {
        let request = http::Request::get("http://h/p?a=1").header("x-a", "1");
        let view = crate::testing::view(&request.body(()).unwrap());
        let mut check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        check.method();
        assert_eq!(check.reads(), None);

        check.record();
        check.method();
        check.header("x-a");
        check.header("x-none");
        assert_eq!(
            check.reads().unwrap(),
            BTreeSet::from([
                Read::Method,
                Read::Header("x-a".into()),
                Read::Header("x-none".into())
            ])
        );
    }

    #[test]
    fn the_shortest_bound_on_a_decision_counts() {
        let view = CheckRequestView::default();
        let check = Check::new(&view, Reading::default(), Trail::default()).unwrap();
        let holds = check.holds();
        assert_eq!((holds.until, holds.once), (None, false));
        let now = SystemTime::UNIX_EPOCH;
        check.holds_until(now + Duration::from_secs(9));
        check.holds_until(now + Duration::from_secs(5));
        check.holds_until(now + Duration::from_secs(7));
        let holds = check.holds();
        let expected = Some(now + Duration::from_secs(5));
        assert_eq!((holds.until, holds.once), (expected, false));
    }
}
