//! Situations, and the plans that must come of them.

use crate::{candidate, chat, price};
use std::sync::Arc;
use tollkeeper_config::{Abilities, BackendId, Price, Strategy, TaskRule, Usd};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::fault::FaultKind;
use tollkeeper_router::estimate::{EXPECTED_OUTPUT, UNKNOWN_OUTPUT};
use tollkeeper_router::{
    Ask, Candidate, CostEstimate, Health, Pace, Plan, Reason, Rules, Strain, Wishes, plan, start_tier,
};

fn names(plan: &Plan) -> Vec<String> {
    plan.attempts.iter().map(|attempt| attempt.id.to_string()).collect()
}

fn whys(plan: &Plan) -> Vec<String> {
    plan.attempts.iter().map(|attempt| attempt.why.to_string()).collect()
}

fn with(mut candidate: Candidate, change: impl FnOnce(&mut tollkeeper_config::ModelFacts)) -> Candidate {
    change(Arc::make_mut(&mut candidate.facts));
    candidate
}

/// A free local model, a cheap and a dear one, out of order.
fn three() -> Vec<Candidate> {
    let mut local = candidate("local", 0, Price::free());
    local.id = BackendId::Local("toll-tiny".into());
    vec![candidate("dear", 2, price(5000, 25_000)), candidate("cheap", 1, price(100, 400)), local]
}

#[test]
fn each_strategy_has_its_order() {
    let ordered = plan(&chat(10, None), three(), Strategy::Ordered, 0);
    assert_eq!(names(&ordered), ["p/dear", "p/cheap", "toll-tiny"]);
    assert_eq!(whys(&ordered), ["ordered;rank=1", "ordered;rank=2", "ordered;rank=3"]);

    let pyramid = plan(&chat(10, None), three(), Strategy::Pyramid, 0);
    assert_eq!(names(&pyramid), ["toll-tiny", "p/cheap", "p/dear"]);
    assert_eq!(whys(&pyramid), ["pyramid;rank=1;tier=0", "pyramid;rank=2;tier=1", "pyramid;rank=3;tier=2"]);

    let cheapest = plan(&chat(10, None), three(), Strategy::Cheapest, 0);
    assert_eq!(names(&cheapest), ["toll-tiny", "p/cheap", "p/dear"]);
    assert_eq!(whys(&cheapest)[0], "cheapest;rank=1");
}

#[test]
fn what_is_cheapest_depends_on_the_request() {
    // One has cheap input, the other cheap output.
    let two = || vec![candidate("in", 0, price(1, 100)), candidate("out", 0, price(10, 10))];
    assert_eq!(names(&plan(&chat(100_000, Some(10)), two(), Strategy::Cheapest, 0)), ["p/in", "p/out"]);
    assert_eq!(names(&plan(&chat(10, Some(1000)), two(), Strategy::Cheapest, 0)), ["p/out", "p/in"]);
}

#[test]
fn equals_share_by_load_and_then_by_lot() {
    let equal = |name: &str, queue_tokens, in_flight| Candidate {
        queue_tokens,
        in_flight,
        ..candidate(name, 0, Price::free())
    };
    let busy = vec![equal("queue", 9, 0), equal("busy", 0, 3), equal("idle", 0, 0)];
    assert_eq!(names(&plan(&chat(1, None), busy, Strategy::Cheapest, 0)), ["p/idle", "p/busy", "p/queue"]);

    let idle = || vec![equal("a", 0, 0), equal("b", 0, 0)];
    let first = |seed| names(&plan(&chat(1, None), idle(), Strategy::Cheapest, seed)).swap_remove(0);
    let to_a = (0..1000).filter(|seed| first(*seed) == "p/a").count();
    assert!((400..600).contains(&to_a), "{to_a} of 1000 went to a");
}

#[test]
fn cooling_backends_come_last_and_models_that_come_soon_keep_their_place() {
    let mut candidates = three();
    candidates[0].health = Health::Cooling { until_ms: 1 };
    candidates[1].health = Health::Absent { ready_in_ms: 500 };
    let planned = plan(&chat(10, None), candidates.clone(), Strategy::Ordered, 0);
    assert_eq!(whys(&planned), ["ordered;rank=1;absent", "ordered;rank=2", "ordered;rank=3;cooling"]);
    assert_eq!(names(&planned), ["p/cheap", "toll-tiny", "p/dear"]);

    let soon = |ready_in_ms| {
        let mut candidates = three();
        candidates[0].health = Health::Absent { ready_in_ms };
        let rules = Rules { patience_ms: 3000, ..Strategy::Ordered.into() };
        names(&plan(&chat(10, None), candidates, rules.clone(), 0))
            .iter()
            .position(|name| *name == names(&plan(&chat(10, None), three(), rules.clone(), 0))[0])
    };
    assert_eq!((soon(3000), soon(3001)), (Some(0), Some(2)), "who takes longer than the patience is asked last");

    candidates.iter_mut().for_each(|candidate| candidate.health = Health::Cooling { until_ms: 1 });
    let planned = plan(&chat(10, None), candidates, Strategy::Pyramid, 0);
    assert_eq!(names(&planned), ["toll-tiny", "p/cheap", "p/dear"], "they are tried, in their order");
}

