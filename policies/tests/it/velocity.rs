//! The spend-velocity detector: what trips it and what does not, in every scenario file and for any order of calls.

use crate::traffic::{EVALUATION, level, run, scenarios};
use proptest::prelude::*;
use std::time::Duration;
use tollkeeper_config::{StageRule, Usd, VelocityConfig};
use tollkeeper_policies::velocity::{Baseline, Level, Measure, Reason, Stage, Watch};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;
const CAP: Option<Usd> = Some(Usd(50_000_000_000));
const PRICE: Usd = Usd(10_000_000);

fn watch() -> Watch {
    Watch::new(&VelocityConfig::default(), CAP, &Baseline::default())
}

/// Calls at an even pace, each with another prompt. Returns the time after the last one, and the levels that were reached.
fn work(watch: &mut Watch, start: i64, count: i64, every: i64) -> (i64, Vec<Level>) {
    let mut reached = Vec::new();
    for call in 0..count {
        let now = start + call * every;
        let told = watch.admitted(now, Some(now.unsigned_abs()));
        reached.extend(told.map(|told| told.to));
        reached.extend(watch.spent(now + every / 2, PRICE, 5_000).map(|told| told.to));
    }
    (start + count * every, reached)
}

/// One that has worked for four hours, six calls a minute; and the time.
fn known() -> (Watch, i64) {
    let mut watch = watch();
    let (now, reached) = work(&mut watch, 0, 1440, 10 * SECOND);
    assert_eq!(reached, []);
    (watch, now)
}

