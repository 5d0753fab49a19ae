//! Prompts: any text has a difficulty between 0 and 1, the same each time, and a task type; any bytes are weights or refused.
#![no_main]

use tollkeeper_router::difficulty::Model;
use tollkeeper_router::{Difficulty, TaskType};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Model::from_bytes(data).map(|model| model.read("Why?"));
    let text = String::from_utf8_lossy(data);
    let _ = TaskType::of_text(&text);
    let score = Difficulty::of_text(&text);
    assert_eq!(score, Difficulty::of_text(&text));
    if let Some(score) = score {
        assert!((0.0..=1.0).contains(&score.value) && (0.0..=1.0).contains(&score.weak_fails));
    }
});
