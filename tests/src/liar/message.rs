//! Messages as lists of fields, and the lies that can be told in each field.
//!
//! A field says what it means, and lies follow from that: a length that promises too much, a
//! number that names nothing, an id that is somebody else's. A message is what its encoder writes
//! only if its fields are all there, so a new field without lies fails the test that compares them.

use wormholes_proto::NodeId;

/// A message before it is sealed, signed or sent.
#[derive(Debug, Clone)]
pub struct Message {
    name: &'static str,
    /// Bytes of the length that stands before it all, 0 for none.
    length_bytes: usize,
    fields: Vec<Field>,
    /// More may follow.
    is_open_ended: bool,
}

/// Some bytes of a message.
#[derive(Debug, Clone)]
struct Field {
    name: &'static str,
    meaning: Meaning,
    bytes: Vec<u8>,
    /// Every value is the speaker's own business.
    is_free: bool,
}

/// What a field means to who reads it.
#[derive(Debug, Clone)]
pub enum Meaning {
    /// How many bytes, or items, of the fields behind it belong together.
    Length,
    /// How many of the bytes behind it count; what more there are nobody reads.
    Size,
    /// A number from a closed list, of which these are the others: they mean something else.
    Choice(&'static [u8]),
    /// Bits, of which these mean something.
    Flags(u8),
    /// A node.
    Id,
    /// A public key, a random number, or another value without form.
    Value,
    /// The IP address of a node.
    Address,
    /// An IP address that somebody shall be connected with.
    Target,
    /// A port.
    Port,
    /// Seconds since 1970, or a number that grows.
    Number,
    /// Text of a restricted alphabet.
    Text,
    /// Proves what stands before it; or ciphertext.
    Proof,
    /// Zero, or left to the speaker.
    Padding,
}

/// Who is concerned: ids that a lie may claim.
#[derive(Debug, Clone, Copy)]
pub struct Cast {
    /// The liar itself.
    pub liar: NodeId,
    /// Who is lied to.
    pub target: NodeId,
    /// Somebody whom the target knows.
    pub friend: NodeId,
}

/// A message with one field lied about, or broken as a whole.
#[derive(Debug, Clone)]
pub struct Lie {
    /// The message, the field, and what is wrong.
    pub name: String,
    /// The bytes to send.
    pub bytes: Vec<u8>,
    /// Whether it may be taken: it is the liar's business, or it is true after all.
    pub may_pass: bool,
}

impl Message {
    /// A message without fields.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            length_bytes: 0,
            fields: Vec::new(),
            is_open_ended: false,
        }
    }

    /// Puts the length of all fields, in two bytes, before them.
    #[must_use]
    pub fn framed(mut self) -> Self {
        self.length_bytes = 2;
        self
    }

    /// Appends a field.
    #[must_use]
    pub fn field(mut self, name: &'static str, meaning: Meaning, bytes: impl AsRef<[u8]>) -> Self {
        self.fields.push(Field {
            name,
            meaning,
            bytes: bytes.as_ref().to_vec(),
            is_free: false,
        });
        self
    }

    /// Says that the last field may hold anything that means something: who reads it has no right to
    /// judge it.
    #[must_use]
    pub fn free(mut self) -> Self {
        if let Some(field) = self.fields.last_mut() {
            field.is_free = true;
        }
        self
    }

    /// Says that more may follow the last field: padding, or fields of later builds.
    #[must_use]
    pub fn open_ended(mut self) -> Self {
        self.is_open_ended = true;
        self
    }

    /// The message as it should be.
    pub fn bytes(&self) -> Vec<u8> {
        let fields = self.fields.iter().map(|field| &field.bytes[..]);
        self.frame(fields.collect::<Vec<_>>().concat())
    }

    /// All lies: each field by itself, then the message as a whole.
    pub fn lies(&self, cast: Cast) -> Vec<Lie> {
        let mut lies = Vec::new();
        if self.length_bytes > 0 {
            let body = self.bytes().split_off(self.length_bytes);
            let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
            for (what, bytes) in wrong_numbers(&length.to_be_bytes()) {
                let bytes = [&bytes[..], &body].concat();
                lies.push(self.lie("length", &what, bytes, false));
            }
        }
        for (index, field) in self.fields.iter().enumerate() {
            for (what, value) in field.lies(cast) {
                let bytes = self.with(index, &value);
                let may_pass = field.is_free && !field.is_nonsense(&value);
                lies.push(self.lie(field.name, &what, bytes, may_pass));
            }
        }
        lies.extend(self.broken());
        lies
    }

    /// Cut inside and before each field, and too long.
    fn broken(&self) -> Vec<Lie> {
        let whole = self.bytes();
        let mut lies = Vec::new();
        let mut at = self.length_bytes;
        for field in self.fields.iter().filter(|field| !field.bytes.is_empty()) {
            let len = field.bytes.len();
            // Less of what nobody judges is none the worse.
            let may_pass = field.is_free && matches!(field.meaning, Meaning::Padding);
            for cut in [at, at + len / 2] {
                let bytes = whole.get(..cut).unwrap_or_default().to_vec();
                let body = bytes.get(self.length_bytes..).unwrap_or_default();
                let reframed = self.frame(body.to_vec());
                lies.push(self.lie(field.name, "cut off", bytes, may_pass));
                lies.push(self.lie(field.name, "left out", reframed, may_pass));
            }
            at += len;
        }
        let body = whole.get(self.length_bytes..).unwrap_or_default();
        let longer = self.frame([body, &[0]].concat());
        lies.push(self.lie("whole", "a byte too many", longer, self.is_open_ended));
        // Without a frame and with nothing in it nothing can be missing.
        lies.dedup_by(|one, other| one.bytes == other.bytes);
        lies.retain(|lie| lie.bytes != whole);
        lies
    }

    /// This message with the field at `index` replaced.
    fn with(&self, index: usize, bytes: &[u8]) -> Vec<u8> {
        let fields = self.fields.iter().enumerate();
        let fields = fields.map(|(at, field)| if at == index { bytes } else { &field.bytes });
        self.frame(fields.collect::<Vec<_>>().concat())
    }

    fn frame(&self, body: Vec<u8>) -> Vec<u8> {
        if self.length_bytes == 0 {
            return body;
        }
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        [&length.to_be_bytes()[..], &body].concat()
    }

    fn lie(&self, field: &str, what: &str, bytes: Vec<u8>, may_pass: bool) -> Lie {
        Lie {
            name: format!("{}, {field}: {what}", self.name),
            bytes,
            may_pass,
        }
    }
}

