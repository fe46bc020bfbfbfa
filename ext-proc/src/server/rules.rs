//! What the author knows of the proxy's filter.

use std::time::Duration;

/// The settings of the proxy's ext_proc filter, as far as a processor is bound by them; the
/// names are Envoy's, the defaults too.
///
/// Nothing on the wire tells them. What they rule out is refused here, at the call, because a
/// proxy would ignore it without a word.
///
/// ```
/// # use attache_ext_proc::server::{Processor, ProxySettings, Server};
/// # #[derive(Clone)]
/// # struct Mine;
/// # impl Processor for Mine {}
/// let proxy = ProxySettings {
///     allow_all_routing: true,
///     ..ProxySettings::default()
/// };
/// let server = Server::new(Mine).assume(proxy);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxySettings {
    /// How long the proxy waits for a reply. Default 200 ms.
    pub message_timeout: Duration,
    /// How much time a reply may ask for (`override_message_timeout`). Default 0: none. When
    /// larger, a handler that is not done after half of `message_timeout` gets this much by
    /// itself.
    pub max_message_timeout: Duration,
    /// Replies to heads may change the processing mode. Default false.
    pub allow_mode_override: bool,
    /// The proxy leaves `content-length` in streamed modes too, so it is removed here.
    /// Default false.
    pub allow_content_length_header: bool,
    /// `mutation_rules.allow_all_routing`: `:method`, `:authority`, `:scheme` and `host` may be
    /// changed. Default false.
    pub allow_all_routing: bool,
    /// `mutation_rules.allow_envoy`: `x-envoy-*` may be changed. Default false.
    pub allow_envoy: bool,
    /// Most headers of a message, and most changes in a reply. Default 100.
    pub max_headers: usize,
    /// Most bytes of names and values of a message. Default 60 KiB.
    pub max_header_bytes: usize,
}

impl Default for ProxySettings {
    fn default() -> Self {
        let rules = Rules::default();
        Self {
            message_timeout: Duration::from_millis(200),
            max_message_timeout: Duration::ZERO,
            allow_mode_override: false,
            allow_content_length_header: false,
            allow_all_routing: rules.allow_all_routing,
            allow_envoy: rules.allow_envoy,
            max_headers: rules.max_headers,
            max_header_bytes: rules.max_header_bytes,
        }
    }
}

impl ProxySettings {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            allow_all_routing: self.allow_all_routing,
            allow_envoy: self.allow_envoy,
            max_headers: self.max_headers,
            max_header_bytes: self.max_header_bytes,
        }
    }
}

/// Those that bind header changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) allow_all_routing: bool,
    pub(super) allow_envoy: bool,
    pub(super) max_headers: usize,
    pub(super) max_header_bytes: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            allow_all_routing: false,
            allow_envoy: false,
            max_headers: 100,
            max_header_bytes: 60 << 10,
        }
    }
}
