//! The folder of blobs, as crashes leave it and as it is cleared.

use std::thread;

use tempfile::TempDir;
use wormholes_proto::blob::PIECE_BYTES;

use super::*;

const HOME: Home = Home {
    instance: 3,
    principal: 7,
};

fn open(dir: &TempDir, named: Named) -> Blobs {
    Blobs::open(dir.path().join("blobs"), named).unwrap()
}

fn tree(bytes: &[u8]) -> BlobTree {
    let mut hasher = BlobHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

fn put(blobs: &Blobs, bytes: &[u8]) -> Pin {
    let work = vec![FileWork::Put(tree(bytes), Bytes::copy_from_slice(bytes))];
    blobs.carry_out(work).unwrap().pop().unwrap()
}

fn files(dir: &TempDir) -> usize {
    names(&dir.path().join("blobs")).len()
}

/// The sweeper is another thread.
fn until_files(dir: &TempDir, count: usize) {
    let begun = std::time::Instant::now();
    while files(dir) != count {
        assert!(begun.elapsed().as_secs() < 30, "{} files", files(dir));
        thread::yield_now();
    }
}

#[test]
fn a_blob_stays_as_long_as_a_row_names_it_or_somebody_reads_it() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let bytes = vec![5; 3 * PIECE_BYTES + 1];
    let pin = put(&blobs, &bytes);
    let id = pin.id();
    assert_eq!(id, BlobId::of(&bytes));
    blobs.changed([(id, true), (id, true)]);
    drop(pin);
    let length = bytes.len() as u64;
    let part = blobs.read((id, length), PIECE_BYTES as u64, 10).unwrap();
    assert_eq!(part, [5; 10]);
    let end = blobs.read((id, length), length - 2, 10).unwrap();
    assert_eq!(end, [5; 2], "nothing of what is behind the bytes");
    let (_, read) = blobs.open_blob(id).unwrap();
    assert_eq!(read, tree(&bytes));
    let reader = blobs.pin(id);
    blobs.changed([(id, false), (id, false)]);
    assert!(blobs.read((id, length), 0, 1).is_ok());
    drop(reader);
    until_files(&dir, 0);
    // Whoever writes it anew has it again.
    let _pin = put(&blobs, &bytes);
    assert!(blobs.read((id, length), 0, 1).is_ok());
}

#[test]
fn a_start_deletes_what_nothing_names() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let (one, two) = (put(&blobs, b"one"), put(&blobs, b"two"));
    let ids = [one.id(), two.id()];
    blobs.part(HOME, 1).begin(&tree(b"three")).unwrap();
    blobs.part(HOME, 2).begin(&tree(b"four")).unwrap();
    let draft = |number| DraftFile {
        home: HOME,
        number,
        length: 0,
    };
    for number in [4, 5] {
        let append = FileWork::Append(draft(number), b"draft".to_vec());
        blobs.carry_out(vec![append]).unwrap();
    }
    fs::write(dir.path().join("blobs/new-9"), "a crash left it").unwrap();
    assert_eq!(files(&dir), 7);
    // As a crash does: nothing is let go.
    std::mem::forget((one, two));
    let named = Named {
        blobs: vec![ids[0]],
        fetches: vec![(HOME, 2)],
        drafts: vec![(HOME, 5)],
    };
    let blobs = open(&dir, named);
    assert_eq!(files(&dir), 3);
    assert!(blobs.open_blob(ids[0]).is_ok() && blobs.open_blob(ids[1]).is_err());
    blobs.forget_home(HOME);
    until_files(&dir, 1);
}

#[test]
fn what_came_of_a_fetch_is_checked_again() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let bytes: Vec<u8> = (0..4 * PIECE_BYTES + 9).map(|n| (n % 247) as u8).collect();
    let (tree, part) = (tree(&bytes), blobs.part(HOME, 8));
    assert!(part.resume(tree.id()).is_none());
    let file = part.begin(&tree).unwrap();
    assert_eq!(part.resume(tree.id()), Some((tree.clone(), 0)));
    for (index, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
        let there = u32::try_from(index).unwrap();
        assert_eq!(part.resume(tree.id()), Some((tree.clone(), there)));
        file.write_all_at(piece, (index * PIECE_BYTES) as u64)
            .unwrap();
    }
    assert!(part.resume(BlobId::of(b"another")).is_none());
    file.write_all_at(b"x", PIECE_BYTES as u64 * 2).unwrap();
    let damaged = part.resume(tree.id());
    assert_eq!(damaged, Some((tree.clone(), 2)), "a hole comes again");
    let third = &bytes[2 * PIECE_BYTES..3 * PIECE_BYTES];
    file.write_all_at(third, PIECE_BYTES as u64 * 2).unwrap();
    assert_eq!(part.resume(tree.id()), Some((tree.clone(), 5)));
    let pin = part.finish(tree.id()).unwrap();
    assert_eq!(blobs.open_blob(pin.id()).unwrap().1, tree);
    blobs.forget_fetch(HOME, 8);
    until_files(&dir, 1);
}

