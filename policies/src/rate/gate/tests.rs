//! Who gets a place, and when.

use super::*;
use proptest::prelude::*;

fn gate(limit: u32, room: u32) -> Gate {
    let mut gate = Gate::default();
    gate.change(NonZeroU32::new(limit), room);
    gate
}

fn waits(entry: Entry) -> Receiver<()> {
    match entry {
        Entry::Waits(grant) => grant,
        other => panic!("{other:?}"),
    }
}

#[test]
fn of_four_places_that_both_want_one_is_for_the_batch_class() {
    let mut gate = gate(1, 10);
    assert!(matches!(gate.enter(0, Priority::Batch), Entry::In));
    let mut waiting: Vec<_> = (1..=20)
        .map(|id| {
            let class = if id <= 10 { Priority::Batch } else { Priority::Interactive };
            (class, waits(gate.enter(id, class)))
        })
        .collect();
    let mut order = String::new();
    for _ in 0..20 {
        gate.leave(Duration::from_secs(1));
        let granted = waiting.iter_mut().position(|(_, grant)| grant.try_recv().is_ok()).unwrap();
        order.push(if waiting.remove(granted).0 == Priority::Batch { 'b' } else { 'i' });
    }
    assert_eq!(order, "iiibiiibiiibibbbbbbb");
}

#[test]
fn each_class_has_a_queue_of_its_own_and_is_told_how_long_it_takes() {
    let mut gate = gate(2, 1);
    for id in 0..2 {
        assert!(matches!(gate.enter(id, Priority::Interactive), Entry::In));
    }
    gate.leave(Duration::from_secs(8));
    assert!(matches!(gate.enter(2, Priority::Interactive), Entry::In));
    let _first = waits(gate.enter(3, Priority::Interactive));
    assert!(matches!(gate.enter(4, Priority::Interactive), Entry::Full(wait) if wait == Duration::from_secs(4)));
    let _second = waits(gate.enter(5, Priority::Batch));
    assert!(matches!(gate.enter(6, Priority::Batch), Entry::Full(wait) if wait == Duration::from_secs(16)));
    assert!(matches!(gate.enter(7, Priority::Interactive), Entry::Full(wait) if wait > Duration::from_secs(5)));
}

#[test]
fn without_room_nobody_waits() {
    let mut gate = gate(1, 0);
    assert!(matches!(gate.enter(0, Priority::Interactive), Entry::In));
    assert!(matches!(gate.enter(1, Priority::Interactive), Entry::Full(wait) if wait == Duration::from_secs(1)));
    gate.free();
    assert!(matches!(gate.enter(2, Priority::Batch), Entry::In));
}

#[test]
fn a_wider_gate_lets_in_who_waits_and_a_narrower_one_throws_nobody_out() {
    let mut gate = gate(1, 10);
    assert!(matches!(gate.enter(0, Priority::Interactive), Entry::In));
    let mut waiting: Vec<_> = (1..5).map(|id| waits(gate.enter(id, Priority::Interactive))).collect();
    gate.change(NonZeroU32::new(3), 10);
    assert_eq!(waiting.iter_mut().filter_map(|grant| grant.try_recv().ok()).count(), 2);
    gate.change(NonZeroU32::new(1), 10);
    gate.free();
    gate.free();
    assert_eq!((gate.held(), gate.waiting(Priority::Interactive)), (1, 2));
    gate.change(None, 0);
    assert_eq!((gate.held(), gate.waiting(Priority::Interactive)), (3, 0));
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Enter(bool),
    Leave,
    Forget(prop::sample::Index),
    Change(u32, u32),
}

proptest! {
    #[test]
    fn nobody_waits_before_a_free_place_and_nobody_is_forgotten(
        steps in prop::collection::vec(prop_oneof![
            5 => any::<bool>().prop_map(Step::Enter),
            4 => Just(Step::Leave),
            2 => any::<prop::sample::Index>().prop_map(Step::Forget),
            1 => (0u32..4, 0u32..5).prop_map(|(limit, room)| Step::Change(limit, room)),
        ], 1..200)
    ) {
        let (mut gate, mut limit, mut room) = (gate(2, 3), 2, 3usize);
        let (mut inside, mut waiting) = (0u32, Vec::new());
        for (id, step) in (0u64..).zip(steps) {
            match step {
                Step::Enter(batch) => {
                    let class = if batch { Priority::Batch } else { Priority::Interactive };
                    let before = gate.waiting(class);
                    match gate.enter(id, class) {
                        Entry::In => inside += 1,
                        Entry::Waits(grant) => {
                            prop_assert!(before < room);
                            waiting.push((id, class, grant));
                        }
                        Entry::Full(_) => prop_assert!(before >= room && inside >= limit),
                    }
                }
                Step::Leave if inside > 0 => {
                    inside -= 1;
                    gate.leave(Duration::from_secs(1));
                }
                Step::Forget(which) if !waiting.is_empty() => {
                    let (id, class, _grant) = waiting.swap_remove(which.index(waiting.len()));
                    prop_assert!(gate.forget(id, class), "it was not granted");
                }
                Step::Change(places, seats) => {
                    gate.change(NonZeroU32::new(places), seats);
                    limit = if places == 0 { u32::MAX } else { places };
                    room = seats as usize;
                }
                _ => {}
            }
            let before = waiting.len();
            waiting.retain_mut(|(_, _, grant)| grant.try_recv().is_err());
            inside += u32::try_from(before - waiting.len()).unwrap();
            prop_assert_eq!(gate.held(), inside);
            prop_assert_eq!(gate.waiting(Priority::Interactive) + gate.waiting(Priority::Batch), waiting.len());
            prop_assert!(waiting.is_empty() || inside >= limit, "somebody waits before a free place");
        }
        // Whoever waits gets a place in the end.
        while inside > 0 {
            gate.leave(Duration::from_secs(1));
            inside -= 1;
            let before = waiting.len();
            waiting.retain_mut(|(_, _, grant)| grant.try_recv().is_err());
            inside += u32::try_from(before - waiting.len()).unwrap();
        }
        prop_assert!(waiting.is_empty());
    }
}
