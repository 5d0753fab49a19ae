//! Headers of GGUF files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollkeeper_inference::local::fuzzing::gguf(data));
