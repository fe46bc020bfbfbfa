//! Envoy's counters of the filter.

use std::sync::Arc;

use attache_filter::calls::{CallRecorder, FilterKind};
use attache_service::{Metrics, metrics::Counter};

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// The filter's counters; handles are resolved once, when the layer is built.
        pub(super) struct Stats {
            $($(#[doc = $doc])+ pub(super) $name: Counter,)*
            /// Notes how calls end.
            pub(super) calls: CallRecorder,
        }

        impl Stats {
            /// The counters of the filter `name`, `attache_ext_proc_*{filter="label"}`.
            pub(super) fn new(metrics: &Metrics, name: &Arc<str>, label: &str) -> Self {
                let labels = [("filter", label)];
                Self {
                    $($name: metrics.counter(
                        concat!("attache_ext_proc_", stringify!($name)),
                        concat!($($doc),+).trim(),
                        &labels,
                    ),)*
                    calls: CallRecorder::new(name.clone(), FilterKind::ExtProc, metrics),
                }
            }
        }
    };
}

impl Stats {
    /// The same, where calls are no streams: those of plain HTTP are not counted as such.
    pub(super) fn without_streams(self) -> Self {
        Self {
            streams_started: Counter::default(),
            streams_closed: Counter::default(),
            ..self
        }
    }
}

stats! {
    /// Streams opened to the processor.
    streams_started,
    /// Streams that ended without a failure.
    streams_closed,
    /// Streams that ended with a gRPC error.
    streams_failed,
    /// Messages sent to the processor.
    stream_msgs_sent,
    /// Valid messages received from the processor.
    stream_msgs_received,
    /// Messages of the processor that do not fit the state of their stream.
    spurious_msgs_received,
    /// Failures let through because of failure_mode_allow.
    failure_mode_allowed,
    /// Messages that were not answered in time.
    message_timeouts,
    /// Header mutations refused by the rules or as invalid.
    rejected_header_mutations,
    /// Messages left out because an observing processor was too slow.
    observability_msgs_dropped,
    /// Requests for a longer message timeout that were granted.
    override_message_timeout_received,
    /// Requests for a longer message timeout that were not.
    override_message_timeout_ignored,
    /// Wishes to clear the route cache without a header mutation.
    clear_route_cache_ignored,
    /// Wishes to clear the route cache that the configuration refuses.
    clear_route_cache_disabled,
    /// Answers given to callers by the filter: the processor's or its own errors.
    immediate_responses_sent,
    /// Answers over plain HTTP with another status than 200.
    http_not_ok_resp_received,
    /// Streams that the processor closed first.
    server_half_closed,
}
