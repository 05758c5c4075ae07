//! A line of the router: where it ends, its words, and what its results mean.

use std::borrow::Cow;

use thiserror::Error;

/// No line of a router is longer: keys of the longest kind, and the words around them.
pub const MAX_SAM_LINE_BYTES: usize = 8192;
/// Of the router's own words about an error, so many are kept.
const MAX_MESSAGE_CHARS: usize = 128;

/// What does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SamError {
    /// The versions that it speaks are others.
    #[error("it does not speak SAM 3.1 or later")]
    NoVersion,
    /// It does not do what it was asked.
    #[error(transparent)]
    Refused(SamRefusal),
    /// What it says is no SAM.
    #[error("it does not speak SAM: {0}")]
    Malformed(&'static str),
    /// It says more in one line than a router has to say.
    #[error("it does not speak SAM: a line of more than {MAX_SAM_LINE_BYTES} bytes")]
    TooLong,
}

/// Why a router does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SamRefusal {
    /// Another connection waits for callers already.
    #[error("another client waits for callers of the same session")]
    AlreadyAccepting,
    /// Nobody is there, or what leads there is not found.
    #[error("the destination is not reached")]
    CannotReachPeer,
    /// Another session has the same destination.
    #[error("another session has the same destination")]
    DuplicateDestination,
    /// Another session has the same id.
    #[error("another session has the same id")]
    DuplicateId,
    /// There is no such session, or no more.
    #[error("the session is gone")]
    InvalidId,
    /// The name is in no address book, or the keys are no keys.
    #[error("the name or the key is not known")]
    InvalidKey,
    /// It took too long.
    #[error("the destination did not answer in time")]
    TimedOut,
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// What the router says of a request.
#[derive(Debug)]
pub(super) struct Reply<'a> {
    pairs: Vec<(&'a str, Cow<'a, str>)>,
}

/// The first line of `input`, without its end, and the bytes that it takes with it; `None` when there
/// is no whole one.
pub(super) fn first(input: &[u8]) -> Result<Option<(&str, usize)>, SamError> {
    let bounded = input.get(..MAX_SAM_LINE_BYTES).unwrap_or(input);
    let Some(end) = bounded.iter().position(|byte| *byte == b'\n') else {
        return match input.len() < MAX_SAM_LINE_BYTES {
            true => Ok(None),
            false => Err(SamError::TooLong),
        };
    };
    let line = input.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = str::from_utf8(line).map_err(|_| SamError::Malformed("text"))?;
    Ok(Some((line, end + 1)))
}

impl<'a> Reply<'a> {
    /// Reads an answer that begins with these words.
    pub(super) fn read(line: &'a str, words: &str) -> Result<Self, SamError> {
        let rest = line.strip_prefix(words);
        let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with(' '));
        let rest = rest.ok_or(SamError::Malformed("another answer"))?;
        Ok(Self {
            pairs: pairs(rest)?,
        })
    }

    /// The value of a key; of several, the first.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.pairs.iter();
        let (_, value) = pairs.find(|(found, _)| *found == key)?;
        Some(value)
    }

    /// Whether it was done.
    pub(super) fn check(&self) -> Result<(), SamError> {
        let refused = |refusal| Err(SamError::Refused(refusal));
        match self.value("RESULT") {
            Some("OK") => Ok(()),
            Some("NOVERSION") => Err(SamError::NoVersion),
            Some("ALREADY_ACCEPTING") => refused(SamRefusal::AlreadyAccepting),
            Some("CANT_REACH_PEER" | "PEER_NOT_FOUND" | "LEASESET_NOT_FOUND") => {
                refused(SamRefusal::CannotReachPeer)
            }
            Some("DUPLICATED_DEST") => refused(SamRefusal::DuplicateDestination),
            Some("DUPLICATED_ID") => refused(SamRefusal::DuplicateId),
            Some("INVALID_ID") => refused(SamRefusal::InvalidId),
            Some("INVALID_KEY" | "KEY_NOT_FOUND" | "INVALID") => refused(SamRefusal::InvalidKey),
            Some("TIMEOUT") => refused(SamRefusal::TimedOut),
            Some(other) => refused(SamRefusal::Other(self.words_of(other))),
            None => Err(SamError::Malformed("no result")),
        }
    }

    fn words_of(&self, result: &str) -> String {
        let words = match self.value("MESSAGE") {
            Some(message) => format!("{result}: {message}"),
            None => result.to_owned(),
        };
        let printable = words.chars().filter(|c| *c == ' ' || c.is_ascii_graphic());
        printable.take(MAX_MESSAGE_CHARS).collect()
    }
}

