//! The failures of other swap managers, each a test by name; the names say what must not happen here.

use super::*;

fn two() -> World {
    World::new(rules(10), &[spec(8), spec(8)])
}

#[test]
fn a_busy_model_is_not_evicted_mid_stream() {
    let mut world = two();
    world.settle_in(A);
    let long = world.request(secs(0), A, secs(4), secs(600));
    let other = world.request(secs(1), B, secs(1), secs(600));
    world.run_until(|world| world.requests[&long].end.is_some());
    assert!(world.loads.is_empty(), "B waits until A's stream has ended");
    world.run();
    assert_eq!((world.end_of(long), world.end_of(other)), (&End::Served, &End::Served));
    assert_eq!(world.loads, [B]);
}

#[test]
fn a_stream_longer_than_the_drain_is_parked_and_goes_on_later() {
    let mut world = two();
    world.settle_in(A);
    let long = world.request(secs(0), A, secs(60), secs(600));
    let other = world.request(secs(1), B, secs(1), secs(600));
    world.run();
    assert_eq!((world.end_of(long), world.end_of(other)), (&End::Served, &End::Served));
    assert_eq!(world.loads, [B, A]);
    assert_eq!(world.waited(other), secs(5) + Duration::from_millis(100) + secs(20), "drain, unload, load");
}

#[test]
fn a_loading_model_is_never_a_victim() {
    let mut world = two();
    let first = world.request(secs(0), A, secs(1), secs(600));
    let second = world.request(secs(1), B, secs(1), secs(600));
    world.run_until(|world| world.is_ready(A));
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Abort { .. } | Effect::Unload { .. })));
    world.run();
    assert_eq!((world.end_of(first), world.end_of(second)), (&End::Served, &End::Served));
}

#[test]
fn a_model_that_was_loaded_for_somebody_is_not_evicted_before_he_was_served() {
    let mut world = World::new(Rules { min_residency: secs(0), ..rules(10) }, &[spec(8), spec(8)]);
    let first = world.request(secs(0), A, secs(1), secs(600));
    let second = world.request(secs(0), B, secs(1), secs(600));
    world.run();
    assert_eq!((world.end_of(first), world.end_of(second)), (&End::Served, &End::Served));
    assert_eq!(world.loads, [A, B]);
}

#[test]
fn no_request_is_granted_a_dying_model() {
    let mut world = two();
    world.settle_in(A);
    let running = world.request(secs(0), A, secs(3), secs(600));
    world.request(secs(1), B, secs(1), secs(600));
    let late = world.request(secs(2), A, secs(1), secs(600));
    world.run_until(|world| world.requests[&running].end.is_some());
    assert_eq!(world.requests[&late].granted, None);
    world.run();
    assert_eq!(world.end_of(late), &End::Served);
    assert_eq!(world.loads, [B, A]);
}

#[test]
fn two_waiters_for_one_victim_both_get_their_turn() {
    let mut world = World::new(rules(10), &[spec(8), spec(8), spec(8)]);
    world.settle_in(A);
    let b = world.request(secs(0), B, secs(1), secs(600));
    let c = world.request(secs(0), C, secs(1), secs(600));
    world.run();
    assert_eq!((world.end_of(b), world.end_of(c)), (&End::Served, &End::Served));
    assert_eq!(world.loads, [B, C]);
}

#[test]
fn two_models_in_turn_are_both_served_and_not_swapped_for_each_request() {
    let mut world = two();
    world.load_takes = secs(2);
    let ids: Vec<RequestId> =
        (0..120).map(|n| world.request(secs(n), (n % 2) as ModelKey, secs(1), secs(600))).collect();
    world.run();
    assert!(ids.iter().all(|id| world.end_of(*id) == &End::Served));
    assert!(world.loads.len() <= 12, "{} loads in two minutes", world.loads.len());
    let longest = ids.iter().map(|id| world.waited(*id)).max().unwrap();
    assert!(longest <= secs(10 + 5 + 2 + 1), "a turn of the other takes {longest:?}");
}

#[test]
fn a_victim_that_is_asked_for_again_does_not_block_the_swap() {
    let mut world = two();
    world.settle_in(A);
    world.request(secs(0), A, secs(60), secs(600));
    let b = world.request(secs(1), B, secs(1), secs(600));
    let again = world.request(secs(2), A, secs(1), secs(600));
    world.run();
    assert_eq!((world.end_of(b), world.end_of(again)), (&End::Served, &End::Served));
    assert_eq!(world.loads, [B, A]);
}

