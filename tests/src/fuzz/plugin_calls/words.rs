//! Words of a plugin, of any length, made of few bytes of a fuzzer.

use wormholes_host::{
    ErrorCode, Refusal,
    trial::{
        Answered, Occasion,
        words::{http_types::Response, messages, types},
    },
};

use super::super::input::Input;

/// Around what bounds what.
const SHORT: [usize; 19] = [
    0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 511, 512, 513, 1024, 1400, 1401, 4096, 4097,
];
/// The same, of what takes its time.
const LONG: [usize; 5] = [16 << 10, 64 << 10, 100_000, 1 << 20, (1 << 20) + 1];
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    80,
    100,
    1000,
    4096,
    65_536,
    1 << 20,
    86_400_000,
    u32::MAX as u64,
    1_750_000_000_000,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// What somebody may mean by a name.
const NAMES: [&str; 13] = [
    "", "a", "b", "c", "tried", "other", "alice", "bob", "p", "q", "credit", "may", "\u{7}",
];

/// Takes words from the front.
pub(super) trait Words {
    /// Bytes as they are, or many of one.
    fn many(&mut self) -> Vec<u8>;
    /// One of few keys, or any.
    fn key(&mut self) -> Vec<u8>;
    fn text(&mut self) -> String;
    /// One of few names, or any.
    fn name(&mut self) -> String;
    fn number(&mut self) -> u64;
    fn flag(&mut self) -> bool;
    /// What somebody may leave out.
    fn perhaps<T>(&mut self, take: impl FnOnce(&mut Self) -> T) -> Option<T>;
    /// A public key, or not quite one.
    fn public_key(&mut self) -> Vec<u8>;
    fn address(&mut self) -> types::Address;
    fn identity(&mut self) -> types::Identity;
    fn way(&mut self) -> messages::Way;
    fn headers(&mut self) -> Vec<(String, Vec<u8>)>;
    fn response(&mut self) -> Response;
    fn error(&mut self) -> types::Error;
    fn occasion(&mut self) -> Occasion;
}

impl Words for Input<'_> {
    fn many(&mut self) -> Vec<u8> {
        match self.byte() {
            length @ 0..0x40 => self.bytes(length.into()).to_vec(),
            choice => {
                let (lengths, choice) = match choice {
                    0x40..0xe0 => (&SHORT[..], choice - 0x40),
                    _ => (&LONG[..], choice - 0xe0),
                };
                let length = lengths.iter().cycle().nth(choice.into());
                vec![self.byte(); *length.unwrap()]
            }
        }
    }

    fn key(&mut self) -> Vec<u8> {
        match self.byte() {
            choice @ 0..0x80 => vec![b'a' + choice % 8],
            choice @ 0x80..0xa0 => vec![b'a', choice % 4],
            choice @ 0xa0..0xb0 => vec![u8::MAX; (choice % 4).into()],
            _ => self.many(),
        }
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(&self.many()).into_owned()
    }

    fn name(&mut self) -> String {
        match self.byte() {
            choice @ 0..0xc0 => {
                let name = NAMES.iter().cycle().nth(choice.into());
                (*name.unwrap()).to_owned()
            }
            _ => self.text(),
        }
    }

    fn number(&mut self) -> u64 {
        match self.byte() {
            choice @ 0..0x80 => *NUMBERS.iter().cycle().nth(choice.into()).unwrap(),
            choice @ 0x80..0xf0 => (choice - 0x80).into(),
            _ => {
                let bytes = self.bytes(8).iter();
                bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
            }
        }
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn perhaps<T>(&mut self, take: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| take(self))
    }

    fn public_key(&mut self) -> Vec<u8> {
        match self.byte() {
            choice @ 0..0xe0 => vec![choice % 4; 32],
            _ => self.many(),
        }
    }

    fn address(&mut self) -> types::Address {
        let place = match self.byte() % 4 {
            0 | 1 => types::Place::Here,
            2 => types::Place::Node(self.public_key()),
            _ => types::Place::Alias(self.public_key()),
        };
        types::Address {
            place,
            plugin: self.name(),
            principal: match self.perhaps(Self::name) {
                Some(name) => types::Principal::User(name),
                None => types::Principal::Node,
            },
        }
    }

    fn identity(&mut self) -> types::Identity {
        match self.perhaps(Self::name) {
            Some(name) => types::Identity::Alias(name),
            None => types::Identity::Node,
        }
    }

    fn way(&mut self) -> messages::Way {
        // Most often nothing is said.
        let mut word = || self.perhaps(Self::name).unwrap_or_default();
        let (role, label, isolation) = (word(), word(), word());
        messages::Way {
            sender: self.identity(),
            role,
            label,
            isolation,
        }
    }

    fn headers(&mut self) -> Vec<(String, Vec<u8>)> {
        match self.byte() {
            count @ 0..0x80 => vec![(self.name(), self.many()); (count % 4).into()],
            count => vec![("a".to_owned(), self.bytes(8).to_vec()); count.into()],
        }
    }

    fn response(&mut self) -> Response {
        Response {
            status: u16::try_from(self.number()).unwrap_or(200),
            headers: self.headers(),
            body: self.many(),
        }
    }

    fn error(&mut self) -> types::Error {
        let code = match self.byte() % 7 {
            0 => types::ErrorCode::Denied,
            1 => types::ErrorCode::Quota,
            2 => types::ErrorCode::Invalid,
            3 => types::ErrorCode::NotFound,
            4 => types::ErrorCode::Unavailable,
            5 => types::ErrorCode::Expired,
            _ => types::ErrorCode::Failed,
        };
        let message = self.text();
        types::Error { code, message }
    }

    fn occasion(&mut self) -> Occasion {
        match self.byte() % 16 {
            0..3 => Occasion::Wake,
            3 => Occasion::Migration,
            4 => Occasion::Timer,
            5 | 6 => Occasion::Command {
                for_long: self.flag(),
                blob: self.perhaps(Self::many),
            },
            7 => Occasion::Http,
            8 => Occasion::Canceled,
            9 => Occasion::Answer(Ok(self.many())),
            10 => Occasion::Answer(Err(Refusal::new(ErrorCode::Expired, "it is late"))),
            11 => Occasion::Blob(self.many()),
            12 => Occasion::Visit,
            13 => Occasion::Data(self.many()),
            14 if self.flag() => Occasion::Sent,
            14 => Occasion::Closed,
            _ => Occasion::Query,
        }
    }
}

pub(super) fn answered(input: &mut Input<'_>) -> Answered {
    match input.byte() % 4 {
        0 => Answered::Done(input.many()),
        1 => Answered::Http(input.response()),
        2 => Answered::Later,
        _ => Answered::No(input.error().into()),
    }
}
