//! The demonstration: everything in one process, and requests to try.

pub(crate) mod processor;

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use attache_proxy::Config;
use attache_service::{
    Metrics, Shutdown,
    admin::Readiness,
    config::{Document, reload::Look},
};

use crate::{
    Failure,
    admin::InUse,
    args::LogArgs,
    embedded::Embedded,
    origin, output,
    run::{Source, runtime, start, start_logging},
};

const PROXY: &str = include_str!("../../examples/demo/attache.yaml");
const AUTH: &str = include_str!("../../examples/demo/auth.yaml");
const JWKS: &str = include_str!("../../examples/demo/jwks.json");
const LIMITS: &str = include_str!("../../examples/demo/limits/demo.yaml");
const TOKEN: &str = include_str!("../../examples/demo/token.jwt");

/// Where the example's configuration has its origin.
const ORIGIN: &str = "127.0.0.1:3000";
const LISTENER: &str = "127.0.0.1:8080";

/// Runs the demonstration until it is told to stop.
pub(crate) fn run(log: &LogArgs) -> Result<(), Failure> {
    // The list of requests is what people came for.
    let quiet = LogArgs {
        log: Some(log.log.clone().unwrap_or_else(|| "warn".to_owned())),
        ..log.clone()
    };
    start_logging(&quiet)?;
    let metrics = Metrics::default();
    metrics.describe_process();
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals().map_err(Failure::run)?;
        let origin = origin::start().await.map_err(|error| {
            Failure::run(format!("the demonstration's origin cannot listen: {error}"))
        })?;
        let files = Files::write(&PROXY.replace(ORIGIN, &origin.to_string()))
            .map_err(|(path, error)| Failure::run(format!("{}: {error}", path.display())))?;
        let readiness = Readiness::default();
        let embedded = Embedded::new(metrics.clone(), readiness.clone());
        let look = Look::at(&[files.proxy()]);
        let document = Document::load(files.proxy())?;
        let (config, plan) = Config::read(&document, &embedded)?;
        let source = Source::new(files.proxy(), embedded, &look);
        let in_use = InUse::new(&document, false);
        let proxy = start(config, plan, &document, in_use, metrics, readiness, &[])
            .await
            .map_err(|failure| match failure {
                Failure::Run(why) => Failure::Run(format!(
                    "{why} (the demonstration needs two ports; `attache run FILE` takes yours)"
                )),
                other => other,
            })?;
        proxy.take_over();
        welcome(&files, proxy.admin_address().as_deref().unwrap_or_default())?;
        proxy.serve(source, None, shutdown).await
    })
}

/// The configuration files, in a folder of their own until the demonstration ends.
struct Files(PathBuf);

impl Files {
    fn write(proxy: &str) -> Result<Self, (PathBuf, io::Error)> {
        let files = Self(new_folder()?);
        let folder = files.0.join("limits");
        std::fs::create_dir_all(&folder).map_err(|error| (folder, error))?;
        for (name, text) in [
            ("attache.yaml", proxy),
            ("auth.yaml", AUTH),
            ("jwks.json", JWKS),
            ("limits/demo.yaml", LIMITS),
        ] {
            let path = files.0.join(name);
            std::fs::write(&path, text).map_err(|error| (path, error))?;
        }
        Ok(files)
    }

    fn proxy(&self) -> PathBuf {
        self.0.join("attache.yaml")
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

/// Makes a folder that did not exist, so that nobody else's files are in it.
fn new_folder() -> Result<PathBuf, (PathBuf, io::Error)> {
    let mut number = std::process::id();
    loop {
        let folder = std::env::temp_dir().join(format!("attache-demo-{number}"));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                number = number.wrapping_add(1);
            }
            Err(error) => return Err((folder, error)),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What stays behind is a few kilobytes in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One request to try: what it shows, and the command.
struct Trial {
    shows: &'static str,
    command: String,
}

fn trials() -> Vec<Trial> {
    let trial = |shows, command: &str| Trial {
        shows,
        command: command.to_owned(),
    };
    vec![
        trial(
            "without a key: the auth service answers 401",
            &format!("curl -i {LISTENER}/hello"),
        ),
        trial(
            "with a key: 200, and the origin is told who calls (x-user, x-attache)",
            &format!("curl -i -H 'x-api-key: demo-key' {LISTENER}/hello"),
        ),
        trial(
            "a JSON body is rewritten on its way: the origin does not see the password",
            &format!(
                "curl -H 'x-api-key: demo-key' --json '{{\"user\":\"ada\",\"password\":\"hunter2\"}}' {LISTENER}/login"
            ),
        ),
        trial(
            "the key is known, but /admin is for admins: 403",
            &format!("curl -i -H 'x-api-key: demo-key' {LISTENER}/admin"),
        ),
        trial(
            "a JSON web token with the role: 200",
            &format!(
                "curl -i -H 'authorization: Bearer {}' {LISTENER}/admin",
                TOKEN.trim()
            ),
        ),
        trial(
            "five a minute, then 429 from the rate limit service",
            &format!(
                "for i in 1 2 3 4 5 6 7; do curl -s -o /dev/null -w '%{{http_code}} ' -H 'x-api-key: demo-key' {LISTENER}/limited; done; echo"
            ),
        ),
    ]
}

fn welcome(files: &Files, admin: &str) -> Result<(), Failure> {
    let (bold, dim, reset) = if io::stdout().is_terminal() {
        ("\x1b[1m", "\x1b[2m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    let mut text = format!(
        "\n{bold}Attaché{reset}: a proxy on http://{LISTENER} that asks three policies, in front of a demo origin.\n\n{bold}Try{reset}\n"
    );
    for (number, trial) in trials().iter().enumerate() {
        text.push_str(&format!(
            "\n  {dim}{}. {}{reset}\n  {}\n",
            number + 1,
            trial.shows,
            trial.command
        ));
    }
    text.push_str(&format!(
        "\n{bold}Look{reset}\n  live requests  http://{admin}/requests\n  admin page     http://{admin}/\n  configuration  {} {dim}(edit it: changes are taken over){reset}\n\nCtrl-C drains and stops.\n",
        files.path().display()
    ));
    output(&text)
}
