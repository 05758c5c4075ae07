//! Feeds `wormholes_tests::fuzz::record`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::record(input));
