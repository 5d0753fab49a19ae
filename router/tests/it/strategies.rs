//! Simulated traces: what strategies cost and how long they take, beside a static order and a random choice of two.

use std::path::Path;
use tollkeeper_config::Strategy;
use tollkeeper_router::simulation::scenarios::{ESCALATE_AT, EVALUATION, SCENARIOS, SHIPPED};
use tollkeeper_router::simulation::{Chooser, Fleet, Outcome, Request, Setup, run};

const FASTEST: Chooser = Chooser::Strategy(Strategy::Fastest);
const CHEAPEST: Chooser = Chooser::Strategy(Strategy::Cheapest);
const BALANCED: Chooser = Chooser::Strategy(Strategy::Balanced);

fn read(name: &str) -> Vec<u8> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/scenarios/routing"));
    std::fs::read(folder.join(name)).unwrap()
}

fn fleet() -> Fleet {
    Fleet::read_csv(&read("fleet.csv")).unwrap()
}

/// All evaluation seeds of a scenario together.
fn evaluated(scenario: &str, chooser: Chooser) -> Outcome {
    let (fleet, scenario) = (fleet(), SCENARIOS.iter().find(|known| known.name == scenario).unwrap());
    let outcomes = EVALUATION.map(|seed| {
        let trace = scenario.trace(seed);
        run(Setup { fleet: &fleet, trace: &trace, escalate_at: ESCALATE_AT, seed }, chooser)
    });
    outcomes.reduce(Outcome::and).unwrap()
}

/// Choosing by estimates beats choosing without, on what each strategy is for.
fn beats(scenario: &str) {
    let baselines = [Chooser::StaticOrder, Chooser::RandomOfTwo].map(|baseline| evaluated(scenario, baseline));
    let [fastest, cheapest, balanced] = [FASTEST, CHEAPEST, BALANCED].map(|strategy| evaluated(scenario, strategy));
    for baseline in &baselines {
        let name = baseline.chooser.name();
        for quick in [&fastest, &balanced] {
            let (ours, theirs) = (quick.duration_percentile(95), baseline.duration_percentile(95));
            assert!(ours < theirs, "{scenario}: p95 of {} is {ours} ms, of {name} {theirs}", quick.chooser.name());
        }
        assert!(
            cheapest.cost < baseline.cost,
            "{scenario}: cheapest costs {}, {name} {}",
            cheapest.cost,
            baseline.cost
        );
        // Nobody bought that with answers that are worse.
        for ours in [&fastest, &cheapest, &balanced] {
            assert!(ours.sufficed >= baseline.sufficed && ours.failed <= baseline.failed, "{scenario}: {name}");
        }
    }
    let [_, random] = &baselines;
    assert!(balanced.cost < random.cost && fastest.cost < random.cost, "{scenario}");
}

#[test]
fn estimates_beat_static_order_and_chance_for_agents() {
    beats("agents");
}

#[test]
fn estimates_beat_static_order_and_chance_in_a_burst() {
    beats("burst");
}

#[test]
fn estimates_beat_static_order_and_chance_for_prompts_that_begin_alike() {
    beats("prefix");
}

#[test]
fn estimates_beat_static_order_and_chance_at_night() {
    beats("night");
}

#[test]
fn a_pyramid_buys_good_answers_for_less_than_chance() {
    let pyramid = evaluated("mixed", Chooser::Strategy(Strategy::Pyramid));
    let random = evaluated("mixed", Chooser::RandomOfTwo);
    let bottom = evaluated("mixed", Chooser::StaticOrder);
    assert!(pyramid.sufficed > random.sufficed && pyramid.cost.0 * 3 < random.cost.0, "{pyramid:?}");
    assert!(pyramid.sufficed * 5 > bottom.sufficed * 6, "{} against {}", pyramid.sufficed, bottom.sufficed);
}

/// The traces in the repository, with the bands in which figures are expected: `trace,who,figure,least,most`.
#[test]
fn shipped_traces_stay_within_their_bands() {
    let (fleet, bands) = (fleet(), String::from_utf8(read("bands.csv")).unwrap());
    let mut checked = 0;
    for line in bands.lines().skip(1) {
        let [trace, who, figure, least, most] = line.split(',').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let requests = Request::read_csv(&read(&format!("{trace}.csv"))).unwrap();
        let setup = Setup { fleet: &fleet, trace: &requests, escalate_at: ESCALATE_AT, seed: SHIPPED };
        let found = run(setup, Chooser::named(who).unwrap()).figure(figure).unwrap();
        let band: std::ops::RangeInclusive<f64> = least.parse().unwrap()..=most.parse().unwrap();
        assert!(band.contains(&found), "{line}: it is {found}");
        checked += 1;
    }
    assert!(checked > 30);
}

#[test]
fn shipped_traces_are_those_of_their_seed_and_runs_repeat() {
    let fleet = fleet();
    for scenario in SCENARIOS {
        let trace = Request::read_csv(&read(&format!("{}.csv", scenario.name))).unwrap();
        assert_eq!(trace, scenario.trace(SHIPPED), "run the example `strategies` with --write");
        let setup = Setup { fleet: &fleet, trace: &trace, escalate_at: ESCALATE_AT, seed: 1 };
        let once = run(setup, FASTEST);
        assert_eq!(once, run(setup, FASTEST));
        assert_eq!(once.duration_ms.len() + once.failed, trace.len(), "everybody is answered or refused");
    }
}

/// With foresight nobody is faster, as long as one request does not change what the next one meets.
#[test]
fn nobody_beats_foresight_where_requests_do_not_meet() {
    let fleet = fleet();
    let mut trace = SCENARIOS.iter().find(|scenario| scenario.name == "mixed").unwrap().trace(7);
    trace.truncate(60);
    for (at, request) in trace.iter_mut().enumerate() {
        (request.at_ms, request.shared) = (at as u64 * 600_000, 0);
    }
    let of = |chooser| run(Setup { fleet: &fleet, trace: &trace, escalate_at: ESCALATE_AT, seed: 3 }, chooser);
    let [time, cost] = [Chooser::OracleFastest, Chooser::OracleCheapest].map(of);
    for chooser in Chooser::ALL {
        let outcome = of(chooser);
        assert!(time.duration_ms.iter().sum::<u64>() <= outcome.duration_ms.iter().sum(), "{}", chooser.name());
        assert!(cost.cost <= outcome.cost, "{}", chooser.name());
    }
    assert_eq!((time.regret_ms, cost.regret.0), (0, 0));
}

#[test]
fn what_is_wrong_with_a_table_is_said_by_its_line() {
    let says = |text: &str| Fleet::read_csv(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(says("name,tier\n"), "there are no rows in it");
    let head = "name,tier,input_usd,cached_usd,output_usd,context,prefill,slots,decode,kept,load_ms,ttft_ms,rate,spread,errors_permille,per_minute,slow\n";
    assert_eq!(says(&format!("{head}m,0,,,,,,,,,,,,,,,\n")), "line 2: `slots` is missing");
    assert_eq!(
        says(&format!("{head}m,0,,,,,100,2,fast,,,,,,,,\n")),
        "line 2: `decode` is written as `1:60 4:180`: tokens in a second by answers, fewest first"
    );
    assert_eq!(says(&format!("{head}p/m,0,,,,,,,,,,,,,,,\n")), "line 2: `ttft_ms` is missing");
    let bad = Request::read_csv(b"at_ms,task\n1,2,3\n").unwrap_err().to_string();
    assert_eq!(bad, "line 2: there are 3 fields where the first line has 2");
}
