//! Refuses requests of listed users with 403; everybody else passes untouched.
//!
//! `cargo run --release --example deny_list [-- ADDRESS]`, by default on 127.0.0.1:50051.
use std::{collections::HashSet, process::ExitCode, sync::Arc};

use attache_ext_proc::server::{Immediate, Processor, RequestHead, Result, run};

#[derive(Clone)]
struct DenyList {
    users: Arc<HashSet<String>>,
}

impl Processor for DenyList {
    async fn request_headers(&mut self, request: &mut RequestHead) -> Result {
        let user = request
            .headers
            .get("x-user")
            .and_then(|user| user.to_str().ok());
        match user {
            Some(user) if self.users.contains(user) => {
                let refusal = Immediate::new(403).body("you are on the list\n");
                Err(refusal
                    .details("denied_by_list")
                    .header("x-denied-user", user)?
                    .into())
            }
            _ => Ok(()),
        }
    }
}

fn main() -> ExitCode {
    let users = ["mallory", "eve"].map(str::to_owned);
    run(DenyList {
        users: Arc::new(users.into()),
    })
}
