//! A draft with scripted engines, which break at every gap and every token too many.

use super::*;
use crate::local::engine;
use crate::local::scripted::{Script, ScriptedEngine};
use proptest::prelude::*;
use std::sync::Arc;
use tollkeeper_config::EngineKind;

const REACH: u32 = 1000;

fn text(sequence: u32, read: &[Token], most: u32) -> Unfinished<'_> {
    Unfinished { sequence, read, next: 1, most, reach: REACH }
}

/// What the scripted engine writes from this position on.
fn alphabet(from: usize, count: usize) -> Vec<Token> {
    (from..from + count).map(|at| Token::from(b'a') + (at % 26) as Token).collect()
}

fn small(batch: u32, cells: Option<usize>) -> ScriptedEngine {
    ScriptedEngine::new(Script { batch: Some(batch), cells, ..Script::default() }, 64, 3)
}

/// Guesses for texts that are caught up with in one turn.
fn guess(engine: &mut ScriptedEngine, unfinished: &[Unfinished<'_>]) -> Vec<Vec<Token>> {
    let limits = engine.limits().clone();
    Draft::new(engine, &limits).unwrap().guess(unfinished).unwrap()
}

#[test]
fn all_sequences_are_read_and_guessed_together() {
    let mut engine = small(64, None);
    let guessed = guess(&mut engine, &[text(2, &[5, 6], 3), text(0, &[7], 1), text(1, &[], 0)]);
    assert_eq!(guessed, [alphabet(3, 3), alphabet(2, 1), vec![]]);
    assert_eq!(engine.log.iter().map(Vec::len).collect::<Vec<_>>(), [5, 1, 1]);
}

#[test]
fn it_reads_only_what_it_lacks() {
    let mut engine = small(64, None);
    let limits = engine.limits().clone();
    let mut draft = Draft::new(&mut engine, &limits).unwrap();
    assert_eq!(draft.guess(&[text(0, &[1, 2, 3, 4], 3)]).unwrap(), [alphabet(5, 3)]);
    // Its first guess was right, its second was not.
    let read = [[1, 2, 3, 4, 1].as_slice(), &alphabet(5, 1), &[9]].concat();
    assert_eq!(draft.guess(&[text(0, &read, 2)]).unwrap(), [alphabet(8, 2)]);
    // Another text in the same sequence.
    assert_eq!(draft.guess(&[text(0, &[1, 2, 8], 1)]).unwrap(), [alphabet(4, 1)]);
    draft.share(0, 1, 3);
    assert_eq!(draft.guess(&[text(1, &[1, 2, 8], 1)]).unwrap(), [alphabet(4, 1)]);
    let rows: Vec<usize> = engine.log.iter().map(Vec::len).collect();
    assert_eq!(rows, [5, 1, 1, 2, 1, 2, 1]);
}

#[test]
fn it_catches_up_in_pieces_or_not_at_all() {
    let mut engine = small(16, None);
    let limits = engine.limits().clone();
    let mut draft = Draft::new(&mut engine, &limits).unwrap();
    let long = [4; 40];
    let none: Vec<Vec<Token>> = vec![vec![]];
    for turn in [none.clone(), none.clone(), vec![alphabet(41, 2)]] {
        assert_eq!(draft.guess(&[text(0, &long, 2)]).unwrap(), turn);
    }
    let far = Unfinished { reach: 39, ..text(1, &long, 2) };
    assert_eq!(draft.guess(&[far]).unwrap(), none);
    assert_eq!(draft.guess(&[Unfinished { reach: 40, ..far }]).unwrap(), none);
    assert_eq!(draft.read[1].len(), 16);
    // A text that fills its context has none; one that nearly does has one.
    let full = [alphabet(0, 64), alphabet(0, 63)];
    assert_eq!(draft.guess(&[text(2, &full[0], 2)]).unwrap(), none);
    let guessed = (0..4).map(|_| draft.guess(&[text(2, &full[1], 2)]).unwrap().concat());
    assert_eq!(guessed.last(), Some(alphabet(64, 1)));
}

#[test]
fn without_room_it_forgets_and_goes_on() {
    let mut engine = small(64, Some(8));
    let limits = engine.limits().clone();
    let mut draft = Draft::new(&mut engine, &limits).unwrap();
    assert_eq!(draft.guess(&[text(0, &[1, 2, 3, 4], 2)]).unwrap(), [alphabet(5, 2)]);
    let none: Vec<Vec<Token>> = vec![vec![]];
    assert_eq!(draft.guess(&[text(1, &[1, 2, 3, 4], 2)]).unwrap(), none);
    assert_eq!(draft.guess(&[text(1, &[1, 2, 3, 4], 2)]).unwrap(), [alphabet(5, 2)]);
}

#[test]
fn a_broken_draft_says_that_it_was_the_draft() {
    let mut engine = ScriptedEngine::new(Script { break_at: Some(1), ..Script::default() }, 64, 3);
    let limits = engine.limits().clone();
    let broken = Draft::new(&mut engine, &limits).unwrap().guess(&[text(0, &[1], 1)]).unwrap_err();
    assert!(broken.to_string().starts_with("its draft failed: "), "{broken}");
}

#[test]
fn tokens_that_the_model_does_not_know_are_not_guessed() {
    let mut engine = small(64, None);
    let few = Limits { vocabulary: u32::from(b'd'), ..engine.limits().clone() };
    let guessed = Draft::new(&mut engine, &few).unwrap().guess(&[text(0, &[], 9)]).unwrap();
    assert_eq!(guessed, [alphabet(1, 2)]);
}

#[test]
fn what_cannot_be_a_draft_is_refused() {
    let mut engine = small(64, None);
    let limits = engine.limits().clone();
    let one_way = Limits { rewinds: false, ..limits.clone() };
    let many = Limits { sequences: 4, ..limits };
    for (model, why) in [(one_way, "cannot take tokens back"), (many, "holds 3 sequences, and the model 4")] {
        let refused = Draft::new(&mut engine, &model).err().unwrap();
        assert!(refused.contains(why), "{refused}");
    }
    let mut ranks = ScriptedEngine::new(Script { ranks: true, ..Script::default() }, 64, 3);
    let limits = ranks.limits().clone();
    assert!(Draft::new(&mut ranks, &limits).err().unwrap().contains("does not generate"));
}

#[test]
fn a_model_is_loaded_with_its_draft_or_not_at_all() {
    let plan = |path: &str| {
        let speculate = Speculate::Draft(path.into());
        let model = LocalModel { speculate, ..LocalModel::plain("m", EngineKind::Scripted, "echo") };
        LoadPlan::new(Arc::new(model))
    };
    let mut guessed = Vec::new();
    engine::run(&plan("echo"), &mut |_, engine| guessed = engine.guess(&[text(0, &[1], 2)]).unwrap()).unwrap();
    assert_eq!(guessed, [alphabet(2, 2)]);
    let missing = engine::run(&plan("/nowhere"), &mut |_, _| panic!("it serves")).unwrap_err();
    assert!(missing.0.starts_with("its draft /nowhere cannot be used: "), "{missing}");
}

proptest! {
    /// Whatever the texts were before, a guess is what the draft would write behind the text of now.
    #[test]
    fn guesses_follow_from_the_text_alone(
        turns in prop::collection::vec((0u32..3, prop::collection::vec(0u32..3, 0..62), 0u32..6), 1..20),
    ) {
        let mut engine = small(64, None);
        let limits = engine.limits().clone();
        let mut draft = Draft::new(&mut engine, &limits).unwrap();
        for (sequence, read, most) in turns {
            let guessed = draft.guess(&[text(sequence, &read, most)]).unwrap();
            let room = (64 - read.len()).min(most as usize);
            // A slow machine may make it read in pieces; then there is no guess.
            let expected = alphabet(read.len() + 1, room);
            prop_assert!(guessed[0] == expected || guessed[0].is_empty(), "{guessed:?} after {}", read.len());
        }
    }
}
