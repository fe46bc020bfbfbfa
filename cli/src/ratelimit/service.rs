//! The rate limit service, by flags or in the place of another.

use attache_ratelimit::{
    server::{Environment, Settings, StoreSettings},
    store::{SharedSettings, redis::KeyFormat, shared::Backend},
};
use attache_service::{Address, Metrics, config::reload::Look};

use super::drop_in;
use crate::{
    Failure,
    args::{
        LogArgs,
        ratelimit::{RatelimitArgs, RedisKeys},
    },
    run::{runtime, start_logging},
    services::serve,
};

/// The name of the reference's program: called so, this one takes its place.
pub(crate) const REFERENCE: &str = "ratelimit";

/// Where the service listens when nothing is said.
const LISTEN: (&str, u16) = ("127.0.0.1", 8081);

/// Runs the service.
pub(super) fn run(args: &RatelimitArgs, log: &LogArgs) -> Result<(), Failure> {
    match &args.config {
        Some(config) => own(config.clone(), args, log),
        None if called_as_the_reference() || Environment::is_meant(&variable) => {
            drop_in::run(args, log)
        }
        None => Err(Failure::Usage(
            "ratelimit: `--config` is needed, or the environment variables of envoyproxy/ratelimit, \
             such as RUNTIME_ROOT and REDIS_URL"
                .to_owned(),
        )),
    }
}

/// Whether the program was started by a link with the reference's name.
pub(crate) fn called_as_the_reference() -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&program).file_name();
    name.is_some_and(|name| name == REFERENCE)
}

pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The service by flags alone.
fn own(config: std::path::PathBuf, args: &RatelimitArgs, log: &LogArgs) -> Result<(), Failure> {
    start_logging(log)?;
    let metrics = Metrics::default();
    let mut settings = Settings {
        rules: config,
        store: match &args.store {
            None => StoreSettings::default(),
            Some(store) => store_of(store)?,
        },
    };
    share(&mut settings.store, args);
    let listen = args.listen.clone().unwrap_or_else(|| Address::Tcp {
        host: LISTEN.0.to_owned(),
        port: LISTEN.1,
    });
    runtime()?.block_on(async {
        let look = Look::at(&[&settings.rules]);
        let service = settings.open(&metrics).await.map_err(Failure::Config)?;
        serve(service, &look, &listen, &args.service, metrics).await
    })
}

/// How instances count together, as far as flags say.
pub(super) fn share(store: &mut StoreSettings, args: &RatelimitArgs) {
    let StoreSettings::Shared(shared) = store else {
        return;
    };
    shared.instances = args.instances;
    if let Backend::Redis(redis) = &mut shared.backend {
        redis.key_format = match args.redis_keys {
            RedisKeys::Reference => KeyFormat::Reference,
            RedisKeys::WithLength => KeyFormat::WithLength,
        };
    }
}

pub(super) fn store_of(text: &str) -> Result<StoreSettings, Failure> {
    match text {
        "memory" => Ok(StoreSettings::default()),
        url if url.contains(':') => {
            let shared = SharedSettings::parse(url)
                .map_err(|error| Failure::Usage(format!("--store: {error}")))?;
            Ok(StoreSettings::Shared(Box::new(shared)))
        }
        other => Err(Failure::Usage(format!(
            "--store: `{other}` is neither `memory` nor a URL such as `redis://host:6379`"
        ))),
    }
}
