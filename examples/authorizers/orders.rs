//! Small orders pass; large ones must come from the warehouse, by its SPIFFE ID.
//!
//! `cargo run --release --example orders [-- ADDRESS]`, by default on 127.0.0.1:9001. The proxy's
//! filter needs `with_request_body`.
use std::process::ExitCode;

use attache_ext_authz::server::{
    Authorizer, BodyError, CheckError, CheckRequestView, Decision, OnFailure, Server,
};
use serde_json::Value;

struct Orders;

impl Authorizer for Orders {
    async fn check(&self, request: &CheckRequestView) -> Result<Decision, CheckError> {
        let order: Value = match request.body().json() {
            Ok(order) => order,
            Err(BodyError::Json(error)) => {
                return Ok(Decision::deny(400).body(error.to_string()).into());
            }
            // Without the whole body nothing can be decided: the check fails.
            Err(error) => return Err(error.into()),
        };
        let warehouse = request.spiffe_id().is_some_and(|id| {
            id.trust_domain() == "shop.example" && id.path().starts_with("/warehouse/")
        });
        if warehouse || order["amount"].as_u64().is_some_and(|amount| amount < 100) {
            return Ok(Decision::allow().join("x-checked", "amount").into());
        }
        Ok(Decision::deny(403)
            .body("too large")
            .reason("amount")
            .into())
    }
}

fn main() -> ExitCode {
    let busy = Decision::error(503).header("retry-after", "1");
    match OnFailure::answer(busy) {
        Ok(answer) => Server::new(Orders).on_failure(answer).run(),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
