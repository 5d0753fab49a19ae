//! Any order of requests, cancellations, failures, pins and shutdowns, in virtual time with loads of 15 to 30 seconds.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Act {
    Request { model: ModelKey, work: u64, patience: u64 },
    Cancel(u64),
    Crash(ModelKey),
    FailLoads(ModelKey, bool),
    Pin(ModelKey, bool),
    Want(ModelKey, Want),
    Release(ModelKey),
    Budget(u64),
    Reach(u64),
    Retire(ModelKey),
}

fn act() -> impl Strategy<Value = Act> {
    let model = 0u32..4;
    let want = prop::sample::select(vec![Want::Preload, Want::Schedule, Want::Hint, Want::Operator]);
    prop_oneof![
        12 => (model.clone(), 1u64..60, 1u64..400).prop_map(|(model, work, patience)| Act::Request { model, work, patience }),
        3 => (0u64..40).prop_map(Act::Cancel),
        1 => model.clone().prop_map(Act::Crash),
        1 => (model.clone(), any::<bool>()).prop_map(|(model, fails)| Act::FailLoads(model, fails)),
        1 => (model.clone(), any::<bool>()).prop_map(|(model, pinned)| Act::Pin(model, pinned)),
        1 => (model.clone(), want).prop_map(|(model, want)| Act::Want(model, want)),
        1 => model.clone().prop_map(Act::Release),
        1 => (8u64..24).prop_map(Act::Budget),
        2 => (0u64..24).prop_map(Act::Reach),
        1 => model.prop_map(Act::Retire),
    ]
}

fn perform(world: &mut World, act: Act) {
    match act {
        Act::Request { model, work, patience } => {
            world.request(Duration::ZERO, model, secs(work), secs(patience));
        }
        Act::Cancel(id) if world.requests.contains_key(&id) => {
            world.after(Duration::ZERO, Happening::Tell(Event::Left { request: id }));
        }
        Act::Cancel(_) => {}
        Act::Crash(model) => world.after(Duration::ZERO, Happening::Crash(model)),
        Act::FailLoads(model, true) => drop(world.failing.insert(model)),
        Act::FailLoads(model, false) => drop(world.failing.remove(&model)),
        Act::Pin(model, pinned) => world.tell(Event::Pinned { model, pinned }),
        Act::Want(model, want) => {
            let until = (want == Want::Schedule).then(|| world.now + secs(90));
            world.tell(Event::Wanted { model, want, until });
        }
        Act::Release(model) => world.tell(Event::Released { model }),
        // Memory that is in use cannot be taken away by the test's own bookkeeping.
        Act::Budget(bytes) => {
            world.tell(Event::Budget { bytes: bytes.max(world.machine.models.values().map(Model::reserved).sum()) })
        }
        // What models hold they have: others hold the rest at most.
        Act::Reach(bytes) => world.reach(bytes),
        Act::Retire(model) => world.tell(Event::Retired { model }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_request_ends_in_its_time_whatever_happens(
        acts in prop::collection::vec((0u64..20, act()), 1..60),
        load in 15u64..30,
        drain in 0u64..20,
        residency in 0u64..40,
        keep_alive in prop::option::of(1u64..60),
        stop in any::<bool>(),
    ) {
        let specs: Vec<Spec> = [12, 8, 8, 2]
            .into_iter()
            .map(|bytes| Spec { keep_alive: keep_alive.map(secs), ..spec(bytes) })
            .collect();
        let rules = Rules { budget: 16, min_residency: secs(residency), drain: secs(drain) };
        let mut world = World::new(rules, &specs);
        world.load_takes = secs(load);
        for (wait, act) in acts {
            let then = world.now + secs(wait);
            world.after(secs(wait), Happening::Tell(Event::Tick));
            world.run_until(|world| world.now >= then);
            perform(&mut world, act);
        }
        if stop {
            world.after(secs(5), Happening::Tell(Event::Shutdown));
        }
        // Parked answers are ended by the engine in its own time; here others give the memory back before.
        world.after(secs(1000), Happening::Tell(Event::Reach { bytes: u64::MAX }));
        world.run();
        for (id, request) in &world.requests {
            let end = world.end_of(*id);
            if let Some(granted) = request.granted {
                prop_assert!(granted <= request.deadline, "request {} waited beyond its deadline", id);
            }
            if let End::Refused(Refusal::Late { .. }) = end {
                prop_assert!(request.granted.is_none());
            }
            prop_assert!(!stop || world.resident.is_empty());
        }
        let held: u64 = world.machine.models.values().map(Model::reserved).sum();
        prop_assert_eq!(held, world.resident.values().sum::<u64>(), "the ledger and the engines agree");
    }

    #[test]
    fn nobody_starves_under_steady_demand_for_three_models(
        turns in prop::collection::vec(0u32..3, 40..80),
        load in 15u64..30,
    ) {
        let mut world = World::new(rules(10), &[spec(8), spec(8), spec(8)]);
        world.load_takes = secs(load);
        for (at, model) in (0u64..).zip(&turns) {
            world.request(secs(at * 3), *model, secs(2), secs(3600));
        }
        world.run();
        // Two others go first at most, each with its load, its residency (half a load at least), its drain and its unload; then comes one's own load.
        let turn = secs(load) + secs(load / 2).max(secs(10)) + secs(5) + secs(1);
        for id in world.requests.keys() {
            prop_assert_eq!(world.end_of(*id), &End::Served);
            prop_assert!(world.waited(*id) <= turn * 3, "waited {:?}", world.waited(*id));
        }
        let changes = turns.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
        prop_assert!(world.loads.len() <= changes.min((world.now - secs(1000)).as_secs() as usize / (load as usize + 10) + 2));
    }
}
