//! Policy services: those that decide nothing, with which it is measured what a proxy pays for
//! asking, and a processor written twice, by hand and with our framework.

pub(crate) mod authz;
pub(crate) mod ext_proc;
pub(crate) mod limitador;
pub(crate) mod processor;
pub(crate) mod ratelimit;
