//! What fails, by what the asker may make of it.

use thiserror::Error;

/// Something that Tor did not do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TorError {
    /// It was left out when this program was built.
    #[error("this build has no Tor: it needs the feature `tor`")]
    Absent,
    /// The settings contradict themselves, or arti refuses them.
    #[error("the settings do not do: {0}")]
    Settings(String),
    /// Files cannot be read or written, or others could change them.
    #[error("the state folder: {0}")]
    Folder(String),
    /// The target refused.
    #[error("the target refused the connection")]
    Refused,
    /// The exit knows no such name.
    #[error("no such name, says the exit")]
    NameNotFound,
    /// The exit gave no answer about the target in time, or the way there was too slow.
    #[error("timed out on the way")]
    TimedOut,
    /// No exit passes this on.
    #[error("no exit passes that on")]
    NoExit,
    /// The target's network or host is not reached from the exit.
    #[error("not reached from the exit")]
    Unreachable,
    /// The target is private or local, which no exit dials.
    #[error("private and local addresses are nothing for Tor")]
    PrivateAddress,
    /// Neither a name nor an address that Tor takes.
    #[error("not a target for Tor")]
    BadTarget,
    /// No descriptor of the onion service was found, or nobody answers at it.
    #[error("no such onion service, or it is not up")]
    NoService,
    /// The onion service is for those who have a key.
    #[error("the onion service asks for a key: give it in `authorizations` under [tor]")]
    NoKey,
    /// The key is not among those that the onion service takes.
    #[error("the onion service does not take the key that [tor] has for it in `authorizations`")]
    WrongKey,
    /// Only one at a time may have it.
    #[error("in use, by another process or by what was there before and has not ended yet")]
    InUse,
    /// Anything else, in arti's words.
    #[error("{0}")]
    Other(String),
}

#[cfg(feature = "arti")]
impl TorError {
    /// What arti's error comes to.
    pub(crate) fn of(error: &arti_client::Error) -> Self {
        use arti_client::{ErrorKind as Kind, HasKind};
        // The enumeration may grow: what is not known by its kind is told in arti's words.
        let kinds = [
            (Kind::RemoteConnectionRefused, Self::Refused),
            (Kind::RemoteHostNotFound, Self::NameNotFound),
            (Kind::RemoteHostResolutionFailed, Self::NameNotFound),
            (Kind::RemoteNetworkTimeout, Self::TimedOut),
            (Kind::ExitTimeout, Self::TimedOut),
            (Kind::TorNetworkTimeout, Self::TimedOut),
            (Kind::ExitPolicyRejected, Self::NoExit),
            (Kind::NoExit, Self::NoExit),
            (Kind::RemoteNetworkFailed, Self::Unreachable),
            (Kind::ForbiddenStreamTarget, Self::PrivateAddress),
            (Kind::InvalidStreamTarget, Self::BadTarget),
            (Kind::OnionServiceAddressInvalid, Self::BadTarget),
            (Kind::OnionServiceNotFound, Self::NoService),
            (Kind::OnionServiceNotRunning, Self::NoService),
            (Kind::OnionServiceMissingClientAuth, Self::NoKey),
            (Kind::OnionServiceWrongClientAuth, Self::WrongKey),
            (Kind::LocalResourceAlreadyInUse, Self::InUse),
        ];
        let kind = error.kind();
        if let Some((_, known)) = kinds.into_iter().find(|(known, _)| *known == kind) {
            return known;
        }
        let folder = [
            Kind::FsPermissions,
            Kind::PersistentStateAccessFailed,
            Kind::PersistentStateCorrupted,
            Kind::CacheAccessFailed,
            Kind::CacheCorrupted,
            Kind::KeystoreAccessFailed,
            Kind::KeystoreCorrupted,
        ];
        if folder.contains(&kind) {
            return Self::Folder(whole(error));
        }
        match kind == Kind::InvalidConfig {
            true => Self::Settings(whole(error)),
            false => Self::Other(whole(error)),
        }
    }
}

/// An error with all that caused it, on one line.
#[cfg(feature = "arti")]
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    // Arti begins with this; whoever shows it knows by then.
    let mut text = text.strip_prefix("tor: ").unwrap_or(&text).to_owned();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some say their cause themselves.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
