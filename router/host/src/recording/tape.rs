//! What the host answered during an event that the principal's rows do not say: kept for a recording,
//! or given again by one.
//!
//! Of what is secret only the length is kept. A replay gives as many bytes that nobody can use, and
//! whatever the event does differently after that says nothing of the plugin.

use std::{collections::VecDeque, fmt};

use serde::{Deserialize, Serialize};

use super::{Blob, format::few};
use crate::{
    event::Refusal,
    rules::Ruling,
    store::{Row, StoreError},
};

/// What a stand-in consists of.
const STAND_IN: u8 = 0xa5;
/// Of the answers to one event; beyond it, the event is left out.
const MAX_TAPE_BYTES: usize = 4 << 20;
/// What an answer takes at least.
const ANSWER_BYTES: usize = 128;
/// A scan lists 1 MiB, but one row whatever it has.
const MAX_ROWS_BYTES: usize = 3 << 20;

/// An answer for the plugin, or a fault of the store.
type Told<T> = Result<Result<T, Refusal>, StoreError>;

/// Where the answers of an event go to, or come from.
#[derive(Debug, Default)]
pub(crate) enum Tape {
    /// Nobody records.
    #[default]
    Off,
    Records(Answers),
    /// The event did what no recording holds.
    Left,
    Plays(Box<Player>),
}

/// What was answered, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answers {
    #[serde(deserialize_with = "few")]
    told: Vec<Answer>,
    /// Rows that others than the principal write, as the event read them: their space, key and value.
    #[serde(deserialize_with = "few")]
    pub(crate) rows: Vec<(u8, Blob, Option<Blob>)>,
    /// What they take in memory.
    #[serde(skip)]
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    /// It was done, and says nothing more.
    Done(Result<(), Refusal>),
    /// Anybody may know it: a public key.
    Public(Result<Blob, Refusal>),
    /// Nobody may: how many bytes it had.
    Hidden(Result<Option<u32>, Refusal>),
    /// How many bytes the keys and values of sealed rows had.
    HiddenRows(Vec<(u32, u32)>),
    /// What the rules said to the question with this digest.
    Ruling([u8; 32], Ruling),
}

/// Gives answers again.
#[derive(Debug)]
pub(crate) struct Player {
    told: VecDeque<Answer>,
    /// Its random bytes are others than they were.
    draws_others: bool,
    missing: Option<Missing>,
}

/// What a replay could not give as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Missing {
    /// Something that was never asked then.
    Answer,
    Random,
    Secret,
}

impl Tape {
    /// Records from here on.
    pub(crate) fn recorder() -> Self {
        Self::Records(Answers::default())
    }

    /// Gives these again.
    pub(crate) fn player(answers: Answers, draws_others: bool) -> Self {
        Self::Plays(Box::new(Player {
            told: answers.told.into(),
            draws_others,
            missing: None,
        }))
    }

    /// What was recorded.
    pub(crate) fn into_answers(self) -> Answers {
        match self {
            Self::Records(answers) => answers,
            Self::Off | Self::Left | Self::Plays(_) => Answers::default(),
        }
    }

    /// What the replay lacked.
    pub(crate) fn missing(&self) -> Option<Missing> {
        match self {
            Self::Plays(player) => player.missing,
            Self::Off | Self::Records(_) | Self::Left => None,
        }
    }

    /// Whether the event did what no recording holds.
    pub(crate) fn has_left(&self) -> bool {
        matches!(self, Self::Left)
    }

    /// Before a call that no recording holds; false in a replay.
    pub(crate) fn leave(&mut self) -> bool {
        match self {
            Self::Records(_) => *self = Self::Left,
            Self::Off | Self::Left => {}
            Self::Plays(player) => {
                player.lack(Missing::Answer);
                return false;
            }
        }
        true
    }

    /// What was answered then; `None`: the host answers.
    pub(crate) fn done(&mut self) -> Option<Result<(), Refusal>> {
        let player = self.playing()?;
        Some(match player.told.pop_front() {
            Some(Answer::Done(told)) => told,
            other => player.lacks(other, Ok(())),
        })
    }

    pub(crate) fn public(&mut self) -> Option<Result<Vec<u8>, Refusal>> {
        let player = self.playing()?;
        Some(match player.told.pop_front() {
            Some(Answer::Public(told)) => told.map(|key| key.0),
            other => player.lacks(other, Ok(vec![STAND_IN; 32])),
        })
    }

    pub(crate) fn hidden(&mut self) -> Option<Result<Option<Vec<u8>>, Refusal>> {
        let player = self.playing()?;
        Some(match player.told.pop_front() {
            Some(Answer::Hidden(Ok(Some(length)))) => {
                player.lack(Missing::Secret);
                Ok(Some(stand_in(length)))
            }
            Some(Answer::Hidden(Ok(None))) => Ok(None),
            Some(Answer::Hidden(Err(refusal))) => Err(refusal),
            other => player.lacks(other, Ok(None)),
        })
    }

