//! Feeds `wormholes_tests::fuzz::control_request`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::control_request(input));