#[test]
fn each_filter_has_its_reason() {
    let without =
        |change: fn(&mut Abilities)| with(candidate("m", 0, Price::free()), |facts| change(&mut facts.abilities));
    let of = |operation| Ask { operation, ..chat(10, None) };
    let small = || with(candidate("m", 0, Price::free()), |facts| facts.context = Some(100));
    let gone =
        Candidate { health: Health::Unavailable("its key is not set".into()), ..candidate("m", 0, Price::free()) };
    let context = |input, output| Reason::Context { input, output, context: 100 };
    let cases = [
        (
            chat(10, None),
            without(|can| can.chat = false),
            Reason::Operation(Operation::Chat),
            "does not do chat completions",
        ),
        (
            of(Operation::TextCompletion),
            without(|can| can.completion = false),
            Reason::Operation(Operation::TextCompletion),
            "does not do text completions",
        ),
        (
            of(Operation::Embeddings),
            without(|can| can.embeddings = false),
            Reason::Operation(Operation::Embeddings),
            "does not do embeddings",
        ),
        (Ask { tools: true, ..chat(10, None) }, without(|can| can.tools = false), Reason::Tools, "cannot call tools"),
        (
            Ask { vision: true, ..chat(10, None) },
            without(|can| can.vision = false),
            Reason::Vision,
            "cannot read images",
        ),
        (
            Ask { json_schema: true, ..chat(10, None) },
            without(|can| can.json_schema = false),
            Reason::JsonSchema,
            "cannot follow a JSON schema",
        ),
        (
            chat(60, Some(41)),
            small(),
            context(60, 41),
            "has a context of 100 tokens, but the request needs about 101 (input about 60, output 41)",
        ),
        (
            chat(100, None),
            small(),
            context(100, 1),
            "has a context of 100 tokens, but the request needs about 101 (input about 100, output 1)",
        ),
        (
            Ask { answers: 2, ..chat(60, Some(82)) },
            small(),
            context(60, 41),
            "has a context of 100 tokens, but the request needs about 101 (input about 60, output 41)",
        ),
        (chat(10, None), gone, Reason::Unavailable("its key is not set".into()), "is unavailable: its key is not set"),
    ];
    for (ask, candidate, reason, text) in cases {
        let planned = plan(&ask, vec![candidate], Strategy::Ordered, 0);
        assert!(planned.attempts.is_empty(), "{text}");
        assert_eq!(reason.to_string(), text);
        let refusal = planned.refusal().unwrap();
        assert_eq!(refusal, (reason.kind(), format!("no backend can answer this request: `p/m` {text}")));
        assert_eq!(planned.rejected[0].1, reason);
    }
    let exact = [chat(60, Some(40)), chat(99, None), Ask { answers: 5, ..chat(60, Some(200)) }];
    let embedding =
        Ask { input_tokens: 900, longest_input: 100, max_output: Some(0), answers: 0, ..of(Operation::Embeddings) };
    for ask in exact.into_iter().chain([embedding]) {
        assert_eq!(plan(&ask, vec![small()], Strategy::Ordered, 0).attempts.len(), 1, "{ask:?} fits exactly");
    }
}

#[test]
fn a_refusal_says_what_has_to_change() {
    let blind = || with(candidate("blind", 0, Price::free()), |facts| facts.abilities.vision = false);
    let small = || with(candidate("small", 0, Price::free()), |facts| facts.context = Some(5));
    let gone = || Candidate { health: Health::Unavailable("no key".into()), ..candidate("gone", 0, Price::free()) };
    let ask = Ask { vision: true, ..chat(10, None) };
    let kind = |candidates| plan(&ask, candidates, Strategy::Ordered, 0).refusal().map(|(kind, _)| kind);
    assert_eq!(kind(vec![blind(), small(), gone()]), Some(FaultKind::Unavailable));
    assert_eq!(kind(vec![blind(), small()]), Some(FaultKind::ContextLength));
    assert_eq!(kind(vec![blind()]), Some(FaultKind::BadRequest));
    assert_eq!(kind(vec![]), Some(FaultKind::Unavailable));
    assert_eq!(kind(vec![blind(), candidate("good", 0, Price::free())]), None);
}

