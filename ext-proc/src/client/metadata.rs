//! Dynamic metadata: what a processor is told of it, and what it adds.

use attache_filter::RequestContext;
use attache_proto::ext_proc::ProcessingResponse;
use bytes::Bytes;

use super::exchange::Terms;

/// The encoded `Metadata` that goes with a message; no bytes when there is none.
pub(super) fn forward(_terms: &Terms, _context: &RequestContext) -> Bytes {
    Bytes::new()
}

/// Takes in what a reply says of dynamic metadata.
pub(super) fn receive(_terms: &Terms, _context: &RequestContext, _reply: &ProcessingResponse) {}
