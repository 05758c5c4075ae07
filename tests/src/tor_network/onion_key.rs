//! A key that an onion service may ask its clients for, in the words of C tor's files.

/// The two halves of a key for X25519.
#[derive(Debug, Clone, Copy)]
pub struct OnionKey {
    secret: &'static str,
    public: &'static str,
}

impl OnionKey {
    /// A client's, which `openssl genpkey` made; both halves in base32.
    pub const ALICE: Self = Self {
        secret: "YAW5VXQSLPIG7324H757YTO35LC2XSQCF2P43WJIAIV5OMTG6B4Q",
        public: "Q4Q76VUAL3UHT6OAQEZP2EA55X4JWWAFPZT3E6RPBTBYAJX6NMWQ",
    };

    /// What a service is told, as in `authorized_clients/*.auth`.
    pub fn public(&self) -> String {
        format!("descriptor:x25519:{}", self.public)
    }

    /// What the client is told, as in `*.auth_private`, of the service `<56 characters>.onion`.
    pub fn secret(&self, onion: &str) -> String {
        let onion = onion.trim_end_matches(".onion");
        format!("{onion}:descriptor:x25519:{}", self.secret)
    }
}
