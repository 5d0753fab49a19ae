//! The worker, turn by turn, with the scripted engine: no threads, no clocks but the test's own.

mod classes;
mod ends;
mod guessing;
mod kept;
mod seeing;

use super::*;
use crate::local::answer::{Admission, Bell, Event, Events, channel};
use crate::local::engine::Token;
use crate::local::kv_store::{Budget, KvStore};
use crate::local::picture::{Picture, Pictures};
use crate::local::prepare::{Embedding, PromptTokens};
use crate::local::scripted::{IM_END, Script, ScriptedEngine, ScriptedTokenizer};
use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::oneshot;
use tollkeeper_config::Priority;
use tollkeeper_protocol::chat::Sampling;
use tollkeeper_protocol::event::ChatEvent;

struct Bench {
    worker: Worker,
    engine: ScriptedEngine,
    commands: mpsc::Sender<Command>,
    board: Arc<Board>,
    admission: Arc<Admission>,
    start: Instant,
    millis: Arc<AtomicU64>,
}

impl Bench {
    fn new(script: Script, context: u32, slots: u32) -> Self {
        let (commands, receiver) = mpsc::channel(64);
        let board = Arc::new(Board::default());
        let (start, millis) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let clock = {
            let millis = millis.clone();
            move || start + Duration::from_millis(millis.load(Ordering::Relaxed))
        };
        let worker = Worker::new(receiver, board.clone(), Box::new(clock));
        Self {
            worker,
            engine: ScriptedEngine::new(script, context, slots),
            commands,
            board,
            admission: Admission::new(64),
            start,
            millis,
        }
    }

    /// Asks for answers to a plain prompt (the alphabet) or, with a script, to a user message.
    fn ask(&self, ask: Ask) -> Events {
        let (sender, events) = channel(Bell::default());
        let generation = Box::new(Generation {
            prompts: ask
                .prompts
                .iter()
                .map(|prompt| PromptTokens {
                    tokens: prompt.clone().into(),
                    pictures: Pictures::of(ask.pictures.clone()),
                    echo: None,
                    limit: ask.limit,
                })
                .collect(),
            answers: ask.answers,
            sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
            stop: ask.stop.clone(),
            top_logprobs: ask.scored.then_some(0),
            measured: 0,
            scores_prompt: ask.scored,
            layout: None,
            guide: None,
        });
        let permit = self.admission.take(ask.answers * ask.prompts.len() as u32, ask.priority).unwrap();
        let command = Command::Generate {
            generation,
            sender,
            permit,
            submitted: self.start,
            deadline: self.start + Duration::from_secs(60),
        };
        self.commands.try_send(command).ok().unwrap();
        events
    }

    fn turn(&mut self) -> Result<Turn, EngineError> {
        self.worker.turn(&mut Model { engine: &mut self.engine, tokenizer: &ScriptedTokenizer })
    }

    fn until_idle(&mut self) {
        for _ in 0..10_000 {
            if self.turn().unwrap() != Turn::Worked {
                return;
            }
        }
        panic!("the worker does not come to rest");
    }

    fn running(&self) -> u32 {
        self.board.read().running
    }
}

#[derive(Clone)]
struct Ask {
    prompts: Vec<Vec<Token>>,
    answers: u32,
    limit: u32,
    stop: Vec<String>,
    scored: bool,
    priority: Priority,
    pictures: Vec<Picture>,
}

fn plain(prompt: &str, limit: u32) -> Ask {
    Ask {
        prompts: vec![prompt.bytes().map(Token::from).collect()],
        answers: 1,
        limit,
        stop: Vec::new(),
        scored: false,
        priority: Priority::Interactive,
        pictures: Vec::new(),
    }
}

