//! Envoy's wrappers around typed configuration: `typed_config` and `@type`.

use super::compound::Located;
use super::error::Errors;
use super::fields::Fields;
use super::node::Node;
use super::value::ConfigValue;

const PREFIX: &str = "type.googleapis.com/";

/// The URL by which a `google.protobuf.Any` names a message.
pub fn type_url(message: &str) -> String {
    format!("{PREFIX}{message}")
}

/// The message that a block's `@type` names, if it has one.
pub fn message_of(node: &Node) -> Option<&str> {
    let url = node.get("@type")?.as_str()?;
    Some(url.rsplit_once('/').map_or(url, |(_, message)| message))
}

/// Checks that a `@type` names a message.
pub(crate) fn check_type(node: &Node, message: &str, errors: &mut Errors) {
    let url = node.as_str().unwrap_or_default();
    let named = url.rsplit_once('/').map_or(url, |(_, message)| message);
    if named != message {
        errors.expected(node, &format!("`{}`", type_url(message)));
    }
}

/// A configuration with Envoy's wrapper taken off.
#[derive(Clone, Debug)]
pub struct TypedConfig<'n> {
    /// The extension's name, if there was a wrapper that gave one.
    pub name: Option<Located<String>>,
    /// Whether the wrapper says that the extension is off (`disabled`).
    pub disabled: bool,
    /// The configuration itself, with its `@type` if it had one.
    pub config: &'n Node,
}

/// Takes off the wrapper `{ name: …, typed_config: { … } }`; anything without `typed_config` is
/// returned as it is. `None` only after an error was added.
pub fn unwrap_typed_config<'n>(node: &'n Node, errors: &mut Errors) -> Option<TypedConfig<'n>> {
    let Some(config) = node.get("typed_config") else {
        return Some(TypedConfig {
            name: None,
            disabled: false,
            config: node,
        });
    };
    let mut fields = Fields::open(node, errors)?;
    let name = fields.field("name", Option::missing).flatten();
    let disabled = fields.field("disabled", Option::missing).flatten();
    // Already found; asked for again to have it count as read.
    fields.field::<Node>("typed_config", || None);
    fields.finish(&[
        ("config_discovery", "filters are configured in this file"),
        ("is_optional", "every configured filter has to work"),
    ]);
    Some(TypedConfig {
        name,
        disabled: disabled.unwrap_or(false),
        config,
    })
}

/// Decodes a value that may be wrapped as by [`unwrap_typed_config`], and that may carry the
/// `@type` of its message.
pub fn decode_typed<T: ConfigValue>(node: &Node, errors: &mut Errors) -> Option<T> {
    let typed = unwrap_typed_config(node, errors)?;
    T::decode(typed.config, errors)
}
