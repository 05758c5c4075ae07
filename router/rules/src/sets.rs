//! Named sets of names and addresses, merged into one index: asking a thousand sets costs about
//! what asking one does.
//!
//! A file holds one entry a line; `#` begins a comment:
//! ```text
//! ads.example            the name and every name below it (also .ads.example and *.ads.example)
//! =www.example           this name only
//! 192.0.2.0/24           a block of addresses; a bare address is a block of one
//! 0.0.0.0 ads.example    a line of a hosts file: its names, not its address
//! ```
//! Names are kept as flows have them: lower case, punycode, no final dot. What no flow can be called
//! (`256.1.1.1`, `10.0.0`, `a.*.example`) is refused, lest somebody count on it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;
use thiserror::Error;
use wormholes_proto::{Host, MAX_NAME_BYTES};

/// Entries of one set: ten times the largest public block list in use.
pub const MAX_SET_ENTRIES: usize = 5_000_000;
/// Sets of one node: a set's number fits two bytes.
pub const MAX_SETS: usize = 10_000;

/// All named sets. Filled once, then only read.
#[derive(Debug, Default)]
pub struct SetRegistry {
    numbers: BTreeMap<String, u16>,
    names: Vec<String>,
    domains: HashMap<Box<str>, Members>,
    blocks: HashMap<IpNet, Members>,
    /// The prefix lengths in use, so that a look-up tries no others.
    lengths: BTreeSet<(bool, u8)>,
}

/// What is wrong with a set.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SetError {
    /// A line that is no entry.
    #[error(
        "{file}:{line}: `{text}` is not a name, an address or a block of addresses: write \
         ads.example, =www.example, 192.0.2.1 or 192.0.2.0/24"
    )]
    Entry {
        /// The file as the caller named it.
        file: String,
        /// From 1.
        line: usize,
        /// The line, cut at 80 characters.
        text: String,
    },
    /// A file that is too long.
    #[error("{file}:{line}: a set holds at most {MAX_SET_ENTRIES} entries")]
    TooMany {
        /// The file as the caller named it.
        file: String,
        /// From 1.
        line: usize,
    },
    /// Too many sets.
    #[error("at most {MAX_SETS} sets")]
    TooManySets,
}

/// In which sets an entry is. Almost always one.
#[derive(Debug)]
enum Members {
    One(Member),
    Many(Vec<Member>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    set: u16,
    /// Names below are not meant.
    exact: bool,
}

impl Members {
    fn add(&mut self, member: Member) {
        match self {
            Self::One(one) if one.set == member.set => one.exact &= member.exact,
            Self::One(one) => *self = Self::Many(vec![*one, member]),
            Self::Many(many) => match many.iter_mut().find(|one| one.set == member.set) {
                Some(one) => one.exact &= member.exact,
                None => many.push(member),
            },
        }
    }

    fn as_slice(&self) -> &[Member] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl SetRegistry {
    /// Adds the set `name` from the text of `file` (named in errors only). A set may be loaded from
    /// several texts.
    ///
    /// # Errors
    /// [`SetError`] names the line to mend; entries before it stay.
    pub fn load(&mut self, name: &str, file: &str, text: &str) -> Result<(), SetError> {
        let set = self.number(name)?;
        let mut count = 0;
        // Editors of Windows begin a text with a mark that is none of it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for (index, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or("").trim();
            if entry.is_empty() {
                continue;
            }
            count += 1;
            if count > MAX_SET_ENTRIES {
                return Err(SetError::TooMany {
                    file: file.to_owned(),
                    line: index + 1,
                });
            }
            self.add_line(set, entry).ok_or_else(|| SetError::Entry {
                file: file.to_owned(),
                line: index + 1,
                text: entry.chars().take(80).collect(),
            })?;
        }
        Ok(())
    }

    /// The names of all sets, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// Whether there is a set of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.numbers.contains_key(name)
    }

