//! What somebody probably meant who wrote a name that is not known; nothing when that is a guess.

use wormholes_rules::nearest;

/// Fewer letters say too little.
const MIN_BEGINNING: usize = 3;

/// `; did you mean …?`, or nothing.
pub(super) fn suggestion<'k>(
    unknown: &str,
    known: impl Iterator<Item = &'k str> + Clone,
) -> String {
    let meant = nearest(unknown, known.clone()).or_else(|| only_of_its_kind(unknown, known));
    meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

/// The only name that begins alike: with the same word, as `idle_seconds` and `idle_timeout`, or
/// as the whole of the other, as `addr` and `addresses`.
fn only_of_its_kind<'k>(unknown: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let first_word = |name: &str| name.split('_').next().map(str::to_owned);
    let begins = |long: &str, short: &str| short.len() >= MIN_BEGINNING && long.starts_with(short);
    let mut alike = known.filter(|name| {
        first_word(name) == first_word(unknown) || begins(name, unknown) || begins(unknown, name)
    });
    alike.next().filter(|_| alike.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::{super::keys::SECTIONS, *};

    fn check(section: &str, unknown: &str, meant: Option<&str>) {
        let section = SECTIONS.iter().find(|known| known.name == section).unwrap();
        let hint = suggestion(unknown, section.keys().map(|(name, _)| name));
        let expected = meant.map(|name| format!("; did you mean `{name}`?"));
        assert_eq!(hint, expected.unwrap_or_default(), "{unknown}");
    }

    #[test]
    fn typing_errors_are_understood() {
        for (section, unknown, meant) in [
            ("node", "nme", "name"),
            ("node", "lisetn", "listen"),
            ("node", "listen_on", "listen"),
            ("node", "data-dir", "data_dir"),
            ("node", "datadir", "data_dir"),
            ("node", "data_path", "data_dir"),
            ("node", "Family", "family"),
            ("peer", "adresses", "addresses"),
            ("peer", "address", "addresses"),
            ("peer", "trsut", "trust"),
            ("peer", "addr", "addresses"),
            ("entrance", "labels", "label"),
            ("service", "mintrust", "min_trust"),
            ("service", "min_level", "min_trust"),
            ("rules", "script", "scripts"),
            ("rules", "recorded_decisions", "record_decisions"),
            ("relay", "idle", "idle_seconds"),
            ("relay", "idle_timeout", "idle_seconds"),
            ("exit", "alow", "allow"),
            ("hop", "allow_privat", "allow_private"),
            ("limits", "drain", "drain_seconds"),
            ("limits", "handshake_secs", "handshake_seconds"),
            ("log", "lvel", "level"),
        ] {
            check(section, unknown, Some(meant));
        }
    }

    #[test]
    fn other_words_are_not_guessed_at() {
        for (section, unknown) in [
            ("node", "port"),
            ("node", "colour"),
            ("node", "nickname"),
            ("node", "log_level"),
            ("peer", "key"),
            ("peer", "endpoint"),
            ("peer", "comment"),
            ("entrance", "timeout"),
            ("entrance", "password"),
            ("service", "protocol"),
            ("rules", "watch"),
            ("relay", "max_peers"),
            ("relay", "max"),
            ("exit", "ports"),
            ("limits", "memory"),
            ("limits", "streams"),
            ("limits", "x"),
            ("control", "tcp"),
            ("metrics", "path"),
            ("log", "file"),
            ("log", "qqq"),
        ] {
            check(section, unknown, None);
        }
    }
}
