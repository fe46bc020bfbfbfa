//! The auth service behind both proxies.

use std::{fs, future::Future, net::SocketAddr, time::Duration};

use attache_ext_authz::{
    policy::AuthService,
    server::{self, Authorizer, CheckError, CheckRequestView, Decision, Server},
};
use attache_service::{Host, Metrics, Shutdown};
use attache_tests::{
    proxies::{Answer, Proxies, origin},
    tls,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::service::Routes;

/// What a test sets up; it ends with this value.
pub(crate) struct Stage {
    pub(crate) metrics: Metrics,
    pub(crate) service: AuthService,
    pub(crate) folder: TempDir,
    proxies: Proxies,
}

/// How a stage is set up.
pub(crate) struct Settings<'a> {
    /// Files beside the configuration.
    pub(crate) files: &'a [(&'a str, &'a str)],
    /// More settings of the listener. `<tls>` is the folder with certificates.
    pub(crate) listener: &'a str,
    pub(crate) routes: &'a str,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            files: &[],
            listener: "",
            routes: "[{ match: { prefix: / }, route: { cluster: web } }]",
        }
    }
}

impl Stage {
    pub(crate) async fn new(auth: &str) -> Self {
        Self::with(auth, Settings::default()).await
    }

    /// Starts an auth service of this configuration and both proxies that ask it: the filter
    /// `policy`. After it comes a witness of the dynamic metadata.
    pub(crate) async fn with(auth: &str, settings: Settings<'_>) -> Self {
        let tls = tls::folder().unwrap().display().to_string();
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in settings.files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let file = folder.path().join("auth.yaml");
        fs::write(&file, auth.replace("<tls>", &tls)).unwrap();
        let metrics = Metrics::default();
        let service = AuthService::load(&file, &metrics);
        let service = service.unwrap_or_else(|errors| panic!("{errors}\n{auth}"));
        let ready = tokio::time::timeout(Duration::from_secs(20), service.ready());
        ready.await.unwrap();
        let config = format!(
            "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [policy, witness] {} }}]
filters:
  policy:
    ext_authz:
      transport_api_version: V3
      include_peer_certificate: true
      with_request_body: {{ max_request_bytes: 65536, pack_as_bytes: true }}
      grpc_service: {{ envoy_grpc: {{ cluster_name: service }}, timeout: 10s }}
  witness:
    ext_authz:
      transport_api_version: V3
      metadata_context_namespaces: [envoy.filters.http.ext_authz]
      grpc_service: {{ envoy_grpc: {{ cluster_name: witness }}, timeout: 10s }}
routes: {}
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: service, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
- {{ name: witness, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
",
            settings.listener.replace("<tls>", &tls),
            settings.routes,
            origin().await,
            serve(server::routes(service.clone())).await,
            serve(Server::new(Witness).into_routes()).await,
        );
        Self {
            proxies: Proxies::run(&config, |_| ()).await,
            metrics,
            service,
            folder,
        }
    }

    /// Both proxies by what they are called.
    pub(crate) fn proxies(&self) -> &[(&'static str, SocketAddr)] {
        &self.proxies.addresses
    }

    /// What this counter says.
    pub(crate) fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

async fn serve(routes: Routes) -> String {
    let host = Host::new(routes).workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address().to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    address
}

/// Tells the upstream, in the header `x-witness`, what dynamic metadata it was shown.
struct Witness;

impl Authorizer for Witness {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let shown: Option<Value> = request.metadata_as("envoy.filters.http.ext_authz");
        let decision = Decision::allow();
        Ok(match shown {
            Some(shown) => decision.set("x-witness", shown.to_string()).into(),
            None => decision.into(),
        })
    }
}

/// What the upstream got in this header: its lines.
pub(crate) fn upstream<'a>(answer: &'a Answer, name: &str) -> Vec<&'a str> {
    let lines = answer.body.lines();
    lines
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .collect()
}

/// What the witness was shown, without what the proxy itself says of the check.
pub(crate) fn witnessed(answer: &Answer) -> Value {
    let lines = upstream(answer, "x-witness");
    let Some(shown) = lines.first() else {
        return Value::Null;
    };
    let mut shown: Value = serde_json::from_str(shown).unwrap();
    shown.as_object_mut().unwrap().remove("ext_authz_duration");
    shown
}

/// Waits until something holds that comes about elsewhere.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    waited.unwrap_or_else(|_| panic!("it did not come about: {what}"));
}
