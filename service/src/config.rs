//! Configuration files: from text to typed values, with every mistake named and located.
//!
//! A file is parsed into a tree of [`Node`]s, each with its place, and the tree is decoded into
//! *raw* types, which say exactly what was written. They are declared with
//! [`config_struct!`](crate::config_struct), [`config_enum!`](crate::config_enum) and
//! [`config_oneof!`](crate::config_oneof). The *plan* that a program runs on is built from them
//! elsewhere, adding to the same [`Errors`]:
//!
//! ```
//! use attache_service::{config::{Document, Errors, Located}, config_struct};
//!
//! config_struct! {
//!     /// A file.
//!     pub struct Settings {
//!         /// How many.
//!         pub workers: Located<u32>,
//!         /// Which.
//!         pub names: Vec<String>,
//!     }
//! }
//!
//! fn plan(text: &str) -> Result<u32, Errors> {
//!     let document = Document::parse("settings.yaml", text)?;
//!     let (settings, mut errors) = document.decode_partly::<Settings>();
//!     let workers = settings.map(|settings| {
//!         if settings.workers.value == 0 {
//!             errors.push(&settings.workers, "at least one worker is needed");
//!         }
//!         settings.workers.value
//!     });
//!     errors.into_result(workers)
//! }
//!
//! assert_eq!(plan("workers: 4"), Ok(4));
//! assert_eq!(
//!     plan("workers: 0\nnmaes: [a]\n").unwrap_err().to_string(),
//!     "\
//! settings.yaml:1:10: at least one worker is needed
//!   |
//! 1 | workers: 0
//!   |          ^
//! settings.yaml:2:1: unknown field `nmaes`; did you mean `names`?
//!   |
//! 2 | nmaes: [a]
//!   | ^^^^^"
//! );
//! ```
//!
//! The rules, for every file of the project:
//!
//! - A field is supported, or known in Envoy but not here (an error with the reason), or unknown
//!   (an error with the nearest name). Nothing is ignored.
//! - `null` unsets a field. A field with nothing behind the colon is an error, unless it is a
//!   list or map of names, which are then empty.
//! - `${NAME}` and `${NAME:-default}` are replaced where they are the whole value, quoted or not,
//!   but not in block text (`|`, `>`). `$${NAME}` means the text `${NAME}`. Values from the
//!   environment do not appear in messages.
//! - Files, nesting, and what aliases unfold to are bounded.

pub mod envoy;
#[doc(hidden)]
pub mod fields;
pub mod reload;
pub mod schema;

mod compound;
mod core_schema;
mod document;
mod environment;
mod error;
mod limits;
mod macros;
mod node;
mod parse;
mod scalar;
mod secret;
mod shown;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod units;
mod value;

pub use compound::Located;
pub use document::Document;
pub use envoy::{TypedConfig, decode_typed, unwrap_typed_config};
pub use error::{ConfigError, Errors};
pub use limits::{MAX_DEPTH, MAX_FILE_BYTES, MAX_NODES, MAX_TEXT_BYTES};
pub use node::{Entry, Key, Node, Source, Span, Spanned, Value};
pub use suggest::nearest;

pub use scalar::decode_parsed;
pub use schema::{Schemas, json_schema};
pub use secret::{Hidden, Secret};
pub use serde_json as json;
pub use shown::Shown;
pub use units::{Size, format_duration, parse_duration};
pub use value::{ConfigOneof, ConfigValue};

crate::config_struct! {
    /// A map that has no fields (`{}`): protobuf's `Empty`.
    #[derive(Copy, Default, Eq)]
    pub struct Empty {}
}
