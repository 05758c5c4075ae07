//! [`Settings`] in arti's own terms.

use std::path::Path;

use arti_client::{
    TorClientConfig,
    config::{
        BridgeConfigBuilder, CfgPath, ConfigBuildError, TorClientConfigBuilder, dir,
        pt::TransportConfigBuilder,
    },
};

use crate::{
    error::{TorError, whole},
    settings::{PrivateNetwork, Settings},
};

/// Relays of a private network are on few machines: none is of one family with another for its
/// address alone. One more than the bits of an address is arti's word for that.
const NO_IPV4_FAMILY: u8 = 33;
const NO_IPV6_FAMILY: u8 = 129;

/// Whether `line` is a bridge line, without the word `Bridge`.
///
/// # Errors
/// What arti has against it.
pub fn check_bridge(line: &str) -> Result<(), String> {
    let parsed = line.parse::<BridgeConfigBuilder>();
    parsed.map(drop).map_err(|error| whole(&error))
}

/// Arti's config.
pub(crate) fn of(settings: &Settings) -> Result<TorClientConfig, TorError> {
    let mut builder = TorClientConfigBuilder::from_directories(
        state_folder(&settings.folder),
        settings.folder.join("cache"),
    );
    if let Some(network) = &settings.network {
        use_network(&mut builder, network);
    }
    for line in &settings.bridges {
        let bridge = line.parse::<BridgeConfigBuilder>();
        let bridge = bridge.map_err(|error| TorError::Settings(whole(&error)))?;
        builder.bridges().bridges().push(bridge);
    }
    for (name, program) in &settings.transports {
        let protocol = name.parse().map_err(|_| {
            TorError::Settings(format!("{name:?} is no name of a pluggable transport"))
        })?;
        let mut transport = TransportConfigBuilder::default();
        transport
            .protocols(vec![protocol])
            .path(CfgPath::new_literal(program.clone()));
        builder.bridges().transports().push(transport);
    }
    let built: Result<TorClientConfig, ConfigBuildError> = builder.build();
    built.map_err(|error| TorError::Settings(whole(&error)))
}

/// Where guards and keys are.
pub(crate) fn state_folder(folder: &Path) -> std::path::PathBuf {
    folder.join("state")
}

fn use_network(builder: &mut TorClientConfigBuilder, network: &PrivateNetwork) {
    let mut authorities = dir::AuthorityContacts::builder();
    // Those of the public network are there until they are taken out.
    authorities.v3idents().clear();
    authorities.uploads().clear();
    authorities.downloads().clear();
    authorities.votes().clear();
    for authority in &network.authorities {
        authorities.v3idents().push(authority.v3ident.into());
        authorities.uploads().push(vec![authority.address]);
        authorities.downloads().push(vec![authority.address]);
        authorities.votes().push(vec![authority.address]);
    }
    let fallbacks = network.fallbacks.iter().map(|fallback| {
        let mut builder = dir::FallbackDir::builder();
        builder
            .rsa_identity(fallback.rsa_id.into())
            .ed_identity(fallback.ed25519_id.into())
            .orports()
            .push(fallback.address);
        builder
    });
    let fallbacks = fallbacks.collect();
    *builder.tor_network().authorities() = authorities;
    builder.tor_network().set_fallback_caches(fallbacks);
    builder
        .path_rules()
        .ipv4_subnet_family_prefix(NO_IPV4_FAMILY)
        .ipv6_subnet_family_prefix(NO_IPV6_FAMILY);
    builder
        .address_filter()
        .allow_local_addrs(network.allow_private)
        .allow_resolving_local_addrs(network.allow_private);
}

#[cfg(test)]
mod tests {
    use arti_client::config::vanguards::VanguardConfig;

    use super::*;

    const ID: &str = "0123456789ABCDEF0123456789ABCDEF01234567";

    fn settings() -> Settings {
        Settings {
            folder: "/nowhere".into(),
            ..Settings::default()
        }
    }

    fn network() -> PrivateNetwork {
        let id = format!("v3ident={ID} 9.70.0.1:7100");
        let fallback = format!("9.70.0.1:5100 id={ID} ed25519={}", "A".repeat(43));
        PrivateNetwork {
            authorities: vec![id.parse().unwrap()],
            fallbacks: vec![fallback.parse().unwrap()],
            allow_private: true,
        }
    }

    #[test]
    fn settings_become_a_config() {
        of(&settings()).unwrap();
        of(&Settings {
            network: Some(network()),
            bridges: vec![format!("9.70.0.9:5200 {ID}")],
            ..settings()
        })
        .unwrap();
    }

    #[test]
    fn vanguards_are_on_as_arti_has_them_by_default() {
        let private = Settings {
            network: Some(network()),
            ..settings()
        };
        for settings in [settings(), private] {
            let config = of(&settings).unwrap();
            // Arti says that they are disabled where it is built without them.
            let vanguards: &VanguardConfig = config.as_ref();
            assert_eq!(vanguards.mode().to_string(), "lite", "{settings:?}");
        }
    }

    #[test]
    fn a_bridge_needs_the_program_that_speaks_its_transport() {
        let obfs4 = format!("obfs4 9.70.0.9:5200 {ID} cert=AAAA iat-mode=0");
        assert_eq!(check_bridge(&obfs4), Ok(()));
        assert!(check_bridge("obfs4").is_err());
        let with = |transports: Vec<(String, std::path::PathBuf)>| {
            of(&Settings {
                bridges: vec![obfs4.clone()],
                transports,
                ..settings()
            })
        };
        assert!(matches!(with(Vec::new()), Err(TorError::Settings(_))));
        let program = ("obfs4".to_owned(), "/usr/bin/obfs4proxy".into());
        assert!(with(vec![program]).is_ok());
        let odd = ("o b".to_owned(), "/usr/bin/obfs4proxy".into());
        assert!(matches!(with(vec![odd]), Err(TorError::Settings(_))));
    }
}
