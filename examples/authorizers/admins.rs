//! Lets admins pass, by a cookie, and tells the upstream so.
//!
//! `cargo run --release --example admins [-- ADDRESS]`, by default on 127.0.0.1:9001.
use attache_ext_authz::server::{Authorizer, CheckError, CheckRequestView, Decision, run};

struct AdminsOnly;

impl Authorizer for AdminsOnly {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        match request.cookie("role") {
            Some("admin") => Ok(Decision::allow().set("x-role", "admin").into()),
            _ => Ok(Decision::deny(403).body("admins only").into()),
        }
    }
}

fn main() -> std::process::ExitCode {
    run(AdminsOnly)
}
