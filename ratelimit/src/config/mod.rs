//! The rule language: the reference service's YAML files, compiled for look-up.
//!
//! - [`tree`]: what was written, from a file or another source.
//! - [`limit`]: a limit, and how hits are counted against it.
//! - [`explain`]: why a rule applies to a descriptor, or none does.
//! - [`rules`]: the compiled rules and how a descriptor finds its own.
//!
//! A file has one `domain` and a tree of `descriptors`:
//!
//! ```yaml
//! domain: shop
//! descriptors:
//! - key: user                   # each value has a counter of its own
//!   rate_limit: { unit: minute, requests_per_unit: 60 }
//! - key: user
//!   value: internal-*           # `*` stands for any text
//!   rate_limit: { unlimited: true }
//! - key: route
//!   value: checkout
//!   descriptors:
//!   - key: user
//!     rate_limit: { name: checkout, unit: day, requests_per_unit: 20 }
//! ```
//!
//! Messages about what the reference service refuses too have its texts.

mod compile;
mod document;
pub mod explain;
mod extension;
mod file;
mod level;
pub mod limit;
mod lookup;
mod metadata;
pub(crate) mod metric_path;
mod names;
mod resource;
pub mod rules;
pub mod tree;
mod wildcard;
mod yaml;

pub use compile::Merge;
pub use explain::Explanation;
pub use limit::{Algorithm, Limit, Policy};
pub(crate) use lookup::LookUp;
pub use rules::{Allowance, Rule, RuleId, Rules};
