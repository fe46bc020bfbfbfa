//! What goes with messages beside the message itself, as filter and route have it.

use std::sync::{Arc, OnceLock};

use http::request;

use super::{attributes::ShownAttributes, metadata::MetadataRules};

/// Part of an exchange's terms. Empty, and free, unless the filter is set to any of it.
#[derive(Default)]
pub(crate) struct Extras {
    /// Attributes, if any are shown.
    pub(super) attributes: Option<Arc<ShownAttributes>>,
    /// Dynamic metadata, if any is shown or taken.
    pub(super) metadata: Option<Arc<MetadataRules>>,
    /// The request head as it went on, if attributes are read from it later.
    pub(super) request: OnceLock<Box<request::Parts>>,
}
