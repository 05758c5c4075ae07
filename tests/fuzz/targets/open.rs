//! Feeds `wormholes_tests::fuzz::open`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::open(input));