#[test]
fn a_reload_with_other_options_under_load_comes_to_its_end() {
    let mut world = World::new(rules(10), &[spec(8)]);
    world.settle_in(A);
    for n in 0..50 {
        world.request(Duration::from_millis(100 * n), A, secs(1), secs(600));
    }
    world.after(secs(1), Happening::Tell(Event::Retired { model: A }));
    world.after(secs(1), Happening::Tell(Event::Added { model: B, spec: spec(9) }));
    let new = world.request(secs(2), B, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(new), &End::Served);
    assert!(!world.machine.models.contains_key(&A), "the old one is forgotten");
    let refused = world.requests.values().filter(|request| request.end == Some(End::Refused(Refusal::Retired))).count();
    assert!(refused > 30, "who comes after the change is told to ask for the new one: {refused}");
}

#[test]
fn a_ready_model_serves_while_another_waits_for_a_foreign_eviction() {
    let mut world = World::new(rules(10), &[spec(8), spec(8), spec(1)]);
    world.settle_in(C);
    world.settle_in(A);
    world.request(secs(0), A, secs(60), secs(600));
    world.request(secs(1), B, secs(1), secs(600));
    let small = world.request(secs(2), C, secs(1), secs(600));
    world.run_until(|world| world.requests[&small].end.is_some());
    assert_eq!(world.waited(small), secs(0));
    assert!(world.loads.is_empty());
}

#[test]
fn the_report_of_another_model_or_generation_changes_nothing() {
    let mut world = two();
    world.settle_in(A);
    let generation = world.machine.models[&A].generation;
    let before = world.machine.models.clone();
    for (model, generation) in [(A, generation - 1), (A, generation + 1), (B, generation)] {
        world.tell(Event::Unloaded { model, generation });
        world.tell(Event::Loaded { model, generation: generation + 7, bytes: 1 });
        world.tell(Event::LoadFailed { model, generation: generation + 7, reason: "late".into() });
    }
    assert_eq!(world.machine.models, before);
}

#[test]
fn a_model_that_can_never_fit_fails_at_once_and_evicts_nobody() {
    let mut world = World::new(rules(10), &[spec(8), spec(11), spec(4)]);
    world.settle_in(A);
    let huge = world.request(secs(0), B, secs(1), secs(600));
    world.run_until(|world| world.requests[&huge].end.is_some());
    assert_eq!(world.end_of(huge), &End::Refused(Refusal::NeverFits { need: 11, room: 10 }));
    world.tell(Event::Pinned { model: A, pinned: true });
    let beside = world.request(secs(0), C, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(beside), &End::Refused(Refusal::NeverFits { need: 4, room: 2 }));
    assert!(world.is_ready(A));
}

#[test]
fn a_request_during_the_unload_of_an_idle_model_is_served_by_the_next_load() {
    let keep = Spec { keep_alive: Some(secs(30)), ..spec(8) };
    let mut world = World::new(rules(10), &[keep]);
    world.settle_in(A);
    world.run_until(|world| world.state(A) == State::Unloading);
    let late = world.request(secs(0), A, secs(1), secs(600));
    world.run_until(|world| world.requests[&late].end.is_some());
    assert_eq!(world.end_of(late), &End::Served);
    assert_eq!(world.loads, [A]);
}

#[test]
fn a_failed_model_is_tried_again_later_and_not_before() {
    let mut world = two();
    world.failing.insert(A);
    let first = world.request(secs(0), A, secs(1), secs(600));
    let soon = world.request(secs(21), A, secs(1), secs(600));
    let later = world.request(secs(40), A, secs(1), secs(600));
    world.run_until(|world| world.requests[&soon].end.is_some());
    world.failing.clear();
    world.run();
    let failed = |retry_after| End::Refused(Refusal::Failed { reason: "the test says so".into(), retry_after });
    assert_eq!(world.end_of(first), &failed(secs(2)));
    assert_eq!(world.end_of(soon), &failed(secs(1)), "one second later, one second less");
    assert_eq!(world.end_of(later), &End::Served);
}

#[test]
fn a_load_that_nobody_waits_for_makes_room_for_one_that_somebody_does() {
    let mut world = two();
    let gone = world.request(secs(0), A, secs(1), secs(600));
    world.after(secs(2), Happening::Tell(Event::Left { request: gone }));
    let other = world.request(secs(3), B, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(other), &End::Served);
    assert_eq!(world.waited(other), Duration::from_millis(10) + secs(20), "A's load is not waited for");
}

