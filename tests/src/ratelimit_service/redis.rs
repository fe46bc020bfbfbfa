//! A real Redis.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::process::Process;
use super::service::free_port;

/// How long it may take to start.
const START: Duration = Duration::from_secs(20);

/// A running Redis; it ends with this value.
#[derive(Debug)]
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    program: PathBuf,
    folder: tempfile::TempDir,
    process: Option<Process>,
}

impl Redis {
    /// Starts the program on a free port, with nothing kept on disk.
    pub async fn start(program: &Path) -> Result<Self, String> {
        let mut redis = Self {
            address: SocketAddr::from(([127, 0, 0, 1], free_port()?)),
            program: program.to_owned(),
            folder: tempfile::tempdir().map_err(|error| error.to_string())?,
            process: None,
        };
        redis.up().await?;
        Ok(redis)
    }

    /// Starts it where it was, empty.
    pub async fn up(&mut self) -> Result<(), String> {
        let process = Process::spawn(
            Command::new(&self.program)
                .args(["--bind", "127.0.0.1"])
                .args(["--port", &self.address.port().to_string()])
                .args(["--save", "", "--appendonly", "no", "--dir"])
                .arg(self.folder.path()),
        )?;
        let start = Instant::now();
        while self.ask(&["PING"]).await.is_err() {
            if start.elapsed() > START {
                return Err(format!("Redis does not start:\n{}", process.said()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ends it.
    pub fn down(&mut self) {
        self.process = None;
    }

    /// One command; its answer as texts, a list's items one by one.
    pub async fn ask(&self, command: &[&str]) -> Result<Vec<String>, String> {
        let asked = async {
            let mut stream = BufReader::new(TcpStream::connect(self.address).await?);
            let mut message = format!("*{}\r\n", command.len());
            for word in command {
                message.push_str(&format!("${}\r\n{word}\r\n", word.len()));
            }
            stream.write_all(message.as_bytes()).await?;
            answer(&mut stream).await
        };
        let answered: std::io::Result<Vec<String>> = asked.await;
        answered.map_err(|error| format!("Redis: {command:?}: {error}"))
    }
}

async fn answer(stream: &mut BufReader<TcpStream>) -> std::io::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut left = 1_i64;
    while left > 0 {
        left -= 1;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.trim_end();
        let rest = line.get(1..).unwrap_or_default();
        let number = rest.parse::<i64>();
        match (line.chars().next(), number) {
            (Some('*'), Ok(items)) => left += items,
            (Some('$'), Ok(length)) => {
                let length = usize::try_from(length).unwrap_or_default();
                let mut text = vec![0; length + 2];
                stream.read_exact(&mut text).await?;
                text.truncate(length);
                found.push(String::from_utf8_lossy(&text).into_owned());
            }
            (Some('-'), _) | (None, _) => return Err(std::io::Error::other(line.to_owned())),
            _ => found.push(rest.to_owned()),
        }
    }
    Ok(found)
}
