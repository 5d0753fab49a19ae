//! What the other side of an engine's socket says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollkeeper_inference::local::fuzzing::frames(data));