/// Keys with their values, `KEY=value` or `KEY="a \"value\""`; a key alone has an empty one.
fn pairs(mut rest: &str) -> Result<Vec<(&str, Cow<'_, str>)>, SamError> {
    let mut pairs = Vec::new();
    loop {
        rest = rest.trim_start_matches(' ');
        if rest.is_empty() {
            return Ok(pairs);
        }
        let (key, behind) = rest.split_at(rest.find([' ', '=']).unwrap_or(rest.len()));
        let (value, behind) = match behind.strip_prefix('=') {
            None => (Cow::Borrowed(""), behind),
            Some(text) => match text.strip_prefix('"') {
                Some(quoted) => unquoted(quoted)?,
                None => {
                    let (value, behind) = text.split_at(text.find(' ').unwrap_or(text.len()));
                    (Cow::Borrowed(value), behind)
                }
            },
        };
        pairs.push((key, value));
        rest = behind;
    }
}

/// What stands before the closing quote, and what behind it.
fn unquoted(text: &str) -> Result<(Cow<'_, str>, &str), SamError> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => {
                let behind = text.get(at + 1..).unwrap_or_default();
                return Ok((Cow::Owned(value), behind));
            }
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    Err(SamError::Malformed("a quote that nothing closes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<(), SamError> {
        Reply::read(line, "STREAM STATUS")?.check()
    }

    #[test]
    fn results_are_told_apart() {
        let refused = |refusal| Err(SamError::Refused(refusal));
        for (line, expected) in [
            ("STREAM STATUS RESULT=OK", Ok(())),
            ("STREAM STATUS  RESULT=OK  X", Ok(())),
            (
                "STREAM STATUS RESULT=CANT_REACH_PEER",
                refused(SamRefusal::CannotReachPeer),
            ),
            (
                "STREAM STATUS RESULT=INVALID_ID MESSAGE=\"gone\"",
                refused(SamRefusal::InvalidId),
            ),
            (
                "STREAM STATUS RESULT=I2P_ERROR MESSAGE=\"a \\\"bad\\\" \u{7}day\"",
                refused(SamRefusal::Other("I2P_ERROR: a \"bad\" day".to_owned())),
            ),
            ("STREAM STATUS", Err(SamError::Malformed("no result"))),
            (
                "STREAM STATUSRESULT=OK",
                Err(SamError::Malformed("another answer")),
            ),
            (
                "HELLO REPLY RESULT=OK",
                Err(SamError::Malformed("another answer")),
            ),
            (
                "STREAM STATUS RESULT=\"OK",
                Err(SamError::Malformed("a quote that nothing closes")),
            ),
            ("STREAM STATUS RESULT=NOVERSION", Err(SamError::NoVersion)),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }

    #[test]
    fn what_a_router_says_of_an_error_is_bounded() {
        let line = format!("STREAM STATUS RESULT=I2P_ERROR MESSAGE={}", "x".repeat(999));
        let Err(SamError::Refused(SamRefusal::Other(words))) = read(&line) else {
            panic!("refused");
        };
        assert_eq!(words.len(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn a_line_ends_with_its_newline_and_is_bounded() {
        assert_eq!(first(b"AB\r\nC"), Ok(Some(("AB", 4))));
        assert_eq!(first(b"AB"), Ok(None));
        assert_eq!(first(b"\n"), Ok(Some(("", 1))));
        assert_eq!(first(b"\xff\n"), Err(SamError::Malformed("text")));
        let mut long = vec![b'x'; MAX_SAM_LINE_BYTES - 1];
        assert_eq!(first(&long), Ok(None));
        long.push(b'\n');
        assert!(matches!(first(&long), Ok(Some((_, used))) if used == MAX_SAM_LINE_BYTES));
        long.insert(0, b'x');
        assert_eq!(first(&long), Err(SamError::TooLong));
    }

    #[test]
    fn a_value_may_hold_what_divides_others() {
        let reply = Reply::read("A B X=a=b== Y=\"c d=\" =e Z", "A B").unwrap();
        assert_eq!(reply.value("X"), Some("a=b=="));
        assert_eq!(reply.value("Y"), Some("c d="));
        assert_eq!(reply.value(""), Some("e"));
        assert_eq!(reply.value("Z"), Some(""));
        assert_eq!(reply.value("W"), None);
    }
}
