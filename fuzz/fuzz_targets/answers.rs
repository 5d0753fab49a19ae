//! Answers of all formats: any text is taken apart, and where it is cut does not matter.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollkeeper_inference::local::fuzzing::answer(data));