/// Everything that has come so far.
fn drain(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

fn text(events: &[Event], choice: u32) -> String {
    let text = |event: &Event| match event {
        Ok(ChatEvent::Text { choice: of, text, .. }) if *of == choice => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

fn tokens(events: &[Event]) -> u64 {
    events.iter().map(|event| if let Ok(ChatEvent::Text { tokens, .. }) = event { u64::from(*tokens) } else { 0 }).sum()
}

fn usage(events: &[Event]) -> tollkeeper_protocol::usage::Usage {
    match events.last() {
        Some(Ok(ChatEvent::Usage(usage))) => *usage,
        other => panic!("no usage but {other:?}"),
    }
}

fn alphabet(from: usize, count: usize) -> String {
    (from..from + count).map(|at| char::from(b'a' + (at % 26) as u8)).collect()
}

#[test]
fn an_answer_is_whole_and_counted_exactly() {
    let mut bench = Bench::new(Script::default(), 100, 2);
    let mut events = bench.ask(plain("hello", 7));
    bench.until_idle();
    let events = drain(&mut events);
    assert_eq!(text(&events, 0), alphabet(5, 7));
    let usage = usage(&events);
    assert_eq!((usage.input, usage.cached_input, usage.output), (5, 0, 7));
    assert_eq!(tokens(&events), 7);
    assert!(
        events.iter().any(|event| matches!(event, Ok(ChatEvent::Finish { choice: 0, reason: FinishReason::Length })))
    );
    assert_eq!(bench.admission.taken(), 0);
}

#[test]
fn running_answers_write_a_token_in_every_batch_while_a_long_prompt_is_read() {
    let mut bench = Bench::new(Script { batch: Some(8), ..Script::default() }, 500, 3);
    let mut short = bench.ask(plain("ab", 100));
    bench.turn().unwrap();
    let mut long = bench.ask(plain(&"x".repeat(200), 5));
    bench.turn().unwrap();
    bench.turn().unwrap();
    let second = bench.ask(plain(&"y".repeat(200), 5));
    let from = bench.engine.log.len();
    while drain(&mut long).is_empty() {
        bench.turn().unwrap();
    }
    let mut read = [0, 0];
    for batch in &bench.engine.log[from..] {
        assert_eq!(
            batch.iter().filter(|row| row.sequence == 0).count(),
            1,
            "the writer is in every batch once: {batch:?}"
        );
        read[0] += batch.iter().filter(|row| row.sequence == 1).count();
        read[1] += batch.iter().filter(|row| row.sequence == 2).count();
    }
    assert!(read[1] * 10 >= read[0] * 8, "the two readers share the batches: {read:?}");
    bench.until_idle();
    assert_eq!(text(&drain(&mut short), 0), alphabet(2, 100));
    drop(second);
}

#[test]
fn waiting_requests_get_slots_in_their_order() {
    let mut bench = Bench::new(Script::default(), 50, 1);
    let mut asked: Vec<Events> = (0..4).map(|number| bench.ask(plain(&"z".repeat(number + 1), 3))).collect();
    let mut ended = Vec::new();
    for _ in 0..200 {
        bench.turn().unwrap();
        for (number, events) in asked.iter_mut().enumerate() {
            if drain(events).iter().any(|event| matches!(event, Ok(ChatEvent::Usage(_)))) {
                ended.push(number);
            }
        }
    }
    assert_eq!(ended, [0, 1, 2, 3]);
}

#[test]
fn a_client_that_leaves_frees_its_slot_within_one_turn() {
    let mut bench = Bench::new(Script::default(), 4000, 1);
    let first = bench.ask(plain("a", 3000));
    let mut second = bench.ask(plain("b", 2));
    bench.turn().unwrap();
    assert_eq!((bench.running(), bench.admission.taken()), (1, 2));
    drop(first);
    bench.turn().unwrap();
    bench.turn().unwrap();
    assert_eq!(text(&drain(&mut second), 0), alphabet(1, 2));
    assert_eq!((bench.running(), bench.admission.taken()), (0, 0));
}

#[test]
fn a_client_that_leaves_the_queue_is_forgotten() {
    let mut bench = Bench::new(Script::default(), 4000, 1);
    let _first = bench.ask(plain("a", 3000));
    drop(bench.ask(plain("b", 2)));
    bench.turn().unwrap();
    bench.turn().unwrap();
    assert_eq!(bench.admission.taken(), 1);
    assert!(bench.worker.waiting.is_empty());
}

#[test]
fn a_slow_reader_pauses_its_slot_and_nobody_else() {
    let mut bench = Bench::new(Script::default(), 4000, 2);
    let mut slow = bench.ask(plain("a", 1000));
    let mut quick = bench.ask(plain("bb", 1000));
    let mut read = Vec::new();
    for _ in 0..1200 {
        bench.turn().unwrap();
        read.extend(drain(&mut quick));
    }
    assert_eq!(text(&read, 0), alphabet(2, 1000));
    assert!(matches!(bench.turn().unwrap(), Turn::Idle(Some(_))), "the paused slot does not spin");
    let rows: usize = bench.engine.log.iter().flatten().filter(|row| row.sequence == 0).count();
    assert!(rows < 300, "the paused slot reads no more than the channel holds: {rows}");
    let mut all = drain(&mut slow);
    while !matches!(all.last(), Some(Ok(ChatEvent::Usage(_)))) {
        bench.until_idle();
        all.extend(drain(&mut slow));
    }
    assert_eq!(text(&all, 0), alphabet(1, 1000), "it goes on where it paused");
    assert_eq!(usage(&all).output, 1000);
}

#[test]
fn late_answers_end_with_a_timeout_in_a_slot_and_in_the_queue() {
    let mut bench = Bench::new(Script::default(), 4000, 1);
    let mut running = bench.ask(plain("a", 3000));
    let mut waiting = bench.ask(plain("b", 3000));
    bench.turn().unwrap();
    bench.millis.store(60_000, Ordering::Relaxed);
    bench.turn().unwrap();
    for events in [&mut running, &mut waiting] {
        let events = drain(events);
        assert!(matches!(events.last(), Some(Err(fault)) if fault.kind == FaultKind::Timeout), "{events:?}");
    }
    assert_eq!((bench.running(), bench.admission.taken()), (0, 0));
}

#[test]
fn a_stop_text_across_tokens_ends_the_answer() {
    let mut bench = Bench::new(Script::default(), 100, 1);
    let mut events = bench.ask(Ask { stop: vec!["fgh".into()], ..plain("ab", 50) });
    bench.until_idle();
    let events = drain(&mut events);
    assert_eq!(text(&events, 0), "cde");
    assert_eq!(usage(&events).output, 6, "the tokens of the stop text were generated too");
    assert!(events.iter().any(|event| matches!(event, Ok(ChatEvent::Finish { reason: FinishReason::Stop, .. }))));
}

#[test]
fn several_answers_read_their_prompt_once() {
    let mut bench = Bench::new(Script::default(), 200, 4);
    let prompt = "p".repeat(90);
    let mut events = bench.ask(Ask { answers: 3, ..plain(&prompt, 4) });
    bench.until_idle();
    let events = drain(&mut events);
    for choice in 0..3 {
        assert_eq!(text(&events, choice), alphabet(90, 4));
    }
    let rows: usize = bench.engine.log.iter().map(Vec::len).sum();
    assert_eq!(rows, 90 + 2 + 3 * 3, "one prompt, its last token for the other two, and three answers of four tokens");
    let usage = usage(&events);
    assert_eq!((usage.input, usage.cached_input, usage.output), (90, 0, 12));
}

#[test]
fn several_prompts_are_choices_in_their_order() {
    let mut bench = Bench::new(Script::default(), 200, 2);
    let ask = Ask {
        prompts: ["a", "bb", "ccc"].map(|prompt| prompt.bytes().map(Token::from).collect()).to_vec(),
        answers: 2,
        ..plain("", 3)
    };
    let mut events = bench.ask(ask);
    bench.until_idle();
    let events = drain(&mut events);
    for choice in 0..6 {
        assert_eq!(text(&events, choice), alphabet(choice as usize / 2 + 1, 3), "choice {choice}");
    }
    assert_eq!(usage(&events).input, 6);
}

#[test]
fn a_conversation_goes_on_from_its_kv_and_a_shared_beginning_is_copied() {
    let mut bench = Bench::new(Script::default(), 300, 2);
    let mut first = bench.ask(plain(&"s".repeat(100), 5));
    bench.until_idle();
    let answer = text(&drain(&mut first), 0);
    let next = format!("{}{answer}more", "s".repeat(100));
    let mut second = bench.ask(plain(&next, 3));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut second)).cached_input, 104, "the prompt and all of the answer but its last token");
    let busy = bench.ask(plain(&next, 100));
    bench.turn().unwrap();
    bench.turn().unwrap();
    let mut third = bench.ask(plain(&format!("{}other", "s".repeat(100)), 3));
    bench.until_idle();
    let third = drain(&mut third);
    assert_eq!(usage(&third).cached_input, 100, "copied from a slot that writes");
    assert_eq!(text(&third, 0), alphabet(105, 3));
    drop(busy);
}