#[test]
fn costs_are_estimated_by_what_is_known() {
    let cost = |ask: &Ask, candidate: Candidate| plan(ask, vec![candidate], Strategy::Ordered, 0).attempts[0].cost;
    // Nano-dollars: 2 a token of input, 10 a token of output.
    let of = |input: u64, expected: u64, worst: u64| {
        let usd = |output: u64| Usd(i64::try_from(input * 2 + output * 10).unwrap());
        CostEstimate { input: usd(0), expected: usd(expected), worst: usd(worst) }
    };
    let model = || candidate("m", 0, price(2, 10));
    assert_eq!(cost(&chat(100, None), model()), of(100, EXPECTED_OUTPUT, UNKNOWN_OUTPUT));
    assert_eq!(cost(&chat(100, Some(20)), model()), of(100, 20, 20));
    assert_eq!(cost(&chat(100, Some(9000)), model()), of(100, EXPECTED_OUTPUT, 9000));
    assert_eq!(cost(&Ask { answers: 3, ..chat(100, Some(60)) }, model()), of(100, 60, 60));
    assert_eq!(
        cost(&chat(100, None), with(model(), |facts| facts.max_output = Some(4000))),
        of(100, EXPECTED_OUTPUT, 4000)
    );
    assert_eq!(cost(&chat(100, None), with(model(), |facts| facts.context = Some(300))), of(100, 200, 200));
    let embedding = Ask { operation: Operation::Embeddings, answers: 0, ..chat(100, Some(0)) };
    assert_eq!(cost(&embedding, model()), of(100, 0, 0));

    let written = with(model(), |facts| facts.price.base.cache_write = tollkeeper_config::PicoUsd(2500));
    assert_eq!(cost(&chat(100, Some(1)), written).worst, Usd(260), "the provider may write all input to its cache");
}

#[test]
fn a_pyramid_begins_where_the_difficulty_says_and_falls_back_upwards_first() {
    let rules = |difficulty| Rules { start_tier: start_tier(difficulty, &[560, 700]), ..Strategy::Pyramid.into() };
    let tiers = |difficulty| {
        let tiers = (0..3).map(|tier| candidate(&tier.to_string(), tier, Price::free())).collect();
        names(&plan(&chat(10, None), tiers, rules(difficulty), 0)).join(" ")
    };
    for (difficulty, order) in
        [(None, "p/0 p/1 p/2"), (Some(0.55), "p/0 p/1 p/2"), (Some(0.56), "p/1 p/2 p/0"), (Some(0.71), "p/2 p/1 p/0")]
    {
        assert_eq!(tiers(difficulty), order, "{difficulty:?}");
    }
    let planned = plan(&chat(10, None), vec![candidate("a", 1, Price::free())], rules(Some(0.6)), 0);
    assert_eq!(whys(&planned), ["pyramid;rank=1;tier=1;from=1"]);
}

#[test]
fn time_is_reckoned_from_what_the_engine_tells() {
    let paced =
        |pace: Pace, queue_tokens, health| Candidate { pace, queue_tokens, health, ..candidate("m", 0, Price::free()) };
    let time = |candidate| plan(&chat(1000, Some(100)), vec![candidate], Strategy::Fastest, 0).attempts[0].time;
    let rates = Pace { prefill: Some(2000), decode: Some(50), overall: Some(400), ..Pace::default() };
    let local = Pace { unread: 1600, cached: 600, ttft_ms: Some(9), slots: Some(4), ..rates };
    // 1,600 tokens of other prompts and 400 of this one are to be read at 2,000 a second; then 100 are written at 50 a second.
    let busy = Candidate { in_flight: 3, ..paced(local, 2400, Health::Ready) };
    let estimate = time(busy.clone());
    assert_eq!((estimate.ttft_ms, estimate.duration_ms), (1000, 3000), "there is a slot for it");
    // Of six, three have to end first, with 400 tokens each, which are read and written at 400 a second in all.
    let full = Candidate { in_flight: 4, pace: Pace { waiting: 2, ..local }, ..busy };
    let estimate = time(full);
    assert_eq!((estimate.ttft_ms, estimate.duration_ms), (4000, 6000), "and now there is none");
    let local = Pace { unread: 0, ..local };
    let estimate = time(paced(local, 0, Health::Absent { ready_in_ms: 1500 }));
    assert_eq!((estimate.ttft_ms, estimate.duration_ms), (1700, 3700), "a load comes on top");
    let remote = Pace { ttft_ms: Some(300), decode: Some(100), ..Pace::default() };
    let estimate = time(paced(remote, 0, Health::Ready));
    assert_eq!((estimate.ttft_ms, estimate.duration_ms), (300, 1300));
}