    /// Whether the set `name` has `value`: a name or an address in text. A set that is not there
    /// has nothing.
    pub fn has(&self, name: &str, value: &str) -> bool {
        let Some(set) = self.numbers.get(name) else {
            return false;
        };
        self.matches(value, |member| member == *set)
    }

    /// The first set that has `value`, by the order of `among`, else by the order of names.
    pub fn first(&self, value: &str, among: Option<&[String]>) -> Option<&str> {
        let Some(among) = among else {
            let mut found: Option<&str> = None;
            self.matches(value, |set| {
                let name = self.names.get(usize::from(set)).map(String::as_str);
                found = match (found, name) {
                    (Some(old), Some(new)) => Some(old.min(new)),
                    (old, new) => old.or(new),
                };
                false
            });
            return found;
        };
        let mut members = Vec::new();
        self.matches(value, |set| {
            members.push(set);
            false
        });
        let name = among.iter().find(|name| {
            self.numbers
                .get(name.as_str())
                .is_some_and(|set| members.contains(set))
        })?;
        self.numbers
            .get_key_value(name.as_str())
            .map(|(name, _)| name.as_str())
    }

    /// All sets that have `value`, by the order of names.
    pub(crate) fn having(&self, value: &str) -> Vec<&str> {
        let mut names = Vec::new();
        self.matches(value, |set| {
            names.extend(self.names.get(usize::from(set)).map(String::as_str));
            false
        });
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Calls `accept` with every set that has `value`, until it returns true.
    fn matches(&self, value: &str, accept: impl FnMut(u16) -> bool) -> bool {
        match value.parse::<IpAddr>() {
            Ok(ip) => self.matches_ip(ip, accept),
            Err(_) => self.matches_name(value, accept),
        }
    }

    fn matches_name(&self, name: &str, mut accept: impl FnMut(u16) -> bool) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.len() > MAX_NAME_BYTES {
            return false;
        }
        let canonical;
        let is_plain = |byte: u8| byte.is_ascii() && !byte.is_ascii_uppercase();
        let name = if name.bytes().all(is_plain) {
            name
        } else {
            let Some(parsed) = canonical_name(name) else {
                return false;
            };
            canonical = parsed;
            &canonical
        };
        let mut rest = name;
        loop {
            let whole = rest.len() == name.len();
            if let Some(members) = self.domains.get(rest) {
                for member in members.as_slice() {
                    if (whole || !member.exact) && accept(member.set) {
                        return true;
                    }
                }
            }
            match rest.split_once('.') {
                Some((_, parent)) => rest = parent,
                None => return false,
            }
        }
    }

    fn matches_ip(&self, ip: IpAddr, mut accept: impl FnMut(u16) -> bool) -> bool {
        let ip = ip.to_canonical();
        for (is_ipv6, length) in &self.lengths {
            if *is_ipv6 != ip.is_ipv6() {
                continue;
            }
            let Ok(block) = IpNet::new(ip, *length) else {
                continue;
            };
            let Some(members) = self.blocks.get(&block.trunc()) else {
                continue;
            };
            if members.as_slice().iter().any(|member| accept(member.set)) {
                return true;
            }
        }
        false
    }

