//! Marks every request with a header.
//!
//! `cargo run --release --example add_header [-- ADDRESS]`, by default on 127.0.0.1:50051.
use std::process::ExitCode;

use attache_ext_proc::server::{Processor, RequestHead, Result, run};

#[derive(Clone)]
struct AddHeader;

impl Processor for AddHeader {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        Ok(request.headers.insert("x-attache", "was here")?)
    }
}

fn main() -> ExitCode {
    run(AddHeader)
}
