//! A proxy with three policies before an origin, its admin endpoint, and a browser.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision, Server};
use attache_ext_proc::server::{
    Body, Processor, RequestHead, ResponseHead, Result as Done, routes,
};
use attache_proxy::{Config, Proxy, Running, config::NothingEmbedded};
use attache_ratelimit::{
    RateLimitServer,
    store::{AnyStore, MemoryStore, memory},
};
use attache_service::{
    Host, Metrics, Shutdown,
    admin::{Admin, Readiness},
    config::Document,
};
use attache_tests::{
    browser::{Browser, Programs},
    h1::{Framing, Reader, write_head},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tonic::service::Routes;

const RULES: &str = "
domain: live
descriptors:
- key: user
  value: busy
  rate_limit: { unit: hour, requests_per_unit: 1 }
- key: user
  rate_limit: { unit: hour, requests_per_unit: 100000 }
";

/// Lets everybody in but for `/denied`, and says who it is.
struct Doorkeeper;

impl Authorizer for Doorkeeper {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        Ok(match request.path() {
            Some("/denied") => Decision::deny(403).body("not you\n").into(),
            Some("/hostile") => Decision::allow()
                .set("x-evil", "<img src=x onerror=alert(2)>")
                .into(),
            _ => Decision::allow()
                .set("x-user", "ada")
                .remove("x-internal")
                .response_add("x-checked", "yes")
                .into(),
        })
    }
}

/// Marks requests and responses, moves `/old`, and hides passwords in bodies.
#[derive(Clone)]
struct Marks;

impl Processor for Marks {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Done {
        if request.path() == "/old" {
            request.set_path("/new")?;
        }
        request.headers.append("x-tenant", "green")?;
        Ok(request.headers.insert("x-marked", "in")?)
    }

    async fn request_body(&mut self, body: &mut Body<'_>) -> Done {
        if let Some(whole) = body.whole()? {
            let text = String::from_utf8_lossy(&whole);
            body.replace(text.replace("hunter2", "*****"));
        }
        Ok(())
    }

    async fn response_headers(&mut self, response: &mut ResponseHead) -> Done {
        response.headers.remove("x-origin-secret")?;
        Ok(response.headers.insert("x-marked", "out")?)
    }
}

/// Serves policies in this process.
async fn serve(routes: Routes) -> String {
    let host = Host::new(routes).workers(1);
    let bound = host.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address().to_string();
    tokio::spawn(bound.serve(Shutdown::new()));
    address
}

/// An origin that answers every path, `/slow` only when its client goes.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    address
}

async fn answer(mut stream: TcpStream) {
    let (from, mut to) = stream.split();
    let mut from = Reader::new(from);
    while let Some(head) = from.head().await {
        if from
            .body(head.framing(Framing::None), |_| ())
            .await
            .is_none()
        {
            return;
        }
        let (status, body) = match head.line.split(' ').nth(1) {
            Some("/slow") => return from.closed().await,
            Some("/broken") => ("500 Broken", "broken\n"),
            Some("/binary") => ("200 OK", "\u{0}\u{1}\u{2}binary"),
            _ => ("200 OK", "hello from the origin\n"),
        };
        let headers = vec![
            (
                "content-length".to_owned(),
                body.len().to_string().into_bytes(),
            ),
            ("set-cookie".to_owned(), b"session=of-the-origin".to_vec()),
            ("x-origin-secret".to_owned(), b"between us".to_vec()),
        ];
        let mut answer = write_head(&format!("HTTP/1.1 {status}"), &headers);
        answer.extend_from_slice(body.as_bytes());
        if to.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// All of it.
pub(crate) struct Stage {
    pub(crate) proxy: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) running: Running,
    _folder: TempDir,
}

impl Stage {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("live.yaml"), RULES).unwrap();
        let metrics = Metrics::default();
        let store = AnyStore::from(MemoryStore::new(memory::DEFAULT_CAPACITY, &metrics));
        let limits = RateLimitServer::load(folder.path(), store, &metrics).unwrap();
        let config = format!(
            "
listeners: [{{ name: edge, address: '127.0.0.1:0', filters: [limits, door, marks] }}]
filters:
  limits:
    ratelimit:
      domain: live
      timeout: 10s
      failure_mode_deny: true
      enable_x_ratelimit_headers: DRAFT_VERSION_03
      rate_limit_service: {{ transport_api_version: V3, grpc_service: {{ envoy_grpc: {{ cluster_name: limits }} }} }}
      rate_limits: [{{ actions: [{{ request_headers: {{ header_name: x-limit, descriptor_key: user }} }}] }}]
  door:
    ext_authz:
      transport_api_version: V3
      grpc_service: {{ envoy_grpc: {{ cluster_name: door }}, timeout: 10s }}
  marks:
    ext_proc:
      grpc_service: {{ envoy_grpc: {{ cluster_name: marks }} }}
      message_timeout: 10s
      processing_mode: {{ request_body_mode: BUFFERED }}
routes:
- {{ name: health, match: {{ path: /healthz }}, direct_response: {{ status: 200, body: {{ inline_string: ok }} }} }}
- {{ name: main, match: {{ prefix: / }}, route: {{ cluster: web }} }}
clusters:
- {{ name: web, endpoints: ['{}'], connect_timeout: 5s }}
- {{ name: limits, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
- {{ name: door, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
- {{ name: marks, endpoints: ['{}'], http2: {{}}, connect_timeout: 5s }}
live_page: {{ mask_headers: [x-pin] }}
workers: 2
",
            origin().await,
            serve(limits.routes()).await,
            serve(Server::new(Doorkeeper).into_routes()).await,
            serve(routes(Marks)).await,
        );
        let document = Document::parse("live.yaml", &config).unwrap();
        let (_, plan) = Config::read(&document, &NothingEmbedded).unwrap();
        let running = Proxy::start(plan, metrics.clone()).await.unwrap();
        let admin = Admin::new(Readiness::default(), metrics.clone());
        let admin = admin.bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let admin = admin.part(running.live().part());
        let at = admin.address().to_string().parse().unwrap();
        tokio::spawn(admin.serve(Shutdown::new()));
        Self {
            proxy: running.addresses()[0].to_string().parse().unwrap(),
            admin: at,
            metrics,
            running,
            _folder: folder,
        }
    }

    /// Sends a request and waits for the status of its answer; 0 when there is none.
    pub(crate) async fn send(&self, line: &str, headers: &[(&str, &[u8])], body: &str) -> u16 {
        send(self.proxy, line, headers, body).await
    }

    /// The value of a gauge or counter.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.render();
        let mut lines = text.lines();
        let value = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let same = series.split('{').next() == Some(name);
            same.then(|| value.parse().unwrap())
        };
        let found = lines.find_map(value);
        found.unwrap_or_else(|| panic!("no {name}: {text}"))
    }
}

pub(crate) async fn send(to: SocketAddr, line: &str, headers: &[(&str, &[u8])], body: &str) -> u16 {
    let mut all = vec![("host".to_owned(), b"shop.example".to_vec())];
    all.extend(
        headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.to_vec())),
    );
    if !body.is_empty() {
        all.push((
            "content-length".to_owned(),
            body.len().to_string().into_bytes(),
        ));
    }
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut sent = write_head(&format!("{line} HTTP/1.1"), &all);
    sent.extend_from_slice(body.as_bytes());
    stream.write_all(&sent).await.unwrap();
    let (from, _to) = stream.split();
    let mut from = Reader::new(from);
    let Some(head) = from.head().await else {
        return 0;
    };
    from.body(head.framing(Framing::None), |_| ()).await;
    head.line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The browser's programs; nothing, said so, where they are missing.
