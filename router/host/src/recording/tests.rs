//! Files of recordings, and how two runs of an event are told apart.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use wormholes_proto::NodeId;

use super::{
    Blob, Effect, Ended, EventFrame, Found, Frame, Grants, Happened, PluginFrame, RecordAction,
    Recorder, RecordingError, RecordingSummary, Remembered, Tape, TrackFrame,
    effects::difference,
    format::{Reader, Writer, encode},
    tape::{Answers, Missing},
};
use crate::event::{ErrorCode, Principal, Reason, Refusal};

fn plugin() -> PluginFrame {
    PluginFrame {
        digest: [1; 32],
        files: [1; 32],
        sha256: [2; 32],
        instance: "echo".to_owned(),
        node: NodeId::from_bytes([3; 32]),
        manifest: String::new(),
        grants: Grants::default(),
        config: BTreeMap::new(),
        strangers: false,
    }
}

fn track(track: u64) -> Frame {
    Frame::Track(Box::new(TrackFrame {
        track,
        principal: Principal::Node,
        digest: [1; 32],
        remembered: Remembered::default(),
    }))
}

fn event(track: u64, bytes: usize) -> Frame {
    Frame::Event(Box::new(EventFrame {
        track,
        id: 1,
        attempt: 0,
        now_ms: 5,
        seed: Some([4; 32]),
        happened: Happened::Init(Reason::Started),
        is_fresh: true,
        found: Found::default(),
        answers: Answers::default(),
        ended: Ended::Replied(Blob(vec![7; bytes])),
        effects: vec![row(b"key", Some(b"value"))],
        channels: Vec::new(),
        took_us: 9,
    }))
}

fn row(key: &[u8], value: Option<&[u8]>) -> Effect {
    Effect::Row(key.into(), value.map(Blob::from))
}

fn file(frames: &[Frame]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).unwrap();
    for frame in frames {
        writer.write(&encode(frame).unwrap()).unwrap();
    }
    writer.end().unwrap().0
}

#[test]
fn a_recording_is_read_as_it_was_written_or_not_at_all() {
    let plugin = Frame::Plugin(Box::new(plugin()));
    let whole = file(&[plugin, track(1), event(1, 10), event(1, 10)]);
    let summary = RecordingSummary::read(&whole[..]).unwrap();
    assert_eq!((summary.plugins, summary.tracks, summary.events), (1, 1, 2));
    for length in 0..whole.len() {
        let error = RecordingSummary::read(&whole[..length]).unwrap_err();
        let expected = match length {
            0..28 => matches!(error, RecordingError::NotOne),
            _ => matches!(error, RecordingError::Cut),
        };
        assert!(expected, "{length}: {error}");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x20;
        assert!(RecordingSummary::read(&damaged[..]).is_err(), "{at}");
    }
    let part = &whole[..whole.len() - 50];
    let mut reader = Reader::of_part(part).unwrap();
    let mut frames = 0;
    while reader.next().unwrap().is_some() {
        frames += 1;
    }
    assert_eq!(frames, 3, "but for the last one, which was cut");
}

#[test]
fn frames_stand_where_they_may() {
    let known = || Frame::Plugin(Box::new(plugin()));
    let refused = |frames: &[Frame]| {
        let error = RecordingSummary::read(&file(frames)[..]).unwrap_err();
        assert!(matches!(error, RecordingError::Damaged(_)), "{error}");
    };
    refused(&[track(1)]);
    refused(&[known(), event(1, 1)]);
    refused(&[known(), track(1), track(1)]);
    refused(&[known(), Frame::Rows(4, Vec::new())]);
    assert!(RecordingSummary::read(&file(&[known(), track(1)])[..]).is_ok());
}

