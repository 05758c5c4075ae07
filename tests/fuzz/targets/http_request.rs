//! Feeds `wormholes_tests::fuzz::http_request`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::http_request(input));
