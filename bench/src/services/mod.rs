//! Policy services that decide nothing: what a proxy pays for asking is
//! measured with these, and they are the yardstick for our own.

pub(crate) mod authz;
pub(crate) mod ext_proc;
pub(crate) mod ratelimit;
