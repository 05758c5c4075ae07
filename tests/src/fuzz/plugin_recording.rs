//! Recordings of plugins.

use ring::digest::{SHA256, digest};
use wormholes_host::{RecordingError, RecordingSummary};

use super::input::Input;

/// What such a file begins with.
const HEAD: &[u8] = b"wormholes plugin recording\0\x01";
/// Of its last frame, before the digest: its length, and what it is.
const END: [u8; 5] = [0, 0, 0, 33, 5];

/// A file as it came; or frames in one with the right beginning and end, of which some are cut.
pub fn plugin_recording(input: &[u8]) {
    let mut input = Input::new(input);
    let choice = input.byte();
    if choice & 1 == 0 {
        check(input.rest());
        return;
    }
    let mut file = HEAD.to_vec();
    file.extend_from_slice(input.rest());
    let whole = [&file[..], &END, digest(&SHA256, &file).as_ref()].concat();
    if let Some(summary) = check(&whole) {
        assert_eq!(summary.bytes as usize, file.len());
        // Whatever is missing of it is missed.
        for cut in [file.len(), whole.len() - 1] {
            assert!(RecordingSummary::read(whole.get(..cut).unwrap()).is_err());
        }
        let mut damaged = whole;
        let at = usize::from(choice) % file.len();
        damaged.get_mut(at).map(|byte| *byte ^= 1).unwrap();
        assert!(RecordingSummary::read(&damaged[..]).is_err());
    }
}

fn check(file: &[u8]) -> Option<RecordingSummary> {
    match RecordingSummary::read(file) {
        Ok(summary) => {
            assert!(file.starts_with(HEAD));
            assert!(summary.events <= summary.bytes && summary.bytes <= file.len() as u64);
            assert!(summary.tracks == 0 || summary.plugins > 0);
            Some(summary)
        }
        Err(RecordingError::Read(error)) => panic!("memory cannot be read: {error}"),
        Err(_) => None,
    }
}
