//! What upstreams are told of a client's certificate, as written.

use attache_service::{config_enum, config_struct};

config_enum! {
    /// What becomes of `x-forwarded-client-cert` (Envoy's `ForwardClientCertDetails`). Where a
    /// client has shown no certificate, it is removed, but by `ALWAYS_FORWARD_ONLY`.
    pub enum ForwardClientCertDetails {
        /// Remove it.
        Sanitize = "SANITIZE",
        /// Leave it.
        ForwardOnly = "FORWARD_ONLY",
        /// Add what is known of the client's certificate.
        AppendForward = "APPEND_FORWARD",
        /// Replace it by what is known of the client's certificate.
        SanitizeSet = "SANITIZE_SET",
        /// Leave it, whoever sent it.
        AlwaysForwardOnly = "ALWAYS_FORWARD_ONLY",
    }
}

config_struct! {
    /// What `x-forwarded-client-cert` tells beside the SHA-256 of the client's certificate and the
    /// URIs of ours (Envoy's `SetCurrentClientCertDetails`).
    pub struct SetCurrentClientCertDetails {
        /// The subject.
        pub subject: bool = false,
        /// The certificate itself: PEM, percent-encoded.
        pub cert: bool = false,
        /// The DNS names among the subject alternative names.
        pub dns: bool = false,
        /// The URIs among them.
        pub uri: bool = false,
    }
    elsewhere {
        "chain" => "the certificates that vouch for the client's are not kept: `cert` tells the client's own",
    }
}
