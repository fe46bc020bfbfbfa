//! Adds a field to JSON responses. Works in every body mode that shows the whole body.
//!
//! `cargo run --release --example rewrite_json [-- ADDRESS]`, by default on 127.0.0.1:50051.
use std::process::ExitCode;

use attache_ext_proc::server::{Body, Processor, ResponseHead, Result, run};
use serde_json::{Map, Value};

#[derive(Clone, Default)]
struct RewriteJson {
    is_json: bool,
}

impl Processor for RewriteJson {
    async fn response_headers(&mut self, response: &mut ResponseHead) -> Result {
        self.is_json = response.headers.is_json();
        Ok(())
    }

    async fn response_body(&mut self, body: &mut Body<'_>) -> Result {
        if self.is_json {
            body.edit_json(|object: &mut Map<String, Value>| {
                object.insert("processed_by".to_owned(), "attache".into());
            })?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    run(RewriteJson::default())
}