#[test]
fn no_tokens_wanted_is_an_answer_too() {
    let mut bench = Bench::new(Script::default(), 100, 1);
    let mut events = bench.ask(plain("abc", 0));
    bench.until_idle();
    let events = drain(&mut events);
    assert_eq!((usage(&events).input, usage(&events).output), (3, 0));
    assert!(bench.engine.log.is_empty());
}

#[test]
fn a_broken_engine_fails_what_runs_and_keeps_what_waits() {
    let mut bench = Bench::new(Script { break_at: Some(3), ..Script::default() }, 100, 1);
    let mut running = bench.ask(plain("a", 50));
    let mut waiting = bench.ask(plain("b", 4));
    let error = std::iter::from_fn(|| Some(bench.turn())).find_map(Result::err).unwrap();
    bench.worker.fail_running(&ProviderFault::new(FaultKind::Internal, error.to_string()));
    let running = drain(&mut running);
    assert_eq!(text(&running, 0), alphabet(1, 2));
    assert!(matches!(running.last(), Some(Err(fault)) if fault.kind == FaultKind::Internal));
    assert!(drain(&mut waiting).is_empty());
    bench.engine = ScriptedEngine::new(Script::default(), 100, 1);
    bench.until_idle();
    assert_eq!(text(&drain(&mut waiting), 0), alphabet(1, 4));
}

