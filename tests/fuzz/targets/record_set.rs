//! Feeds `wormholes_tests::fuzz::record_set`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::record_set(input));
