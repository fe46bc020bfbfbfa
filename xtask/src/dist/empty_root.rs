//! Trying the program where there is nothing else: in a root of its own, as a user without rights.
//!
//! A proxy runs there, with an origin that it knows by `localhost` and by a name that only a DNS
//! server of ours knows, and `nsswitch.conf` asks for a module that a static program cannot have.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::process;

/// The name that our DNS server knows.
const NAME: &str = "origin.attache.test";
/// What the origin answers.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
/// How long the proxy may take to start, to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The group and user of the image.
const USER: &str = "--userspec=65532:65532";

/// Tries `program` in a root below `folder`; gives what was seen.
pub(super) fn try_in(folder: &Path, program: &Path) -> Result<String, String> {
    // Only root may change the root, and listen where DNS servers do.
    if process::output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Ok("not tried in an empty root: only root can".to_owned());
    }
    let root = Root::new(folder.join(format!(".root-{}", std::process::id())))?;
    let origin = origin()?;
    let server = name_server()?;
    root.fill(program, origin, server)?;
    process::output(&mut root.command(&["check", "/attache.yaml"]))?;
    let mut proxy = Proxy::start(&root)?;
    root.wait_until_ready(&mut proxy)?;
    for path in ["/localhost", "/name"] {
        let answer = root.get(path).map_err(|why| format!("{path}: {why}"))?;
        if !answer.starts_with("HTTP/1.1 200") || !answer.ends_with("hello") {
            return Err(format!("in an empty root, {path} is answered:\n{answer}"));
        }
    }
    proxy.stop()?;
    Ok(format!(
        "in an empty root it checks, runs, is ready, resolves `localhost` and `{NAME}`, and stops"
    ))
}

/// A folder that is the whole world to the program; goes away with its value.
struct Root(PathBuf);

impl Root {
    fn new(path: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(path.join("etc")).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Self(path))
    }

    /// Puts in the program and its configuration, and what says how names are resolved.
    fn fill(&self, program: &Path, origin: u16, server: Ipv4Addr) -> Result<(), String> {
        let config = format!(
            "listeners: [{{ name: edge, address: \"unix:/edge.sock\" }}]
routes:
- {{ match: {{ path: /localhost }}, route: {{ cluster: localhost }} }}
- {{ match: {{ path: /name }}, route: {{ cluster: name }} }}
clusters:
- {{ name: localhost, endpoints: [\"localhost:{origin}\"] }}
- {{ name: name, endpoints: [\"{NAME}:{origin}\"] }}
admin: unix:/admin.sock
"
        );
        let files = [
            ("attache.yaml", config),
            ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
            ("etc/resolv.conf", format!("nameserver {server}\n")),
            (
                "etc/nsswitch.conf",
                "hosts: files resolve [!UNAVAIL=return] dns\n".to_owned(),
            ),
        ];
        let filled = files
            .iter()
            .try_for_each(|(name, text)| fs::write(self.0.join(name), text))
            .and_then(|()| fs::copy(program, self.0.join("attache")).map(|_| ()))
            // The user makes its sockets here.
            .and_then(|()| fs::set_permissions(&self.0, fs::Permissions::from_mode(0o777)));
        filled.map_err(|why| format!("{}: {why}", self.0.display()))
    }

    /// The program in this root.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(USER).arg(&self.0).arg("/attache").args(args);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    fn wait_until_ready(&self, proxy: &mut Proxy) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let ready = self.command(&["ready", "--admin", "unix:/admin.sock"]);
            match process::output(&mut { ready }) {
                Ok(_) => return Ok(()),
                Err(why) if begin.elapsed() > PATIENCE || proxy.has_ended() => {
                    return Err(format!("in an empty root: {why}"));
                }
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(self.0.join("edge.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // What can't be removed is only clutter inside target/.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The proxy that runs; ended with its value.
struct Proxy(Child);

impl Proxy {
    fn start(root: &Root) -> Result<Self, String> {
        let mut command = root.command(&["--log", "warn", "run", "/attache.yaml"]);
        let child = command.stdin(Stdio::null()).spawn();
        child
            .map(Self)
            .map_err(|why| format!("cannot start chroot: {why}"))
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// Asks it to stop; an error unless it ends well.
    fn stop(mut self) -> Result<(), String> {
        process::output(Command::new("kill").arg(self.0.id().to_string()))?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            match self.0.try_wait().map_err(|why| why.to_string())? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("in an empty root it ends with {status}")),
                None => thread::sleep(Duration::from_millis(20)),
            }
        }
        Err("in an empty root it does not stop".to_owned())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It has ended, or ends for good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An origin that answers everything alike; gives its port.
fn origin() -> Result<u16, String> {
    let cannot = |why| format!("no origin: {why}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(cannot)?;
    let port = listener.local_addr().map_err(cannot)?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            let _head = stream.read(&mut [0; 4096]);
            // A client that is gone misses nothing.
            let _ = stream.write_all(ANSWER.as_bytes());
        }
    });
    Ok(port)
}

/// A DNS server that knows one name; gives its address, on the port of such servers.
fn name_server() -> Result<Ipv4Addr, String> {
    let (socket, address) = (1..255)
        .map(|last| Ipv4Addr::new(127, 53, 0, last))
        .find_map(|address| match UdpSocket::bind((address, 53)) {
            Ok(socket) => Some(Ok((socket, address))),
            Err(why) if why.kind() == ErrorKind::AddrInUse => None,
            Err(why) => Some(Err(format!("no DNS server: {why}"))),
        })
        .unwrap_or_else(|| Err("no DNS server: all addresses are taken".to_owned()))?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = question.get(..length).and_then(resolved) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(address)
}

/// The answer to a question (RFC 1035, 4.1): 127.0.0.1 for our name, no address of another kind,
/// no other name.
fn resolved(question: &[u8]) -> Option<Vec<u8>> {
    let (id, asked) = (question.get(..2)?, question.get(12..)?);
    let end = asked.iter().position(|byte| *byte == 0)?;
    let (name, kind) = (asked.get(..end)?, asked.get(end + 1..end + 3)?);
    let ours = name == labels(NAME);
    let found = ours && kind == [0, 1];
    let status = if ours { 0x80 } else { 0x83 };
    let mut answer = id.to_vec();
    // An answer, with recursion; one question, as many answers as there are, nothing else.
    answer.extend([0x81, status, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(asked.get(..end + 5)?);
    if found {
        // The name of the question, A, IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}

/// A name as DNS writes it, without the end.
fn labels(name: &str) -> Vec<u8> {
    let mut labels = Vec::new();
    for label in name.split('.') {
        labels.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        labels.extend(label.bytes());
    }
    labels
}
