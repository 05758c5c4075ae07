//! What the ends of a channel do about an other end that lies, halts or begins anew.

use super::*;

const LINK: Link = Link {
    trunk: 1,
    number: 5,
};

fn row(seq: u64) -> Row {
    Row {
        seq,
        content: Content::Message(body("hi")),
        expires_ms: None,
        report: Some(seq),
    }
}

/// With messages 1 to `n`, and CHANNEL sent.
fn sender(n: u64, acked: u64) -> ChannelSender {
    let first = SenderRow::new(&key(), HISTORY, 0);
    let chain = (0..acked).fold(first.acked, |position, _| position.message(b"hi"));
    let mut sender = ChannelSender::new(
        key(),
        SenderRow {
            acked: chain,
            next_seq: acked + 1,
            ..first
        },
    );
    for seq in acked + 1..=n {
        sender.handle_enqueued(row(seq)).unwrap();
    }
    sender.handle_trunk_up(LINK);
    let channel = sender.poll_frame(0);
    assert!(
        matches!(channel, Some((1, Frame::Channel(_)))),
        "{channel:?}"
    );
    sender
}

fn state(seq: u64, body: &[u8]) -> State {
    let first = Position::first(&key(), &HISTORY);
    let position = (0..seq).fold(first, |position, _| position.message(body));
    State {
        number: 5,
        window: Window::MAX,
        position: (seq > 0).then_some(position),
    }
}

#[test]
fn the_sender_tells_who_went_back() {
    let (receiver, sender_back) = (Some(Halt::ReceiverWentBack), Some(Halt::SenderWentBack));
    for (seq, handled, expected) in [
        (0, "hi", receiver),
        (1, "hi", receiver),
        (2, "hi", None),
        (2, "ho", sender_back),
        // Never sent: messages 3 and 4 were enqueued since the machine began.
        (3, "hi", sender_back),
        (9, "hi", sender_back),
    ] {
        let mut sender = sender(4, 2);
        sender
            .handle_state(LINK, &state(seq, handled.as_bytes()))
            .unwrap();
        let commit = sender.poll_commit(0);
        assert_eq!(
            commit,
            expected.map(SenderCommit::Halted),
            "{seq} {handled}"
        );
        let (_, frame) = sender.poll_frame(0).unwrap();
        let is_halt = matches!(
            frame,
            Frame::Halt {
                by: End::Sender,
                ..
            }
        );
        assert_eq!(is_halt, expected.is_some(), "{seq} {handled}");
    }
}

#[test]
fn answers_that_lie_end_the_trunk() {
    let ack = |seq, refused: &[u64]| Ack {
        number: 5,
        seq,
        refusals: refused
            .iter()
            .map(|seq| Refusal {
                seq: *seq,
                failure: failure(),
            })
            .collect(),
    };
    for (ack, expected) in [
        (ack(3, &[]), Ok(())),
        (ack(3, &[1, 3]), Ok(())),
        (ack(4, &[]), Err(ChannelError::Ack(4))),
        (ack(3, &[4]), Err(ChannelError::Refusal(4))),
        (ack(3, &[2, 2]), Err(ChannelError::Refusal(2))),
        (ack(3, &[2, 1]), Err(ChannelError::Refusal(1))),
    ] {
        let mut sender = sender(5, 0);
        assert_eq!(
            sender.handle_ack(LINK, ack.clone()),
            Err(ChannelError::Unasked)
        );
        sender.handle_state(LINK, &state(0, b"")).unwrap();
        assert_eq!(
            sender.handle_state(LINK, &state(0, b"")),
            Err(ChannelError::Unasked)
        );
        for _ in 0..3 {
            assert!(matches!(
                sender.poll_frame(0),
                Some((1, Frame::Data { .. }))
            ));
        }
        assert_eq!(sender.handle_ack(LINK, ack.clone()), expected, "{ack:?}");
    }
}

#[test]
fn the_window_bounds_messages_and_bytes() {
    for (messages, bytes, expected) in [(256, 1 << 20, 9), (3, 1 << 20, 3), (9, 5, 2), (9, 0, 1)] {
        let mut sender = sender(9, 0);
        let window = Window { messages, bytes };
        sender
            .handle_state(
                LINK,
                &State {
                    window,
                    ..state(0, b"")
                },
            )
            .unwrap();
        let sent = std::iter::from_fn(|| sender.poll_frame(0)).count();
        assert_eq!(sent, expected, "{window:?}");

        let mut receiver = ChannelReceiver::new(key(), window, ReceiverRow::default(), vec![]);
        receiver.handle_channel(LINK, &channel(HISTORY, 0, 10));
        receiver.poll_frame().unwrap();
        for seq in 1..=9 {
            let taken = receiver.handle_data(LINK, seq, body("hi"));
            assert_eq!(taken.is_ok(), seq <= expected as u64, "{seq} {taken:?}");
        }
    }
}

