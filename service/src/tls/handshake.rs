//! What a listener's handshakes allow, beyond the defaults.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs as aws},
    server::NoServerSessionStorage,
};

use super::{TlsError, TlsVersion, provider};
use crate::config_enum;

/// Choices of a listener that most leave alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handshake {
    /// Further certificates with their keys, chosen by the DNS names in them.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// With `client_ca`: let clients in that show no certificate. Default false.
    pub optional_client_certificate: bool,
    /// Newest version spoken. Default TLS 1.3.
    pub max_version: Option<TlsVersion>,
    /// What TLS 1.2 encrypts with, most wanted first; empty for all. TLS 1.3 has its own.
    pub cipher_suites: Vec<CipherSuite>,
    /// How keys are agreed on, most wanted first; empty for all.
    pub ecdh_curves: Vec<Curve>,
    /// Every connection makes the whole handshake. Default false.
    pub no_resumption: bool,
}

config_enum! {
    /// A cipher suite of TLS 1.2, by its OpenSSL name. All have forward secrecy.
    pub enum CipherSuite {
        /// ECDSA certificates, AES-128-GCM.
        EcdsaAes128 = "ECDHE-ECDSA-AES128-GCM-SHA256",
        /// ECDSA certificates, AES-256-GCM.
        EcdsaAes256 = "ECDHE-ECDSA-AES256-GCM-SHA384",
        /// ECDSA certificates, ChaCha20-Poly1305.
        EcdsaChacha = "ECDHE-ECDSA-CHACHA20-POLY1305",
        /// RSA certificates, AES-128-GCM.
        RsaAes128 = "ECDHE-RSA-AES128-GCM-SHA256",
        /// RSA certificates, AES-256-GCM.
        RsaAes256 = "ECDHE-RSA-AES256-GCM-SHA384",
        /// RSA certificates, ChaCha20-Poly1305.
        RsaChacha = "ECDHE-RSA-CHACHA20-POLY1305",
    }
    elsewhere {
        "AES128-GCM-SHA256" => "it has no forward secrecy",
        "AES256-GCM-SHA384" => "it has no forward secrecy",
        "AES128-SHA" => "it has no forward secrecy",
        "AES256-SHA" => "it has no forward secrecy",
        "ECDHE-RSA-AES128-SHA" => "it can be broken by timing: take a suite with GCM or CHACHA20",
        "ECDHE-RSA-AES256-SHA" => "it can be broken by timing: take a suite with GCM or CHACHA20",
        "ECDHE-ECDSA-AES128-SHA" => "it can be broken by timing: take a suite with GCM or CHACHA20",
        "ECDHE-ECDSA-AES256-SHA" => "it can be broken by timing: take a suite with GCM or CHACHA20",
    }
}

config_enum! {
    /// A way to agree on keys, by its name in Envoy.
    pub enum Curve {
        /// X25519 with ML-KEM-768, safe also against quantum computers. TLS 1.3 only.
        X25519MlKem768 = "X25519MLKEM768",
        /// X25519.
        X25519 = "X25519",
        /// P-256 (secp256r1).
        P256 = "P-256",
        /// P-384 (secp384r1).
        P384 = "P-384",
    }
    elsewhere {
        "P-521" => "it is not supported here: P-384 and X25519 are as safe in practice",
    }
}

impl CipherSuite {
    fn suite(self) -> SupportedCipherSuite {
        match self {
            Self::EcdsaAes128 => aws::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            Self::EcdsaAes256 => aws::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            Self::EcdsaChacha => aws::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            Self::RsaAes128 => aws::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            Self::RsaAes256 => aws::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            Self::RsaChacha => aws::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        }
    }
}

impl Curve {
    fn group(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519MlKem768 => aws::kx_group::X25519MLKEM768,
            Self::X25519 => aws::kx_group::X25519,
            Self::P256 => aws::kx_group::SECP256R1,
            Self::P384 => aws::kx_group::SECP384R1,
        }
    }
}

impl Handshake {
    /// What rustls works with.
    pub(super) fn provider(&self) -> Arc<CryptoProvider> {
        if self.cipher_suites.is_empty() && self.ecdh_curves.is_empty() {
            return provider();
        }
        let mut provider = aws::default_provider();
        if !self.cipher_suites.is_empty() {
            provider
                .cipher_suites
                .retain(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)));
            let written = self.cipher_suites.iter().map(|suite| suite.suite());
            provider.cipher_suites.extend(written);
        }
        if !self.ecdh_curves.is_empty() {
            provider.kx_groups = self.ecdh_curves.iter().map(|curve| curve.group()).collect();
        }
        Arc::new(provider)
    }

    /// What cannot be told to rustls's builder.
    pub(super) fn finish(&self, config: &mut ServerConfig) -> Result<(), TlsError> {
        // Whoever writes an order wants it kept.
        config.ignore_client_order = !self.cipher_suites.is_empty();
        if self.no_resumption {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        } else {
            // What is to be resumed is kept by the clients, encrypted: nothing grows here, and
            // workers do not share a lock for it. The keys are new whenever the files are read
            // again, so that a session never outlives the authorities that let it in.
            config.ticketer = aws::Ticketer::new()?;
        }
        Ok(())
    }
}
