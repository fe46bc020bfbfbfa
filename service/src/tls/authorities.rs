//! Verifying certificates of clients whose handshake was with somebody else.

use std::{fmt, path::Path, sync::Arc, time::SystemTime};

use rustls::{
    CertificateError as Refused, Error,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{TlsError, files, provider};

/// Authorities whose clients are accepted.
#[derive(Clone)]
pub struct ClientAuthorities(Arc<dyn ClientCertVerifier>);

/// Why a certificate does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// Its time, or that of one it is signed with, is over or has not come.
    #[error("not valid at this time")]
    Time,
    /// None of the authorities, or none through the chain that was given, has signed it.
    #[error("signed by none of the authorities")]
    Issuer,
    /// It is for other purposes than those of a TLS client.
    #[error("not for clients")]
    Purpose,
    /// Anything else.
    #[error("malformed or badly signed")]
    Malformed,
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthorities")
    }
}

impl ClientAuthorities {
    /// Reads authorities (PEM).
    ///
    /// # Errors
    /// The file cannot be read or holds the wrong thing; the error names the file.
    pub fn load(path: &Path) -> Result<Self, TlsError> {
        let roots = files::authorities(path)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
            .build()
            .map_err(|error| TlsError::Authorities {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self(verifier))
    }

    /// Verifies a certificate (DER) as a TLS server would at that time: signatures up to an
    /// authority, validity, constraints, and the extended key usage of a client. `chain` has
    /// certificates between the two, in any order. Revocation is not checked.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn verify(
        &self,
        certificate: &[u8],
        chain: &[&[u8]],
        time: SystemTime,
    ) -> Result<(), Untrusted> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        let time = UnixTime::since_unix_epoch(since.unwrap_or_default());
        let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
        let verified = self
            .0
            .verify_client_cert(&CertificateDer::from(certificate), &chain, time);
        match verified {
            Ok(_) => Ok(()),
            Err(Error::InvalidCertificate(refused)) => Err(match refused {
                Refused::Expired
                | Refused::ExpiredContext { .. }
                | Refused::NotValidYet
                | Refused::NotValidYetContext { .. } => Untrusted::Time,
                Refused::UnknownIssuer => Untrusted::Issuer,
                Refused::InvalidPurpose | Refused::InvalidPurposeContext { .. } => {
                    Untrusted::Purpose
                }
                _ => Untrusted::Malformed,
            }),
            Err(_) => Err(Untrusted::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, date_time_ymd,
    };

    use super::*;

    fn authority(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    #[test]
    fn certificates_hold_when_an_authority_signed_them_for_clients_at_their_time() {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(authority("root"), key()).unwrap();
        let stranger = CertifiedIssuer::self_signed(authority("stranger"), key()).unwrap();
        let middle = CertifiedIssuer::signed_by(authority("middle"), key(), &root).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), root.pem()).unwrap();
        let authorities = ClientAuthorities::load(file.path()).unwrap();
        let issue = |issuer: &CertifiedIssuer<'static, KeyPair>, purposes| {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.extended_key_usages = purposes;
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
            params.signed_by(&key(), issuer).unwrap().der().to_vec()
        };
        let client = || vec![ExtendedKeyUsagePurpose::ClientAuth];
        let good = issue(&root, client());
        let deep = issue(&middle, client());
        let chain: &[&[u8]] = &[middle.der()];
        // 2020-06-01, 2021-06-01 and 2019-06-01.
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(1_590_969_600);
        let server = issue(&root, vec![ExtendedKeyUsagePurpose::ServerAuth]);
        for (what, certificate, chain, time, expected) in [
            ("good", &good, &[][..], now, Ok(())),
            ("any purpose", &issue(&root, vec![]), &[], now, Ok(())),
            ("through another", &deep, chain, now, Ok(())),
            ("chain not shown", &deep, &[], now, Err(Untrusted::Issuer)),
            (
                "expired",
                &good,
                &[],
                at(1_622_505_600),
                Err(Untrusted::Time),
            ),
            (
                "not yet",
                &good,
                &[],
                at(1_559_347_200),
                Err(Untrusted::Time),
            ),
            (
                "stranger",
                &issue(&stranger, client()),
                &[],
                now,
                Err(Untrusted::Issuer),
            ),
            ("server", &server, &[], now, Err(Untrusted::Purpose)),
            (
                "cut",
                &good[..99].to_vec(),
                &[],
                now,
                Err(Untrusted::Malformed),
            ),
        ] {
            let verified = authorities.verify(certificate, chain, time);
            assert_eq!(verified, expected, "{what}");
        }
    }
}
