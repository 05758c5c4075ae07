//! The certificate that the gateway shows, read again as time goes by: they live for weeks.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;

use super::GatewayError;
use crate::config::HttpConfig;

/// What renews certificates does so days before they end.
const PERIOD: Duration = Duration::from_secs(3600);

/// The certificate in force.
#[derive(Debug)]
pub(crate) struct Certificates {
    config: HttpConfig,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl Certificates {
    /// Reads what config.toml names; `None`: it names none.
    pub(crate) fn load(config: &HttpConfig) -> Result<Option<Arc<Self>>, GatewayError> {
        let Some(certified) = read(config)? else {
            return Ok(None);
        };
        Ok(Some(Arc::new(Self {
            config: config.clone(),
            current: Arc::new(Current(ArcSwap::from_pointee(certified))),
        })))
    }

    /// Does handshakes with the certificate that is in force by then.
    #[expect(
        clippy::expect_used,
        reason = "the provider has all that TLS 1.2 and 1.3 need"
    )]
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider speaks TLS")
            .with_no_client_auth();
        // Nobody is asked what he speaks: at each port there is one thing.
        let config = config.with_cert_resolver(self.current.clone());
        TlsAcceptor::from(Arc::new(config))
    }

    /// Reads the files again, for ever. What cannot be used leaves the one before.
    pub(crate) async fn renew(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let config = self.config.clone();
            let read = tokio::task::spawn_blocking(move || read(&config)).await;
            match read {
                Ok(Ok(Some(certified))) => self.current.0.store(Arc::new(certified)),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the certificate stays as it was"),
                Err(_) => return,
            }
        }
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn read(config: &HttpConfig) -> Result<Option<CertifiedKey>, GatewayError> {
    let (Some(certificate), Some(key_file)) = (&config.certificate, &config.key) else {
        return Ok(None);
    };
    let chain = certificates(certificate)?;
    check_mode(key_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file);
    // What is in the file is not said.
    let key = key.map_err(|_| wrong(key_file, "it holds no private key in PEM"))?;
    let provider = aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider);
    certified
        .map(Some)
        .map_err(|error| wrong(certificate, error))
}

/// All certificates of a file.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, GatewayError> {
    let read = CertificateDer::pem_file_iter(file);
    let read = read.and_then(|all| all.collect::<Result<Vec<_>, _>>());
    let chain = read.map_err(|error| wrong(file, error))?;
    if chain.is_empty() {
        return Err(wrong(file, "it holds no certificate in PEM"));
    }
    Ok(chain)
}

/// Those who renew certificates let a group read the key; nobody else may.
fn check_mode(key: &Path) -> Result<(), GatewayError> {
    let unreadable = |error: io::Error| wrong(key, error);
    let mode = fs::metadata(key).map_err(unreadable)?.mode();
    if mode & 0o007 != 0 {
        let mend = format!("others may read it: chmod 640 {}", key.display());
        return Err(wrong(key, mend));
    }
    Ok(())
}

fn wrong(path: &Path, why: impl ToString) -> GatewayError {
    GatewayError::Certificate {
        path: path.to_owned(),
        why: why.to_string(),
    }
}
