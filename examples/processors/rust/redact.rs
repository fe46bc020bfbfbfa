//! Hides a word in bodies, also where it is cut by the borders of pieces. Works in every body
//! mode.
//!
//! `cargo run --release --example redact [-- ADDRESS]`, by default on 127.0.0.1:50051.
use std::process::ExitCode;

use attache_ext_proc::server::{Body, Processor, Result, run};

const SECRET: &[u8] = b"secret";

#[derive(Clone)]
struct Redact;

impl Processor for Redact {
    async fn request_body(&mut self, body: &mut Body<'_>) -> Result {
        redact(body);
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        redact(body);
        Ok(())
    }
}

fn redact(body: &mut Body<'_>) {
    let mut data = body.take();
    while let Some(at) = data.windows(SECRET.len()).position(|text| text == SECRET) {
        body.push(data.split_to(at));
        body.push("******");
        data = data.split_off(SECRET.len());
    }
    // The end may be the beginning of the word: the next piece comes after it.
    let begun = (1..SECRET.len()).rfind(|n| data.ends_with(&SECRET[..*n]));
    if let Some(begun) = begun.filter(|_| !body.is_last()) {
        body.hold(data.split_off(data.len() - begun));
    }
    body.push(data);
}

fn main() -> ExitCode {
    run(Redact)
}
