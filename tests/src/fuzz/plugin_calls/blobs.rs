//! Blobs, and drafts of them.

use wormholes_host::trial::words::blobs::Host;
use wormholes_proto::blob::BlobId;

use super::{super::input::Input, Live, words::Words};

/// What one call takes, and what one reads.
const MAX_CALL_BYTES: usize = 1 << 20;
const MAX_NAME_BYTES: usize = 128;
/// Blobs that one scan lists.
const MAX_LISTED: usize = 4096;

impl Live {
    pub(super) fn call_blobs(&mut self, choice: u8, input: &mut Input<'_>) {
        match choice % 16 {
            0..3 => self.put(input.many()),
            3..5 if self.has_files => self.append(input.name(), input.many()),
            5 if self.has_files => self.seal(input.name()),
            6 => self.discard(input.name()),
            7 => self.hold(input),
            8 => self.release(input),
            9 | 10 if self.has_files => self.read(input),
            11 => {
                let (id, limit) = (self.blob(input), input.number());
                let after = input.flag().then_some(id);
                self.list(after, u32::try_from(limit).unwrap_or(u32::MAX));
            }
            12 | 13 => self.fetch(input),
            14 => {
                // It may be one that an event before this began, or none.
                let id = input.number();
                let _ = Host::cancel(self.imports(), id).unwrap();
            }
            _ => {
                let id = self.blob(input);
                let length = Host::length(self.imports(), id.clone()).unwrap();
                if let Some((known, _)) = self.model.kept.blobs.get(&id) {
                    assert_eq!(length, Some(*known));
                }
            }
        }
    }

    /// The name of a blob that it holds, of another one, or of none.
    fn blob(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let choice = usize::from(input.byte());
        let held = self.model.kept.blobs.keys().nth(choice % 8).cloned();
        match held {
            Some(held) if choice < 0xc0 => held,
            _ => match choice {
                0..0xe0 => BlobId::of(&input.many()).as_bytes().to_vec(),
                _ => input.many(),
            },
        }
    }

    fn put(&mut self, bytes: Vec<u8>) {
        let is_valid = bytes.len() <= MAX_CALL_BYTES;
        match Host::put(self.imports(), bytes.clone()).unwrap() {
            Ok(id) => {
                assert!(is_valid && !self.is_query);
                self.is_held(&id, &bytes);
            }
            Err(error) => self.refused(&error, is_valid),
        }
    }

    /// A blob of these bytes is held once more.
    fn is_held(&mut self, id: &[u8], bytes: &[u8]) {
        assert_eq!(id, BlobId::of(bytes).as_bytes());
        self.model.kept.hold(id, bytes.len() as u64);
        self.model.kept.contents.insert(id.to_vec(), bytes.into());
    }

    fn append(&mut self, name: String, bytes: Vec<u8>) {
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len());
        let is_valid = is_name && bytes.len() <= MAX_CALL_BYTES;
        match Host::append(self.imports(), name.clone(), bytes.clone()).unwrap() {
            Ok(length) => {
                assert!(is_valid && !self.is_query);
                let draft = self.model.kept.drafts.entry(name).or_default();
                draft.extend_from_slice(&bytes);
                assert_eq!(length, draft.len() as u64);
            }
            Err(error) => self.refused(&error, is_valid),
        }
    }

    fn seal(&mut self, name: String) {
        let known = self.model.kept.drafts.get(&name).cloned();
        match Host::seal(self.imports(), name.clone()).unwrap() {
            Ok(id) => {
                self.is_held(&id, &known.unwrap());
                self.model.kept.drafts.remove(&name);
                self.sealed.insert(id);
            }
            Err(error) => self.not_found(&error, known.is_some()),
        }
    }

    fn discard(&mut self, name: String) {
        let is_known = self.model.kept.drafts.contains_key(&name);
        match Host::discard(self.imports(), name.clone()).unwrap() {
            Ok(()) => {
                assert!(is_known);
                self.model.kept.drafts.remove(&name);
            }
            Err(error) => self.not_found(&error, is_known),
        }
    }

    /// What the event brought may be held as well.
    fn hold(&mut self, input: &mut Input<'_>) {
        let id = self.blob(input);
        let length = Host::length(self.imports(), id.clone()).unwrap();
        match Host::hold(self.imports(), id.clone()).unwrap() {
            Ok(()) => self.model.kept.hold(&id, length.unwrap()),
            Err(error) if id.len() == 32 => self.not_found(&error, length.is_some()),
            Err(error) => self.refused(&error, false),
        }
    }

    fn release(&mut self, input: &mut Input<'_>) {
        let id = self.blob(input);
        let is_held = self.model.kept.blobs.contains_key(&id);
        match Host::release(self.imports(), id.clone()).unwrap() {
            Ok(()) => self.model.kept.release(&id),
            Err(error) if id.len() == 32 => self.not_found(&error, is_held),
            Err(error) => self.refused(&error, false),
        }
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let (id, from, length) = (self.blob(input), input.number(), input.number());
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let is_held = self.model.kept.blobs.contains_key(&id);
        let read = Host::read(self.imports(), id.clone(), from, length).unwrap();
        let Some(bytes) = self.model.kept.contents.get(&id).filter(|_| is_held) else {
            // The event may have brought it.
            return;
        };
        match read {
            Ok(read) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
                let to = from.saturating_add(length as usize).min(bytes.len());
                assert!(read == bytes.get(from..to).unwrap());
            }
            Err(error) => {
                let is_sealed = self.sealed.contains(&id);
                let is_long = length as usize > MAX_CALL_BYTES;
                assert!(is_sealed || is_long, "{}", error.message);
            }
        }
    }

    fn list(&mut self, after: Option<Vec<u8>>, limit: u32) {
        let listed = Host::scan(self.imports(), after.clone(), limit).unwrap();
        let listed = listed.into_iter();
        let listed: Vec<_> = listed
            .map(|blob| (blob.hash, (blob.length, blob.holds)))
            .collect();
        let is_name = after.as_ref().is_none_or(|after| after.len() == 32);
        let held = self.model.kept.blobs.iter();
        let held = held.filter(|(id, _)| after.as_ref().is_none_or(|after| *id > after));
        let held = held.map(|(id, held)| (id.clone(), *held));
        let limit = MAX_LISTED.min(limit as usize);
        let known: Vec<_> = held.take(if is_name { limit } else { 0 }).collect();
        assert_eq!(listed, known);
    }

    /// Reads what it holds.
    pub(super) fn sweep_blobs(&mut self) {
        self.list(None, u32::MAX);
    }

    fn fetch(&mut self, input: &mut Input<'_>) {
        let id = self.blob(input);
        let (from, way) = (input.address(), input.way());
        let (max_bytes, deadline_ms) = (input.number(), input.perhaps(Words::number));
        let fetched = Host::fetch(self.imports(), id, from, way, max_bytes, deadline_ms);
        match fetched.unwrap() {
            Ok(id) => {
                assert!(!self.is_query);
                self.began(id);
            }
            Err(error) => assert!(error.message.len() <= 1024),
        }
    }
}