    fn number(&mut self, name: &str) -> Result<u16, SetError> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        if self.names.len() >= MAX_SETS {
            return Err(SetError::TooManySets);
        }
        let number = u16::try_from(self.names.len()).map_err(|_| SetError::TooManySets)?;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        Ok(number)
    }

    fn add_line(&mut self, set: u16, entry: &str) -> Option<()> {
        let mut words = entry.split_whitespace();
        let first = words.next()?;
        let Some(second) = words.next() else {
            return self.add_entry(set, first);
        };
        let (address, _zone) = first.split_once('%').unwrap_or((first, ""));
        address.parse::<IpAddr>().ok()?;
        // Some public hosts files name an address too: `0.0.0.0 0.0.0.0`.
        let names = std::iter::once(second).chain(words);
        for name in names.filter(|name| name.parse::<IpAddr>().is_err()) {
            self.add_name(set, name, false)?;
        }
        Some(())
    }

    fn add_entry(&mut self, set: u16, entry: &str) -> Option<()> {
        let block = match entry.parse::<IpAddr>() {
            Ok(ip) => Some(IpNet::from(ip)),
            Err(_) => entry.parse::<IpNet>().ok(),
        };
        if let Some(block) = block {
            self.add_block(set, canonical_block(block));
            return Some(());
        }
        match entry.strip_prefix('=') {
            Some(name) => self.add_name(set, name, true),
            None => {
                let below = entry.strip_prefix("*.").or_else(|| entry.strip_prefix('.'));
                self.add_name(set, below.unwrap_or(entry), false)
            }
        }
    }

    fn add_block(&mut self, set: u16, block: IpNet) {
        let member = Member { set, exact: false };
        let is_ipv6 = block.addr().is_ipv6();
        self.lengths.insert((is_ipv6, block.prefix_len()));
        self.blocks
            .entry(block)
            .and_modify(|members| members.add(member))
            .or_insert(Members::One(member));
    }

    fn add_name(&mut self, set: u16, name: &str, exact: bool) -> Option<()> {
        let name = canonical_name(name)?;
        let member = Member { set, exact };
        self.domains
            .entry(name.into_boxed_str())
            .and_modify(|members| members.add(member))
            .or_insert(Members::One(member));
        Some(())
    }
}

/// A name as flows have it; none when no flow can be called so.
fn canonical_name(name: &str) -> Option<String> {
    let Ok(Host::Name(name)) = Host::parse(name) else {
        return None;
    };
    // A range of addresses (`192.0.2.1-9`) would pass for a name, but no zone has a number's name.
    let zone = name.rsplit('.').next()?;
    zone.bytes()
        .any(|byte| byte.is_ascii_alphabetic())
        .then_some(name)
}

