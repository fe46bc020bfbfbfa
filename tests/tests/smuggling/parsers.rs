//! nginx and Envoy as what stands behind our proxy: each tells the requests that it sees.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use attache_tests::{
    envoy::{self, Envoy},
    envoy_config, ours, proxies,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::emitted::Request;

/// Both, running.
pub(crate) struct Parsers {
    nginx: Nginx,
    envoy: Envoy,
}

impl Parsers {
    /// None where they are not installed.
    pub(crate) async fn start() -> Option<Self> {
        let (Some(nginx), Some(envoy)) = (nginx(), envoy::program()) else {
            assert!(std::env::var_os("ATTACHE_REQUIRE_ALL").is_none());
            println!("skipped: smuggling, read by nginx and Envoy (run cargo xtask test)");
            return None;
        };
        let config = format!(
            "
listeners:
- name: edge
  address: 127.0.0.1:0
  generate_request_id: false
  preserve_external_request_id: true
  normalize_path: false
routes: [{{ match: {{ prefix: / }}, route: {{ cluster: web }} }}]
clusters: [{{ name: web, endpoints: ['{}'], connect_timeout: 5s }}]
",
            proxies::origin().await
        );
        let (read, _) = ours::read(&config).unwrap();
        let part = envoy_config::exported(0, &read).unwrap();
        Some(Self {
            nginx: Nginx::start(&nginx).await,
            envoy: Envoy::start(&envoy, &[part]).await.unwrap(),
        })
    }

    /// The requests that each sees in the bytes of a connection.
    pub(crate) async fn read(&self, bytes: &[u8]) -> Vec<(&'static str, Vec<Request>)> {
        let (nginx, envoy) = tokio::join!(
            replay(self.nginx.at, bytes),
            replay(self.envoy.address(0).unwrap(), bytes)
        );
        vec![
            ("nginx", seen_by_nginx(&nginx)),
            ("Envoy", seen_by_envoy(&envoy)),
        ]
    }
}

/// Sends bytes as one connection, with an end; gives what comes back.
async fn replay(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    // Not closed, as Envoy forgets requests in flight then.
    let quiet = Duration::from_millis(60);
    while let Ok(Ok(1..)) = tokio::time::timeout(quiet, stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// Its answers say `seen METHOD TARGET ID`.
fn seen_by_nginx(answer: &str) -> Vec<Request> {
    let lines = answer.split("seen ").skip(1);
    lines
        .filter_map(|line| {
            let mut words = line.lines().next()?.split(' ');
            let mut next = || words.next().unwrap_or_default().to_owned();
            Some(request(next(), next(), next()))
        })
        .collect()
}

/// Behind it is an origin that answers with the head that it got.
fn seen_by_envoy(answer: &str) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for line in answer.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let [method, target, "HTTP/1.1"] = words[..] {
            let new = request(method.to_owned(), target.to_owned(), String::new());
            requests.push(new);
        } else if let Some(id) = line.strip_prefix("x-request-id: ")
            && let Some(last) = requests.last_mut()
        {
            last.id = id.to_owned();
        }
    }
    requests
}

fn request(method: String, target: String, id: String) -> Request {
    Request {
        method,
        target,
        id,
        ids: 1,
        complete: true,
    }
}

/// What `ATTACHE_NGINX` names, else what the workspace has.
fn nginx() -> Option<PathBuf> {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/nginx");
    let program = std::env::var_os("ATTACHE_NGINX").map_or_else(installed, PathBuf::from);
    program.is_file().then_some(program)
}

struct Nginx {
    process: Child,
    _folder: tempfile::TempDir,
    at: SocketAddr,
}

impl Nginx {
    async fn start(program: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
            free.local_addr().unwrap()
        };
        let path = folder.path().display();
        let config = format!(
            "
daemon off;
master_process off;
pid {path}/pid;
error_log {path}/log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {path}/body;
    proxy_temp_path {path}/proxy;
    fastcgi_temp_path {path}/fastcgi;
    uwsgi_temp_path {path}/uwsgi;
    scgi_temp_path {path}/scgi;
    large_client_header_buffers 8 64k;
    server {{
        listen {at};
        location / {{ return 200 'seen $request_method $request_uri $http_x_request_id\\n'; }}
    }}
}}
"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, config).unwrap();
        let process = Command::new(program)
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self {
            process,
            _folder: folder,
            at,
        };
        let ready = async {
            while TcpStream::connect(at).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let ready = tokio::time::timeout(crate::PATIENCE, ready).await;
        ready.expect("nginx starts");
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
