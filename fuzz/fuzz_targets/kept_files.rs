//! Files of the KV store.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("tollkeeper-fuzz-{}.kv", std::process::id())));

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollkeeper_inference::local::fuzzing::kept(&PATH, data));