impl Lie {
    /// The same lie about another message of the same form, whose bytes are not known before.
    pub fn again(&self, message: &Message, cast: Cast) -> Vec<u8> {
        let lies = message.lies(cast).into_iter();
        let mut same = lies.filter(|lie| lie.name == self.name);
        same.next().map_or_else(|| message.bytes(), |lie| lie.bytes)
    }

    /// The same lie inside something else.
    #[must_use]
    pub fn inside(self, wrap: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Self {
        Self {
            bytes: wrap(self.bytes),
            ..self
        }
    }
}

impl Field {
    /// Other bytes for this field, with what is wrong about them.
    fn lies(&self, cast: Cast) -> Vec<(String, Vec<u8>)> {
        let all = match &self.meaning {
            Meaning::Length | Meaning::Number => wrong_numbers(&self.bytes),
            Meaning::Size => {
                let mut all = wrong_numbers(&self.bytes);
                all.retain(|(what, _)| what == "one more" || what == "the largest");
                all
            }
            // Any other may be right by chance.
            Meaning::Port => vec![named("zero", [0; 2])],
            Meaning::Choice(others) => wrong_choices(&self.bytes, others),
            Meaning::Flags(known) => {
                let own = self.bytes.first().copied().unwrap_or_default();
                let unknown = (0..8).map(|bit| 1 << bit).filter(|bit| known & bit == 0);
                unknown
                    .map(|bit| named(&format!("bit {bit}"), [own | bit]))
                    .collect()
            }
            Meaning::Id => [
                ("nobody", [0; 32]),
                ("the highest", [0xff; 32]),
                ("the liar", *cast.liar.as_bytes()),
                ("who is lied to", *cast.target.as_bytes()),
                ("a friend", *cast.friend.as_bytes()),
            ]
            .map(|(what, id)| named(what, id))
            .to_vec(),
            Meaning::Value => vec![
                named("zeros", vec![0; self.bytes.len()]),
                named("ones", vec![0xff; self.bytes.len()]),
            ],
            Meaning::Address => wrong_addresses(self.bytes.len()),
            Meaning::Target => {
                let mut all = wrong_addresses(self.bytes.len());
                let metadata = [169, 254, 169, 254];
                if self.bytes.len() == metadata.len() {
                    all.push(named("metadata", metadata));
                }
                all
            }
            Meaning::Text => self.wrong_texts(),
            Meaning::Proof => self.wrong_proofs(),
            Meaning::Padding => {
                let mut marked = self.bytes.clone();
                if let Some(last) = marked.last_mut() {
                    *last ^= 1;
                }
                vec![named("a mark", marked)]
            }
        };
        let differs = |(_, bytes): &(String, Vec<u8>)| *bytes != self.bytes;
        all.into_iter().filter(differs).collect()
    }

