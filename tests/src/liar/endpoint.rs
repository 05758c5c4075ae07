//! A node's place in the network: keys that are in order, QUIC that is in order, and streams on
//! which anything may be said.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use quinn::{
    ClientConfig, Connecting, Connection, Endpoint, ServerConfig, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::{default_provider, sign::any_eddsa_type},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SigningKey},
};
use wormholes_proto::{
    Answer, NodeId, NodeRecord, OnionKey, Reason, Roles, SignedRecord, StaticKeypair, Suite,
    decode_answer,
};

use crate::{identity::Identity, test_node::RECORD_CONTEXT};

const ALPN: &[u8] = b"wormholes/1";
/// What a liar takes of a connection that it does not read: the rest stays with who sends it.
const WINDOW_BYTES: u32 = 256 << 10;
/// Whoever is lied to ends its waits before this.
const PATIENCE: Duration = Duration::from_secs(40);
/// No answer to a lie is longer.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// A node with all its keys, and without morals.
#[derive(Debug)]
pub struct Liar {
    identity: Identity,
    noise: StaticKeypair,
    onion: StaticKeypair,
    endpoint: Endpoint,
}

/// What became of what was said on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// An answer, and what followed it until the end.
    Accepted(Vec<u8>, Vec<u8>),
    /// An answer that says no.
    Refused(Reason),
    /// The stream, or the whole connection, broke off.
    Broken,
}

impl Liar {
    /// A new node on an address of its own.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub fn new(ip: Ipv4Addr) -> Result<Self> {
        let identity = Identity::generate()?;
        let shown = public_key(&identity)?;
        Self::with_identity(ip, identity, shown)
    }

    /// A new node that shows this in a handshake, instead of the key with which it signs.
    ///
    /// # Errors
    /// When the address is not to be had.
    pub fn showing(ip: Ipv4Addr, shown: Vec<u8>) -> Result<Self> {
        Self::with_identity(ip, Identity::generate()?, shown)
    }

    fn with_identity(ip: Ipv4Addr, identity: Identity, shown: Vec<u8>) -> Result<Self> {
        let key = signing_key(&identity)?;
        let shown = vec![CertificateDer::from(shown)];
        let certified = Arc::new(CertifiedKey::new(shown, key));
        let server = server_config(Arc::clone(&certified))?;
        let mut endpoint = Endpoint::server(server, (ip, 0).into())?;
        endpoint.set_default_client_config(client_config(certified)?);
        Ok(Self {
            identity,
            noise: StaticKeypair::generate(&mut rand::rng())?,
            onion: StaticKeypair::generate(&mut rand::rng())?,
            endpoint,
        })
    }

    /// Who it is.
    pub fn id(&self) -> NodeId {
        self.identity.id()
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.endpoint.local_addr()?)
    }

    /// Its key for relayed ends.
    pub fn noise(&self) -> &StaticKeypair {
        &self.noise
    }

    /// The secret half of its onion key.
    pub fn onion_private(&self) -> &[u8; 32] {
        self.onion.private()
    }

    /// Its onion key, as its record tells it.
    pub fn onion_key(&self) -> OnionKey {
        let day = Duration::from_secs(86_400);
        let expires = SystemTime::now() + day;
        let seconds = expires.duration_since(SystemTime::UNIX_EPOCH);
        OnionKey {
            key_id: [7; 8],
            suite: Suite::ChaChaPoly,
            public: *self.onion.public(),
            // Records carry whole seconds.
            expires: SystemTime::UNIX_EPOCH
                + Duration::from_secs(seconds.unwrap_or_default().as_secs()),
        }
    }

    /// A true record of this moment, with something in every field.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn record(&self) -> Result<NodeRecord> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(NodeRecord {
            id: self.id(),
            sequence: u64::try_from(since_1970.as_millis())?,
            addresses: vec![self.address()?, "[2001:db8::1]:4433".parse()?],
            noise_key: *self.noise.public(),
            suite: Suite::ChaChaPoly,
            onion_keys: vec![self.onion_key()],
            roles: Roles {
                relay: true,
                hop: true,
                exit: true,
            },
            // Read as something else, for a wrong count, the first byte is out of bounds there.
            exit_ports: vec![(0x2121, u16::MAX)],
            family: Some("liars".to_owned()),
            relays: vec![NodeId::from_bytes([9; 32])],
        })
    }

    /// [`Self::record`], signed.
    ///
    /// # Errors
    /// Never, while the record is within its bounds.
    pub fn signed(&self) -> Result<SignedRecord> {
        let sign = |message: &[u8]| self.identity.sign(message);
        Ok(self.record()?.sign(sign)?)
    }

    /// Signs whatever claims to be a record.
    pub fn sign_record(&self, body: &[u8]) -> Vec<u8> {
        sign_record(&self.identity, body)
    }

    /// Calls a node.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn call(&self, address: SocketAddr) -> Result<Connection> {
        Ok(self.begin_call(address)?.await?)
    }

    /// Begins to.
    pub(crate) fn begin_call(&self, address: SocketAddr) -> Result<Connecting> {
        Ok(self.endpoint.connect(address, "whoever")?)
    }

    /// Takes the next call.
    ///
    /// # Errors
    /// When the endpoint is closed, or the handshake breaks.
    pub async fn called(&self) -> Result<Connection> {
        let incoming = self.endpoint.accept().await.context("closed")?;
        Ok(incoming.await?)
    }
}

