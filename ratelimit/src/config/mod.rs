//! The rule language: the reference service's YAML files, compiled for look-up.
//!
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

mod descriptor;
mod file;
pub mod rules;
mod wildcard;
mod yaml;

pub use rules::{Allowance, Limit, Rule, RuleId, Rules};