/// What every scenario file asks for, of each seed. `velocity_rate` shows more of these seeds. Calls come at random: of mean
/// 30 in half a minute, a Poisson count is below the 17 or so that it takes in three to four cases of a thousand. So one run in a
/// hundred may be told of later, by half at most.
#[test]
fn every_scenario_ends_within_its_bands() {
    let rules = VelocityConfig::default();
    let (mut breaches, mut late, mut attacks) = (Vec::new(), Vec::new(), 0);
    for (name, scenario) in scenarios() {
        let expect = &scenario.expect;
        for seed in EVALUATION.take(if scenario.goes_wrong() { 12 } else { 3 }) {
            let outcome = run(&scenario, seed, &rules);
            let mut breach = |what: String| breaches.push(format!("{name}, seed {seed}: {what}\n  {}", scenario.about));
            if outcome.calls <= 20 * scenario.days().unsigned_abs() {
                breach("too little traffic to tell anything".to_owned());
            }
            if outcome.false_trips.len() > expect.false_trips || outcome.worst > level(&expect.worst) {
                breach(format!("nothing was wrong:\n  {}", outcome.why.join("\n  ")));
            }
            let Some(by) = &expect.caught_by else { continue };
            attacks += 1;
            let (seconds, percent) = outcome.caught(level(by)).unwrap_or((f64::INFINITY, f64::INFINITY));
            if expect.before_cap_percent.is_some_and(|most| percent > most) {
                breach(format!("caught after {percent:.2} % of the cap"));
            }
            match expect.within_seconds {
                Some(most) if seconds > 1.5 * most => breach(format!("caught after {seconds:.2} s")),
                Some(most) if seconds > most => late.push(format!("{name}, seed {seed}: {seconds:.2} s")),
                _ => {}
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    assert!(late.len() * 100 <= attacks, "late in more than one of a hundred: {late:?}");
}

#[test]
fn a_loop_goes_through_the_stages_one_by_one_and_back_when_it_ends() {
    let (mut watch, now) = known();
    let (now, reached) = work(&mut watch, now, 600, SECOND / 5);
    assert_eq!(reached, [Level::Notify, Level::Throttle, Level::Local, Level::Paused]);
    let Stage::Paused { until: Some(until) } = watch.stage(now) else { panic!("{:?}", watch.stage(now)) };
    assert!((now - 120 * SECOND..=now + HOUR / 2).contains(&until));
    assert_eq!(watch.stage(until - 1), Stage::Paused { until: Some(until) });
    assert_eq!(watch.stage(until), Stage::Normal);
    let told = watch.tick(until).unwrap();
    assert_eq!((told.from, told.to, told.reason), (Level::Paused, Level::Normal, Reason::Cooled));
    assert_eq!(watch.tick(until), None, "told once");
}

#[test]
fn who_is_told_learns_what_was_too_fast() {
    let (mut watch, now) = known();
    let told = (0..600).find_map(|call| watch.admitted(now + call * SECOND, None)).unwrap();
    let Reason::Fast { measure: Measure::Turns, rate, normal } = told.reason else { panic!("{told:?}") };
    assert!((350..=450).contains(&normal), "six a minute are normal, not {normal} an hour");
    assert!((3000..=5000).contains(&rate), "one a second came, not {rate} an hour");
}

#[test]
fn a_loop_of_dear_calls_is_noticed_though_there_are_no_more_of_them() {
    let (mut watch, now) = known();
    let mut spent = 0;
    let told = (0..60).find_map(|call| {
        spent += 50 * PRICE.0;
        let at = now + call * 10 * SECOND;
        watch.admitted(at, None).or_else(|| watch.spent(at + SECOND, Usd(50 * PRICE.0), 5_000))
    });
    assert!(matches!(told.unwrap().reason, Reason::Fast { measure: Measure::Usd, .. }), "{told:?}");
    assert!(spent <= 12 * 50 * PRICE.0, "{spent}");
}

#[test]
fn throttled_calls_take_turns_at_the_normal_pace() {
    let (mut watch, mut now) = known();
    while !matches!(watch.stage(now), Stage::Throttle { .. }) {
        watch.admitted(now, None);
        now += SECOND / 2;
    }
    let mut starts = Vec::new();
    for _ in 0..6 {
        let Stage::Throttle { delay } = watch.stage(now) else { panic!("{:?}", watch.stage(now)) };
        starts.push(now + i64::try_from(delay.as_micros()).unwrap());
        watch.admitted(now, None);
    }
    for pair in starts.windows(2) {
        let between = pair[1] - pair[0];
        assert!((5 * SECOND..=15 * SECOND).contains(&between), "one in ten seconds is normal: {between}");
    }
}

#[test]
fn the_same_prompt_is_a_loop_and_polling_is_not() {
    let mut watch = watch();
    for poll in 0..500 {
        assert_eq!(watch.admitted(poll * 20 * SECOND, Some(7)), None, "every 20 seconds is polling");
    }
    let start = 500 * 20 * SECOND + HOUR;
    let told = (0..60).find_map(|call| watch.admitted(start + call * 8 * SECOND, Some(7)).map(|told| (call, told)));
    let (calls, told) = told.unwrap();
    assert_eq!((told.to, told.reason), (Level::Notify, Reason::Loop { repeats: 10 }));
    assert!(calls < 20, "{calls}");
}

#[test]
fn a_retried_request_is_no_loop() {
    let mut watch = watch();
    for call in 0..500_u64 {
        let now = i64::try_from(call).unwrap() * 30 * SECOND;
        for retry in 0..4 {
            assert_eq!(watch.admitted(now + retry * SECOND, Some(call)), None);
        }
    }
}

#[test]
fn what_a_person_resumed_stays_so_for_the_time_of_grace() {
    let (mut watch, now) = known();
    let (now, _) = work(&mut watch, now, 600, SECOND / 5);
    let told = watch.resume(now).unwrap();
    assert_eq!((told.from, told.to, told.reason), (Level::Paused, Level::Normal, Reason::Resumed));
    let (now, reached) = work(&mut watch, now, 17_000, SECOND / 5);
    assert_eq!((reached, watch.stage(now)), (vec![], Stage::Normal), "within an hour");
    let (_, reached) = work(&mut watch, now, 3_000, SECOND / 5);
    assert_eq!(reached.first(), Some(&Level::Notify), "after it");
}

#[test]
fn what_a_person_set_stays_until_it_is_resumed() {
    let (mut watch, now) = known();
    for (level, stage) in [
        (Level::Normal, Stage::Normal),
        (Level::Local, Stage::Local),
        (Level::Paused, Stage::Paused { until: None }),
        (Level::Killed, Stage::Killed),
    ] {
        watch.hold(now, level, None);
        let (later, reached) = work(&mut watch.clone(), now, 600, SECOND / 5);
        assert_eq!(reached, []);
        assert_eq!((watch.stage(later), watch.stage(i64::MAX)), (stage, stage));
    }
    assert_eq!(watch.resume(now).unwrap().from, Level::Killed);
    assert_eq!(watch.stage(now), Stage::Normal);
}

#[test]
fn what_a_person_set_for_some_time_ends_then_and_is_no_alarm() {
    let (mut watch, now) = known();
    let fresh = watch.clone();
    let told = watch.hold(now, Level::Paused, Some(now + HOUR)).unwrap();
    assert_eq!((told.to, told.reason), (Level::Paused, Reason::Held));
    assert_eq!(watch.stage(now), Stage::Paused { until: Some(now + HOUR) });
    assert_eq!(watch.tick(now + HOUR - 1), None);
    let told = watch.tick(now + HOUR).unwrap();
    assert_eq!((told.from, told.to, told.reason), (Level::Paused, Level::Normal, Reason::Released));
    assert!(!watch.is_held(now + HOUR));
    watch.hold(now + HOUR, Level::Killed, None);
    assert_eq!(watch.release(now + HOUR).unwrap().reason, Reason::Released);
    assert_eq!(watch.release(now + HOUR), None);
    let loops = |mut watch: Watch| {
        let start = now + 2 * HOUR;
        (0..600).find_map(|call| watch.admitted(start + call * SECOND, None).map(|_| call)).unwrap()
    };
    assert_eq!(loops(watch), loops(fresh), "its traffic decides as before");
}

#[test]
fn after_an_alarm_the_next_one_takes_more_until_a_month_has_passed() {
    let (mut watch, now) = known();
    let delay = |mut watch: Watch, start: i64| {
        (0..600).find_map(|call| watch.admitted(start + call * SECOND, None).map(|_| call)).unwrap()
    };
    let fresh = delay(watch.clone(), now + HOUR);
    work(&mut watch, now, 600, SECOND / 5);
    let later = now + 2 * HOUR;
    watch.tick(later);
    let doubted = delay(watch.clone(), later);
    assert!((fresh + 2..=3 * fresh).contains(&doubted), "{fresh} s before, {doubted} s after");
    let text = serde_json::to_string(&watch.baseline()).unwrap();
    let restarted = Watch::new(&VelocityConfig::default(), CAP, &serde_json::from_str(&text).unwrap());
    assert_eq!(delay(restarted, later), doubted, "also after a restart");
    let month = delay(watch, later + 31 * 24 * HOUR);
    assert!(month.abs_diff(fresh) <= 1, "{fresh} s before, {month} s a month after");
}

#[test]
fn who_is_watched_stands_beside_what_is_normal_for_it() {
    let (mut watch, now) = known();
    let [usd, _, calls, turns] = watch.standing(now).speeds;
    for (speed, normal) in [(usd, 3_600_000_000), (calls, 360), (turns, 360)] {
        assert!(speed.normal.abs_diff(normal) * 10 < normal, "{speed:?}: {normal} is normal");
        assert!(speed.present.abs_diff(normal) * 5 < normal, "{speed:?}: {normal} is what it did");
    }
    for call in 0..60 {
        watch.admitted(now + call * SECOND, None);
    }
    let present = watch.standing(now + 60 * SECOND).speeds[2].present;
    assert!((2000..3600).contains(&present), "one a second for a minute: {present}");
    assert_eq!(watch.standing(now + HOUR).speeds[2].present, 0, "it rests");
}

#[test]
fn a_pause_may_last_until_it_is_resumed_and_a_kill_always_does() {
    let rule = |at| Some(StageRule { at, cool_down: None });
    let rules = VelocityConfig { pause: rule(10.0), kill: rule(40.0), ..VelocityConfig::default() };
    for (every, level, stage) in
        [(SECOND / 2, Level::Paused, Stage::Paused { until: None }), (SECOND / 20, Level::Killed, Stage::Killed)]
    {
        let (known, now) = known();
        let mut watch = Watch::new(&rules, CAP, &known.baseline());
        let (_, reached) = work(&mut watch, now, 60 * SECOND / every * 3, every);
        assert_eq!((reached.last(), watch.stage(i64::MAX)), (Some(&level), stage));
    }
}

#[test]
fn stages_that_are_off_are_left_out() {
    let off = VelocityConfig { loop_repeats: None, drift: None, ..VelocityConfig::default() };
    let rules = VelocityConfig { notify: None, local: None, ..off };
    let (known, now) = known();
    let mut watch = Watch::new(&rules, CAP, &known.baseline());
    let (_, reached) = work(&mut watch, now, 600, SECOND / 5);
    assert_eq!(reached, [Level::Throttle, Level::Paused]);
    let rules = VelocityConfig { enabled: false, ..rules };
    let mut watch = Watch::new(&rules, CAP, &known.baseline());
    assert_eq!(work(&mut watch, now, 600, SECOND / 20).1, []);
}

#[test]
fn a_stage_that_is_turned_off_ends_unless_it_is_a_kill_or_was_set_by_hand() {
    let rules = VelocityConfig::default();
    let (known, now) = known();
    let reached = |wanted: Level| {
        let mut watch = known.clone();
        let call = (0..600).find(|call| {
            let told = watch.admitted(now + call * SECOND / 5, None);
            told.is_some_and(|told| told.to == wanted)
        });
        (watch, now + call.unwrap() * SECOND / 5)
    };
    let (mut watch, at) = reached(Level::Local);
    watch.configure(&VelocityConfig { local: None, ..rules.clone() }, CAP);
    assert_eq!(watch.stage(at).level(), Level::Throttle, "the next milder one");
    let told = watch.tick(at).unwrap();
    assert_eq!((told.from, told.to, told.reason), (Level::Local, Level::Throttle, Reason::Off));
    assert_eq!(watch.tick(at), None, "told once");
    let (mut watch, at) = reached(Level::Paused);
    watch.configure(&VelocityConfig { enabled: false, ..rules.clone() }, CAP);
    assert_eq!(watch.tick(at).unwrap().to, Level::Normal);
    for level in [Level::Throttle, Level::Paused, Level::Killed] {
        let mut watch = known.clone();
        watch.hold(now, level, None);
        watch.configure(&VelocityConfig { throttle: None, pause: None, ..rules.clone() }, CAP);
        assert_eq!((watch.stage(now).level(), watch.tick(now)), (level, None));
    }
    let rule = |at| Some(StageRule { at, cool_down: None });
    let mut watch = Watch::new(&VelocityConfig { kill: rule(17.0), ..rules.clone() }, CAP, &known.baseline());
    work(&mut watch, now, 600, SECOND / 20);
    assert_eq!(watch.stage(now + HOUR), Stage::Killed);
    watch.configure(&rules, CAP);
    assert_eq!(watch.stage(now + HOUR), Stage::Killed, "until somebody resumes it");
}

#[test]
fn a_restart_and_new_rules_forget_nothing() {
    let (mut known, now) = known();
    let text = serde_json::to_string(&known.baseline()).unwrap();
    let baseline: Baseline = serde_json::from_str(&text).unwrap();
    let mut restarted = Watch::new(&VelocityConfig::default(), CAP, &baseline);
    let normal = |watch: &Watch| watch.standing(now).speeds.map(|speed| speed.normal);
    assert_eq!((normal(&restarted), restarted.standing(now).known), (normal(&known), true));
    assert_eq!(
        work(&mut restarted, now, 600, SECOND / 5).1.last(),
        Some(&Level::Paused),
        "known, or it is throttled only"
    );
    let (later, _) = work(&mut known, now, 600, SECOND / 5);
    let stage = known.stage(later);
    known.configure(&VelocityConfig::default(), None);
    assert_eq!(known.stage(later), stage);
    for nonsense in ["null", "-1.0", "1e300"] {
        let broken = text.replacen("0.0", nonsense, 1);
        if let Ok(baseline) = serde_json::from_str::<Baseline>(&broken) {
            let mut watch = Watch::new(&VelocityConfig::default(), CAP, &baseline);
            work(&mut watch, 0, 100, SECOND);
        }
    }
}

#[test]
fn a_watch_is_small() {
    assert!(size_of::<Watch>() < 4096);
}

#[derive(Debug, Clone)]
enum Step {
    Admitted(i64, Option<u64>),
    Spent(i64, i64, u64),
    Tick(i64),
    Resume(i64),
    Hold(i64, Level),
}

fn step() -> impl Strategy<Value = Step> {
    let time = || prop_oneof![any::<i64>(), 0..HOUR, 0..60 * SECOND, Just(i64::MAX), Just(i64::MIN)];
    let level = prop::sample::select(vec![Level::Normal, Level::Throttle, Level::Paused, Level::Killed]);
    prop_oneof![
        8 => (time(), prop::option::of(0..3_u64)).prop_map(|(now, signature)| Step::Admitted(now, signature)),
        8 => (time(), any::<i64>(), any::<u64>()).prop_map(|(now, usd, tokens)| Step::Spent(now, usd, tokens)),
        2 => time().prop_map(Step::Tick),
        1 => time().prop_map(Step::Resume),
        1 => (time(), level).prop_map(|(now, level)| Step::Hold(now, level)),
    ]
}

proptest! {
    /// Any times, also backwards, and any amounts: nothing panics, what was learned stays finite, and stages change only
    /// as they may.
    #[test]
    fn any_order_of_calls_is_taken(steps in prop::collection::vec(step(), 0..200), cap in prop::option::of(any::<i64>())) {
        let mut watch = Watch::new(&VelocityConfig::default(), cap.map(Usd), &Baseline::default());
        let mut level = Level::Normal;
        for step in steps {
            let (now, told) = match step {
                Step::Admitted(now, signature) => (now, watch.admitted(now, signature)),
                Step::Spent(now, usd, tokens) => (now, watch.spent(now, Usd(usd), tokens)),
                Step::Tick(now) => (now, watch.tick(now)),
                Step::Resume(now) => (now, watch.resume(now)),
                Step::Hold(now, level) => (now, watch.hold(now, level, None)),
            };
            watch.stage(now);
            if let Some(told) = told {
                prop_assert!(told.from != told.to);
                match told.reason {
                    Reason::Fast { .. } | Reason::Loop { .. } => prop_assert!(told.to > Level::Normal),
                    Reason::Drift { .. } => prop_assert!(told.to == Level::Notify),
                    Reason::Cooled => prop_assert!(told.to < told.from && told.from <= Level::Paused),
                    Reason::Resumed | Reason::Released => prop_assert!(told.to == Level::Normal),
                    Reason::Off => prop_assert!(told.to < told.from),
                    Reason::Held => {}
                }
                level = told.to;
            }
            prop_assert!(level <= Level::Killed);
            let text = serde_json::to_string(&watch.baseline()).unwrap();
            prop_assert!(!text.contains("null"), "infinite or NaN: {text}");
        }
    }

    /// Without a hand on it, silence ends every stage.
    #[test]
    fn silence_ends_every_stage(every in 1_000..20 * SECOND, count in 1..2_000_i64, usd in 0..1_000_000_000_i64) {
        let mut watch = watch();
        for call in 0..count {
            watch.admitted(call * every, Some(1));
            watch.spent(call * every, Usd(usd), 1_000);
        }
        let week = 8 * 24 * HOUR;
        prop_assert_eq!(watch.stage(count * every + week), Stage::Normal);
        watch.tick(count * every + week);
        prop_assert_eq!(watch.tick(count * every + week + HOUR), None);
    }
}

#[test]
fn the_defaults_rise() {
    let rules = VelocityConfig::default();
    let stages = [rules.notify, rules.throttle, rules.local, rules.pause].map(|rule| rule.unwrap());
    assert!(stages.windows(2).all(|pair| pair[0].at < pair[1].at));
    assert!(stages.iter().all(|rule| rule.cool_down > Some(Duration::from_secs(60))) && rules.kill.is_none());
}
