//! Feeds `wormholes_tests::fuzz::socks_server`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::socks_server(input));