#[test]
fn who_fails_often_or_is_about_to_refuse_comes_behind_who_does_well() {
    let first = |strain, in_flight| {
        let mut three = three();
        three.swap(0, 2);
        three[0] = Candidate { strain, in_flight, ..three[0].clone() };
        let planned = plan(&chat(1000, Some(100)), three, Strategy::Ordered, 0);
        let place = names(&planned).iter().position(|name| name == "toll-tiny").unwrap();
        (place, planned.attempts[place].why.to_string())
    };
    let (well, behind) = ((0, "ordered;rank=1".to_owned()), (2, "ordered;rank=3;strained".to_owned()));
    assert_eq!(first(Strain { failing_permille: 199, ..Strain::default() }, 0), well);
    assert_eq!(first(Strain { failing_permille: 200, ..Strain::default() }, 0), behind);
    assert_eq!(first(Strain { tokens_left: Some(1000), ..Strain::default() }, 0), well);
    assert_eq!(first(Strain { tokens_left: Some(999), ..Strain::default() }, 0), behind);
    let requests = Strain { requests_left: Some(2), ..Strain::default() };
    assert_eq!(first(requests, 1), well);
    assert_eq!(first(requests, 2), behind, "what is under way will be counted too");
}

#[test]
fn what_is_expected_of_an_answer_is_what_was_learned() {
    let of = |usual_output, most| {
        let ask = Ask { usual_output, ..chat(0, most) };
        let remote = Pace { ttft_ms: Some(0), decode: Some(100), ..Pace::default() };
        let attempt =
            plan(&ask, vec![Candidate { pace: remote, ..candidate("m", 0, price(0, 1000)) }], Strategy::Fastest, 0)
                .attempts
                .swap_remove(0);
        (attempt.time.duration_ms, attempt.cost.expected)
    };
    assert_eq!(of(None, None), (5120, Usd(512_000)));
    assert_eq!(of(Some(40), None), (400, Usd(40_000)));
    assert_eq!(of(Some(40), Some(10)), (100, Usd(10_000)), "no more than the client allows");
}

#[test]
fn a_conversation_stays_where_it_was_and_moves_only_when_that_is_gone() {
    let four = || (0..4).map(|which| candidate(&which.to_string(), 0, Price::free())).collect::<Vec<_>>();
    let rules =
        |session| Rules { wishes: Wishes { session: Some(session), ..Wishes::default() }, ..Strategy::Sticky.into() };
    let mut moved = 0;
    let mut seen = std::collections::BTreeSet::new();
    for session in 0..400 {
        let first = |candidates, seed| names(&plan(&chat(1, None), candidates, rules(session), seed)).swap_remove(0);
        let home = first(four(), 0);
        assert_eq!(first(four(), 77), home, "whatever the seed");
        let mut without = four();
        without.remove(2);
        moved += usize::from(first(without, 0) != home);
        seen.insert(home);
    }
    assert_eq!(seen.len(), 4);
    assert!((60..140).contains(&moved), "{moved} of 400 moved when one of four went");
    let mut warm = four();
    warm[3].pace.cached = 500;
    assert_eq!(names(&plan(&chat(1, None), warm, rules(1), 0))[0], "p/3", "where the prompt is known");
}

#[test]
fn work_is_dealt_out_by_weight() {
    let of = |which: usize, weight| Candidate { weight, ..candidate(&which.to_string(), 0, Price::free()) };
    let mut first = [0; 3];
    for seed in 0..4000 {
        let planned = plan(&chat(1, None), vec![of(0, 3), of(1, 1), of(2, 0)], Strategy::Weighted, seed);
        let name = names(&planned).swap_remove(0);
        first[name[2..].parse::<usize>().unwrap()] += 1;
    }
    assert!((2850..3150).contains(&first[0]) && first[2] == 0, "{first:?} of 4000");
}

#[test]
fn of_what_the_client_and_the_operator_want_the_narrower_holds() {
    let wishes =
        Wishes { max_cost: Some(Usd(50)), min_tier: Some(1), strategy: Some(Strategy::Fastest), ..Wishes::default() };
    let rule = TaskRule {
        max_cost: Some(Usd(20)),
        min_tier: Some(2),
        max_tier: Some(3),
        strategy: Some(Strategy::Cheapest),
        chain: None,
    };
    let both = wishes.within(&rule);
    assert_eq!((both.max_cost, both.min_tier, both.max_tier), (Some(Usd(20)), Some(2), Some(3)));
    assert_eq!(both.strategy, Some(Strategy::Fastest));
}
