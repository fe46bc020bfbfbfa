//! Declarations of configuration types.

/// Declares a map with known fields.
///
/// ```
/// use std::time::Duration;
/// use attache_service::{config::Document, config_enum, config_oneof, config_struct};
///
/// config_enum! {
///     /// Whether a message is sent to the processor.
///     pub enum HeaderSendMode {
///         /// Send it.
///         Send = "SEND",
///         /// Do not.
///         Skip = "SKIP",
///     }
/// }
///
/// config_oneof! {
///     /// How a path is compared.
///     pub enum PathMatch {
///         /// Its beginning.
///         Prefix(String) = "prefix",
///         /// All of it.
///         Exact(String) = "path",
///     }
///     elsewhere {
///         "path_separated_prefix" => "use `prefix` with a closing slash",
///     }
/// }
///
/// config_struct! {
///     /// An example of everything.
///     pub struct Processor {
///         /// Must be written: the type is not `Option`, `Vec` or a map.
///         pub cluster: String,
///         /// May be left out.
///         pub request_header_mode: Option<HeaderSendMode>,
///         /// Has this default.
///         pub message_timeout: Duration = Duration::from_millis(200),
///         /// A name that Rust cannot have.
///         pub kind: Option<String> as "type",
///     }
///     envoy_type = "example.v3.Processor";
///     oneof {
///         /// One of `prefix` and `path` must stand beside the other fields; with
///         /// `Option<PathMatch>`, one of them may.
///         pub path: PathMatch,
///     }
///     elsewhere {
///         "async_mode" => "was never implemented by Envoy",
///     }
/// }
///
/// let text = "cluster: rewrite\nprefix: /\n";
/// let processor: Processor = Document::parse("processor.yaml", text)?.decode()?;
/// assert_eq!(processor.path, PathMatch::Prefix("/".into()));
///
/// let text = "clutser: rewrite\nasync_mode: true\n";
/// let errors = Document::parse("processor.yaml", text)?.decode::<Processor>().unwrap_err();
/// assert_eq!(errors.len(), 3);
/// # Ok::<(), attache_service::config::Errors>(())
/// ```
///
/// The struct derives `Clone`, `Debug` and `PartialEq`; further attributes may be given. The
/// sections after the fields are optional, their order is fixed.
#[macro_export]
macro_rules! config_struct {
    (
        $(#[$($meta:tt)*])*
        $vis:vis struct $name:ident {
            $(
                $(#[$($field_meta:tt)*])*
                $field_vis:vis $field:ident : $type:ty $(as $key:literal)? $(= $default:expr)?
            ),* $(,)?
        }
        $(envoy_type = $envoy_type:literal;)?
        $(oneof {
            $(
                $(#[$($group_meta:tt)*])*
                $group_vis:vis $group:ident : $group_type:ty
            ),* $(,)?
        })?
        $(elsewhere { $($other:literal => $reason:expr),* $(,)? })?
    ) => {
        $(#[$($meta)*])*
        #[derive(Clone, Debug, PartialEq)]
        $vis struct $name {
            $( $(#[$($field_meta)*])* $field_vis $field: $type, )*
            $($( $(#[$($group_meta)*])* $group_vis $group: $group_type, )*)?
        }

        impl $crate::config::ConfigValue for $name {
            #[allow(unused_mut)]
            fn decode(
                node: &$crate::config::Node,
                errors: &mut $crate::config::Errors,
            ) -> ::core::option::Option<Self> {
                let mut fields = $crate::config::fields::Fields::open(node, errors)?;
                fields.envoy_type(<Self as $crate::config::ConfigValue>::envoy_type());
                $(
                    let $field = fields.field::<$type>(
                        $crate::__config_key!($field $($key)?),
                        $crate::__config_missing!($type $(, $default)?),
                    );
                )*
                $($( let $group = fields.oneof::<$group_type>(); )*)?
                fields.finish(&[$($(($other, $reason)),*)?]);
                ::core::option::Option::Some(Self {
                    $( $field: $field?, )*
                    $($( $group: $group?, )*)?
                })
            }

            #[allow(unused_mut)]
            fn encode(&self) -> ::core::option::Option<$crate::config::json::Value> {
                let mut object = $crate::config::json::Map::new();
                $(
                    $crate::config::fields::put(
                        &mut object,
                        $crate::__config_key!($field $($key)?),
                        $crate::__config_encode!(&self.$field $(, $default)?),
                    );
                )*
                $($(
                    if let ::core::option::Option::Some((key, value)) =
                        $crate::config::ConfigOneof::encode_variant(&self.$group)
                    {
                        object.insert(key.into(), value);
                    }
                )*)?
                ::core::option::Option::Some($crate::config::json::Value::Object(object))
            }

            fn envoy_type() -> ::core::option::Option<&'static str> {
                $crate::__config_option!($($envoy_type)?)
            }

            fn schema(
                schemas: &mut $crate::config::schema::Schemas,
            ) -> $crate::config::json::Value {
                #[allow(unused_mut, unused_variables)]
                schemas.define::<Self>(stringify!($name), |schemas| {
                    let mut schema = $crate::config::schema::ObjectSchema::new(
                        &[$($crate::__config_doc!($($meta)*)),*],
                        <Self as $crate::config::ConfigValue>::envoy_type(),
                    );
                    $(
                        schema.field::<$type>(
                            $crate::__config_key!($field $($key)?),
                            &[$($crate::__config_doc!($($field_meta)*)),*],
                            $crate::__config_missing!($type $(, $default)?)(),
                            schemas,
                        );
                    )*
                    $($( schema.oneof::<$group_type>(schemas); )*)?
                    schema.finish()
                })
            }
        }
    };
}

/// Declares an enumeration that is written as one of some names.
///
/// Derives `Clone`, `Copy`, `Debug`, `PartialEq`, `Eq` and `Hash`; with `#[derive(Default)]` a
/// variant may carry `#[default]`. See [`config_struct!`](crate::config_struct) for an example.
#[macro_export]
macro_rules! config_enum {
    (
        $(#[$($meta:tt)*])*
        $vis:vis enum $name:ident {
            $( $(#[$($variant_meta:tt)*])* $variant:ident = $key:literal ),* $(,)?
        }
        $(elsewhere { $($other:literal => $reason:expr),* $(,)? })?
    ) => {
        $(#[$($meta)*])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        $vis enum $name {
            $( $(#[$($variant_meta)*])* $variant, )*
        }

        impl $name {
            /// The name in configuration files.
            $vis fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $key, )*
                }
            }
        }

        impl $crate::config::ConfigValue for $name {
            fn decode(
                node: &$crate::config::Node,
                errors: &mut $crate::config::Errors,
            ) -> ::core::option::Option<Self> {
                $crate::config::fields::decode_name(
                    node,
                    errors,
                    &[$(($key, Self::$variant)),*],
                    &[$($(($other, $reason)),*)?],
                )
            }

            fn encode(&self) -> ::core::option::Option<$crate::config::json::Value> {
                ::core::option::Option::Some(self.as_str().into())
            }

            fn schema(
                schemas: &mut $crate::config::schema::Schemas,
            ) -> $crate::config::json::Value {
                schemas.define::<Self>(stringify!($name), |_| {
                    $crate::config::schema::name_schema(
                        &[$($crate::__config_doc!($($meta)*)),*],
                        &[$(($key, &[$($crate::__config_doc!($($variant_meta)*)),*])),*],
                    )
                })
            }
        }
    };
}

/// Declares a choice: a map with exactly one of some keys, or, in the `oneof` section of
/// [`config_struct!`](crate::config_struct), exactly one of some fields.
///
/// Derives `Clone`, `Debug` and `PartialEq`.
#[macro_export]
macro_rules! config_oneof {
    (
        $(#[$($meta:tt)*])*
        $vis:vis enum $name:ident {
            $( $(#[$($variant_meta:tt)*])* $variant:ident($type:ty) = $key:literal ),* $(,)?
        }
        $(elsewhere { $($other:literal => $reason:expr),* $(,)? })?
    ) => {
        $(#[$($meta)*])*
        #[derive(Clone, Debug, PartialEq)]
        // There are few values of configuration types, and none on a request's path.
        #[allow(clippy::large_enum_variant)]
        $vis enum $name {
            $( $(#[$($variant_meta)*])* $variant($type), )*
        }

        impl $crate::config::ConfigOneof for $name {
            fn variants() -> &'static [&'static str] {
                &[$($key),*]
            }

            fn elsewhere() -> &'static [(&'static str, &'static str)] {
                &[$($(($other, $reason)),*)?]
            }

            fn decode_variant(
                key: &str,
                node: &$crate::config::Node,
                errors: &mut $crate::config::Errors,
            ) -> ::core::option::Option<Self> {
                match key {
                    $(
                        $key => <$type as $crate::config::ConfigValue>::decode(node, errors)
                            .map(Self::$variant),
                    )*
                    _ => ::core::option::Option::None,
                }
            }

            fn encode_variant(
                &self,
            ) -> ::core::option::Option<(&'static str, $crate::config::json::Value)> {
                match self {
                    $(
                        // A chosen variant is written even if its value is empty.
                        Self::$variant(value) => ::core::option::Option::Some((
                            $key,
                            $crate::config::ConfigValue::encode_present(value)
                                .unwrap_or($crate::config::json::Value::Null),
                        )),
                    )*
                }
            }

            fn schema_variants(
                schemas: &mut $crate::config::schema::Schemas,
            ) -> ::std::vec::Vec<(&'static str, $crate::config::json::Value)> {
                ::std::vec![$((
                    $key,
                    $crate::config::schema::variant_schema::<$type>(
                        &[$($crate::__config_doc!($($variant_meta)*)),*],
                        schemas,
                    ),
                )),*]
            }
        }

        impl $crate::config::ConfigValue for $name {
            fn decode(
                node: &$crate::config::Node,
                errors: &mut $crate::config::Errors,
            ) -> ::core::option::Option<Self> {
                let mut fields = $crate::config::fields::Fields::open(node, errors)?;
                let value = fields.oneof::<Self>();
                fields.finish(&[]);
                value
            }

            fn encode(&self) -> ::core::option::Option<$crate::config::json::Value> {
                let mut object = $crate::config::json::Map::new();
                let (key, value) = $crate::config::ConfigOneof::encode_variant(self)?;
                object.insert(key.into(), value);
                ::core::option::Option::Some($crate::config::json::Value::Object(object))
            }

            fn schema(
                schemas: &mut $crate::config::schema::Schemas,
            ) -> $crate::config::json::Value {
                schemas.define::<Self>(stringify!($name), |schemas| {
                    let mut schema = $crate::config::schema::ObjectSchema::new(
                        &[$($crate::__config_doc!($($meta)*)),*],
                        ::core::option::Option::None,
                    );
                    schema.oneof::<Self>(schemas);
                    schema.finish()
                })
            }
        }
    };
}

/// Lets types with `FromStr` and `Display` stand in configuration files as text:
/// `config_parsed! { IpAddr => "an IP address" }`, where the text completes "expected …".
#[macro_export]
macro_rules! config_parsed {
    ($($type:ty => $what:literal),* $(,)?) => { $(
        impl $crate::config::ConfigValue for $type {
            fn decode(
                node: &$crate::config::Node,
                errors: &mut $crate::config::Errors,
            ) -> ::core::option::Option<Self> {
                $crate::config::decode_parsed(node, errors, $what)
            }

            fn encode(&self) -> ::core::option::Option<$crate::config::json::Value> {
                ::core::option::Option::Some(::std::string::ToString::to_string(self).into())
            }

            fn schema(
                _schemas: &mut $crate::config::schema::Schemas,
            ) -> $crate::config::json::Value {
                $crate::config::json::json!({ "type": "string", "description": $what })
            }
        }
    )* };
}

/// The key of a field: as given, else as the field is called.
#[doc(hidden)]
#[macro_export]
macro_rules! __config_key {
    ($field:ident) => {
        $crate::config::fields::name_of(stringify!($field))
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// What a field has when it is missing.
#[doc(hidden)]
#[macro_export]
macro_rules! __config_missing {
    ($type:ty) => {
        <$type as $crate::config::ConfigValue>::missing
    };
    ($type:ty, $default:expr) => {
        (|| -> ::core::option::Option<$type> { ::core::option::Option::Some($default) })
    };
}

/// A field's value as it is written: where a default is declared, that of none is another.
#[doc(hidden)]
#[macro_export]
macro_rules! __config_encode {
    ($value:expr) => {
        $crate::config::ConfigValue::encode($value)
    };
    ($value:expr, $default:expr) => {
        $crate::config::ConfigValue::encode_present($value)
    };
}

/// A doc comment's text; nothing for other attributes.
#[doc(hidden)]
#[macro_export]
macro_rules! __config_doc {
    (doc = $text:literal) => {
        ::core::option::Option::Some($text)
    };
    ($($other:tt)*) => {
        ::core::option::Option::None
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __config_option {
    () => {
        ::core::option::Option::None
    };
    ($value:expr) => {
        ::core::option::Option::Some($value)
    };
}
