//! What the admin page of `attache run` shows beside what all programs have.

mod clusters;
mod config;
mod kept;

use attache_proxy::status::Status;
use attache_service::{
    Shutdown,
    admin::{Page, drain},
};
use serde_json::{Map, json};

pub(crate) use config::InUse;

/// The pages about a proxy that runs.
pub(crate) fn pages(status: &Status, shutdown: Shutdown) -> Vec<Page> {
    let mut pages = vec![clusters::page(status.clone())];
    let status = status.clone();
    pages.extend(drain::pages(shutdown, move || {
        let (min, max) = status.drain_times();
        Map::from_iter([
            ("connections".to_owned(), json!(status.connections())),
            ("min_seconds".to_owned(), json!(min.as_secs_f64())),
            ("max_seconds".to_owned(), json!(max.as_secs_f64())),
        ])
    }));
    pages
}
