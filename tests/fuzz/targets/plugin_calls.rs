//! Feeds `wormholes_tests::fuzz::plugin_calls`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wormholes_tests::fuzz::plugin_calls(input));
