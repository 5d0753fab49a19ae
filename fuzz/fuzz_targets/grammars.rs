//! Grammars in llama.cpp's notation.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollkeeper_inference::local::fuzzing::grammar(data));