#[test]
fn when_the_cache_is_full_kept_prefixes_go_before_answers() {
    let mut bench = Bench::new(Script { cells: Some(60), ..Script::default() }, 60, 2);
    let mut first = bench.ask(plain(&"a".repeat(40), 5));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut first)).output, 5);
    let mut second = bench.ask(plain(&"b".repeat(40), 5));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut second)).output, 5, "the first one's KV made room");
    let (mut third, mut fourth) = (bench.ask(plain(&"c".repeat(40), 5)), bench.ask(plain(&"d".repeat(30), 5)));
    bench.until_idle();
    assert_eq!(usage(&drain(&mut third)).output, 5);
    assert!(matches!(drain(&mut fourth).last(), Some(Err(fault)) if fault.kind == FaultKind::Overloaded));
}

#[test]
fn embeddings_take_turns_with_answers() {
    let mut bench = Bench::new(Script::default(), 20, 1);
    let mut events = bench.ask(plain("ab", 10));
    let (reply, mut vectors) = oneshot::channel();
    let inputs: Vec<Vec<Token>> = (0..5).map(|number| vec![number; 12]).collect();
    let permit = bench.admission.take(1, Priority::Interactive).unwrap();
    let deadline = bench.start + Duration::from_secs(1);
    let embedding = Embedding { inputs, dimensions: Some(4) };
    bench
        .commands
        .try_send(Command::Embed(EmbedJob { embedding, reply, deadline, permit, vectors: Vec::new() }))
        .ok()
        .unwrap();
    bench.turn().unwrap();
    bench.turn().unwrap();
    assert_eq!(text(&drain(&mut events), 0), alphabet(2, 2));
    bench.until_idle();
    let answer = vectors.try_recv().unwrap().unwrap();
    assert_eq!(answer.vectors[1], [0.0, 1.0, 0.0, 0.0]);
    assert_eq!((answer.vectors.len(), answer.usage.input, answer.usage.output), (5, 60, 0));
    assert_eq!(bench.admission.taken(), 0);
}