/// A block as addresses are looked up: one of mapped IPv4 addresses is a block of IPv4.
fn canonical_block(block: IpNet) -> IpNet {
    /// Bits before the IPv4 address in a mapped one.
    const MAPPED_BITS: u8 = 96;
    let block = block.trunc();
    let length = block.prefix_len().checked_sub(MAPPED_BITS);
    match (block.addr().to_canonical(), length) {
        (ip @ IpAddr::V4(_), Some(length)) if block.addr().is_ipv6() => {
            IpNet::new(ip, length).unwrap_or(block)
        }
        _ => block,
    }
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use super::*;

    fn registry(sets: &[(&str, &str)]) -> SetRegistry {
        let mut registry = SetRegistry::default();
        for (name, text) in sets {
            registry.load(name, "test.txt", text).unwrap();
        }
        registry
    }

    #[test]
    fn names_mean_themselves_and_all_below_unless_exact() {
        let sets = registry(&[(
            "ads",
            "# a comment\nads.example # and one here\n=www.exact.example\n*.star.example\n.dot.example\n\n0.0.0.0 hosts.example other.example\n",
        )]);
        for (value, expected) in [
            ("ads.example", true),
            ("ADS.example.", true),
            ("x.y.ads.example", true),
            ("badads.example", false),
            ("example", false),
            ("www.exact.example", true),
            ("x.www.exact.example", false),
            ("a.star.example", true),
            ("dot.example", true),
            ("hosts.example", true),
            ("x.other.example", true),
            ("0.0.0.0", false),
            ("", false),
        ] {
            assert_eq!(sets.has("ads", value), expected, "{value}");
        }
        assert!(!sets.has("unknown", "ads.example"));
    }

    #[test]
    fn addresses_match_their_blocks() {
        let sets = registry(&[(
            "net",
            "192.0.2.0/24\n10.0.0.1\n2001:db8::/32\n::ffff:10.9.9.9",
        )]);
        for (value, expected) in [
            ("192.0.2.77", true),
            ("192.0.3.1", false),
            ("10.0.0.1", true),
            ("10.0.0.2", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("::ffff:192.0.2.1", true),
            ("10.9.9.9", true),
        ] {
            assert_eq!(sets.has("net", value), expected, "{value}");
        }
    }

    #[test]
    fn an_entry_is_kept_as_flows_are_called() {
        let sets = registry(&[(
            "mixed",
            "\u{feff}bom.example\nUPPER.Example.\n=Exact.Example.\nbücher.example\n*.STRAẞE.example\n::ffff:192.0.2.0/120\n10.1.2.3/8\n0.0.0.0 0.0.0.0\nfe80::1%lo0 Printer.example\n",
        )]);
        for (value, expected) in [
            ("bom.example", true),
            ("x.upper.example", true),
            ("exact.example", true),
            ("x.exact.example", false),
            ("xn--bcher-kva.example", true),
            ("www.Bücher.example.", true),
            ("a.xn--strae-oqa.example", true),
            ("192.0.2.200", true),
            ("192.0.3.1", false),
            ("10.200.0.1", true),
            ("0.0.0.0", false),
            ("printer.example", true),
            ("not a name ü", false),
        ] {
            assert_eq!(sets.has("mixed", value), expected, "{value}");
        }
    }

    #[test]
    fn the_first_set_is_the_first_by_list_or_by_name() {
        let sets = registry(&[("b", "x.example"), ("a", "example"), ("c", "y.example")]);
        assert_eq!(sets.first("x.example", None), Some("a"));
        assert_eq!(sets.first("x.test", None), None);
        let list = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(sets.first("x.example", Some(&list(&["b", "a"]))), Some("b"));
        assert_eq!(
            sets.first("y.example", Some(&list(&["zz", "b", "a"]))),
            Some("a")
        );
        assert_eq!(sets.first("y.example", Some(&list(&["b"]))), None);
    }

    #[test]
    fn errors_name_file_and_line() {
        for text in [
            "ok.example\nnot a name\n",
            "\nbad..name",
            "# fine\n1.2.3.4/40",
            "a\n-/-",
            "a\n256.1.1.1",
            "a\n10.0.0",
            "a\n10.0.0/8",
            "a\n0x7f.1",
            "a\n2130706433",
            "a\n010.0.0.1",
            "a\n192.0.2.1-9",
            "a\n192.0.2.1-192.0.2.9",
            "a\n=192.0.2.1",
            "a\n192.0.2.1:80",
            "a\n[2001:db8::1]",
            "a\na.*.example",
            "a\n*ads.example",
            "a\n*",
            "a\n..ads.example",
            "a\n*..ads.example",
            "a\n||ads.example^",
            "a\nhttps://ads.example",
            "a\nads.example bad.example",
            "a\n0.0.0.0 256.1.1.1",
        ] {
            let error = SetRegistry::default().load("s", "s.txt", text).unwrap_err();
            assert!(error.to_string().starts_with("s.txt:2: `"), "{error}");
        }
    }

    #[test]
    fn a_thousand_sets_cost_at_most_three_times_what_ten_cost() {
        let cost = |count: usize| {
            let mut sets = SetRegistry::default();
            for set in 0..count {
                let lines: String = (0..20).map(|i| format!("h{i}.s{set}.example\n")).collect();
                sets.load(&format!("set{set}"), "s.txt", &lines).unwrap();
            }
            let hosts: Vec<_> = (0..count)
                .map(|set| format!("x.h3.s{set}.example"))
                .collect();
            // The best of several runs: others share the machine.
            (0..15)
                .map(|_| {
                    let start = Instant::now();
                    for index in 0..20_000 {
                        assert!(black_box(sets.first(&hosts[index % count], None)).is_some());
                    }
                    start.elapsed()
                })
                .min()
                .unwrap()
        };
        let (ten, thousand) = (cost(10), cost(1000));
        assert!(thousand < ten * 3, "ten {ten:?}, thousand {thousand:?}");
    }
}