#[test]
fn a_backlog_stays_on_disk() {
    let mut sender = ChannelSender::new(
        key(),
        SenderRow {
            next_seq: 1_000_001,
            ..SenderRow::new(&key(), HISTORY, 0)
        },
    );
    sender.handle_trunk_up(LINK);
    assert_eq!(
        sender.poll_frame(0),
        None,
        "it does not know yet what it may have sent"
    );
    let wanted = Wanted {
        from_seq: 1,
        messages: 256,
        bytes: 1 << 20,
    };
    assert_eq!(sender.wants(), Some(wanted));
    assert!(sender.handle_rows([row(2)]).is_err());
    sender.handle_rows((1..=1_000_000).map(row)).unwrap();
    assert_eq!(sender.wants(), None);
    sender.handle_enqueued(row(1_000_001)).unwrap();
    assert!(matches!(sender.poll_frame(0), Some((1, Frame::Channel(_)))));
}

#[test]
fn nothing_expires_that_may_have_been_handled() {
    let mut sender = sender(3, 0);
    sender.handle_state(LINK, &state(0, b"")).unwrap();
    sender.poll_frame(0).unwrap();
    assert!(!sender.expire(1), "it is on its way");
    assert!(sender.expire(2) && !sender.expire(2));
    assert!(!sender.expire(4), "there is none");
    assert_eq!(sender.poll_frame(0), None, "2 is held, and 3 is behind it");
    let (seqs, reports) = (vec![2], vec![]);
    sender.handle_durable(&SenderCommit::Expired { seqs, reports });
    let gap = Frame::Gap {
        number: 5,
        messages: 1,
    };
    assert_eq!(sender.poll_frame(0), Some((1, gap)));
    sender.handle_trunk_down(LINK);
    assert!(!sender.expire(1) && !sender.expire(2) && sender.expire(3));
    let mut again = ChannelSender::new(
        key(),
        SenderRow {
            next_seq: 4,
            ..SenderRow::new(&key(), HISTORY, 0)
        },
    );
    again.handle_rows((1..4).map(row)).unwrap();
    assert!(!again.expire(3), "the crashed one may have sent it");
}

#[test]
fn messages_that_lie_end_the_trunk() {
    let mut receiver = ChannelReceiver::new(key(), Window::MAX, ReceiverRow::default(), vec![]);
    assert_eq!(
        receiver.handle_data(LINK, 1, body("hi")),
        Ok(None),
        "of no trunk that is up"
    );
    receiver.handle_channel(LINK, &channel(HISTORY, 0, 999));
    let early = receiver.handle_data(LINK, 1, body("hi"));
    assert_eq!(early, Err(ChannelError::NotOpen));
    assert!(matches!(receiver.poll_frame(), Some((1, Frame::State(_)))));
    let (expected, got) = (1, 2);
    let order = Err(ChannelError::Order { expected, got });
    assert_eq!(receiver.handle_data(LINK, 2, body("hi")), order);
    assert_eq!(receiver.handle_gap(LINK, 257), Err(ChannelError::Window));
    let gap = receiver.handle_gap(LINK, 256).unwrap().unwrap();
    assert_eq!(gap.content, ArrivalContent::Gap(256));
    assert_eq!(
        receiver.handle_data(LINK, 257, body("hi")),
        Err(ChannelError::Window)
    );
    let next = Link {
        trunk: 2,
        number: 5,
    };
    receiver.handle_channel(next, &channel(HISTORY, 0, 999));
    assert_eq!(
        receiver.handle_gap(LINK, 1),
        Ok(None),
        "of an earlier trunk"
    );
    assert_eq!(
        receiver.poll_frame(),
        None,
        "the gap is on its way to a commit"
    );
    receiver.handle_committed(None);
    assert!(matches!(receiver.poll_frame(), Some((2, Frame::State(_)))));
    assert!(matches!(receiver.poll_frame(), Some((2, Frame::Ack(_)))));
    let late = receiver.handle_data(LINK, 257, body("hi"));
    assert_eq!(late, Ok(None), "of an earlier trunk");
}

fn said(frame: &Frame) -> String {
    if let Frame::Halt { reason, .. } = frame {
        return reason.to_string();
    }
    let is_refused = matches!(frame, Frame::ChannelRefused { .. });
    assert!(is_refused || matches!(frame, Frame::State(_)), "{frame:?}");
    if is_refused { "refused" } else { "state" }.to_owned()
}

