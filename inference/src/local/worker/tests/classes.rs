//! The two classes of requests: who goes first, who yields, and that nobody starves.

use super::*;

fn batch(prompt: &str, limit: u32) -> Ask {
    Ask { priority: Priority::Batch, ..plain(prompt, limit) }
}

/// With a shelf, so that slots can be taken back.
fn bench(slots: u32) -> Bench {
    let mut bench = Bench::new(Script::default(), 400, slots);
    let store = KvStore::new(Budget { memory: 1 << 20, disk: 0, folder: None });
    bench.worker.keep_kv(Some(store.shelf([7; 32])));
    bench
}

/// Turns until everything has ended; the order in which answers ended.
fn order(bench: &mut Bench, asked: &mut [(&'static str, Events)]) -> Vec<&'static str> {
    let mut ended = Vec::new();
    for _ in 0..10_000 {
        let turn = bench.turn().unwrap();
        for (name, events) in asked.iter_mut() {
            if !ended.contains(name) && drain(events).iter().any(|event| matches!(event, Ok(ChatEvent::Usage(_)))) {
                ended.push(*name);
            }
        }
        if turn != Turn::Worked {
            return ended;
        }
    }
    panic!("the worker does not come to rest");
}

#[test]
fn who_waits_goes_before_who_may_wait_but_every_fourth_slot_is_theirs() {
    let mut bench = Bench::new(Script::default(), 400, 1);
    let mut asked = vec![("first", bench.ask(plain("a", 2)))];
    bench.turn().unwrap();
    asked.extend(["batch 1", "batch 2"].map(|name| (name, bench.ask(batch("b", 2)))));
    asked.extend(["1", "2", "3", "4", "5"].map(|name| (name, bench.ask(plain("c", 2)))));
    assert_eq!(order(&mut bench, &mut asked), ["first", "1", "2", "3", "batch 1", "4", "5", "batch 2"]);
}

#[test]
fn a_slot_is_taken_back_once_and_nothing_is_read_or_said_twice() {
    let mut bench = bench(1);
    let mut slow = bench.ask(batch(&"b".repeat(40), 6));
    for _ in 0..3 {
        bench.turn().unwrap();
    }
    let mut asked = vec![("urgent", bench.ask(plain("c", 3)))];
    assert_eq!(order(&mut bench, &mut asked), ["urgent"]);
    let events = drain(&mut slow);
    assert_eq!((text(&events, 0), tokens(&events)), (alphabet(40, 6), 6));
    let read: usize = bench.engine.log.iter().map(Vec::len).sum();
    assert_eq!(read, 40 + 5 + 1 + 2, "each token of either once");
}

#[test]
fn who_has_yielded_once_keeps_its_slot() {
    let mut bench = bench(1);
    let mut asked = vec![("batch", bench.ask(batch("b", 8)))];
    bench.turn().unwrap();
    asked.push(("first", bench.ask(plain("c", 2))));
    for _ in 0..4 {
        bench.turn().unwrap();
    }
    asked.push(("second", bench.ask(plain("d", 2))));
    assert_eq!(order(&mut bench, &mut asked), ["first", "batch", "second"]);
}

#[test]
fn slots_are_not_taken_back_where_the_kv_would_be_lost() {
    let mut bench = Bench::new(Script::default(), 400, 1);
    let mut asked = vec![("batch", bench.ask(batch("b", 8)))];
    bench.turn().unwrap();
    asked.push(("urgent", bench.ask(plain("c", 2))));
    assert_eq!(order(&mut bench, &mut asked), ["batch", "urgent"]);
}

#[test]
fn the_batch_class_leaves_room_in_the_queue() {
    let admission = Admission::new(8);
    let taken: Vec<_> = std::iter::from_fn(|| admission.take(1, Priority::Batch)).collect();
    assert_eq!(taken.len(), 6);
    assert!(admission.take(2, Priority::Interactive).is_some() && admission.take(3, Priority::Interactive).is_none());
    assert!(Admission::new(1).take(1, Priority::Batch).is_some(), "a queue of one serves both");
}