#[test]
fn an_answer_goes_on_where_it_was_when_its_engine_is_swapped() {
    let mut bench = Bench::new(Script::default(), 100, 2);
    let mut writing = bench.ask(plain("hello", 20));
    let mut twice = bench.ask(Ask { answers: 2, ..plain("hi", 20) });
    let mut reading = bench.ask(plain(&"x".repeat(70), 9));
    for _ in 0..7 {
        bench.turn().unwrap();
    }
    let mut before = drain(&mut writing);
    assert!(!before.is_empty() && before.len() < 20, "it is in the middle");
    bench.worker.park(&mut bench.engine);
    bench.engine = ScriptedEngine::new(Script::default(), 100, 2);
    assert_eq!((bench.running(), bench.worker.rest().is_some()), (0, true));
    bench.until_idle();
    before.extend(drain(&mut writing));
    assert_eq!(text(&before, 0), alphabet(5, 20));
    assert_eq!((usage(&before).input, usage(&before).output), (5, 20));
    let twice = drain(&mut twice);
    assert_eq!((text(&twice, 0), text(&twice, 1)), (alphabet(2, 20), alphabet(2, 20)));
    assert_eq!(text(&drain(&mut reading), 0), alphabet(70, 9));
}

#[test]
fn a_prompts_scores_are_said_once_whenever_its_engine_is_swapped() {
    let prompt = "q".repeat(70);
    for limit in [0, 5] {
        for turns in 0..12 {
            let mut bench = Bench::new(Script::default(), 100, 1);
            let mut events = bench.ask(Ask { scored: true, ..plain(&prompt, limit) });
            for _ in 0..turns {
                bench.turn().unwrap();
            }
            let mut said = drain(&mut events);
            bench.worker.park(&mut bench.engine);
            bench.engine = ScriptedEngine::new(Script::default(), 100, 1);
            bench.until_idle();
            said.extend(drain(&mut events));
            assert_eq!(text(&said, 0), prompt.clone() + &alphabet(70, limit as usize), "after {turns} turns");
            let scores = |event: &Event| match event {
                Ok(ChatEvent::Text { logprobs, .. }) => logprobs.len(),
                _ => 0,
            };
            assert_eq!(said.iter().map(scores).sum::<usize>(), 70 + limit as usize, "after {turns} turns");
            assert_eq!((usage(&said).input, usage(&said).output), (70, u64::from(limit)));
        }
    }
}

#[test]
fn what_is_parked_ends_in_its_time_without_an_engine() {
    let mut bench = Bench::new(Script::default(), 100, 2);
    let mut late = bench.ask(plain("a", 50));
    let left = bench.ask(plain("b", 50));
    bench.turn().unwrap();
    bench.worker.park(&mut bench.engine);
    drop(left);
    bench.millis.store(61_000, Ordering::Relaxed);
    bench.worker.rest();
    assert!(matches!(drain(&mut late).last(), Some(Err(fault)) if fault.kind == FaultKind::Timeout));
    assert_eq!(bench.admission.taken(), 0);
}

