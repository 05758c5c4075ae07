//! A blob that comes over trunks which break, from somebody who gives what he likes: what is written is
//! what was wanted, whatever he says.

use std::sync::LazyLock;

use bytes::Bytes;
use wormholes_proto::{
    blob::{BlobHasher, BlobTree, PIECE_BYTES},
    trunk::{BlobFetch, BlobFrame, ErrorCode, Failure, Fetched, MAX_PIECES_AHEAD, Want},
};

use super::input::Input;

/// More than may be on the way at once.
const PIECES: usize = MAX_PIECES_AHEAD as usize + 3;

static BLOB: LazyLock<(Vec<u8>, BlobTree)> = LazyLock::new(|| {
    let length = (PIECES - 1) * PIECE_BYTES + 5;
    let bytes: Vec<u8> = (0..length).map(|n| (n % 239) as u8).collect();
    let mut hasher = BlobHasher::new();
    hasher.update(&bytes);
    (bytes, hasher.finish())
});

/// Steps of the other end: a byte for what it does, and what that takes.
pub fn blob_frames(input: &[u8]) {
    let mut input = Input::new(input);
    let (content, tree) = &*BLOB;
    let mut fetch = BlobFetch::new(tree.id(), content.len() as u64);
    let (mut written, (_, mut may, _)) = (0, fetch.handle_trunk_up());
    while !input.is_empty() && !fetch.is_whole() {
        let before = fetch.pieces();
        let (frame, is_honest) = frame(&mut input, before);
        let is_piece = matches!(frame, BlobFrame::Piece { .. });
        match fetch.handle_frame(frame) {
            Ok(Fetched::Piece { from, bytes }) => {
                assert!(is_piece && is_honest, "nothing else is a piece");
                assert_eq!(from, written);
                let rest = content.get(written as usize..).unwrap();
                assert!(rest.starts_with(&bytes));
                written += bytes.len() as u64;
                may = may.checked_sub(1).unwrap();
                may += fetch.handle_written().unwrap_or_default();
                assert!(may <= MAX_PIECES_AHEAD);
                assert!(may > 0 || fetch.is_whole(), "it waits for nothing");
            }
            // A length that is wrong may be believed, and no piece fits it then.
            Ok(Fetched::Begun(begun)) => assert_eq!(begun.id(), tree.id()),
            Ok(Fetched::Nothing) => {}
            Err(_) => {
                let (first, ahead, _) = fetch.handle_trunk_up();
                assert_eq!(first, before, "what was right stays");
                may = ahead;
            }
        }
    }
    assert_eq!(fetch.is_whole(), written == content.len() as u64);
}

/// What is said next, and whether an honest end could say it some time.
fn frame(input: &mut Input<'_>, next: u32) -> (BlobFrame, bool) {
    let (content, tree) = &*BLOB;
    let want = 1;
    let values = |is_there| match is_there {
        true => Bytes::copy_from_slice(tree.values()),
        false => Bytes::new(),
    };
    let given = |length, values| BlobFrame::Given {
        want,
        length,
        values,
    };
    let length = tree.length();
    let piece = |index: u32| {
        let bytes = content.chunks(PIECE_BYTES).nth(index as usize);
        let bytes = Bytes::copy_from_slice(bytes.unwrap_or_default());
        BlobFrame::Piece { want, index, bytes }
    };
    match input.byte() % 8 {
        0 => (given(length, values(true)), true),
        1 => (given(length, values(false)), true),
        2 => (piece(next), true),
        3 => (piece(input.byte().into()), true),
        4 => {
            let bytes = Bytes::copy_from_slice(input.piece());
            let index = next;
            // The last one is short, and could be guessed.
            let is_right = content.chunks(PIECE_BYTES).nth(index as usize) == Some(&bytes[..]);
            (BlobFrame::Piece { want, index, bytes }, is_right)
        }
        5 => {
            let values = Bytes::copy_from_slice(input.piece());
            let length = u64::from(input.byte()) << (input.byte() % 32);
            (given(length, values), false)
        }
        6 => {
            let failure = Failure::new(ErrorCode::Denied, "no");
            (BlobFrame::NotGiven { want, failure }, true)
        }
        _ => (unasked(input), false),
    }
}

/// What only the end that wants says.
fn unasked(input: &mut Input<'_>) -> BlobFrame {
    use wormholes_proto::{blob::BlobId, trunk::Principal};
    let want = 1;
    match input.byte() % 3 {
        0 => BlobFrame::More { want, pieces: 1 },
        1 => BlobFrame::Unwant { want },
        _ => BlobFrame::Want(Box::new(Want {
            want,
            from: Principal::Node,
            to: Principal::Node,
            blob: BlobId::of(b"another"),
            first: 0,
            pieces: 1,
            with_values: true,
        })),
    }
}
