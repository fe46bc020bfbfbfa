//! The tasks themselves.

use std::process::Command;

use crate::tools::Tools;
use crate::{envoy, opa, process, processors, ratelimit, redis, workspace};

/// `cargo xtask tools`
pub(crate) fn tools() -> Result<(), String> {
    Tools::install().map(|_| ())
}

/// `cargo xtask test`
pub(crate) fn test(args: &[String]) -> Result<(), String> {
    let tools = Tools::install()?;
    if !names_packages(args) || args.iter().any(|arg| arg.ends_with("attache-tests")) {
        processors::build_all()?;
    }
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root()).arg("test");
    if !names_packages(args) {
        cargo.arg("--workspace");
    }
    // One failure must not hide the next.
    if !args.iter().any(|arg| arg == "--no-fail-fast") {
        cargo.arg("--no-fail-fast");
    }
    process::run(
        cargo
            .args(args)
            .env("ATTACHE_ENVOY", &tools.envoy)
            .env("ATTACHE_REDIS", &tools.redis)
            .env("ATTACHE_MEMCACHED", &tools.memcached)
            .env("ATTACHE_CHROMIUM", &tools.chromium)
            .env("ATTACHE_CHROMEDRIVER", &tools.chromedriver)
            .env("ATTACHE_OPA", &tools.opa)
            .env("ATTACHE_RATELIMIT_REFERENCE", &tools.ratelimit)
            .env("ATTACHE_H2SPEC", &tools.h2spec)
            .env("ATTACHE_NGINX", &tools.nginx)
            .env("ATTACHE_KUBERNETES_VALIDATE", &tools.kubernetes_validate)
            .env("ATTACHE_SYSTEMD_ANALYZE", &tools.systemd_analyze)
            .env("ATTACHE_REQUIRE_ALL", "1"),
    )
}

/// `cargo xtask bench`
pub(crate) fn bench(args: &[String]) -> Result<(), String> {
    let asks_help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    let wants_envoy = !asks_help && !only_ours(args);
    let envoy = if wants_envoy {
        Some(envoy::ENVOY.install()?)
    } else {
        None
    };
    let opa = if asks_help {
        None
    } else {
        Some(opa::OPA.install()?)
    };
    let (redis, ratelimit) = if asks_help {
        (None, None)
    } else {
        let redis = redis::REDIS.install()?;
        (Some(redis), Some(ratelimit::RATELIMIT.install()?))
    };
    let mut build = process::cargo();
    build
        .current_dir(workspace::root())
        .args(["build", "--release", "-p", "attache-bench"]);
    if !asks_help && !only_envoy(args) {
        build.args(["-p", "attache"]);
    }
    process::run(&mut build)?;
    let release = workspace::target().join("release");
    let mut bench = Command::new(release.join("attache-bench"));
    bench.arg("run").args(args);
    bench.env("ATTACHE_BIN", release.join("attache"));
    if let Some(envoy) = envoy {
        bench.env("ATTACHE_ENVOY", envoy);
    }
    if let Some(opa) = opa {
        bench.env("ATTACHE_OPA", opa);
    }
    if let Some(redis) = redis {
        bench.env("ATTACHE_REDIS", redis);
    }
    if let Some(ratelimit) = ratelimit {
        bench.env("ATTACHE_RATELIMIT_REFERENCE", ratelimit);
    }
    process::run(&mut bench)
}

/// `cargo xtask fuzz`
pub(crate) fn fuzz(args: &[String]) -> Result<(), String> {
    let seconds = match args {
        [] => 120,
        [seconds] => seconds
            .parse::<u32>()
            .map_err(|_| format!("`{seconds}` is not a number of seconds"))?,
        [_, more, ..] => return Err(format!("`{more}` is not expected")),
    };
    process::run(
        process::cargo()
            .current_dir(workspace::root())
            .args(["test", "--no-fail-fast", "--test", "fuzz"])
            .args(["-p", "attache-ext-proc", "-p", "attache-proxy", "--"])
            // One after the other: each watches the memory of the process.
            .args(["--nocapture", "--test-threads", "1"])
            .env("ATTACHE_FUZZ_SECONDS", seconds.to_string()),
    )
}

/// `cargo xtask ci`
pub(crate) fn ci() -> Result<(), String> {
    process::run(
        Command::new("bash")
            .current_dir(workspace::root())
            .arg(".ci/run"),
    )
}

/// Whether the arguments for `cargo test` choose packages themselves.
fn names_packages(args: &[String]) -> bool {
    args.iter().take_while(|arg| *arg != "--").any(|arg| {
        arg.starts_with("-p") || arg.starts_with("--package") || arg == "--manifest-path"
    })
}

fn only_envoy(args: &[String]) -> bool {
    only(args, "envoy")
}

fn only_ours(args: &[String]) -> bool {
    only(args, "ours")
}

/// Whether the arguments for the benchmark say `--only <proxy>`.
fn only(args: &[String], proxy: &str) -> bool {
    args.windows(2).any(|pair| pair == ["--only", proxy])
        || args.iter().any(|arg| *arg == format!("--only={proxy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_chosen_package_takes_the_place_of_the_workspace() {
        assert!(names_packages(&words("-p attache-tests")));
        assert!(names_packages(&words("--package=attache-tests")));
        assert!(!names_packages(&words("streaming")));
        assert!(!names_packages(&words("-- -p")));
    }

    #[test]
    fn one_proxy_may_be_chosen_in_both_spellings() {
        assert!(only_ours(&words("--quick --only ours")));
        assert!(only_envoy(&words("--only=envoy")));
        assert!(!only_ours(&words("--quick")));
    }
}
