//! Restarts that lose no connection, systemd, and what happens when files run out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    process::Stdio,
};

use support::{
    PATIENCE, Process, attache, free_port,
    load::{Client, Load},
};

/// A proxy that answers by itself, and its admin page.
fn config(folder: &Path, address: &str, admin: u16, answer: &str) -> PathBuf {
    let file = folder.join("attache.yaml");
    let text = format!(
        "
listeners: [{{ name: web, address: '{address}' }}]
routes: [{{ match: {{ prefix: / }}, direct_response: {{ status: 200, body: {{ inline_string: {answer} }} }} }}]
admin: 127.0.0.1:{admin}
"
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn restarts_with_a_handover_lose_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let (port, admin) = (free_port(), free_port());
    let file = config(folder.path(), &format!("127.0.0.1:{port}"), admin, "one");
    let handover = folder.path().join("handover.sock");
    let start = |workers: &str| {
        Process::attache(&[
            "run",
            file.to_str().unwrap(),
            "--workers",
            workers,
            "--handover",
            handover.to_str().unwrap(),
        ])
    };
    let mut running = start("2");
    running.wait_for("admin page", 1);
    let load = Load::start(([127, 0, 0, 1], port).into());
    load.more(100);
    // More and fewer workers than sockets that are handed over.
    for workers in ["2", "1", "3", "2"] {
        let successor = start(workers);
        successor.wait_for("admin page", 1);
        assert!(running.ended().success(), "{}", running.text());
        running = successor;
        load.more(100);
    }
    assert_eq!(load.failures(), Vec::<String>::new());
    let mut page = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    page.write_all(b"GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    page.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
        "{answer}"
    );
}

#[test]
fn a_successor_with_a_wrong_configuration_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let file = config(
        folder.path(),
        &format!("127.0.0.1:{port}"),
        free_port(),
        "one",
    );
    let handover = folder.path().join("handover.sock");
    let handover = handover.to_str().unwrap();
    let running = Process::attache(&["run", file.to_str().unwrap(), "--handover", handover]);
    running.wait_for("admin page", 1);
    let wrong = folder.path().join("wrong.yaml");
    // An address of nobody here.
    std::fs::write(
        &wrong,
        format!(
            "listeners: [{{ name: a, address: '127.0.0.1:{port}' }}, {{ name: b, address: '192.0.2.1:1' }}]"
        ),
    )
    .unwrap();
    let ended = support::outcome(&["run", wrong.to_str().unwrap(), "--handover", handover]);
    assert_ne!(ended.code(), 0);
    assert!(ended.stderr().contains("192.0.2.1:1"), "{}", ended.stderr());
    running.wait_for("did not start", 1);
    let mut client = Client::connect(([127, 0, 0, 1], port).into()).unwrap();
    assert_eq!(client.ask().unwrap().0, "one");
}

/// Starts the command with a socket as systemd hands it over.
fn activated(socket: &TcpListener, file: &Path) -> Process {
    let mut command = attache(&[]);
    let program = command.get_program().to_owned();
    command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            "exec 3<&0; exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web \"$0\" run \"$1\"",
        ])
        .arg(program)
        .arg(file);
    let descriptor = OwnedFd::from(socket.try_clone().unwrap());
    Process::spawn_reading(&mut command, Stdio::from(descriptor))
}

#[test]
fn connections_to_a_socket_of_systemd_wait_while_we_restart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let file = config(folder.path(), "systemd:web", free_port(), "first");
    let mut first = activated(&socket, &file);
    first.wait_for("admin page", 1);
    assert_eq!(first.socket(), at);
    assert_eq!(Client::connect(at).unwrap().ask().unwrap().0, "first");
    first.signal("TERM");
    assert!(first.ended().success());

    // Nobody is there, and still nobody is refused.
    let mut waiting = Client::connect(at).unwrap();
    let file = config(folder.path(), "systemd:web", free_port(), "second");
    let _second = activated(&socket, &file);
    assert_eq!(waiting.ask().unwrap().0, "second");
}

#[test]
fn systemd_is_told_the_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("told");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let file = config(folder.path(), "127.0.0.1:0", free_port(), "one");
    let mut command = attache(&["run", file.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", &path);
    let mut process = Process::spawn(&mut command);
    assert!(told().starts_with("READY=1\n"));
    process.signal("HUP");
    assert!(told().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    assert!(told().starts_with("READY=1\n"));
    process.signal("TERM");
    assert_eq!(told(), "STOPPING=1");
    assert!(process.ended().success());
}

#[test]
fn when_files_run_out_connections_wait_and_the_log_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let admin = free_port();
    let file = config(folder.path(), "127.0.0.1:0", admin, "one");
    let program = attache(&[]).get_program().to_owned();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -n 64; exec \"$0\" run \"$1\" --workers 1"])
        .arg(program)
        .arg(&file);
    let process = Process::spawn(&mut command);
    process.wait_for("admin page", 1);
    let at = process.socket();
    let mut clients: Vec<Client> = (0..80).map(|_| Client::connect(at).unwrap()).collect();
    process.wait_for("cannot accept connections", 1);
    // The last ones are served once others have gone.
    let mut last = clients.split_off(40);
    drop(clients);
    for client in &mut last {
        assert_eq!(client.ask().unwrap().0, "one");
    }
    drop(last);
    assert_eq!(Client::connect(at).unwrap().ask().unwrap().0, "one");
    process.wait_for("accepted again", 1);
    assert_eq!(
        process.text().matches("cannot accept connections").count(),
        1
    );
    let mut page = TcpStream::connect(("127.0.0.1", admin)).unwrap();
    page.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut metrics = String::new();
    page.read_to_string(&mut metrics).unwrap();
    let line = metrics
        .lines()
        .find(|line| line.starts_with("attache_downstream_accept_failures_total{"));
    let count: u64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count > 0, "{metrics}");
}
