//! Guessed tokens: the same answers in fewer batches.

use super::*;
use crate::local::draft::{Draft, Drafted};
use crate::local::scripted::IM_START;

/// The answer of a worker, in so many batches.
fn answer(guesses: bool, ask: &Ask, script: Script) -> (Vec<Event>, usize) {
    let mut bench = Bench::new(script, 400, 2);
    bench.worker.guess(guesses.then_some(Source::Lookup));
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

/// The answers to several questions with a draft: texts, batches, and how many tokens were guessed and right.
fn with_draft(asks: &[Ask], model: Script, draft: Script) -> (Vec<Vec<Event>>, usize, (u64, u64)) {
    let mut bench = Bench::new(model, 400, 3);
    bench.worker.guess(Some(Source::Draft));
    let mut events: Vec<Events> = asks.iter().map(|ask| bench.ask(ask.clone())).collect();
    let mut seen = vec![Vec::new(); asks.len()];
    let Bench { mut worker, mut engine, board, admission, .. } = bench;
    let mut guesses = ScriptedEngine::new(draft, 400, 3);
    let limits = engine.limits().clone();
    let mut both = Drafted { model: &mut engine, draft: Draft::new(&mut guesses, &limits).unwrap() };
    while worker.turn(&mut Model { engine: &mut both, tokenizer: &ScriptedTokenizer }).unwrap() == Turn::Worked {
        events.iter_mut().zip(&mut seen).for_each(|(events, seen)| seen.extend(drain(events)));
    }
    events.iter_mut().zip(&mut seen).for_each(|(events, seen)| seen.extend(drain(events)));
    assert_eq!(admission.taken(), 0);
    (seen, engine.log.len(), board.guesses())
}

/// A question in a chat.
fn question(text: &str, limit: u32) -> Ask {
    let bytes = |text: &str| text.bytes().map(Token::from).collect::<Vec<_>>();
    let prompt = [vec![IM_START], bytes(&format!("user\n{text}")), vec![IM_END, IM_START], bytes("assistant\n")];
    Ask { prompts: vec![prompt.concat()], ..plain("", limit) }
}

fn says(text: &str) -> Script {
    Script { otherwise: Some(text.into()), ..Script::default() }
}

#[test]
fn a_draft_that_agrees_is_believed_and_one_that_does_not_is_left_alone() {
    let asks = [question("a", 150), question("b", 150)];
    let answer = "0123456789".repeat(20);
    let (alone, many) = answer_all(&asks, says(&answer));
    let (agreed, few, (guessed, right)) = with_draft(&asks, says(&answer), says(&answer));
    for (with, without) in agreed.iter().zip(&alone) {
        assert_eq!((text(with, 0), usage(with)), (text(without, 0), usage(without)));
    }
    assert!(few * 3 < many, "{few} batches instead of {many}");
    assert_eq!(guessed, right);
    let (unmoved, same, (guessed, right)) = with_draft(&asks, says(&answer), says(&"x".repeat(200)));
    for (with, without) in unmoved.iter().zip(&alone) {
        assert_eq!((text(with, 0), usage(with)), (text(without, 0), usage(without)));
    }
    assert_eq!((same, right), (many, 0));
    assert!((1..80).contains(&guessed), "{guessed} tokens were guessed in vain");
}

/// The answers without guesses.
fn answer_all(asks: &[Ask], script: Script) -> (Vec<Vec<Event>>, usize) {
    let mut bench = Bench::new(script, 400, 3);
    let mut events: Vec<Events> = asks.iter().map(|ask| bench.ask(ask.clone())).collect();
    let mut seen = vec![Vec::new(); asks.len()];
    while bench.turn().unwrap() == Turn::Worked {
        events.iter_mut().zip(&mut seen).for_each(|(events, seen)| seen.extend(drain(events)));
    }
    events.iter_mut().zip(&mut seen).for_each(|(events, seen)| seen.extend(drain(events)));
    (seen, bench.engine.log.len())
}

proptest! {
    /// A draft that is right by chance changes nothing that is said, whoever else is answered.
    #[test]
    fn a_draft_changes_nothing_that_is_said(
        answer in "[ab]{0,60}",
        draft in "[ab]{0,60}",
        asks in prop::collection::vec((0u32..80, 1u32..3, 1usize..40), 1..4),
    ) {
        let ask = |(limit, answers, length): (u32, u32, usize)| Ask { answers, ..question(&"q".repeat(length), limit) };
        let asks: Vec<Ask> = asks.into_iter().map(ask).collect();
        let (alone, _) = answer_all(&asks, says(&answer));
        let (drafted, _, _) = with_draft(&asks, says(&answer), says(&draft));
        for ((with, without), ask) in drafted.iter().zip(&alone).zip(&asks) {
            for choice in 0..ask.answers {
                prop_assert_eq!(text(with, choice), text(without, choice));
            }
            prop_assert_eq!((usage(with), tokens(with)), (usage(without), tokens(without)));
        }
    }
}
