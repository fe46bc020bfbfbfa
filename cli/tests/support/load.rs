//! Clients that ask while something else happens.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{PATIENCE, eventually};

/// One HTTP/1.1 connection.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Asks, and reads the whole response, which is a good one: its body, and whether the connection
    /// may be used again.
    pub fn ask(&mut self) -> std::io::Result<(String, bool)> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        if !head.starts_with("http/1.1 200 ") {
            return Err(std::io::Error::other(head));
        }
        let kept = !head.contains("connection: close");
        Ok((String::from_utf8(body).unwrap(), kept))
    }
}

/// Clients that ask all the time, some on kept connections; anything but an answer is a failure.
pub struct Load {
    done: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(to: SocketAddr) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients = (0..6)
            .map(|nth| {
                let (done, answered) = (done.clone(), answered.clone());
                let keeps = nth % 2 == 0;
                std::thread::spawn(move || {
                    let mut failures = Vec::new();
                    let mut kept: Option<Client> = None;
                    while !done.load(Ordering::Relaxed) {
                        let asked = kept.take().map_or_else(|| Client::connect(to), Ok);
                        let asked = asked.and_then(|mut client| {
                            let (_, again) = client.ask()?;
                            Ok((keeps && again).then_some(client))
                        });
                        match asked {
                            Ok(client) => {
                                kept = client;
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => failures.push(error.to_string()),
                        }
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    failures
                })
            })
            .collect();
        Self {
            done,
            answered,
            clients,
        }
    }

    /// Waits for so many further answers.
    pub fn more(&self, count: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + count;
        eventually("answers", || {
            (self.answered.load(Ordering::Relaxed) >= wanted).then_some(())
        });
    }

    /// Ends; gives what was no answer.
    pub fn failures(self) -> Vec<String> {
        self.done.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        clients.flat_map(|client| client.join().unwrap()).collect()
    }
}