    /// Whether a value means nothing to anybody, whosever business the field is.
    fn is_nonsense(&self, value: &[u8]) -> bool {
        let number = value.first().copied().unwrap_or_default();
        match &self.meaning {
            Meaning::Choice(others) => !others.contains(&number),
            Meaning::Flags(known) => number & !known != 0,
            Meaning::Size => value.iter().all(|byte| *byte == u8::MAX),
            Meaning::Length
            | Meaning::Id
            | Meaning::Value
            | Meaning::Address
            | Meaning::Target
            | Meaning::Port
            | Meaning::Number
            | Meaning::Text
            | Meaning::Proof
            | Meaning::Padding => false,
        }
    }

    /// Of the same length, so that only the text is wrong.
    fn wrong_texts(&self) -> Vec<(String, Vec<u8>)> {
        let with_first = |byte: u8| {
            let mut text = self.bytes.clone();
            if let Some(first) = text.first_mut() {
                *first = byte;
            }
            text
        };
        [
            ("not UTF-8", 0xff),
            ("a control character", 0x1b),
            ("an end of line", b'\n'),
            ("a zero", 0),
            ("a delete", 0x7f),
        ]
        .map(|(what, byte)| named(what, with_first(byte)))
        .to_vec()
    }

    /// One bit at either end and in the middle, and nothing at all.
    fn wrong_proofs(&self) -> Vec<(String, Vec<u8>)> {
        let len = self.bytes.len();
        let flipped = |at: usize| {
            let mut bytes = self.bytes.clone();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            named(&format!("bit flipped in byte {at}"), bytes)
        };
        let mut all = vec![flipped(0), flipped(len / 2), flipped(len.saturating_sub(1))];
        all.push(named("zeros", vec![0; len]));
        all
    }
}

fn named(what: &str, bytes: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (what.to_owned(), bytes.into())
}

/// Zero, one less, one more, and the largest.
fn wrong_numbers(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let value = bytes
        .iter()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    let tail = |value: u64| {
        let all = value.to_be_bytes();
        all.get(all.len() - bytes.len()..)
            .unwrap_or_default()
            .to_vec()
    };
    vec![
        named("zero", tail(0)),
        named("one less", tail(value.wrapping_sub(1))),
        named("one more", tail(value.wrapping_add(1))),
        named("the largest", vec![0xff; bytes.len()]),
    ]
}

/// Each other number of the list, and numbers that mean nothing.
fn wrong_choices(bytes: &[u8], others: &[u8]) -> Vec<(String, Vec<u8>)> {
    let own = bytes.first().copied().unwrap_or_default();
    let highest = others.iter().copied().chain([own]).max().unwrap_or(own);
    let nothing = [0, highest.saturating_add(1), u8::MAX];
    let wrong = others.iter().copied().chain(nothing);
    wrong
        .map(|number| named(&format!("number {number}"), [number]))
        .collect()
}

/// Addresses that nobody may be sent to.
fn wrong_addresses(len: usize) -> Vec<(String, Vec<u8>)> {
    let v4: [(&str, [u8; 4]); 3] = [
        ("unspecified", [0; 4]),
        ("multicast", [224, 0, 0, 1]),
        ("broadcast", [255; 4]),
    ];
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
    let mut all_nodes = [0; 16];
    (all_nodes[0], all_nodes[1], all_nodes[15]) = (0xff, 2, 1);
    if len == 4 {
        v4.map(|(what, ip)| named(what, ip)).to_vec()
    } else {
        vec![
            named("unspecified", [0; 16]),
            named("multicast", all_nodes),
            named("mapped loopback", mapped),
        ]
    }
}
