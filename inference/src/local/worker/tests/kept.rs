//! What of the KV leaves the engine, and when it comes back.

use super::*;

/// A worker with a shelf of so many bytes and an engine to which idle KV is dear after `idle_rows`.
fn bench(memory: u64, idle_rows: Option<u32>) -> Bench {
    let mut bench = Bench::new(Script { idle_rows, ..Script::default() }, 400, 4);
    let store = KvStore::new(Budget { memory, disk: 0, folder: None });
    bench.worker.keep_kv(Some(store.shelf([7; 32])));
    bench
}

/// Answers with one token, and how many of the prompt's were cached.
fn cached(bench: &mut Bench, prompt: &str) -> u64 {
    let mut events = bench.ask(plain(prompt, 1));
    bench.until_idle();
    usage(&drain(&mut events)).cached_input
}

/// The tokens that each slot holds.
fn held(bench: &Bench) -> Vec<usize> {
    bench.worker.slots.iter().map(|slot| slot.cached.len()).collect()
}

#[test]
fn idle_kv_leaves_for_others_and_comes_back() {
    let mut bench = bench(1 << 20, Some(100));
    let (first, second) = ("x".repeat(90), "y".repeat(90));
    cached(&mut bench, &first);
    cached(&mut bench, "z");
    assert_eq!(held(&bench), [90, 1, 0, 0], "two rows of another are borne");
    cached(&mut bench, &second);
    cached(&mut bench, &"w".repeat(90));
    assert_eq!(held(&bench), [0, 0, 90, 90], "two hundred are not");
    assert_eq!(cached(&mut bench, &format!("{first}!")), 90);
    assert_eq!(cached(&mut bench, &format!("{second}!")), 90);
}

#[test]
fn idle_kv_stays_where_it_costs_nothing_or_cannot_be_kept() {
    for (memory, idle_rows) in [(1 << 20, None), (100, Some(100))] {
        let mut bench = bench(memory, idle_rows);
        for letter in ["x", "y", "z"] {
            cached(&mut bench, &letter.repeat(90));
        }
        assert_eq!(held(&bench), [90, 90, 90, 0]);
    }
}

#[test]
fn what_is_parked_is_not_read_again_however_short() {
    let mut bench = bench(1 << 20, Some(100));
    let mut events = bench.ask(plain("hi", 5));
    bench.turn().unwrap();
    bench.turn().unwrap();
    bench.worker.park(&mut bench.engine);
    bench.engine = ScriptedEngine::new(Script::default(), 400, 3);
    bench.turn().unwrap();
    assert_eq!(bench.engine.log[0].len(), 1, "only what was drawn last");
    bench.until_idle();
    assert_eq!(text(&drain(&mut events), 0), alphabet(2, 5));
}

#[test]
fn a_beginning_that_several_share_is_read_once_however_they_come() {
    let mut bench = bench(1 << 20, None);
    let system = "s".repeat(150);
    let mut asked: Vec<Events> = (0..4).map(|number| bench.ask(plain(&format!("{system}{number}"), 3))).collect();
    let mut other = bench.ask(plain("elsewhere", 3));
    bench.turn().unwrap();
    assert_eq!(bench.running(), 2, "the first of them and the other one; the rest wait for the first");
    bench.until_idle();
    let cached: Vec<u64> = asked.iter_mut().map(|events| usage(&drain(events)).cached_input).collect();
    assert_eq!(cached, [0, 150, 150, 150]);
    assert_eq!(text(&drain(&mut other), 0), alphabet(9, 3));
}

#[test]
fn who_cannot_go_on_is_not_waited_for() {
    let mut bench = bench(1 << 20, None);
    let long = "s".repeat(390);
    let stuck = bench.ask(Ask { scored: true, ..plain(&long, 1) });
    for _ in 0..20 {
        bench.turn().unwrap();
    }
    let mut other = bench.ask(plain(&long, 3));
    bench.until_idle();
    assert_eq!(text(&drain(&mut other), 0), alphabet(390, 3));
    drop(stuck);
}
