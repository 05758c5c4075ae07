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

/// With messages 1 to `n`, CHANNEL sent, and all of them to be sent without another commit.
fn sender(n: u64, acked: u64) -> ChannelSender {
    let first = SenderRow::new(&key(), HISTORY, 0);
    let chain = (0..acked).fold(first.acked, |position, _| position.message(b"hi"));
    let mut sender = ChannelSender::new(
        key(),
        SenderRow {
            acked: chain,
            next_seq: acked + 1,
            mark: 1000,
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
            mark: 3,
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

fn said(receiver: &mut ChannelReceiver) -> String {
    let frames = std::iter::from_fn(|| receiver.poll_frame());
    let texts = frames.map(|(_, frame)| {
        if let Frame::Halt { reason, .. } = frame {
            reason.to_string()
        } else if let Frame::State(state) = frame {
            format!("state {}", state.position.map_or(0, |at| at.seq))
        } else if let Frame::Ack(ack) = frame {
            format!("ack {}", ack.seq)
        } else {
            let is_refused = matches!(frame, Frame::ChannelRefused { .. });
            assert!(is_refused, "{frame:?}");
            "refused".to_owned()
        }
    });
    texts.collect::<Vec<_>>().join(", ")
}

const OTHER: History = History {
    incarnation: [8; 16],
    epoch: 0,
};

/// Of a receiver that handled three messages.
fn at_three(halted: Option<Halt>) -> ReceiverRow {
    ReceiverRow {
        history: Some(HISTORY),
        position: state(3, b"hi").position,
        confirmed: 1,
        halted,
        is_reopened: false,
    }
}

fn epoch(epoch: u64) -> History {
    History { epoch, ..HISTORY }
}

/// A receiver's row; of a CHANNEL the history, what is acknowledged and the next number; what the
/// receiver answers, and whether it is halted after that.
type Case<'a> = (ReceiverRow, History, u64, u64, &'a str, bool);

fn check_answers(cases: &[Case<'_>]) {
    for (row, theirs, acked, next, expected, is_halted) in cases {
        let mut receiver = ChannelReceiver::new(key(), Window::MAX, *row, vec![]);
        receiver.handle_channel(LINK, &channel(*theirs, *acked, *next));
        let answer = said(&mut receiver);
        let after = receiver.poll_commit().unwrap_or(*row);
        let halts = after.halted.is_some() && !after.is_reopened;
        assert_eq!(
            (&*answer, halts),
            (*expected, *is_halted),
            "{row:?} {theirs:?} {acked}"
        );
    }
}

#[test]
fn a_receiver_opens_halts_or_waits_by_the_history() {
    let (new, open) = (ReceiverRow::default(), at_three(None));
    let (sender_back, receiver_back) = ("the sender went back", "the receiver went back");
    check_answers(&[
        (new, HISTORY, 0, 9, "state 0", false),
        (open, HISTORY, 3, 4, "state 3", false),
        (open, HISTORY, 1, 9, "state 3, ack 3", false),
        (open, HISTORY, 4, 9, receiver_back, true),
        (open, HISTORY, 0, 9, sender_back, true),
        (open, HISTORY, 1, 3, sender_back, true),
        (open, epoch(0), 1, 9, sender_back, true),
        (open, OTHER, 0, 9, sender_back, true),
        (open, epoch(2), 1, 9, receiver_back, true),
        (open, epoch(2), 0, 9, "refused", true),
    ]);
}

#[test]
fn a_halted_receiver_tells_how_far_it_came_when_both_ends_agree_on_it() {
    let (poison, lost) = (
        at_three(Some(Halt::Poison)),
        at_three(Some(Halt::SenderWentBack)),
    );
    let failed = "the receiver's plugin failed on a message";
    let anew = "the other end opened the channel anew";
    let sender_back = "the sender went back";
    let [state, told] = ["state 3, ", "state 3, ack 3, "].map(|told| format!("{told}{failed}"));
    let told_anew = format!("state 3, ack 3, {anew}");
    check_answers(&[
        (poison, HISTORY, 3, 9, &state, true),
        (poison, HISTORY, 1, 9, &told, true),
        (poison, HISTORY, 0, 9, sender_back, true),
        (poison, epoch(0), 1, 9, failed, true),
        (poison, epoch(2), 0, 9, "refused", true),
        (lost, HISTORY, 3, 9, sender_back, true),
        (poison.reopened(), epoch(2), 0, 9, "state 0", false),
        (poison.reopened(), OTHER, 0, 9, "state 0", false),
        (poison.reopened(), HISTORY, 1, 9, &told_anew, false),
        (at_three(None).reopened(), HISTORY, 1, 9, &told_anew, false),
        (lost.reopened(), HISTORY, 3, 9, anew, false),
        (
            ReceiverRow::default().reopened(),
            HISTORY,
            0,
            9,
            "state 0",
            false,
        ),
    ]);
}

#[test]
fn a_poisoned_channel_tells_what_was_handled_before_it_halts() {
    let mut receiver = ChannelReceiver::new(key(), Window::MAX, ReceiverRow::default(), vec![]);
    let mut sender = sender(3, 0);
    receiver.handle_channel(LINK, &channel(HISTORY, 0, 4));
    let Some((_, Frame::State(state))) = receiver.poll_frame() else {
        panic!("no state");
    };
    sender.handle_state(LINK, &state).unwrap();
    while let Some((_, Frame::Data { seq, body, .. })) = sender.poll_frame(0) {
        receiver.handle_data(LINK, seq, body).unwrap().unwrap();
    }
    receiver.handle_committed(Some(failure()));
    receiver.handle_poison();
    let late = receiver.handle_data(LINK, 4, body("hi"));
    assert_eq!(late, Ok(None), "it takes nothing more");
    let row = receiver.poll_commit().unwrap();
    let halted = (Some(HISTORY), Some(Halt::Poison));
    assert_eq!((row.history, row.halted), halted);
    let Some((_, Frame::Ack(ack))) = receiver.poll_frame() else {
        panic!("no ack");
    };
    assert_eq!((ack.seq, ack.refusals.len()), (1, 1));
    sender.handle_ack(LINK, ack).unwrap();
    let Some((_, Frame::Halt { reason, .. })) = receiver.poll_frame() else {
        panic!("no halt");
    };
    sender.handle_halt(LINK, reason);
    let acked = sender.poll_commit(0);
    let is_first =
        |acked: &_| matches!(acked, SenderCommit::Acked { position, .. } if position.seq == 1);
    assert!(acked.as_ref().is_some_and(is_first), "{acked:?}");
    let halted = Some(SenderCommit::Halted(Halt::Poison));
    assert_eq!(sender.poll_commit(0), halted);
    sender.handle_trunk_up(Link { trunk: 2, ..LINK });
    let (channel, halt) = (sender.poll_frame(0), sender.poll_frame(0));
    assert!(
        matches!(channel, Some((2, Frame::Channel(_)))),
        "so that it is heard"
    );
    assert!(matches!(halt, Some((2, Frame::Halt { .. }))));
}

#[test]
fn a_later_history_forgets_the_refusals_of_the_one_before_with_its_first_message() {
    let row = at_three(Some(Halt::Poison)).reopened();
    let old = Refusal {
        seq: 2,
        failure: failure(),
    };
    let mut receiver = ChannelReceiver::new(key(), Window::MAX, row, vec![old]);
    receiver.handle_channel(LINK, &channel(epoch(2), 0, 9));
    assert_eq!(said(&mut receiver), "state 0");
    for seq in 1..=2 {
        let taken = receiver.handle_data(LINK, seq, body("hi"));
        let arrival = taken.unwrap().unwrap();
        assert_eq!(arrival.is_first, seq == 1);
        let row = (arrival.row.history, arrival.row.halted);
        assert_eq!(row, (Some(epoch(2)), None));
        receiver.handle_committed(None);
    }
    let Some((_, Frame::Ack(ack))) = receiver.poll_frame() else {
        panic!("no ack");
    };
    assert_eq!((ack.seq, ack.refusals), (2, vec![]));
}

/// What is told before a crash tells after it what nobody can have handled.
#[test]
fn messages_beyond_the_mark_expire_after_a_crash_too() {
    let due = |seq| Row {
        expires_ms: Some(1),
        ..row(seq)
    };
    let new = SenderRow::new(&key(), HISTORY, 0);
    let mut sender = ChannelSender::new(key(), new);
    sender.handle_enqueued(due(1)).unwrap();
    sender.handle_trunk_up(LINK);
    sender.poll_frame(0).unwrap();
    sender.handle_state(LINK, &state(0, b"")).unwrap();
    assert_eq!(sender.poll_frame(0), None, "it is not marked yet");
    let mark = sender.poll_commit(0).unwrap();
    assert_eq!(mark, SenderCommit::Mark(256));
    assert_eq!((sender.poll_frame(0), sender.poll_commit(0)), (None, None));
    sender.handle_durable(&mark);
    assert!(matches!(
        sender.poll_frame(0),
        Some((1, Frame::Data { .. }))
    ));
    sender.handle_enqueued(due(2)).unwrap();
    sender.handle_trunk_down(LINK);
    let back = sender.poll_commit(0).unwrap();
    assert_eq!(back, SenderCommit::Mark(1));
    assert_eq!(sender.poll_timeout(), Some(1), "of the second one");

    for (mark, expired) in [(256, vec![]), (1, vec![2]), (0, vec![1, 2])] {
        let row = SenderRow {
            next_seq: 3,
            mark,
            ..new
        };
        let mut again = ChannelSender::new(key(), row);
        again.handle_rows([due(1), due(2)]).unwrap();
        let commits = std::iter::from_fn(|| again.poll_commit(1));
        let mut seqs = Vec::new();
        for commit in commits {
            if let SenderCommit::Expired { seqs: more, .. } = commit {
                seqs.extend(more);
            }
        }
        assert_eq!(seqs, expired, "{mark}");
    }
}

#[test]
fn a_mark_that_is_taken_back_holds_at_once() {
    let mut sender = sender(3, 0);
    sender.handle_state(LINK, &state(0, b"")).unwrap();
    sender.poll_frame(0).unwrap();
    sender.handle_trunk_down(LINK);
    let back = sender.poll_commit(0).unwrap();
    assert_eq!(back, SenderCommit::Mark(1));
    let next = Link { trunk: 2, ..LINK };
    sender.handle_trunk_up(next);
    sender.poll_frame(0).unwrap();
    sender.handle_state(next, &state(1, b"hi")).unwrap();
    let early = sender.poll_frame(0);
    assert_eq!(early, None, "a crash would forget that it was sent");
    sender.handle_durable(&back);
    let ahead = sender.poll_commit(0).unwrap();
    assert_eq!(ahead, SenderCommit::Mark(257));
    sender.handle_durable(&ahead);
    assert!(sender.poll_frame(0).is_some());
}

#[test]
fn nothing_is_to_be_polled_for_while_nothing_can_be_given_up() {
    let mut full = ChannelSender::new(key(), SenderRow::new(&key(), HISTORY, 300));
    let due = (1..=300).map(|seq| Row {
        expires_ms: Some(1),
        ..row(seq)
    });
    full.handle_rows(due).unwrap();
    assert_eq!(full.poll_timeout(), Some(1));
    let held = full.poll_commit(1).unwrap();
    assert_eq!(full.poll_timeout(), None, "256 are under way");
    full.handle_durable(&held);

    let mut halted = sender(1, 0);
    let second = Row {
        expires_ms: Some(1),
        ..row(2)
    };
    halted.handle_enqueued(second).unwrap();
    assert_eq!(halted.poll_timeout(), Some(1));
    halted.handle_halt(LINK, Halt::Poison);
    assert_eq!(halted.poll_timeout(), None);
}
