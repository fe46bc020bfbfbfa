//! Redis servers of our own.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A Redis of our own on a free port, ended when dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    pub(crate) directory: tempfile::TempDir,
    program: PathBuf,
    options: Vec<String>,
}

impl Server {
    /// `None` when there is no Redis on this machine.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// With options of its command line.
    pub(crate) async fn start_with(options: &[&str]) -> Option<Self> {
        let Some(program) = program() else {
            assert!(
                std::env::var("ATTACHE_REQUIRE_ALL").as_deref() != Ok("1"),
                "there is no redis-server on this machine"
            );
            println!("skipped: there is no redis-server on this machine");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = spawn(&program, port, directory.path(), &options);
        let server = Self {
            process,
            port,
            directory,
            program,
            options,
        };
        server.wait().await;
        Some(server)
    }

    /// A sentinel with this configuration file, which it writes to.
    pub(crate) async fn sentinel(port: u16, config: &Path) -> Self {
        let program = program().unwrap();
        let mut command = Command::new(&program);
        command.arg(config).arg("--sentinel").stdout(Stdio::null());
        let sentinel = Self {
            process: command.spawn().unwrap(),
            port,
            directory: tempfile::tempdir().unwrap(),
            program,
            options: Vec::new(),
        };
        sentinel.wait().await;
        sentinel
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn wait(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
                let answer = redis::cmd("PING").exec_async(&mut connection).await;
                // Not everybody may ask.
                if answer.is_ok() || !self.options.is_empty() {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "redis-server does not come up");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// How often Redis has carried out a command.
    pub(crate) async fn calls(&self, command: &str) -> u64 {
        let mut connection = self.connection().await;
        let text: String = redis::cmd("INFO")
            .arg("commandstats")
            .query_async(&mut connection)
            .await
            .unwrap();
        let line = format!("cmdstat_{command}:calls=");
        text.lines()
            .find_map(|text| text.strip_prefix(&line))
            .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.process = spawn(
            &self.program,
            self.port,
            self.directory.path(),
            &self.options,
        );
        self.wait().await;
    }

    pub(crate) fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead in some tests.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/redis-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let given = std::env::var_os("ATTACHE_REDIS").map(PathBuf::from);
    given
        .into_iter()
        .chain([tools])
        .chain(std::env::split_paths(&path).map(|directory| directory.join("redis-server")))
        .find(|program| program.is_file())
}

/// Free a moment ago; another process taking it shows as a failure to start. Room is left for the
/// bus port of a cluster node, 10,000 above.
pub(crate) fn free_port() -> u16 {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        if port < 55_000 {
            return port;
        }
    }
}

fn spawn(program: &Path, port: u16, directory: &Path, options: &[String]) -> Child {
    Command::new(program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .args(options)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
