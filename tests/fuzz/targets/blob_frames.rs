//! Feeds `wormholes_tests::fuzz::blob_frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::blob_frames(input));
