//! What comes in on a trunk: frames, and what the ends of a channel make of them.

use bytes::{Bytes, BytesMut};
use wormholes_proto::{
    NodeId,
    blob::{BlobHasher, BlobId},
    trunk::{
        ArrivalContent, BlobFetch, BlobFrame, ChannelKey, ChannelReceiver, ChannelSender, Content,
        Decoder, Envelope, Fetched, Frame, FrameError, History, Link, MAX_FRAME_BYTES, Name,
        Principal, ReceiverRow, Row, SenderCommit, SenderRow, TRUNK_VERSION, Window,
    },
};

use super::input::{Input, pieces};

const N_ROWS: u64 = 3;
/// What the corpus' frames name.
const LINK: Link = Link {
    trunk: 1,
    number: 5,
};

/// The blob that is wanted; the corpus has it.
const BLOB: &[u8] = b"blob";
const MAX_BLOB_BYTES: u64 = 1 << 20;

const WELCOME: Frame = Frame::Welcome {
    version: TRUNK_VERSION,
};

/// Frames, one after the other: the first ones each way, or those that follow.
pub fn trunk_frames(input: &[u8]) {
    let mut input = Input::new(input);
    let (choice, piece_bytes) = (input.byte(), input.byte());
    let sent = input.rest();
    let whole = read(decoder(choice), [sent].into_iter());
    assert_eq!(whole, read(decoder(choice), pieces(sent, piece_bytes)));
    let (mut sender, mut receiver) = (Sender::new(), Receiver::new());
    let mut blob = (BlobFetch::new(BlobId::of(BLOB), MAX_BLOB_BYTES), Vec::new());
    blob.0.handle_trunk_up();
    for frame in whole.0 {
        sender.take(&frame);
        if let Frame::Blob(frame) = &frame {
            fetch(&mut blob, frame.clone());
        }
        receiver.take(frame, choice);
    }
}

/// Whatever comes, what is whole is what was wanted.
fn fetch(blob: &mut (BlobFetch, Vec<u8>), frame: BlobFrame) {
    let (fetch, written) = blob;
    if fetch.is_whole() {
        return;
    }
    match fetch.handle_frame(frame) {
        Ok(Fetched::Piece { from, bytes }) => {
            assert_eq!(from, written.len() as u64, "in their order");
            written.extend_from_slice(&bytes);
            fetch.handle_written();
        }
        Ok(Fetched::Begun(_) | Fetched::Nothing) => {}
        Err(_) => {
            fetch.handle_trunk_up();
        }
    }
    if fetch.is_whole() {
        let mut hasher = BlobHasher::new();
        hasher.update(written);
        assert_eq!(hasher.finish().id(), fetch.id());
    }
}

fn decoder(choice: u8) -> Decoder {
    match choice % 3 {
        0 => Decoder::for_acceptor(),
        1 => Decoder::for_opener(),
        _ => {
            let mut decoder = Decoder::for_opener();
            let mut welcome = Bytes::from(encoded(&WELCOME));
            assert!(decoder.handle_bytes(&mut welcome).unwrap().is_some());
            decoder
        }
    }
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes).unwrap();
    assert!(bytes.len() <= 4 + MAX_FRAME_BYTES);
    bytes
}

/// The frames, and how the trunk ends. A frame has one way to be written.
fn read<'a>(
    mut decoder: Decoder,
    sent: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Frame>, Result<bool, FrameError>) {
    let (mut frames, mut came) = (Vec::new(), Vec::new());
    for piece in sent {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            let before = bytes.clone();
            let read = decoder.handle_bytes(&mut bytes);
            came.extend(before.iter().take(before.len() - bytes.len()));
            match read {
                Ok(Some(frame)) => {
                    assert!(came.ends_with(&encoded(&frame)), "{frame:?}");
                    frames.push(frame);
                    came.clear();
                }
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
        assert!(bytes.is_empty(), "it leaves bytes");
    }
    let is_between = decoder.is_between();
    (frames, Ok(is_between))
}

fn key() -> ChannelKey {
    let name = |text| Name::try_from(text).unwrap();
    ChannelKey {
        sender: NodeId::from_bytes([1; 32]),
        receiver: NodeId::from_bytes([2; 32]),
        instance: name("ledger"),
        envelope: Envelope {
            from: Principal::Node,
            to: Principal::Node,
            protocol: name("pay"),
        },
    }
}

fn link(number: u32) -> Link {
    Link { number, ..LINK }
}

/// An end that has messages, and another end that says anything.
struct Sender {
    machine: ChannelSender,
    acked: u64,
}

impl Sender {
    fn new() -> Self {
        let history = History {
            incarnation: [7; 16],
            epoch: 1,
        };
        let mut machine = ChannelSender::new(key(), SenderRow::new(&key(), history, N_ROWS));
        let rows = (1..=N_ROWS).map(|seq| Row {
            seq,
            content: Content::Message(Bytes::from_static(b"hi")),
            expires_ms: None,
            report: Some(seq),
        });
        machine.handle_rows(rows).unwrap();
        machine.handle_trunk_up(LINK);
        Self { machine, acked: 0 }
    }

    fn take(&mut self, frame: &Frame) {
        while self.machine.poll_frame(0).is_some() {}
        if let Frame::State(state) = frame {
            let _ = self.machine.handle_state(link(state.number), state);
        } else if let Frame::Ack(ack) = frame {
            let _ = self.machine.handle_ack(link(ack.number), ack.clone());
        } else if let Frame::Halt { number, reason, .. } = frame {
            self.machine.handle_halt(link(*number), *reason);
        }
        while let Some(commit) = self.machine.poll_commit(0) {
            if let SenderCommit::Acked { position, reports } = &commit {
                let n_acked = position.seq.checked_sub(self.acked).unwrap();
                assert_eq!(n_acked, reports.len() as u64);
                assert!(position.seq <= N_ROWS);
                self.acked = position.seq;
            }
            self.machine.handle_durable(&commit);
        }
    }
}

/// An end that handles what comes at once, or never.
struct Receiver {
    machine: ChannelReceiver,
    /// Of the last message that came; numbers begin anew with each history until one is committed.
    seq: u64,
}

impl Receiver {
    fn new() -> Self {
        let row = ReceiverRow::default();
        Self {
            machine: ChannelReceiver::new(key(), Window::MAX, row, Vec::new()),
            seq: 0,
        }
    }

    fn take(&mut self, frame: Frame, choice: u8) {
        let mut arrival = None;
        if let Frame::Channel(channel) = frame {
            self.machine.handle_channel(link(channel.number), &channel);
        } else if let Frame::Data { number, seq, body } = frame {
            arrival = self
                .machine
                .handle_data(link(number), seq, body)
                .ok()
                .flatten();
        } else if let Frame::Gap { number, messages } = frame {
            arrival = self
                .machine
                .handle_gap(link(number), messages)
                .ok()
                .flatten();
        } else if let Frame::Halt { number, reason, .. } = frame {
            self.machine.handle_halt(link(number), reason);
        }
        if let Some(arrival) = arrival {
            self.seq += match arrival.content {
                ArrivalContent::Message(_) => 1,
                ArrivalContent::Gap(messages) => messages.into(),
            };
            assert_eq!(arrival.row.position.unwrap().seq, self.seq);
            if choice < 0x80 {
                self.machine.handle_committed(None);
            }
        }
        while let Some((trunk, frame)) = self.machine.poll_frame() {
            assert_eq!(trunk, 1);
            encoded(&frame);
        }
        let _ = self.machine.poll_commit();
    }
}
