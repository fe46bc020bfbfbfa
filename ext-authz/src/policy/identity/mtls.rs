//! Client certificates, as the proxy shows them.

mod facts;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use attache_filter::matcher::TextMatcher;
use attache_service::{
    config::{Errors, Located},
    tls::{ClientAuthorities, Untrusted},
};
use quick_cache::sync::Cache;

use super::{
    Found, Identity,
    keys::{Hash, sha256},
};
use crate::{
    policy::{
        check::{Check, Read},
        config::{CertificateMatch, Mtls, PathMatch},
        planning::Planning,
        rule::{Host, Pattern},
    },
    server::SpiffeId,
};

use facts::{Facts, certificates};

/// Accepted certificates to remember.
const REMEMBERED: usize = 10_000;
/// How long an accepted certificate is believed without looking again.
const MAX_REMEMBERED: Duration = Duration::from_secs(300);
/// Longer ones, as they are shown, are refused unread.
const MAX_CERTIFICATE: usize = 64 << 10;
/// More certificates between a client and its authority than anybody has.
const MAX_CHAIN: usize = 10;

/// The certificates of one source.
#[derive(Debug)]
pub(super) struct Certificates {
    source: usize,
    accept: Vec<Accept>,
    authorities: Option<ClientAuthorities>,
    from: From,
    accepted: Cache<Hash, Accepted>,
}

/// How a certificate has to be.
#[derive(Debug)]
enum Accept {
    Spiffe {
        trust_domain: String,
        paths: Vec<Pattern>,
    },
    Uri(TextMatcher),
    Dns(Host),
    Subject(TextMatcher),
    Any,
}

/// Where certificates are shown.
#[derive(Debug, Clone, Copy)]
enum From {
    Connection,
    /// In `x-forwarded-client-cert`, in the last element but so many.
    Header(usize),
}

#[derive(Debug, Clone)]
struct Accepted {
    identity: Arc<Identity>,
    until: SystemTime,
}

impl Certificates {
    pub(super) fn plan(
        source: usize,
        name: &Located<String>,
        raw: &Mtls,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        if raw.accept.is_empty() {
            let problem = "an `mtls` source says in `accept` whose certificates it takes; \
                           `any: {}` takes all";
            planning.errors.push(name, problem);
        }
        let accept = raw.accept.iter();
        let accept = accept.filter_map(|accept| Accept::plan(accept, planning.errors));
        let accept = accept.collect();
        let from = match &raw.x_forwarded_client_cert {
            None => From::Connection,
            Some(header) => {
                if !header.proxy_strips_it_from_clients {
                    let problem = "clients can send this header too: it says who they are only \
                                   behind a proxy that strips it from what they send";
                    planning.errors.push(header, problem);
                }
                planning.credential(Read::Header("x-forwarded-client-cert".to_owned()));
                From::Header(header.trusted_hops.unwrap_or(0) as usize)
            }
        };
        let authorities = match &raw.ca_file {
            None => None,
            Some(file) => Some(authorities(file, planning)?),
        };
        Some(Self {
            source,
            accept,
            authorities,
            from,
            accepted: Cache::new(REMEMBERED),
        })
    }

    pub(super) fn identify(&self, check: &Check<'_>) -> Found {
        let found = match self.from {
            From::Connection => match (check.certificate(), check.principal()) {
                (Some(certificate), _) => self.certificate(check, certificate, None),
                (None, None) => return Found::Nothing,
                (None, Some(principal)) => self.stated(|| Facts::of_principal(principal)),
            },
            From::Header(hops) => {
                let elements = match check.forwarded_certificates() {
                    Ok([]) => return Found::Nothing,
                    Ok(elements) => elements,
                    Err(_) => return Found::Bad("malformed"),
                };
                let Some(element) = elements.iter().rev().nth(hops) else {
                    return Found::Bad("too_few_hops");
                };
                match &element.cert {
                    Some(certificate) => {
                        self.certificate(check, certificate, element.chain.as_deref())
                    }
                    None => self.stated(|| Facts::of_element(element)),
                }
            }
        };
        found.unwrap_or_else(Found::Bad)
    }