/// Signs whatever claims to be a record of a node.
pub fn sign_record(identity: &Identity, body: &[u8]) -> Vec<u8> {
    let signature = identity.sign(&[RECORD_CONTEXT, body].concat());
    [body, &signature].concat()
}

/// Opens a stream, says this, ends, and hears what comes of it.
///
/// # Errors
/// When nothing comes of it, or what no node says.
pub async fn tell(connection: &Connection, bytes: &[u8]) -> Result<Told> {
    let told = async {
        let Ok((mut send, mut receive)) = connection.open_bi().await else {
            return Ok(Told::Broken);
        };
        // Who is lied to may have had enough before it heard all.
        let _stopped = send.write_all(bytes).await;
        let _stopped = send.finish();
        match receive.read_to_end(MAX_ANSWER_BYTES).await {
            Ok(answer) => read(&answer),
            Err(_) => Ok(Told::Broken),
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.context("neither answer nor end")?
}

/// Opens a stream and says this; ends only when there is an answer.
///
/// # Errors
/// When there is none, or what no node says.
pub async fn ask(connection: &Connection, bytes: &[u8]) -> Result<Told> {
    let told = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(bytes).await?;
        let mut said = vec![0; 2];
        receive.read_exact(&mut said).await?;
        let length = said
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        said.resize(2 + length, 0);
        receive
            .read_exact(said.get_mut(2..).unwrap_or_default())
            .await?;
        send.finish()?;
        // A circuit that is not used ends without a word.
        let rest = receive.read_to_end(MAX_ANSWER_BYTES).await;
        said.extend(rest.unwrap_or_default());
        read(&said)
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.context("no answer")?
}

fn read(said: &[u8]) -> Result<Told> {
    if said.is_empty() {
        return Ok(Told::Broken);
    }
    let (length, rest) = said.split_first_chunk().context("half a length")?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (frame, rest) = rest.split_at_checked(length).context("a cut answer")?;
    match decode_answer(frame)? {
        Answer::Accepted(body) => Ok(Told::Accepted(body, rest.to_vec())),
        Answer::Refused(reason) if rest.is_empty() => Ok(Told::Refused(reason)),
        Answer::Refused(_) => bail!("more after a refusal"),
    }
}

fn signing_key(identity: &Identity) -> Result<Arc<dyn SigningKey>> {
    let pkcs8 = PrivatePkcs8KeyDer::from(identity.pkcs8());
    Ok(any_eddsa_type(&pkcs8)?)
}

fn public_key(identity: &Identity) -> Result<Vec<u8>> {
    let key = signing_key(identity)?;
    Ok(key.public_key().context("no public key")?.to_vec())
}

fn client_config(key: Arc<CertifiedKey>) -> Result<ClientConfig> {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustsAnybody))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let mut transport = TransportConfig::default();
    transport.receive_window(WINDOW_BYTES.into());
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn server_config(key: Arc<CertifiedKey>) -> Result<ServerConfig> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(TrustsAnybody))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(config)?,
    )))
}

/// Takes every key for good: it is the liar's own claims that are tested.
#[derive(Debug)]
struct TrustsAnybody;

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for TrustsAnybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
