//! Dead letters: the last events of an instance that broke it three times and were given up.
//!
//! ```text
//! slot u32 -> number u64 | when u64 | bytes of the body u64
//!             | length u16, text: principal | kind | name | fault | body
//! ```
//! Letters are numbered, and a letter's slot is its number modulo [`CAPACITY`]: the newest takes the
//! row of the oldest. With the bounds of each part, all of them have less than 1 MiB.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    event::{Content, Event, Principal, Wish},
    rows::{self, letter_key, letter_keys},
    rules::{Service, Usage},
    store::{Snapshot, StoreError, Writes},
    wires::SocketNews,
};

/// Letters of one instance. Overflow: the oldest goes, and is counted.
const CAPACITY: u32 = 100;
/// Of the event's body; the rest is cut.
const MAX_BODY_BYTES: usize = 4096;
/// Of each text; the rest is cut.
const MAX_TEXT_BYTES: usize = 1024;

/// An event that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Rises from letter to letter of an instance.
    pub number: u64,
    /// When it was given up: milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Whom it was for.
    pub principal: String,
    /// Its kind, as metrics name it.
    pub kind: String,
    /// The command's or the timer's name.
    pub name: String,
    /// What broke the plugin the last time.
    pub fault: String,
    /// The beginning of its body: 4 KiB at most.
    pub body: Vec<u8>,
    /// What the body had before it was cut.
    pub body_bytes: u64,
}

/// The dead letters of an instance, as its principals write them.
#[derive(Debug)]
pub(crate) struct Letters {
    instance: u32,
    kept: Mutex<Kept>,
}

/// The numbers from the first to before the next are kept; one whose commit failed is missing.
#[derive(Debug)]
struct Kept {
    first: u64,
    next: u64,
    dropped: u64,
}

impl Letters {
    pub(crate) fn read(instance: u32, snapshot: &Snapshot) -> Result<Self, StoreError> {
        let letters = all(instance, snapshot)?;
        let first = letters.first().map_or(0, |letter| letter.number);
        let next = letters.last().map_or(0, |letter| letter.number + 1);
        let kept = Kept {
            first,
            next,
            dropped: 0,
        };
        Ok(Self {
            instance,
            kept: Mutex::new(kept),
        })
    }

    /// Writes a letter into the commit that consumes its event. A plugin's rows never come here, and
    /// what shall not be read later must not: the rows of a namespace for secrets stay out too.
    pub(crate) fn write(&self, mut letter: DeadLetter, writes: &mut Writes) {
        let mut kept = self.kept();
        letter.number = kept.next;
        kept.next += 1;
        if kept.next - kept.first > CAPACITY.into() {
            kept.first += 1;
            kept.dropped += 1;
        }
        drop(kept);
        let slot = (letter.number % u64::from(CAPACITY)) as u32;
        let key = letter_key(self.instance, slot);
        writes.put(key, Some(letter.encode()));
    }

    /// Deletes them all; the next one has the next number.
    pub(crate) fn clear(&self) -> Writes {
        let mut kept = self.kept();
        kept.first = kept.next;
        drop(kept);
        let mut writes = Writes::default();
        for slot in 0..CAPACITY {
            writes.put(letter_key(self.instance, slot), None);
        }
        writes
    }

