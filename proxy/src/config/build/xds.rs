//! The control plane.

use attache_filter::metadata::StructValue;
use attache_proto::core::Locality;
use attache_service::{
    config::{ConfigValue, Errors, Located},
    xds::{AdsSettings, NodeIdentity, Protocol},
};
use http::{HeaderMap, HeaderName, HeaderValue, uri::Authority};

use super::{Builder, ClusterNames};
use crate::{
    config::{ApiType, Config, NodeConfig, Target, XdsConfig, XdsHeader},
    plan::{self, ClusterPlan},
    xds::{XdsPlan, plan::DEFAULT_INITIAL_FETCH_TIMEOUT, plan::DEFAULT_RESOURCES},
};

impl Builder<'_> {
    /// Plans the control plane; `planned` are the clusters, as far as they have no mistakes.
    pub(super) fn xds(
        &self,
        raw: &Located<XdsConfig>,
        config: &Config,
        clusters: &ClusterNames<'_>,
        planned: &[Option<ClusterPlan>],
        errors: &mut Errors,
    ) -> Option<XdsPlan> {
        let cluster = &raw.cluster;
        let Some((index, written)) = clusters.get(cluster.as_str()) else {
            errors.unknown_name(cluster, "cluster", clusters.keys().copied());
            return None;
        };
        if matches!(written.target.value, Target::Eds(_)) {
            errors.push(
                cluster,
                "the endpoints of the control plane cannot come from itself",
            );
        }
        let plan = planned.get(*index)?.as_ref()?;
        if plan.protocol != plan::Protocol::Http2 {
            errors.push(
                cluster,
                "a control plane is called over gRPC: its cluster needs `http2: {}`",
            );
        }
        let timeout = raw.initial_fetch_timeout.as_ref();
        if let Some(timeout) = timeout
            && timeout.value.is_zero()
        {
            errors.push(
                timeout,
                "expected more than 0 s: a start must not wait for ever",
            );
        }
        let authority = raw.authority.as_ref().and_then(|written| {
            let parsed = Authority::try_from(written.as_str());
            parsed
                .map_err(|_| errors.push(written, format!("`{}` is no authority", written.value)))
                .ok()
        });
        let node = config.node.as_ref();
        let text = format!(
            "{:?} {:?} {:?}",
            raw.encode(),
            node.and_then(ConfigValue::encode),
            plan.configured
        );
        Some(XdsPlan {
            settings: AdsSettings {
                authority,
                headers: headers(&raw.initial_metadata, errors),
                protocol: match raw.api_type {
                    None | Some(ApiType::Grpc) => Protocol::StateOfTheWorld,
                    Some(ApiType::DeltaGrpc) => Protocol::Delta,
                },
                node: node.map(identity).unwrap_or_default(),
                ..AdsSettings::new(plan.unguarded_channel())
            },
            resources: raw
                .resources
                .clone()
                .unwrap_or_else(|| DEFAULT_RESOURCES.to_vec()),
            initial_fetch_timeout: timeout
                .map_or(DEFAULT_INITIAL_FETCH_TIMEOUT, |timeout| timeout.value),
            cache: raw
                .cache
                .as_ref()
                .map(|path| self.document.resolve(&path.value)),
            written: text,
        })
    }
}

fn identity(raw: &NodeConfig) -> NodeIdentity {
    NodeIdentity {
        id: raw.id.clone().unwrap_or_default(),
        cluster: raw.cluster.clone().unwrap_or_default(),
        locality: raw.locality.as_ref().map(|raw| Locality {
            region: raw.region.clone().unwrap_or_default(),
            zone: raw.zone.clone().unwrap_or_default(),
            sub_zone: raw.sub_zone.clone().unwrap_or_default(),
        }),
        metadata: raw.metadata.as_ref().map(StructValue::value),
    }
}

fn headers(raw: &[XdsHeader], errors: &mut Errors) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for header in raw {
        let name = HeaderName::try_from(header.key.as_str());
        let name = name.map_err(|_| {
            errors.push(
                &header.key,
                format!("`{}` is no name of a header", header.key.value),
            );
        });
        let value = header.value.value.read(errors).map(|value| {
            let value = HeaderValue::try_from(value.reveal());
            value.map_err(|_| errors.push(&header.value, "this is no value of a header"))
        });
        if let (Ok(name), Some(Ok(mut value))) = (name, value) {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    headers
}