#[test]
fn the_oldest_parts_go_and_every_part_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("echo");
    let recorder = Recorder::new(folder.clone());
    assert_eq!(recorder.part(), 0);
    recorder.act(RecordAction::On(Some(1 << 20))).unwrap();
    let (mut begun, mut part) = (0, 0);
    for _ in 0..400 {
        if recorder.part() != part {
            part = recorder.part();
            let number = recorder.next_track(part).unwrap();
            assert!(recorder.begin(part, &plugin(), &[track(number)]));
            begun += 1;
        }
        assert!(recorder.event(part, &event((part << 32) | 1, 10_000)));
    }
    assert!(begun > 10, "{begun}");
    assert!(
        !recorder.event(part, &event((part << 32) | 1, 300_000)),
        "too large"
    );
    let report = recorder.report();
    assert!(report.bytes <= 1 << 20, "{report:?}");
    assert_eq!(
        (report.events, report.left_out, report.is_on),
        (400, 1, true)
    );
    for entry in fs::read_dir(&folder).unwrap() {
        let about = entry.unwrap().metadata().unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600);
    }
    let saved = recorder.save(|_| Some(vec![5; 3 << 20])).unwrap();
    let summary = RecordingSummary::read(fs::File::open(&saved.path).unwrap()).unwrap();
    assert!(summary.tracks >= 3 && summary.events > 60, "{summary:?}");
    assert_eq!(fs::metadata(&saved.path).unwrap().len(), saved.bytes);

    // Another one goes on where this one was, and forgets all of it.
    drop(recorder);
    let recorder = Recorder::new(folder.clone());
    recorder.go_on();
    assert!(recorder.part() > part);
    assert!(recorder.report().bytes > 100_000);
    recorder.begin_anew().unwrap();
    assert!(recorder.report().bytes < 100);
    recorder.act(RecordAction::Forget).unwrap();
    assert!(!folder.exists());
    let refused = recorder.act(RecordAction::On(Some(1))).unwrap_err();
    assert!(refused.to_string().contains("1 to 1,024 MiB"));
}

#[test]
fn the_first_difference_is_named() {
    let did = [row(b"a", Some(b"1")), row(b"b", Some(b"2"))];
    let done = Ended::Done;
    let parts = |now: &Ended, does: &[Effect]| difference((&done, &did), (now, does));
    assert_eq!(parts(&done, &did), None);
    let turned = [did[1].clone(), did[0].clone()];
    assert_eq!(parts(&done, &turned), None, "rows have no order");
    let other = [did[0].clone(), row(b"b", None)];
    let expected = "row \"b\": deleted; recorded: \"2\"";
    assert_eq!(parts(&done, &other).unwrap(), expected);
    let more = [
        did[0].clone(),
        did[1].clone(),
        row(&[0, 1], Some(&[255; 30])),
    ];
    let told = parts(&done, &more).unwrap();
    assert!(
        told.starts_with("row 0x0001: 0xff") && told.contains("and 6 bytes"),
        "{told}"
    );
    assert!(told.ends_with("recorded: nothing"), "{told}");
    let refused = Ended::Refused(Refusal::new(ErrorCode::Denied, "no"));
    let told = parts(&refused, &[]).unwrap();
    assert_eq!(told, "it ended as: refused, \"no\"; recorded: done");
    let long = [row(b"a", Some(&[b'x'; 90])), did[1].clone()];
    let longer = [
        row(b"a", Some(&[&[b'x'; 89][..], b"y"].concat())),
        did[1].clone(),
    ];
    let told = difference((&done, &long), (&done, &longer)).unwrap();
    assert!(told.ends_with("further on"), "{told}");
}

#[test]
fn a_tape_gives_again_what_anybody_may_know_and_of_secrets_the_length() {
    let mut tape = Tape::recorder();
    tape.keep_public(&Ok(Ok(vec![1, 2])));
    tape.keep_hidden(Ok(Some(64)));
    tape.keep_hidden(Ok(None));
    tape.keep_done(&Ok(Ok(())));
    tape.keep_hidden_rows(&[(vec![9; 3], vec![8; 5])]);
    let answers = tape.into_answers();
    let written = postcard::to_allocvec(&answers).unwrap();
    assert!(
        !written
            .windows(3)
            .any(|part| part == [9; 3] || part == [8; 3])
    );

    let mut tape = Tape::player(answers.clone(), true);
    assert_eq!(tape.public(), Some(Ok(vec![1, 2])));
    assert_eq!(tape.missing(), None);
    tape.draws();
    assert_eq!(tape.missing(), Some(Missing::Random));
    let stand_in = tape.hidden().unwrap().unwrap().unwrap();
    assert_eq!(stand_in.len(), 64);
    assert_eq!(tape.missing(), Some(Missing::Secret));
    assert_eq!(tape.hidden(), Some(Ok(None)));
    assert_eq!(tape.done(), Some(Ok(())));
    let rows = tape.hidden_rows().unwrap();
    assert_eq!((rows[0].0.len(), rows[0].1.len()), (3, 5));

    let mut tape = Tape::player(answers, false);
    tape.draws();
    assert_eq!(tape.done(), Some(Ok(())), "asked for something else");
    assert_eq!(tape.missing(), Some(Missing::Answer));
    assert_eq!(Tape::Off.public(), None);
}