pub(crate) fn programs(of: &str) -> Option<Programs> {
    let programs = Programs::find();
    if programs.is_none() {
        assert!(
            std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
            "Chromium and its driver are missing"
        );
        println!("skipped: {of} with a real browser (run cargo xtask test)");
    }
    programs
}

/// Somebody before the live page.
pub(crate) struct Person {
    pub(crate) browser: Browser,
    stage: std::sync::Arc<Stage>,
    runtime: tokio::runtime::Handle,
}

impl Person {
    /// Starts a stage and a browser, and lets somebody act there.
    pub(crate) async fn acts(of: &str, act: impl FnOnce(&Self) + Send + 'static) {
        let Some(programs) = programs(of) else {
            return;
        };
        let stage = std::sync::Arc::new(Stage::start().await);
        let runtime = tokio::runtime::Handle::current();
        let act = move || {
            let browser = Browser::start(&programs).unwrap();
            let person = Self {
                browser,
                stage,
                runtime,
            };
            person.browser.resize(1400, 900);
            act(&person);
        };
        tokio::task::spawn_blocking(act).await.unwrap();
    }

    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    pub(crate) fn opens_the_page(&self) {
        let url = format!("http://{}/requests", self.stage.admin);
        self.browser.visit(&url);
        self.browser
            .until("document.querySelector('#state').textContent === 'live'");
    }

    pub(crate) fn sends(&self, line: &str, headers: &[(&str, &[u8])], body: &str) -> u16 {
        self.runtime.block_on(self.stage.send(line, headers, body))
    }

    /// Sends a request and does not wait for its answer: the connection, to end it.
    pub(crate) fn begins(&self, line: &str) -> TcpStream {
        self.runtime.block_on(async {
            let mut stream = TcpStream::connect(self.stage.proxy).await.unwrap();
            let head = format!("{line} HTTP/1.1\r\nhost: shop.example\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream
        })
    }

    /// Waits for exactly these rows, the newest first, all of them over.
    pub(crate) fn sees(&self, paths: &[&str]) {
        let wanted = serde_json::to_string(paths).unwrap();
        self.browser.until(&format!(
            "JSON.stringify([...document.querySelectorAll('.row .what')].map(e => e.lastChild.textContent)) \
             === JSON.stringify({wanted}) && !document.querySelector('.row.running')"
        ));
    }

    /// Chooses in a list.
    pub(crate) fn selects(&self, list: &str, value: &str) {
        self.browser.script(&format!(
            "const e = document.querySelector('{list}'); e.value = {value:?}; \
             if (e.value !== {value:?}) throw new Error('no such choice'); \
             e.dispatchEvent(new Event('change'))"
        ));
    }

    /// Opens the request in the row of this path, and gives the text of what is shown.
    pub(crate) fn opens(&self, path: &str) -> String {
        let path = serde_json::to_string(path).unwrap();
        self.browser.script(&format!(
            "[...document.querySelectorAll('.row')].find(e => e.querySelector('.what').lastChild.textContent === {path}).click()"
        ));
        self.detail()
    }

    pub(crate) fn detail(&self) -> String {
        let text = self
            .browser
            .script("return document.querySelector('#detail').innerText");
        text.as_str().unwrap().to_owned()
    }

    /// Leaves a picture in the folder that `ATTACHE_PICTURES` names, for people to look at.
    pub(crate) fn takes_a_picture(&self, name: &str) {
        let Some(folder) = std::env::var_os("ATTACHE_PICTURES") else {
            return;
        };
        // What moves comes to rest.
        std::thread::sleep(Duration::from_millis(900));
        let picture = STANDARD.decode(self.browser.screenshot()).unwrap();
        std::fs::write(PathBuf::from(folder).join(format!("{name}.png")), picture).unwrap();
    }
}
