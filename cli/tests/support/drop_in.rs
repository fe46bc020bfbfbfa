//! The rate limit service as the environment alone has it.

use std::{net::SocketAddr, process::Command};

use super::{Process, attache, http};

/// A service and where it listens.
pub struct Service {
    pub process: Process,
    pub http: SocketAddr,
    pub debug: SocketAddr,
    pub grpc: String,
}

/// The command in an environment of these variables, all ports chosen by the system.
pub fn command(mut command: Command, variables: &[(&str, &str)]) -> Command {
    command.env_clear();
    for (name, value) in [
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("DEBUG_HOST", "127.0.0.1"),
        ("DEBUG_PORT", "0"),
        ("GRPC_HOST", "127.0.0.1"),
        ("GRPC_PORT", "0"),
        ("BACKEND_TYPE", "memory"),
        ("USE_STATSD", "false"),
        ("LOG_LEVEL", "info"),
    ] {
        command.env(name, value);
    }
    command.envs(variables.iter().copied());
    command
}

impl Service {
    pub fn start(command: &mut Command) -> Self {
        let process = Process::spawn(command);
        let at = |what: &str| {
            let line = process.wait_for(&format!("Listening for {what} on"), 1);
            line.rsplit('\'').nth(1).unwrap().to_owned()
        };
        Self {
            http: at("HTTP").parse().unwrap(),
            debug: at("debug").parse().unwrap(),
            grpc: at("gRPC"),
            process,
        }
    }

    pub fn with(variables: &[(&str, &str)]) -> Self {
        Self::start(&mut command(attache(&["ratelimit"]), variables))
    }

    pub async fn page(&self, at: SocketAddr, path: &str) -> (u16, String) {
        let answer = http::get(at, path, &[]).await;
        (answer.status.as_u16(), answer.body)
    }

    pub async fn healthy(&self) -> bool {
        self.page(self.http, "/healthcheck").await == (200, "OK".to_owned())
    }
}
