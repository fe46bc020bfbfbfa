//! A resource as a document in Envoy's JSON shape, with everything that it says.
//!
//! A field or a type that our descriptors do not have is an error, with the way to it: nothing of
//! a resource is overlooked.

use std::sync::LazyLock;

use attache_proto::RESOURCE_DESCRIPTOR_SET;
use attache_service::config::json;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _, SerializeOptions, Value,
};
use prost_types::Any;

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(RESOURCE_DESCRIPTOR_SET).unwrap_or_default());

const ANY: &str = "google.protobuf.Any";
/// Messages may stand within messages; ours never come near this.
const MOST_DEPTH: usize = 100;

/// The text of a resource.
///
/// # Errors
/// What cannot be told, with the way to it.
pub(super) fn to_json(any: &Any) -> Result<String, String> {
    let message = decode(&any.type_url, &any.value)?;
    whole(&message, "", 0)?;
    let mut text = json::Serializer::pretty(Vec::new());
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(true);
    message
        .serialize_with_options(&mut text, &options)
        .map_err(|error| error.to_string())?;
    String::from_utf8(text.into_inner()).map_err(|error| error.to_string())
}

fn descriptor(type_url: &str) -> Option<MessageDescriptor> {
    let name = type_url.rsplit('/').next().unwrap_or_default();
    POOL.get_message_by_name(name)
}

fn decode(type_url: &str, bytes: &[u8]) -> Result<DynamicMessage, String> {
    let descriptor =
        descriptor(type_url).ok_or_else(|| format!("`{type_url}` is not known here"))?;
    DynamicMessage::decode(descriptor, bytes).map_err(|error| error.to_string())
}

/// Looks for what has no name here.
fn whole(message: &DynamicMessage, path: &str, depth: usize) -> Result<(), String> {
    if depth > MOST_DEPTH {
        return Err(format!("{path}: too deep"));
    }
    if let Some(unknown) = message.unknown_fields().next() {
        let number = unknown.number();
        return Err(match path {
            "" => format!("the field with the number {number} is not known here"),
            path => format!("{path}: the field with the number {number} is not known here"),
        });
    }
    if message.descriptor().full_name() == ANY {
        let text = |name: &str| message.get_field_by_name(name);
        let (Some(type_url), Some(value)) = (text("type_url"), text("value")) else {
            return Ok(());
        };
        let (Some(type_url), Some(value)) = (type_url.as_str(), value.as_bytes()) else {
            return Ok(());
        };
        let inner = decode(type_url, value).map_err(|error| format!("{path}: {error}"))?;
        return whole(&inner, path, depth.saturating_add(1));
    }
    for (field, value) in message.fields() {
        let path = match path {
            "" => field.name().to_owned(),
            path => format!("{path}.{}", field.name()),
        };
        each(value, &path, depth.saturating_add(1))?;
    }
    Ok(())
}

fn each(value: &Value, path: &str, depth: usize) -> Result<(), String> {
    match value {
        Value::Message(inner) => whole(inner, path, depth),
        Value::List(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(nth, item)| each(item, &format!("{path}[{nth}]"), depth)),
        Value::Map(entries) => entries.iter().try_for_each(|(key, item)| {
            let key = key.as_str().unwrap_or_default();
            each(item, &format!("{path}.{key}"), depth)
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn any(type_name: &str, text: &str) -> Any {
        let descriptor = POOL.get_message_by_name(type_name).unwrap();
        let mut json = json::Deserializer::from_str(text);
        let message = DynamicMessage::deserialize(descriptor, &mut json).unwrap();
        Any {
            type_url: format!("type.googleapis.com/{type_name}"),
            value: message.encode_to_vec(),
        }
    }

    #[test]
    fn a_resource_is_told_in_envoys_names() {
        let cluster = any(
            "envoy.config.cluster.v3.Cluster",
            r#"{"name": "web", "connectTimeout": "0.25s", "type": "EDS"}"#,
        );

        let text = to_json(&cluster).unwrap();

        let value: json::Value = json::from_str(&text).unwrap();
        assert_eq!(
            value,
            json::json!({ "name": "web", "type": "EDS", "connect_timeout": "0.250s" })
        );
    }

    #[test]
    fn a_field_without_a_name_here_is_told_by_its_number_and_place() {
        let mut cluster = any("envoy.config.cluster.v3.Cluster", r#"{"name": "web"}"#);
        // Field 9999, a varint.
        cluster.value.extend([0xf8, 0xf0, 0x04, 0x01]);

        let error = to_json(&cluster).unwrap_err();

        assert!(error.contains("9999"), "{error}");
    }

    #[test]
    fn a_message_of_an_unknown_type_is_told_with_its_place() {
        let mut listener = any(
            "envoy.config.listener.v3.Listener",
            r#"{"name": "l", "filterChains": [{"filters": [{"name": "f", "typedConfig": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}]}]}"#,
        );
        let known = b"google.protobuf.Duration";
        let at = listener.value.windows(known.len()).position(|w| w == known);
        let at = at.unwrap() + known.len() - 1;
        listener.value[at] = b'X';

        let error = to_json(&listener).unwrap_err();

        assert!(
            error.starts_with("filter_chains[0].filters[0].typed_config: "),
            "{error}"
        );
        assert!(error.contains("google.protobuf.DuratioX"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        let broken = Any {
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            value: vec![0xff; 4],
        };

        assert!(to_json(&broken).is_err());
    }
}