#[test]
fn a_load_that_nobody_waits_for_goes_on_when_nobody_else_needs_the_room() {
    let mut world = two();
    let gone = world.request(secs(0), A, secs(1), secs(600));
    world.after(secs(2), Happening::Tell(Event::Left { request: gone }));
    world.run();
    assert!(world.is_ready(A));
}

#[test]
fn who_leaves_frees_the_place_wherever_it_was() {
    let mut world = two();
    world.settle_in(A);
    let running = world.request(secs(0), A, secs(600), secs(600));
    let waiting = world.request(secs(1), B, secs(1), secs(600));
    world.after(secs(2), Happening::Tell(Event::Left { request: waiting }));
    world.after(secs(3), Happening::Tell(Event::Left { request: running }));
    world.run();
    assert!(world.machine.models.values().all(|model| model.leases.is_empty() && model.waiters.is_empty()));
    let next = world.request(secs(0), A, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(next), &End::Served);
}

#[test]
fn mixed_demand_is_served_in_groups() {
    let mut world = World::new(rules(10), &[spec(8), spec(8), spec(8)]);
    for model in [A, B, A, A, C, A, B, C] {
        world.request(secs(0), model, secs(1), secs(600));
    }
    world.run();
    assert_eq!(world.loads, [A, B, C], "three loads instead of six");
    assert!(world.requests.values().all(|request| request.end == Some(End::Served)));
}

#[test]
fn a_crashed_model_is_loaded_again_and_given_up_when_it_crashes_on() {
    let mut world = two();
    world.settle_in(A);
    let kept = world.request(secs(0), A, secs(100), secs(900));
    for second in [1, 50, 90] {
        world.after(secs(second), Happening::Crash(A));
    }
    world.run_until(|world| world.requests[&kept].end.is_some());
    assert_eq!(world.loads, [A, A]);
    assert_eq!(world.end_of(kept), &End::Abandoned);
    let again = world.request(secs(0), A, secs(1), secs(600));
    world.run_until(|world| world.requests[&again].end.is_some());
    assert!(
        matches!(world.end_of(again), End::Refused(Refusal::Failed { retry_after, .. }) if *retry_after == secs(8))
    );
}

#[test]
fn a_waiter_is_told_the_truth_when_its_time_is_over() {
    let mut world = two();
    world.settle_in(A);
    world.request(secs(0), A, secs(600), secs(600));
    let hasty = world.request(secs(0), B, secs(1), secs(3));
    world.run_until(|world| world.requests[&hasty].end.is_some());
    // Two seconds of the drain are left, and a load took twenty.
    assert_eq!(world.end_of(hasty), &End::Refused(Refusal::Late { ready_in: secs(2) + secs(20) }));
}

#[test]
fn several_models_stay_while_they_fit_and_the_longest_unused_goes() {
    let mut world = World::new(rules(10), &[spec(5), spec(4), spec(3)]);
    world.settle_in(A);
    world.settle_in(B);
    assert!(world.is_ready(A) && world.is_ready(B));
    let use_a = world.request(secs(0), A, secs(1), secs(600));
    world.run_until(|world| world.requests[&use_a].end.is_some());
    let third = world.request(secs(0), C, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(third), &End::Served);
    assert!(world.is_ready(A) && !world.is_ready(B));
}

#[test]
fn wishes_are_weaker_than_requests() {
    let mut world = World::new(rules(10), &[spec(8), spec(8), spec(2)]);
    world.settle_in(A);
    world.tell(Event::Wanted { model: B, want: Want::Preload, until: None });
    world.tell(Event::Wanted { model: C, want: Want::Preload, until: None });
    world.run();
    assert!(world.is_ready(A) && world.is_ready(C), "a preload takes free room only");
    world.request(secs(0), A, secs(30), secs(600));
    world.after(secs(1), Happening::Tell(Event::Wanted { model: B, want: Want::Hint, until: None }));
    world.run_until(|world| world.is_ready(B));
    assert!(world.requests.values().all(|request| request.end == Some(End::Served)), "a hint waits for an idle model");
    world.tell(Event::Wanted { model: A, want: Want::Operator, until: None });
    world.run();
    assert!(world.is_ready(A));
}

#[test]
fn a_stop_ends_everything() {
    let mut world = two();
    world.settle_in(A);
    let running = world.request(secs(0), A, secs(600), secs(600));
    let waiting = world.request(secs(1), B, secs(1), secs(600));
    world.after(secs(2), Happening::Tell(Event::Shutdown));
    let late = world.request(secs(3), A, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(running), &End::Abandoned);
    assert_eq!(world.end_of(waiting), &End::Refused(Refusal::Stopping));
    assert_eq!(world.end_of(late), &End::Refused(Refusal::Stopping));
    assert!(world.resident.is_empty());
}

