//! Rules that a service gets from a control plane.

use std::collections::BTreeMap;

use attache_proto::ratelimit_config::RateLimitConfig;
use attache_service::Address;
use prost_reflect::{DeserializeOptions, DynamicMessage};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::discovery::ControlPlane;
use crate::message;

/// A control plane for one service; it ends with this value.
#[derive(Debug)]
pub struct Discovered {
    /// Where it listens.
    pub address: Address,
    rules: watch::Sender<Vec<RateLimitConfig>>,
    serving: JoinHandle<()>,
}

impl Discovered {
    /// Starts it with the rules of these files.
    pub async fn start(files: &BTreeMap<String, String>) -> Result<Self, String> {
        let plane = ControlPlane::start(None).await;
        let address = plane.address.clone();
        let (rules, latest) = watch::channel(resources(files)?);
        Ok(Self {
            address,
            rules,
            serving: tokio::spawn(serve(plane, latest)),
        })
    }

    /// Sends the rules of these files in place of all others.
    pub fn replace(&self, files: &BTreeMap<String, String>) -> Result<(), String> {
        self.rules.send_replace(resources(files)?);
        Ok(())
    }
}

impl Drop for Discovered {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Sends the latest rules on each stream, and again when they change.
async fn serve(mut plane: ControlPlane, mut latest: watch::Receiver<Vec<RateLimitConfig>>) {
    let mut version = 0_u64;
    loop {
        let mut stream = plane.opened().await;
        latest.mark_changed();
        while stream.said().await.is_some() && latest.changed().await.is_ok() {
            version += 1;
            let rules = latest.borrow_and_update().clone();
            stream.respond(&version.to_string(), &rules);
        }
    }
}

/// The files as resources, in the order of their names. Fields that resources do not have are
/// left out, as control planes leave them out.
fn resources(files: &BTreeMap<String, String>) -> Result<Vec<RateLimitConfig>, String> {
    let of = message::descriptor("ratelimit.config.ratelimit.v3.RateLimitConfig");
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let resource = |(name, text): (&String, &String)| {
        let value: serde_json::Value =
            serde_saphyr::from_str(text).map_err(|error| format!("{name}: {error}"))?;
        let message = DynamicMessage::deserialize_with_options(of.clone(), value, &options);
        let message = message.map_err(|error| format!("{name}: {error}"))?;
        let mut resource: RateLimitConfig =
            message.transcode_to().map_err(|error| error.to_string())?;
        if resource.name.is_empty() {
            resource.name.clone_from(&resource.domain);
        }
        Ok(resource)
    };
    files.iter().map(resource).collect()
}
