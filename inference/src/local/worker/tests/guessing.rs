//! Guessed tokens: the same answers in fewer batches.

use super::*;

/// The answer of a worker, in so many batches.
fn answer(guesses: bool, ask: &Ask, script: Script) -> (Vec<Event>, usize) {
    let mut bench = Bench::new(script, 400, 2);
    bench.worker.guess(guesses);
    let mut events = bench.ask(ask.clone());
    let mut seen = Vec::new();
    while bench.turn().unwrap() == Turn::Worked {
        seen.extend(drain(&mut events));
    }
    seen.extend(drain(&mut events));
    assert_eq!(bench.admission.taken(), 0);
    (seen, bench.engine.log.len())
}

#[test]
fn an_answer_that_repeats_takes_fewer_batches_and_is_the_same() {
    // The scripted engine goes through the alphabet again and again.
    let ask = plain("x", 200);
    let (with, few) = answer(true, &ask, Script::default());
    let (without, many) = answer(false, &ask, Script::default());
    assert_eq!(text(&with, 0), text(&without, 0));
    assert_eq!((usage(&with), tokens(&with)), (usage(&without), 200));
    assert!(few * 3 < many, "{few} batches instead of {many}");
}

#[test]
fn wrong_guesses_are_forgotten() {
    // The prompt promises another continuation than the one that comes.
    let ask = plain("xyz!xyz!xyz!xyz", 60);
    let (with, _) = answer(true, &ask, Script::default());
    assert_eq!(text(&with, 0), alphabet(15, 60));
    assert_eq!(tokens(&with), 60);
}

#[test]
fn guesses_end_with_the_answer() {
    for limit in [1, 2, 30, 31, 32] {
        let (with, _) = answer(true, &plain("x", limit), Script::default());
        assert_eq!((tokens(&with), text(&with, 0)), (u64::from(limit), alphabet(1, limit as usize)));
    }
    let stopped = Ask { stop: vec!["f".into()], ..plain("abcdefghijklmnopqrstuvwxyzabc", 90) };
    let (with, _) = answer(true, &stopped, Script::default());
    let (without, _) = answer(false, &stopped, Script::default());
    assert_eq!((text(&with, 0), usage(&with)), (text(&without, 0), usage(&without)));
}

proptest! {
    #[test]
    fn guesses_change_nothing_that_is_said(
        prompt in "[abcxyz]{1,80}",
        limit in 0u32..120,
        answers in 1u32..4,
        batch in 4u32..40,
    ) {
        let ask = Ask { answers, ..plain(&prompt, limit) };
        let script = || Script { batch: Some(batch), ..Script::default() };
        let (with, few) = answer(true, &ask, script());
        let (without, many) = answer(false, &ask, script());
        for choice in 0..answers {
            prop_assert_eq!(text(&with, choice), text(&without, choice));
        }
        prop_assert_eq!((usage(&with), tokens(&with)), (usage(&without), tokens(&without)));
        prop_assert!(few <= many);
    }
}