#[test]
fn less_memory_sends_nobody_away_but_is_kept_to_from_then_on() {
    let mut world = World::new(rules(16), &[spec(8), spec(8)]);
    world.settle_in(A);
    world.tell(Event::Budget { bytes: 10 });
    let b = world.request(secs(0), B, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(b), &End::Served);
    assert!(!world.is_ready(A));
}

#[test]
fn a_scheduled_model_waits_until_the_one_in_its_place_is_idle() {
    let mut world = World::new(rules(10), &[spec(8), spec(8)]);
    world.settle_in(A);
    let long = world.request(Duration::ZERO, A, secs(300), secs(600));
    world.after(secs(10), Happening::Tell(Event::Wanted { model: B, want: Want::Schedule, until: Some(secs(5000)) }));
    world.run_until(|world| world.requests[&long].end.is_some());
    assert_eq!((world.end_of(long), world.loads.len()), (&End::Served, 0), "it ran in peace");
    let idle = world.now;
    world.run();
    assert!(world.is_ready(B) && world.loads == [B]);
    assert!(world.now < idle + secs(10 + 5 + 20 + 2), "B came once A had been idle for its residency");
}

#[test]
fn a_schedule_that_finds_no_peace_is_given_up() {
    let mut world = World::new(rules(10), &[spec(8), spec(8)]);
    world.settle_in(A);
    let until = world.now + secs(60);
    let long = world.request(Duration::ZERO, A, secs(300), secs(600));
    world.after(secs(1), Happening::Tell(Event::Wanted { model: B, want: Want::Schedule, until: Some(until) }));
    world.run();
    assert_eq!(world.end_of(long), &End::Served);
    assert!(world.is_ready(A) && world.loads.is_empty(), "nobody wanted B any more");
    assert_eq!(world.machine.models[&B].wanted, None);
}

#[test]
fn demand_comes_before_a_schedule_and_a_hint_does_too() {
    let mut world = World::new(rules(10), &[spec(8), spec(8), spec(8)]);
    world.tell(Event::Wanted { model: A, want: Want::Schedule, until: None });
    let asked = world.request(Duration::ZERO, B, secs(1), secs(600));
    world.tell(Event::Wanted { model: B, want: Want::Schedule, until: None });
    world.tell(Event::Wanted { model: C, want: Want::Hint, until: None });
    world.tell(Event::Wanted { model: C, want: Want::Schedule, until: Some(world.now + secs(1)) });
    world.run();
    assert_eq!(world.end_of(asked), &End::Served);
    assert_eq!(world.loads, [A, B, C], "A had room at once; the hint outlives the schedule's end");
}

#[test]
fn what_others_hold_is_not_promised_and_who_needs_it_waits_until_they_leave() {
    let mut world = World::new(rules(10), &[spec(8), spec(2)]);
    world.reach(4);
    let large = world.request(Duration::ZERO, A, secs(1), secs(600));
    let small = world.request(Duration::ZERO, B, secs(1), secs(600));
    world.run_until(|world| world.requests[&small].end.is_some());
    assert_eq!((world.end_of(small), world.loads.as_slice()), (&End::Served, [B].as_slice()));
    assert_eq!((world.machine.taken(), world.machine.free()), (6, 2));
    assert!(world.machine.ready_in(world.now, A) >= secs(60), "nobody knows when");
    world.reach(u64::MAX);
    world.run();
    assert_eq!(world.end_of(large), &End::Served);
    assert_eq!((world.machine.taken(), world.machine.free()), (0, 0));
}

#[test]
fn who_cannot_wait_any_longer_hears_that_others_hold_the_memory() {
    let mut world = World::new(rules(10), &[spec(8)]);
    world.reach(4);
    let id = world.request(Duration::ZERO, A, secs(1), secs(30));
    world.run();
    assert_eq!(world.end_of(id), &End::Refused(Refusal::Crowded { need: 8, room: 4, taken: 6 }));
}

#[test]
fn what_others_take_makes_more_room_necessary() {
    let mut world = World::new(rules(20), &[spec(8), spec(8), spec(4)]);
    world.settle_in(A);
    world.settle_in(B);
    // Of 20 others take 6: A and B hold 16 of the 14 that are left, as it seems, and C needs 4.
    world.tell(Event::Reach { bytes: 14 });
    let id = world.request(Duration::ZERO, C, secs(1), secs(600));
    world.run();
    assert_eq!(world.end_of(id), &End::Served);
    assert!(!world.is_ready(A) && world.is_ready(B), "one of them was enough");
}