    pub(crate) fn hidden_rows(&mut self) -> Option<Vec<Row>> {
        let player = self.playing()?;
        Some(match player.told.pop_front() {
            Some(Answer::HiddenRows(rows)) => {
                if !rows.is_empty() {
                    player.lack(Missing::Secret);
                }
                stand_in_rows(&rows)
            }
            other => player.lacks(other, Vec::new()),
        })
    }

    pub(crate) fn ruling(&mut self, hook: &str, question: &str) -> Option<Ruling> {
        let player = self.playing()?;
        let meant = digest(hook, question);
        Some(match player.told.pop_front() {
            Some(Answer::Ruling(asked, ruling)) if asked == meant => ruling,
            other => player.lacks(other, Ruling::None),
        })
    }

    pub(crate) fn keep_done(&mut self, told: &Told<()>) {
        if let Ok(told) = told {
            self.keep(0, || Answer::Done(told.clone()));
        }
    }

    pub(crate) fn keep_public(&mut self, told: &Told<Vec<u8>>) {
        if let Ok(told) = told {
            self.keep(told.as_ref().map_or(0, Vec::len), || {
                let told = told.as_ref().map(|key| key[..].into());
                Answer::Public(told.map_err(Clone::clone))
            });
        }
    }

    /// `told`: how many bytes it has; `None`: there is nothing.
    pub(crate) fn keep_hidden(&mut self, told: Result<Option<usize>, &Refusal>) {
        self.keep(0, || {
            let told = told.map(|length| length.map(short)).map_err(Clone::clone);
            Answer::Hidden(told)
        });
    }

    pub(crate) fn keep_hidden_rows(&mut self, rows: &[Row]) {
        self.keep(8 * rows.len(), || {
            let lengths = rows.iter();
            let lengths = lengths.map(|(key, value)| (short(key.len()), short(value.len())));
            Answer::HiddenRows(lengths.collect())
        });
    }

    pub(crate) fn keep_ruling(&mut self, hook: &str, question: &str, ruling: &Ruling) {
        self.keep(0, || Answer::Ruling(digest(hook, question), ruling.clone()));
    }

    /// A row that others write.
    pub(crate) fn keep_row(&mut self, space: u8, key: &[u8], value: Option<&[u8]>) {
        if let Some(answers) = self.room_for(key.len() + value.map_or(0, <[u8]>::len)) {
            let row = (space, key.into(), value.map(Blob::from));
            answers.rows.push(row);
        }
    }

    fn keep(&mut self, bytes: usize, answer: impl FnOnce() -> Answer) {
        if let Some(answers) = self.room_for(bytes) {
            answers.told.push(answer());
        }
    }

    /// Where an answer is kept; an event that was given more than is kept is left out.
    fn room_for(&mut self, bytes: usize) -> Option<&mut Answers> {
        if let Self::Records(answers) = self {
            answers.bytes += bytes + ANSWER_BYTES;
            if answers.bytes > MAX_TAPE_BYTES {
                *self = Self::Left;
            }
        }
        match self {
            Self::Records(answers) => Some(answers),
            Self::Off | Self::Left | Self::Plays(_) => None,
        }
    }

    /// The event draws random bytes.
    pub(crate) fn draws(&mut self) {
        if let Some(player) = self.playing()
            && player.draws_others
        {
            player.lack(Missing::Random);
        }
    }

    fn playing(&mut self) -> Option<&mut Player> {
        match self {
            Self::Plays(player) => Some(player),
            Self::Off | Self::Records(_) | Self::Left => None,
        }
    }
}

impl Player {
    /// What was asked is not what was asked then; nor is it from here on.
    fn lacks<T>(&mut self, other: Option<Answer>, instead: T) -> T {
        if let Some(other) = other {
            self.told.push_front(other);
        }
        self.lack(Missing::Answer);
        instead
    }

    /// What is secret says more than what else is missing.
    fn lack(&mut self, what: Missing) {
        self.missing = self.missing.max(Some(what));
    }
}

fn stand_in(length: u32) -> Vec<u8> {
    // No row, and no answer of a key, has more than 1 MiB.
    vec![STAND_IN; (length as usize).min(1 << 20)]
}

/// No more than a scan lists.
fn stand_in_rows(lengths: &[(u32, u32)]) -> Vec<Row> {
    let mut bytes = 0;
    let rows = lengths.iter();
    let rows = rows.map(|(key, value)| (stand_in(*key), stand_in(*value)));
    let fits = move |row: &Row| {
        bytes += row.0.len() + row.1.len();
        bytes <= MAX_ROWS_BYTES
    };
    rows.take_while(fits).collect()
}

fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn digest(hook: &str, question: &str) -> [u8; 32] {
    let asked = [hook.as_bytes(), &[0], question.as_bytes()].concat();
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &asked).as_ref());
    digest
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "it asked the node what it did not ask then",
            Self::Random => {
                "it drew random bytes, which are not recorded of a plugin that may keep secrets"
            }
            Self::Secret => "it used a secret, and no recording holds those",
        })
    }
}