    /// What a certificate is worth, URL-encoded PEM. Errors are reasons for the log.
    fn certificate(
        &self,
        check: &Check<'_>,
        shown: &str,
        chain: Option<&str>,
    ) -> Result<Found, &'static str> {
        if shown.len() > MAX_CERTIFICATE {
            return Err("too_long");
        }
        let hash = sha256(shown.as_bytes());
        let now = SystemTime::now();
        if let Some(accepted) = self.accepted.get(&hash) {
            if now < accepted.until {
                check.holds_until(accepted.until);
                return Ok(Found::Good(accepted.identity));
            }
            self.accepted.remove(&hash);
        }
        let leaf = certificates(shown, 1).ok_or("malformed")?;
        let [leaf] = leaf.as_slice() else {
            return Err("malformed");
        };
        let facts = Facts::of_certificate(leaf)?;
        facts.check_time(now)?;
        if let Some(authorities) = &self.authorities {
            let chain = match chain {
                Some(chain) if chain.len() > MAX_CERTIFICATE => return Err("too_long"),
                Some(chain) => certificates(chain, MAX_CHAIN).ok_or("malformed")?,
                None => Vec::new(),
            };
            let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
            authorities
                .verify(leaf, &chain, now)
                .map_err(|untrusted| match untrusted {
                    Untrusted::Time => "expired",
                    Untrusted::Issuer => "unknown_issuer",
                    Untrusted::Purpose => "wrong_purpose",
                    Untrusted::Malformed => "bad_signature",
                })?;
        }
        let identity = self.accept(&facts)?;
        let longest = now.checked_add(MAX_REMEMBERED).unwrap_or(now);
        let accepted = Accepted {
            identity: identity.clone(),
            until: facts.not_after.map_or(longest, |end| end.min(longest)),
        };
        check.holds_until(accepted.until);
        self.accepted.insert(hash, accepted);
        Ok(Found::Good(identity))
    }

    /// What is told of a certificate that is not shown itself.
    fn stated(&self, facts: impl FnOnce() -> Facts) -> Result<Found, &'static str> {
        if self.authorities.is_some() {
            let problem = match self.from {
                From::Connection => "set include_peer_certificate in its ext_authz filter",
                From::Header(_) => "set cert in its set_current_client_cert_details",
            };
            let problem = format!("the proxy does not show certificates: {problem}");
            return Ok(Found::Failed(problem));
        }
        Ok(Found::Good(self.accept(&facts())?))
    }

    fn accept(&self, facts: &Facts) -> Result<Arc<Identity>, &'static str> {
        let accepted = self.accept.iter().any(|accept| accept.matches(facts));
        if !accepted {
            return Err("not_accepted");
        }
        let name = facts.name().ok_or("no_name")?;
        let identity = Identity::named(self.source, name, facts.claims(), facts.not_after);
        Ok(Arc::new(identity))
    }
}

fn authorities(file: &Located<PathBuf>, planning: &mut Planning<'_>) -> Option<ClientAuthorities> {
    planning.watch(file);
    let loaded = ClientAuthorities::load(&planning.resolve(file));
    loaded
        .map_err(|error| planning.errors.push(file, error.to_string()))
        .ok()
}

impl Accept {
    fn plan(raw: &Located<CertificateMatch>, errors: &mut Errors) -> Option<Self> {
        Some(match &raw.value {
            CertificateMatch::Spiffe(spiffe) => {
                let trust_domain = &spiffe.trust_domain;
                if let Err(error) = SpiffeId::parse(&format!("spiffe://{}", trust_domain.value)) {
                    errors.push(trust_domain, error.to_string());
                }
                for path in &spiffe.paths {
                    if let PathMatch::Exact(exact) = &path.value
                        && SpiffeId::parse(&format!("spiffe://a{exact}")).is_err()
                    {
                        errors.push(path, "not the path of a SPIFFE ID");
                    }
                }
                let paths = spiffe.paths.iter();
                Self::Spiffe {
                    trust_domain: trust_domain.value.clone(),
                    paths: paths
                        .filter_map(|path| Pattern::plan(path, errors))
                        .collect(),
                }
            }
            CertificateMatch::Uri(uri) => Self::Uri(TextMatcher::plan(uri, errors)?),
            CertificateMatch::Dns(name) => Self::Dns(Host::plan(name)),
            CertificateMatch::Subject(subject) => {
                Self::Subject(TextMatcher::plan(subject, errors)?)
            }
            CertificateMatch::Any(_) => Self::Any,
        })
    }

    fn matches(&self, facts: &Facts) -> bool {
        match self {
            Self::Spiffe {
                trust_domain,
                paths,
            } => facts.spiffe_id().is_some_and(|id| {
                id.trust_domain() == trust_domain
                    && (paths.is_empty() || paths.iter().any(|path| path.matches(id.path())))
            }),
            Self::Uri(matcher) => facts.uris.iter().any(|uri| matcher.matches(uri)),
            Self::Dns(host) => facts
                .dns_names
                .iter()
                .any(|name| host.matches(&name.to_ascii_lowercase())),
            Self::Subject(matcher) => facts
                .subject
                .as_ref()
                .is_some_and(|subject| matcher.matches(subject)),
            Self::Any => true,
        }
    }
}
