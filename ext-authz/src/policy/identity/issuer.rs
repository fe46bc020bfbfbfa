//! An OpenID provider by its name: where its endpoints are and which keys it signs with
//! ([OpenID Connect Discovery 1.0]).
//!
//! [OpenID Connect Discovery 1.0]: https://openid.net/specs/openid-connect-discovery-1_0.html

use std::sync::Arc;

use attache_service::{
    config::{ConfigValue as _, Located, Spanned as _},
    fetch::{Fetched, Fetcher, HttpService, Validators},
};
use serde::Deserialize;

use super::jwks::KeySet;
use crate::policy::{
    config::Discovery,
    follow::{Brought, Fetch, Followed},
    identity::refresh::Freshness,
    planning::Planning,
};

/// What is known of an issuer.
#[derive(Debug)]
pub(in crate::policy) struct Provider {
    pub(in crate::policy) metadata: Arc<Metadata>,
    pub(in crate::policy) keys: KeySet,
}

/// An issuer's own description, as far as it is used here.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::policy) struct Metadata {
    pub(in crate::policy) issuer: String,
    pub(in crate::policy) jwks_uri: String,
    pub(in crate::policy) authorization_endpoint: Option<String>,
    pub(in crate::policy) token_endpoint: Option<String>,
    pub(in crate::policy) userinfo_endpoint: Option<String>,
    pub(in crate::policy) introspection_endpoint: Option<String>,
    pub(in crate::policy) end_session_endpoint: Option<String>,
    pub(in crate::policy) revocation_endpoint: Option<String>,
    /// Whether its answers through browsers name it (RFC 9207).
    #[serde(default)]
    pub(in crate::policy) authorization_response_iss_parameter_supported: bool,
}

/// An issuer whose description and keys are fetched and kept fresh.
#[derive(Debug)]
pub(in crate::policy) struct Issuer {
    provider: Arc<Followed<Provider>>,
    fetcher: Fetcher,
    freshness: Freshness,
}

impl Issuer {
    /// Has it fetched for the source `name`; the policy waits for it. `None` when the settings
    /// are wrong; why, is reported.
    pub(in crate::policy) fn plan(
        name: &str,
        issuer: &Located<String>,
        raw: &Discovery,
        freshness: Freshness,
        planning: &mut Planning<'_>,
    ) -> Option<Self> {
        let url = raw.url.clone().unwrap_or_else(|| Located {
            // OpenID Connect Discovery §4.1.
            value: format!(
                "{}/.well-known/openid-configuration",
                issuer.value.trim_end_matches('/')
            ),
            span: issuer.span().clone(),
        });
        let service = HttpService {
            ca: raw.ca.clone(),
            timeout: raw.timeout.clone(),
            ..HttpService::at(url)
        };
        let fetcher = planning.fetcher(&service, HttpService::MAX_SIZE)?;
        let settings = service.encode().unwrap_or_default();
        let kept = format!("issuer {name} {} {settings}", issuer.value);
        let provider = planning.kept(kept, Followed::<Provider>::default);
        let hold = provider.value().is_none().then(|| {
            let what = format!("the keys of `{name}` from {}", fetcher.url());
            planning.gate.hold(what)
        });
        let discovery = Discover {
            issuer: issuer.value.clone(),
            fetcher: fetcher.clone(),
            metadata_known: Validators::default(),
            keys_known: Validators::default(),
        };
        let follower = freshness.follower(name, hold, planning);
        planning.run(Box::pin(provider.clone().follow(discovery, follower)));
        Some(Self {
            provider,
            fetcher,
            freshness,
        })
    }

    /// What was last fetched, if it is there.
    pub(in crate::policy) fn provider(&self) -> Option<Arc<Provider>> {
        self.provider.value().clone()
    }

    /// Looks at its keys, if they are there.
    pub(in crate::policy) fn with_keys<R>(&self, look: impl FnOnce(Option<&KeySet>) -> R) -> R {
        look(
            self.provider
                .value()
                .as_deref()
                .map(|provider| &provider.keys),
        )
    }

    /// Has its keys fetched again since one is missing, rarely enough, and waits a little for
    /// them. Says whether they were.
    pub(in crate::policy) async fn renewed(&self) -> bool {
        self.freshness.renewed(&self.provider).await
    }

    /// Asks the issuer; for its endpoints see [`Fetcher::beside`].
    pub(in crate::policy) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }
}

struct Discover {
    issuer: String,
    fetcher: Fetcher,
    metadata_known: Validators,
    keys_known: Validators,
}

impl Fetch for Discover {
    type Value = Provider;

    async fn fetch(&mut self, current: Option<&Provider>) -> Result<Brought<Provider>, String> {
        if current.is_none() {
            self.metadata_known = Validators::default();
            self.keys_known = Validators::default();
        }
        let fetched = self.fetcher.fetch(&self.metadata_known).await;
        let metadata = match (fetched.map_err(|error| error.to_string())?, current) {
            (Fetched::Document(document), _) => {
                let metadata = self.read(&document.body)?;
                self.metadata_known = document.validators;
                Arc::new(metadata)
            }
            (Fetched::Same { .. }, Some(current)) => current.metadata.clone(),
            (Fetched::Same { .. }, None) => return Err("nothing is known yet".to_owned()),
        };
        let moved = current.is_none_or(|current| current.metadata.jwks_uri != metadata.jwks_uri);
        if moved {
            self.keys_known = Validators::default();
        }
        let keys = self.fetcher.beside(&metadata.jwks_uri);
        let keys = keys.map_err(|error| format!("`jwks_uri`: {error}"))?;
        let fetched = keys.fetch(&self.keys_known).await;
        let (keys, fresh_for) = match (fetched.map_err(|error| error.to_string())?, current) {
            (Fetched::Document(document), _) => {
                let set = KeySet::parse(&document.body)
                    .map_err(|problem| format!("{}: {problem}", keys.url()))?;
                self.keys_known = document.validators;
                (set, document.fresh_for)
            }
            (Fetched::Same { fresh_for }, Some(current)) => (current.keys.clone(), fresh_for),
            (Fetched::Same { .. }, None) => return Err("nothing is known yet".to_owned()),
        };
        let same = current.is_some_and(|current| {
            current.keys.revision() == keys.revision() && current.metadata == metadata
        });
        Ok(Brought {
            value: (!same).then_some(Provider { metadata, keys }),
            fresh_for,
        })
    }
}

impl Discover {
    fn read(&self, body: &[u8]) -> Result<Metadata, String> {
        let url = self.fetcher.url();
        let metadata: Metadata = serde_json::from_slice(body)
            .map_err(|error| format!("{url}: not an issuer's description: {error}"))?;
        // OpenID Connect Discovery §4.3: exactly, or another issuer's keys would count here.
        if metadata.issuer != self.issuer {
            return Err(format!(
                "{url} describes the issuer `{}`, not `{}`",
                metadata.issuer, self.issuer
            ));
        }
        Ok(metadata)
    }
}
