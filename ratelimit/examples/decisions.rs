//! How many decisions a second one core makes over 100,000 counters in memory:
//! `cargo run --release -p attache-ratelimit --example decisions`.

use std::{error::Error, hint::black_box, time::Instant};

use attache_proto::ratelimit::RateLimitRequest;
use attache_ratelimit::{
    Limiter, Rules,
    limiter::{Code, descriptor},
};

const KEYS: usize = 100_000;
const ROUNDS: usize = 5_000_000;

const RULES: &str = "
domain: shop
descriptors:
- key: user
  rate_limit: { unit: hour, requests_per_unit: 1000000 }
- key: tenant
  value: gold
  descriptors:
  - key: path
    value: /api/*
    rate_limit: { unit: minute, requests_per_unit: 1000000 }
";

fn main() -> Result<(), Box<dyn Error>> {
    let users: Vec<String> = (0..KEYS).map(|user| format!("user-{user}")).collect();
    let limiter = Limiter::in_memory(Rules::parse("limits.yaml", RULES)?);

    measure("check, one entry", |at| {
        let user = users.get(at).map_or("", String::as_str);
        limiter.check("shop", &[("user", user)], 1).code
    });

    let paths: Vec<String> = (0..KEYS).map(|path| format!("/api/{path}")).collect();
    measure("check, two entries, wildcard", |at| {
        let path = paths.get(at).map_or("", String::as_str);
        let entries = [("tenant", "gold"), ("path", path)];
        limiter.check("shop", &entries, 1).code
    });

    let requests: Vec<RateLimitRequest> = users
        .iter()
        .map(|user| RateLimitRequest {
            domain: "shop".to_owned(),
            descriptors: vec![descriptor([("user", user.as_str())])],
            hits_addend: 1,
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let begin = Instant::now();
        let mut at = 0;
        for _ in 0..ROUNDS {
            at = next(at);
            if let Some(request) = requests.get(at) {
                black_box(limiter.decide(request).await.is_ok());
            }
        }
        report("decide, a request of the protocol", begin);
    });
    Ok(())
}

/// All counters in turn, each far from the last: the step and their number are coprime.
fn next(at: usize) -> usize {
    (at + 7_919) % KEYS
}

fn measure(name: &str, mut decide: impl FnMut(usize) -> Code) {
    let begin = Instant::now();
    let mut at = 0;
    for _ in 0..ROUNDS {
        at = next(at);
        black_box(decide(at));
    }
    report(name, begin);
}

fn report(name: &str, begin: Instant) {
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = ROUNDS as f64 / seconds;
    println!(
        "{name}: {:.2} million decisions/s, {:.0} ns each",
        rate / 1e6,
        1e9 / rate
    );
}
