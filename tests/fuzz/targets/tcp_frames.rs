//! Feeds `wormholes_tests::fuzz::tcp_frames`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::tcp_frames(input));