/// What a receiver with this row makes of a CHANNEL: what it answers, and whether it is halted.
#[test]
fn a_receiver_opens_halts_or_waits_by_the_history() {
    let at = |seq, halted| ReceiverRow {
        history: Some(HISTORY),
        position: state(seq, b"hi").position,
        confirmed: 1,
        halted,
    };
    let epoch = |epoch| History { epoch, ..HISTORY };
    let other = History {
        incarnation: [8; 16],
        epoch: 0,
    };
    let (poison, wait) = (Some(Halt::Poison), "refused");
    let (sender_back, receiver_back) = ("the sender went back", "the receiver went back");
    for (row, theirs, acked, next, expected, is_halted) in [
        (ReceiverRow::default(), HISTORY, 0, 9, "state", false),
        (at(3, None), HISTORY, 3, 4, "state", false),
        (at(3, None), HISTORY, 1, 9, "state", false),
        (at(3, None), HISTORY, 4, 9, receiver_back, true),
        (at(3, None), HISTORY, 0, 9, sender_back, true),
        (at(3, None), HISTORY, 1, 3, sender_back, true),
        (at(3, None), epoch(0), 1, 9, sender_back, true),
        (at(3, None), other, 0, 9, sender_back, true),
        (at(3, None), epoch(2), 1, 9, receiver_back, true),
        (at(3, None), epoch(2), 0, 9, wait, true),
        (
            at(3, poison),
            HISTORY,
            3,
            9,
            "the receiver's plugin failed on a message",
            true,
        ),
        (at(3, poison), epoch(2), 0, 9, wait, true),
        (at(3, poison).reopened(), epoch(2), 0, 9, "state", false),
        (at(3, poison).reopened(), other, 0, 9, "state", false),
        (
            at(3, poison).reopened(),
            HISTORY,
            3,
            9,
            "the other end opened the channel anew",
            false,
        ),
    ] {
        let mut receiver = ChannelReceiver::new(key(), Window::MAX, row, vec![]);
        receiver.handle_channel(LINK, &channel(theirs, acked, next));
        let answer = said(&receiver.poll_frame().unwrap().1);
        let row_after = receiver.poll_commit().unwrap_or(row);
        assert_eq!(
            (&*answer, row_after.halted.is_some()),
            (expected, is_halted),
            "{row:?} {theirs:?}"
        );
    }
}

#[test]
fn a_poisoned_channel_halts_at_both_ends_until_both_open_it_anew() {
    let mut receiver = ChannelReceiver::new(key(), Window::MAX, ReceiverRow::default(), vec![]);
    let mut sender = sender(2, 0);
    receiver.handle_channel(LINK, &channel(HISTORY, 0, 3));
    let Some((_, Frame::State(state))) = receiver.poll_frame() else {
        panic!("no state");
    };
    sender.handle_state(LINK, &state).unwrap();
    while let Some((_, Frame::Data { seq, body, .. })) = sender.poll_frame(0) {
        receiver.handle_data(LINK, seq, body).unwrap().unwrap();
    }
    receiver.handle_poison();
    let row = receiver.poll_commit().unwrap();
    assert_eq!(
        (row.history, row.halted),
        (Some(HISTORY), Some(Halt::Poison))
    );
    let Some((_, Frame::Halt { reason, .. })) = receiver.poll_frame() else {
        panic!("no halt");
    };
    sender.handle_halt(LINK, reason);
    assert_eq!(
        sender.poll_commit(0),
        Some(SenderCommit::Halted(Halt::Poison))
    );
    sender.handle_trunk_up(Link { trunk: 2, ..LINK });
    assert!(
        matches!(sender.poll_frame(0), Some((2, Frame::Channel(_)))),
        "so that it is heard"
    );
    assert!(matches!(
        sender.poll_frame(0),
        Some((2, Frame::Halt { .. }))
    ));

    let later = History {
        epoch: 2,
        ..HISTORY
    };
    let mut receiver = ChannelReceiver::new(key(), Window::MAX, row.reopened(), vec![]);
    let mut sender = ChannelSender::new(key(), SenderRow::new(&key(), later, 2));
    sender.handle_rows((1..=2).map(self::row)).unwrap();
    sender.handle_trunk_up(LINK);
    let Some((_, Frame::Channel(channel))) = sender.poll_frame(0) else {
        panic!("no channel");
    };
    receiver.handle_channel(LINK, &channel);
    let Some((_, Frame::State(state))) = receiver.poll_frame() else {
        panic!("no state");
    };
    sender.handle_state(LINK, &state).unwrap();
    assert!(matches!(
        sender.poll_frame(0),
        Some((1, Frame::Data { seq: 1, .. }))
    ));
}
