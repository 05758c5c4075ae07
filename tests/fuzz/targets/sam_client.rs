//! Feeds `wormholes_tests::fuzz::sam_client`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::sam_client(input));