#[derive(Debug, Clone)]
enum Act {
    Ask { prompt: usize, limit: u32, answers: u32, priority: Priority },
    Turn(u8),
    Read(usize),
    Leave(usize),
    Break,
    Swap,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (1usize..70, 0u32..12, 1u32..4, any::<bool>()).prop_map(|(prompt, limit, answers, urgent)| {
            let priority = if urgent { Priority::Interactive } else { Priority::Batch };
            Act::Ask { prompt, limit, answers, priority }
        }),
        6 => (1u8..9).prop_map(Act::Turn),
        2 => (0usize..8).prop_map(Act::Read),
        1 => (0usize..8).prop_map(Act::Leave),
        1 => Just(Act::Break),
        1 => Just(Act::Swap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever clients do: the strict engine never sees a wrong batch, every answer that is read to its end is whole or ends with
    /// a fault, counts are exact, and in the end nothing is left.
    #[test]
    fn no_answer_is_lost_or_wrong(acts in prop::collection::vec(act(), 1..60), keeps in any::<bool>()) {
        let script = || Script { batch: Some(16), idle_rows: Some(30), ..Script::default() };
        let mut bench = Bench::new(script(), 90, 3);
        if keeps {
            let store = KvStore::new(Budget { memory: 2_000, disk: 0, folder: None });
            bench.worker.keep_kv(Some(store.shelf([7; 32])));
        }
        let mut asked: Vec<(Events, Vec<Event>, usize, u32, u32)> = Vec::new();
        for act in acts {
            match act {
                Act::Ask { prompt, limit, answers, priority } if bench.admission.taken() + answers <= 45 => {
                    let events = bench.ask(Ask { answers, priority, ..plain(&"q".repeat(prompt), limit) });
                    asked.push((events, Vec::new(), prompt, limit, answers));
                }
                Act::Ask { .. } => {}
                Act::Turn(count) => for _ in 0..count { prop_assert!(bench.turn().is_ok()); },
                Act::Read(which) => if let Some((events, seen, ..)) = asked.get_mut(which) { seen.extend(drain(events)); },
                Act::Leave(which) => if which < asked.len() { asked.remove(which); },
                Act::Swap => {
                    bench.worker.park(&mut bench.engine);
                    bench.worker.rest();
                    bench.engine = ScriptedEngine::new(script(), 90, 3);
                }
                Act::Break => {
                    bench.worker.fail_running(&ProviderFault::new(FaultKind::Internal, "broken"));
                    bench.engine = ScriptedEngine::new(script(), 90, 3);
                }
            }
        }
        for _ in 0..5_000 {
            let idle = bench.turn().unwrap() != Turn::Worked;
            let mut news = false;
            for (events, seen, ..) in &mut asked {
                let more = drain(events);
                news |= !more.is_empty();
                seen.extend(more);
            }
            if idle && !news { break; }
        }
        for (_, seen, prompt, limit, answers) in &asked {
            match seen.last() {
                Some(Ok(ChatEvent::Usage(usage))) => {
                    for choice in 0..*answers { prop_assert_eq!(text(seen, choice), alphabet(*prompt, *limit as usize)); }
                    prop_assert_eq!(usage.output, u64::from(limit * answers));
                    prop_assert_eq!(usage.output, tokens(seen));
                    prop_assert_eq!(usage.input, *prompt as u64);
                }
                Some(Err(_)) => {}
                other => prop_assert!(false, "neither whole nor failed: {other:?}"),
            }
        }
        prop_assert_eq!(bench.admission.taken(), 0);
        prop_assert!(bench.worker.answers.is_empty() && bench.worker.waiting.is_empty());
        prop_assert!(bench.worker.slots.iter().all(|slot| slot.running.is_none()));
    }
}

#[test]
fn the_end_token_ends_and_is_counted() {
    let script = Script { answers: [("hi".to_owned(), Some("yo".to_owned()))].into(), ..Script::default() };
    let mut bench = Bench::new(script, 100, 1);
    let chat = "\u{1}user\nhi\u{2}\n\u{1}assistant\n";
    let prompt = chat.bytes().map(|byte| match byte {
        1 => crate::local::scripted::IM_START,
        2 => IM_END,
        byte => Token::from(byte),
    });
    let mut events = bench.ask(Ask { prompts: vec![prompt.collect()], ..plain("", 50) });
    bench.until_idle();
    let events = drain(&mut events);
    assert_eq!(text(&events, 0), "yo");
    assert_eq!((usage(&events).output, tokens(&events)), (3, 3));
}