    /// How many went since the start because there were too many.
    pub(crate) fn dropped(&self) -> u64 {
        self.kept().dropped
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of an instance that are durable, the oldest first.
pub(crate) fn all(instance: u32, snapshot: &Snapshot) -> Result<Vec<DeadLetter>, StoreError> {
    let rows = rows::all(snapshot, &letter_keys(instance))?;
    let letters = rows.iter().filter_map(|(_, row)| DeadLetter::decode(row));
    let mut letters: Vec<_> = letters.collect();
    letters.sort_by_key(|letter| letter.number);
    Ok(letters)
}

impl DeadLetter {
    /// `None`: the wake-up of a principal is not given up, it parks the principal.
    pub(crate) fn new(
        event: &Event,
        principal: &Principal,
        fault: String,
        now_ms: u64,
    ) -> Option<Self> {
        let used;
        // What others said to it is not kept: it may hold what is secret.
        let mut body_bytes = None;
        let (name, body) = match event {
            Event::Migrate { .. } | Event::Init(_) => return None,
            Event::Timer { name, payload } => (name.to_string(), &payload[..]),
            Event::Request(request) => match &request.wish {
                Wish::Command(command) => (command.name.to_string(), &command.body[..]),
                Wish::Http(http) => {
                    body_bytes = Some(http.body.len());
                    (format!("{} {}", http.method, http.path), &[][..])
                }
            },
            Event::Canceled { request, .. } => (request.to_string(), &[][..]),
            Event::Message(incoming) => match &incoming.content {
                Content::Message(body) => (incoming.protocol.to_string(), &body[..]),
                Content::Gap(_) => (incoming.protocol.to_string(), &[][..]),
            },
            Event::Note { number, .. } => (number.to_string(), &[][..]),
            Event::Answer { id, answer } => {
                let body = answer.as_ref().map_or(&[][..], |body| &body[..]);
                (id.to_string(), body)
            }
            Event::Fetched { id, answer } => {
                body_bytes = answer.as_ref().ok().map(|answer| answer.body.len());
                (id.to_string(), &[][..])
            }
            Event::Socket { id, news } => {
                if let SocketNews::Data(data) = news {
                    body_bytes = Some(data.len());
                }
                (id.to_string(), &[][..])
            }
            Event::Datagram(datagram) => {
                body_bytes = Some(datagram.data.len());
                (datagram.port.to_string(), &[][..])
            }
            Event::Presence { peer, online, .. } => {
                let state: &[u8] = if *online { b"online" } else { b"offline" };
                (peer.to_string(), state)
            }
            Event::BlobFetched { id, .. } => (id.to_string(), &[][..]),
            Event::Usage(usage) => {
                used = lines(usage);
                (format!("{} peers", usage.len()), used.as_bytes())
            }
        };
        Some(Self {
            number: 0,
            at_unix_ms: now_ms,
            principal: cut(principal.to_string()),
            kind: event.kind().to_string(),
            name: cut(name),
            fault: cut(fault),
            body: body.get(..MAX_BODY_BYTES).unwrap_or(body).to_vec(),
            body_bytes: body_bytes.unwrap_or(body.len()) as u64,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut row = Vec::new();
        for number in [self.number, self.at_unix_ms, self.body_bytes] {
            row.extend(number.to_be_bytes());
        }
        let texts = [&self.principal, &self.kind, &self.name, &self.fault];
        let parts = texts.map(|text| text.as_bytes()).into_iter();
        for part in parts.chain([&self.body[..]]) {
            // All are cut to less.
            let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
            row.extend(length.to_be_bytes());
            row.extend(part);
        }
        row
    }

    pub(crate) fn decode(row: &[u8]) -> Option<Self> {
        let mut rest = row;
        let numbers = [number(&mut rest)?, number(&mut rest)?, number(&mut rest)?];
        let [number, at_unix_ms, body_bytes] = numbers;
        let mut text = || String::from_utf8(part(&mut rest)?.to_vec()).ok();
        Some(Self {
            number,
            at_unix_ms,
            body_bytes,
            principal: text()?,
            kind: text()?,
            name: text()?,
            fault: text()?,
            body: part(&mut rest)?.to_vec(),
        })
    }
}

/// What was billed, a line for each.
fn lines(usage: &[Usage]) -> String {
    let line = |used: &Usage| {
        let service = match used.service {
            Service::Relay => "relay",
            Service::Exit => "exit",
        };
        let (bytes_in, bytes_out) = (used.bytes_in, used.bytes_out);
        format!("{} {service} {bytes_in} {bytes_out}\n", used.peer)
    };
    usage.iter().map(line).collect()
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (number, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(u64::from_be_bytes(*number))
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_first_chunk()?;
    let (part, behind) = behind.split_at_checked(u16::from_be_bytes(*length).into())?;
    *rest = behind;
    Some(part)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(body: &[u8]) -> DeadLetter {
        let event = Event::Timer {
            name: "ä".repeat(2000).into(),
            payload: body.into(),
        };
        let principal = Principal::User("zoe".into());
        DeadLetter::new(&event, &principal, "trap".to_owned(), 7).unwrap()
    }

    #[test]
    fn a_letter_is_cut_and_read_as_it_was_written() {
        let letter = letter(&[0xff; 10_000]);
        assert_eq!(letter.body, [0xff; MAX_BODY_BYTES]);
        assert_eq!((letter.body_bytes, letter.at_unix_ms), (10_000, 7));
        assert_eq!(letter.name, "ä".repeat(MAX_TEXT_BYTES / 2));
        let row = letter.encode();
        assert_eq!(DeadLetter::decode(&row), Some(letter));
        assert_eq!(DeadLetter::decode(&row[..row.len() - 1]), None);
    }

    #[test]
    fn a_letter_says_how_much_others_said_and_not_what() {
        let event = Event::Socket {
            id: 7,
            news: SocketNews::Data((&b"PASS secret"[..]).into()),
        };
        let letter = DeadLetter::new(&event, &Principal::Node, "trap".to_owned(), 7).unwrap();
        assert_eq!((letter.body_bytes, &letter.body[..]), (11, &[][..]));
    }

    #[test]
    fn the_newest_takes_the_row_of_the_oldest() {
        let kept = Mutex::new(Kept {
            first: 0,
            next: 0,
            dropped: 0,
        });
        let letters = Letters { instance: 3, kept };
        let mut writes = Writes::default();
        for _ in 0..CAPACITY + 2 {
            letters.write(letter(b"body"), &mut writes);
        }
        let rows = writes
            .rows()
            .filter_map(|(_, row)| DeadLetter::decode(row?));
        let mut numbers: Vec<_> = rows.map(|letter| letter.number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (2..u64::from(CAPACITY) + 2).collect::<Vec<_>>());
        assert!(writes.bytes() < 1 << 20);
        assert_eq!(letters.dropped(), 2);
        let deleted = letters.clear();
        assert_eq!(deleted.rows().count(), numbers.len());
        letters.write(letter(b"body"), &mut writes);
        assert_eq!(letters.dropped(), 2, "there is room again");
    }
}