#[test]
fn a_draft_that_was_sealed_for_nothing_goes_on_beside_the_blob() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let draft = |length| DraftFile {
        home: HOME,
        number: 1,
        length,
    };
    let append = FileWork::Append(draft(0), b"good ".to_vec());
    let seal = FileWork::Seal(draft(5), tree(b"good "));
    let pin = blobs.carry_out(vec![append, seal]).unwrap().pop().unwrap();
    // The event never became real, but somebody else holds the same bytes.
    blobs.changed([(pin.id(), true)]);
    let append = FileWork::Append(draft(5), b"morning".to_vec());
    blobs.carry_out(vec![append]).unwrap();
    assert_eq!(blobs.read((pin.id(), 5), 0, 9).unwrap(), b"good ");
    assert_eq!(blobs.open_blob(pin.id()).unwrap().1.length(), 5);
    let whole = tree(b"good morning");
    let seal = FileWork::Seal(draft(12), whole.clone());
    let sealed = blobs.carry_out(vec![seal]).unwrap().pop().unwrap();
    assert_eq!(
        blobs.read((sealed.id(), 12), 0, 99).unwrap(),
        b"good morning"
    );
    assert_eq!(blobs.open_blob(sealed.id()).unwrap().1, whole);
    blobs.forget_draft(HOME, 1);
    until_files(&dir, 2);
}

#[test]
fn a_blob_that_was_lost_stays_until_the_store_says_what_it_has() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let pin = put(&blobs, b"lost, or not");
    let id = pin.id();
    blobs.keep_until_counted(&[pin]);
    // The sweeper takes one after the other: it has looked at both then.
    drop(put(&blobs, b"rubbish"));
    until_files(&dir, 1);
    assert!(blobs.open_blob(id).is_ok());
    blobs.count(&[id]);
    drop(put(&blobs, b"more rubbish"));
    until_files(&dir, 1);
    assert!(blobs.open_blob(id).is_ok(), "the store has its row");
    blobs.count(&[]);
    until_files(&dir, 0);
}

#[test]
fn what_is_gone_or_damaged_becomes_no_blob() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let (tree, part) = (tree(b"morning"), blobs.part(HOME, 1));
    assert!(part.open().is_err() && part.finish(tree.id()).is_err());
    until_files(&dir, 0);
    let file = part.begin(&tree).unwrap();
    file.write_all_at(b"morning", 0).unwrap();
    // Something else has its name.
    fs::write(blobs.path(tree.id()), "evening").unwrap();
    let pin = part.finish(tree.id()).unwrap();
    assert_eq!(blobs.read((pin.id(), 7), 0, 7).unwrap(), b"morning");
    assert_eq!(blobs.open_blob(pin.id()).unwrap().1, tree);
    assert_eq!(files(&dir), 2);
}

#[test]
fn a_blob_keeps_its_bytes_whatever_is_written_to_what_it_was() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let (whole, part) = (tree(b"good morning"), blobs.part(HOME, 1));
    let file = part.begin(&whole).unwrap();
    file.write_all_at(b"good morning", 0).unwrap();
    let fetched = part.finish(whole.id()).unwrap();
    part.begin(&tree(b"another")).unwrap();
    assert_eq!(blobs.open_blob(fetched.id()).unwrap().1, whole);

    let draft = |length| DraftFile {
        home: HOME,
        number: 1,
        length,
    };
    let append = FileWork::Append(draft(0), b"evening".to_vec());
    let seal = FileWork::Seal(draft(7), tree(b"evening"));
    let sealed = blobs.carry_out(vec![append, seal]).unwrap().pop().unwrap();
    let shorter = FileWork::Seal(draft(4), tree(b"even"));
    let _shorter = blobs.carry_out(vec![shorter]).unwrap();
    assert_eq!(blobs.open_blob(sealed.id()).unwrap().1, tree(b"evening"));
    assert_eq!(blobs.read((sealed.id(), 7), 0, 9).unwrap(), b"evening");
}

#[test]
fn what_the_disk_does_not_take_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let draft = |number, length| DraftFile {
        home: HOME,
        number,
        length,
    };
    let begin = FileWork::Append(draft(1, 0), b"begun".to_vec());
    let put = FileWork::Put(tree(b"put"), Bytes::from_static(b"put"));
    let missing = FileWork::Append(draft(2, 5), b"goes on".to_vec());
    assert!(blobs.carry_out(vec![begin, put, missing]).is_err());
    until_files(&dir, 0);
}

#[test]
fn bytes_that_come_in_pieces_are_a_blob_at_their_end_or_nothing() {
    let dir = TempDir::new().unwrap();
    let blobs = open(&dir, Named::default());
    let bytes = vec![1; PIECE_BYTES + 500];
    let mut comes = blobs.receive().unwrap();
    for part in bytes.chunks(700) {
        comes.append(part).unwrap();
    }
    assert_eq!(comes.length(), bytes.len() as u64);
    let (length, pin) = comes.finish().unwrap();
    assert_eq!((length, pin.id()), (bytes.len() as u64, BlobId::of(&bytes)));
    let mut left = blobs.receive().unwrap();
    left.append(b"half").unwrap();
    drop(left);
    until_files(&dir, 1);
    drop(pin);
    until_files(&dir, 0);
}

#[test]
fn each_blob_counts_for_whole_blocks() {
    for (length, counts) in [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192)] {
        assert_eq!(charged(length), counts);
    }
}
