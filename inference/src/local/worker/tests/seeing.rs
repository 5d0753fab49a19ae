//! Pictures in the worker, with the scripted engine: it reads one token for each row of a picture, and a full stop.

use super::*;
use crate::local::picture::placeholder;
use crate::local::scripted::OFFENSIVE;

/// A picture that the scripted engine reads as this word.
fn word(text: &str) -> Picture {
    Picture::new(1, text.len() as u32, text.bytes().flat_map(|byte| [byte, 0, 0]).collect::<Vec<_>>()).unwrap()
}

fn seeing(prompt: &[&str], pictures: &[Picture], limit: u32) -> Ask {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, text) in prompt.iter().enumerate() {
        if number > 0 {
            tokens.push(placeholder(number - 1));
        }
        tokens.extend(text.bytes().map(Token::from));
    }
    Ask { prompts: vec![tokens], pictures: pictures.to_vec(), ..plain("", limit) }
}

#[test]
fn a_picture_is_read_counted_and_reused() {
    let mut bench = Bench::new(Script::default(), 100, 2);
    for (cached, shown) in [(0, 1), (13, 1)] {
        let mut events = bench.ask(seeing(&["see ", " now"], &[word("kitten")], 3));
        bench.until_idle();
        let events = drain(&mut events);
        // 4 + 7 + 4 tokens; the last one is read again.
        assert_eq!(text(&events, 0), alphabet(15, 3));
        let usage = usage(&events);
        assert_eq!((usage.input, usage.cached_input, usage.output), (15, if cached > 0 { 14 } else { 0 }, 3));
        assert_eq!(bench.engine.shown, shown);
    }
}

#[test]
fn another_picture_is_another_prompt() {
    let mut bench = Bench::new(Script::default(), 100, 1);
    for (picture, cached, shown) in [("kitten", 0, 1), ("kittem", 4, 2), ("a kitten", 4, 3), ("a kitten", 16, 3)] {
        let mut events = bench.ask(seeing(&["see ", " now"], &[word(picture)], 1));
        bench.until_idle();
        assert_eq!(usage(&drain(&mut events)).cached_input, cached, "{picture}");
        assert_eq!(bench.engine.shown, shown, "{picture}");
    }
}

#[test]
fn several_answers_share_one_look() {
    let mut bench = Bench::new(Script::default(), 100, 3);
    let mut events = bench.ask(Ask { answers: 3, ..seeing(&["see ", " now"], &[word("kitten")], 2) });
    bench.until_idle();
    let events = drain(&mut events);
    for choice in 0..3 {
        assert_eq!(text(&events, choice), alphabet(15, 2));
    }
    assert_eq!((usage(&events).input, bench.engine.shown), (15, 1));
}

#[test]
fn others_write_on_between_pictures() {
    let mut bench = Bench::new(Script::default(), 200, 3);
    let mut writer = bench.ask(plain("hello", 50));
    bench.turn().unwrap();
    drain(&mut writer);
    let pictures: Vec<Picture> = ["kitten", "rabbit", "badger"].map(word).into();
    let mut events = bench.ask(seeing(&["a", "b", "c", "d"], &pictures, 1));
    while bench.engine.shown < 3 {
        bench.turn().unwrap();
        assert_eq!(tokens(&drain(&mut writer)), 1, "each turn writes one token, and shows at most one picture");
    }
    bench.until_idle();
    assert_eq!(usage(&drain(&mut events)).input, 4 + 21);
}

#[test]
fn a_picture_that_does_not_fit_is_the_requests_fault() {
    let mut bench = Bench::new(Script::default(), 20, 1);
    let long = seeing(&["see ", " now"], &[word("a kitten on a mat")], 5);
    let strange = seeing(&["see ", " now"], &[Picture::new(OFFENSIVE, 1, vec![0; 39]).unwrap()], 5);
    for (ask, kind, words) in [
        (long, FaultKind::ContextLength, "26 tokens, 18 of them for 1 pictures"),
        (strange, FaultKind::BadRequest, "picture 1 of the request"),
    ] {
        let mut events = bench.ask(ask);
        bench.until_idle();
        match &drain(&mut events)[..] {
            [Err(fault)] => assert!(fault.kind == kind && fault.message.contains(words), "{fault:?}"),
            other => panic!("{other:?}"),
        }
    }
    // The limit of an answer knows how long its prompt has become.
    let mut events = bench.ask(seeing(&["see ", " now"], &[word("kitten")], 50));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut events)).output, 5);
    assert_eq!((bench.admission.taken(), bench.engine.shown), (0, 1));
}

#[test]
fn what_was_seen_is_parked_and_seen_again() {
    let mut bench = Bench::new(Script::default(), 100, 1);
    let mut events = bench.ask(seeing(&["see ", " now"], &[word("kitten")], 6));
    while tokens(&drain(&mut events)) == 0 {
        bench.turn().unwrap();
    }
    bench.worker.park(&mut bench.engine);
    let old = std::mem::replace(&mut bench.engine, ScriptedEngine::new(Script::default(), 100, 1));
    bench.until_idle();
    assert_eq!((old.shown, bench.engine.shown), (1, 1));
    assert_eq!(text(&drain(&mut events), 0), alphabet(16, 5));
}

#[test]
fn a_full_cache_makes_room_for_a_picture() {
    let script = Script { cells: Some(30), ..Script::default() };
    let mut bench = Bench::new(script, 30, 2);
    let mut before = bench.ask(plain("a long prompt before", 1));
    bench.until_idle();
    drain(&mut before);
    let mut events = bench.ask(seeing(&["see ", " now"], &[word("kitten")], 2));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut events)).output, 2);
}
