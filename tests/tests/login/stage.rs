//! A page behind each proxy, for which a browser has to sign in at the provider.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use attache_ext_authz::{
    policy::{AuthService, Reload},
    server,
};
use attache_service::{Host, Metrics, Shutdown};
use attache_tests::{
    envoy::{self, Envoy},
    envoy_config,
    ours::{self, RunningProxy},
};
use tempfile::TempDir;

use crate::{
    http::{Message, serve},
    provider::{CLIENT, Client, Provider, SECRET},
};

/// A file's worth of key.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";

/// What a test sets up; it ends with this value.
pub(crate) struct Stage {
    pub(crate) provider: Provider,
    /// By what they are called.
    pub(crate) proxies: Vec<(&'static str, SocketAddr)>,
    pub(crate) metrics: Metrics,
    pub(crate) service: AuthService,
    _ours: RunningProxy,
    _envoy: Option<Envoy>,
    folder: TempDir,
}

/// How a stage is set up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// More settings of the sign-in.
    pub(crate) login: &'static str,
    /// Settings of sessions beside their keys.
    pub(crate) session: &'static str,
    pub(crate) client: Option<Client>,
    /// Both proxies serve HTTPS.
    pub(crate) tls: bool,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let provider = Provider::start().await;
        let client = settings.client.unwrap_or(Client::Basic);
        provider.behave(|behaviour| behaviour.client = client);
        let secret = match client {
            Client::Basic => "client_secret: { file: client.secret }",
            Client::Post => {
                "client_secret: { file: client.secret }, client_authentication: client_secret_post"
            }
            Client::Public => "scopes: [email]",
        };
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("session.keys", KEY);
        write("client.secret", &format!("{SECRET}\n"));
        let issuer = provider.issuer();
        let Settings { login, session, .. } = settings;
        let auth = format!(
            "
identity:
- name: people
  oidc_login: {{ issuer: '{issuer}', client_id: {CLIENT}, {secret}, {login}
                session: {{ keys_file: session.keys, {session} }} }}
- {{ name: anyone, anonymous: {{}} }}
rules:
- {{ name: open, action: allow, paths: [{{ prefix: /public }}], identity: [people, anyone] }}
- {{ name: closed, action: deny, paths: [{{ prefix: /closed }}] }}
- {{ name: known, action: allow }}
upstream_headers:
  x-user: {{ claim: sub }}
  x-email: {{ claim: email }}
  x-groups: {{ claim: groups }}
"
        );
        write("auth.yaml", &auth);
        let metrics = Metrics::default();
        let service = AuthService::load(&folder.path().join("auth.yaml"), &metrics)
            .unwrap_or_else(|errors| panic!("{errors}\n{auth}"));
        tokio::time::timeout(Duration::from_secs(20), service.ready())
            .await
            .unwrap();
        let host = Host::new(server::routes(service.clone())).workers(1);
        let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = bound.address().to_string();
        tokio::spawn(bound.serve(Shutdown::new()));

        let tls = match settings.tls {
            true => certificate(folder.path()),
            false => String::new(),
        };
        let config = format!(
            "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [policy] {tls} }}]
filters:
  policy:
    ext_authz:
      transport_api_version: V3
      grpc_service: {{ envoy_grpc: {{ cluster_name: service }}, timeout: 10s }}
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: service, endpoints: ['{address}'], http2: {{}}, connect_timeout: 5s }}
workers: 1
",
            origin().await
        );
        let (read, _) = ours::read(&config).unwrap();
        let ours = ours::start_ours(&config).await.unwrap();
        let mut proxies = vec![("ours", ours.address)];
        let mut envoy = None;
        match envoy::program() {
            None => println!("skipped: browsers sign in through Envoy (run cargo xtask test)"),
            Some(program) => {
                let part = envoy_config::exported(0, &read).unwrap();
                let running = Envoy::start(&program, &[part]).await.unwrap();
                proxies.push(("Envoy", running.address(0).unwrap()));
                envoy = Some(running);
            }
        }
        Self {
            provider,
            proxies,
            metrics,
            service,
            _ours: ours,
            _envoy: envoy,
            folder,
        }
    }

    pub(crate) fn keys_file(&self) -> PathBuf {
        self.folder.path().join("session.keys")
    }

    /// Replaces the keys of sessions.
    pub(crate) fn write_keys(&self, keys: &str) {
        fs::write(self.keys_file(), keys).unwrap();
        assert!(matches!(self.service.reload(), Ok(Reload::Done)));
    }
}

/// A page that shows what the upstream was sent: `<title>` has the path.
async fn origin() -> SocketAddr {
    serve(|request: Message| async move {
        let mut text = String::new();
        for (name, value) in &request.headers {
            text.push_str(&format!("{name}: {value}\n"));
        }
        Message::page(
            200,
            format!(
                "<title>{}</title><pre>{}</pre>",
                request.target(),
                text.replace('<', "&lt;")
            ),
        )
        .with("cache-control", "no-store")
    })
    .await
}

/// The listener's TLS settings, with a certificate made now.
fn certificate(folder: &Path) -> String {
    let names = vec!["127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let certificate = write("tls.crt", made.cert.pem());
    let key = write("tls.key", made.signing_key.serialize_pem());
    format!(", tls: {{ certificate: '{certificate}', private_key: '{key}' }}")
}
