//! Attributes of the exchange, told with the first message of each direction.

use attache_filter::RequestContext;
use bytes::Bytes;

use super::{
    Side,
    exchange::{Head, Terms},
};

/// The encoded entries of `ProcessingRequest.attributes` for the first message of a direction,
/// tags included; no bytes when there are none. `head` is the head of that direction while it is
/// held.
pub(super) fn of_first_message(
    _terms: &Terms,
    _context: &RequestContext,
    _side: Side,
    _head: Option<&Head>,
) -> Bytes {
    Bytes::new()
}
