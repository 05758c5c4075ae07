//! Manifests of plugins.

use wormholes_host::{Capabilities, MAX_MANIFEST_BYTES, Manifest};

/// Words of one capability, and the longest of them.
const MAX_WORDS: usize = 16;
const MAX_WORD_BYTES: usize = 128;
/// What an event may write at most, whatever a manifest says.
const MAX_WRITE_BYTES: usize = 16 << 20;

/// A manifest, which says something that a host can keep to, or is refused.
pub fn manifest(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let manifest = match Manifest::parse(&text) {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(text.len() <= MAX_MANIFEST_BYTES);
    assert_eq!(Manifest::parse(&text).unwrap(), manifest);
    let (asked, none) = (&manifest.capabilities, Capabilities::default());
    assert_eq!(asked.both(asked), *asked);
    assert_eq!(asked.both(&none), none);
    assert_eq!(none.both(asked), none);
    for (name, words) in asked.words() {
        assert!(words.len() <= MAX_WORDS, "{name}");
        let mut words = words.iter();
        assert!(words.all(|word| (1..=MAX_WORD_BYTES).contains(&word.len())));
    }
    let limits = &manifest.limits;
    assert!((1..=MAX_WRITE_BYTES).contains(&limits.write_bytes()));
    assert!(limits.state_bytes() > 0 && limits.one_blob_bytes() > 0 && limits.log_bytes() > 0);
    assert!(!limits.event_time().is_zero() && !manifest.http.patience().is_zero());
    let mut protocols = manifest.messages.protocols.iter();
    assert!(protocols.all(|protocol| (1..=64).contains(&protocol.len())));
}
