//! Feeds `wormholes_tests::fuzz::datagram`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::datagram(input));
