//! Times are arguments: whole nights pass in microseconds.

use super::*;
use jiff::civil::Time;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use tollkeeper_config::NoticeKind;

const EVENING: &str = "2026-11-21T20:59:00Z";
const NIGHT: &str = "2026-11-21T21:30:00Z";
const MORNING: &str = "2026-11-22T06:00:00Z";

/// 22:00 to 07:00 in Berlin: 21:00 to 06:00 in UTC, in winter.
fn nights() -> QuietHours {
    let hour = |hour| Time::constant(hour, 0, 0, 0);
    QuietHours::try_new(hour(22), hour(7), TimeZone::get("Europe/Berlin").unwrap()).unwrap()
}

fn at(wall: &str, up: u64) -> Moment {
    Moment { wall: wall.parse().unwrap(), up: Duration::from_secs(up) }
}

fn parcel(id: &str, kind: NoticeKind) -> Parcel {
    let notice = Notice::new(kind, Timestamp::UNIX_EPOCH, "agent scout", id);
    Parcel::new(id.into(), Entry { notice: Arc::new(notice), left_out: 0 })
}

fn reminder(id: &str) -> Parcel {
    parcel(id, NoticeKind::Threshold)
}

fn stop(id: &str) -> Parcel {
    parcel(id, NoticeKind::Paused)
}

fn texts(parcel: &Parcel) -> Vec<&str> {
    parcel.entries.iter().map(|entry| &*entry.notice.text).collect()
}

/// The parcel to be tried; its id and what is in it.
fn tried(queue: &mut Queue, now: Moment, quiet: Option<&QuietHours>) -> Parcel {
    match queue.next(now, quiet, || "together".into()) {
        Next::Try(parcel) => parcel,
        other => panic!("{other:?}"),
    }
}

fn waits(queue: &mut Queue, now: Moment, quiet: Option<&QuietHours>) -> Duration {
    match queue.next(now, quiet, || "together".into()) {
        Next::Wait(time) => time,
        other => panic!("{other:?}"),
    }
}

fn ids(parcels: &[Parcel]) -> Vec<&str> {
    parcels.iter().map(|parcel| &*parcel.id).collect()
}

#[test]
fn stops_go_first_then_the_oldest() {
    let mut queue = Queue::default();
    for parcel in [reminder("a"), stop("b"), reminder("c"), stop("d")] {
        assert!(queue.push(parcel, 10).is_empty());
    }
    let order: Vec<_> = (0..4).map(|_| tried(&mut queue, at(EVENING, 0), Some(&nights())).id).collect();
    assert_eq!(order.iter().map(|id| &**id).collect::<Vec<_>>(), ["b", "d", "a", "c"]);
    assert!(matches!(queue.next(at(EVENING, 0), None, || "x".into()), Next::Empty));
    assert_eq!(queue.len(), 0);
}

#[test]
fn at_night_stops_are_sent_and_reminders_come_together_in_the_morning() {
    let (mut queue, quiet) = (Queue::default(), nights());
    queue.push(reminder("a"), 10);
    queue.push(stop("b"), 10);
    queue.push(reminder("c"), 10);
    assert_eq!(&*tried(&mut queue, at(NIGHT, 0), Some(&quiet)).id, "b");
    assert_eq!(waits(&mut queue, at(NIGHT, 0), Some(&quiet)), LOOK_AGAIN);
    // After midnight, and just before the end.
    assert_eq!(waits(&mut queue, at("2026-11-22T05:59:50Z", 0), Some(&quiet)), Duration::from_secs(10));
    let digest = tried(&mut queue, at(MORNING, 0), Some(&quiet));
    assert_eq!((&*digest.id, texts(&digest)), ("together", vec!["a", "c"]));
    assert_eq!(queue.len(), 0);
}

#[test]
fn one_reminder_of_the_night_keeps_its_id_and_so_does_one_that_was_tried() {
    let (mut queue, quiet) = (Queue::default(), nights());
    queue.push(reminder("tried"), 10);
    let mut failed = tried(&mut queue, at(EVENING, 0), Some(&quiet));
    failed.tries = 1;
    queue.again(failed, Duration::from_secs(5), false);
    queue.push(reminder("new"), 10);
    assert_eq!(waits(&mut queue, at(NIGHT, 9), Some(&quiet)), LOOK_AGAIN);
    let mut sent = [tried(&mut queue, at(MORNING, 9), None).id, tried(&mut queue, at(MORNING, 9), None).id];
    sent.sort();
    assert_eq!(sent.map(|id| id.to_string()), ["new", "tried"]);
}

#[test]
fn many_reminders_come_in_several_parcels() {
    let (mut queue, quiet) = (Queue::default(), nights());
    (0..250).for_each(|number| drop(queue.push(reminder(&number.to_string()), 1000)));
    waits(&mut queue, at(NIGHT, 0), Some(&quiet));
    let sizes: Vec<_> = (0..3).map(|_| tried(&mut queue, at(MORNING, 0), Some(&quiet)).entries.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn what_failed_waits_for_its_pause_and_delays_nothing_else() {
    let mut queue = Queue::default();
    let seconds = Duration::from_secs;
    queue.push(stop("failed"), 10);
    let failed = tried(&mut queue, at(NIGHT, 1), None);
    queue.again(failed, seconds(8), false);
    assert_eq!(waits(&mut queue, at(NIGHT, 1), None), seconds(7));
    queue.push(reminder("new"), 10);
    assert_eq!(&*tried(&mut queue, at(NIGHT, 2), None).id, "new");
    assert_eq!(&*tried(&mut queue, at(NIGHT, 8), None).id, "failed");
}

#[test]
fn a_new_stop_does_not_wait_for_what_failed_before() {
    let mut queue = Queue::default();
    queue.push(stop("failed"), 10);
    let mut failed = tried(&mut queue, at(NIGHT, 0), None);
    failed.tries = 1;
    queue.again(failed, Duration::ZERO, false);
    queue.push(reminder("reminder"), 10);
    queue.push(stop("new"), 10);
    let order: Vec<_> = (0..3).map(|_| tried(&mut queue, at(NIGHT, 0), None).id.to_string()).collect();
    assert_eq!(order, ["new", "failed", "reminder"]);
}

#[test]
fn a_receiver_that_asks_for_silence_gets_it() {
    let mut queue = Queue::default();
    let seconds = Duration::from_secs;
    queue.push(stop("failed"), 10);
    let failed = tried(&mut queue, at(NIGHT, 0), None);
    queue.again(failed, seconds(30), true);
    queue.push(stop("new"), 10);
    assert_eq!(waits(&mut queue, at(NIGHT, 10), None), seconds(20));
    queue.hurry();
    assert_eq!(&*tried(&mut queue, at(NIGHT, 10), None).id, "failed");
}

#[test]
fn a_full_queue_drops_the_oldest_reminder_first() {
    let mut queue = Queue::default();
    for parcel in [stop("a"), reminder("b"), stop("c")] {
        assert!(queue.push(parcel, 3).is_empty());
    }
    assert_eq!(ids(&queue.push(reminder("d"), 3)), ["b"]);
    assert_eq!(ids(&queue.push(stop("e"), 3)), ["d"]);
    assert_eq!(ids(&queue.push(reminder("f"), 3)), ["f"]);
    assert_eq!(ids(&queue.push(stop("g"), 3)), ["a"]);
    assert_eq!(ids(&queue.drain()), ["c", "e", "g"]);
}

#[test]
fn at_the_end_everything_is_tried_at_once_but_reminders_at_night() {
    let (mut queue, quiet) = (Queue::default(), nights());
    queue.push(stop("failed"), 10);
    let failed = tried(&mut queue, at(NIGHT, 0), None);
    queue.again(failed, Duration::from_secs(3600), true);
    queue.push(reminder("reminder"), 10);
    assert!(matches!(queue.next_at_end(at(NIGHT, 1), Some(&quiet)), Next::Try(parcel) if &*parcel.id == "failed"));
    assert!(matches!(queue.next_at_end(at(NIGHT, 1), Some(&quiet)), Next::Bury(parcel) if &*parcel.id == "reminder"));
    assert!(matches!(queue.next_at_end(at(NIGHT, 1), Some(&quiet)), Next::Empty));
    queue.push(reminder("reminder"), 10);
    assert!(matches!(queue.next_at_end(at(MORNING, 1), Some(&quiet)), Next::Try(parcel) if &*parcel.id == "reminder"));
}

#[test]
fn pauses_double_up_to_the_longest_and_are_random_down_to_nothing() {
    let (first, longest) = (Duration::from_secs(1), Duration::from_secs(300));
    let longests: Vec<_> = (1..=11).map(|tries| pause(first, longest, tries, 1.0).as_secs()).collect();
    assert_eq!(longests, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(pause(first, longest, 3, 0.5), Duration::from_secs(2));
    assert_eq!(pause(first, longest, 3, 0.0), Duration::ZERO);
    assert_eq!(pause(first, longest, u32::MAX, 1.0), longest);
}

#[derive(Debug, Clone)]
enum Step {
    Push { urgent: bool },
    Next { fails: bool },
    Pass { minutes: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(|urgent| Step::Push { urgent }),
        any::<bool>().prop_map(|fails| Step::Next { fails }),
        (0u16..300).prop_map(|minutes| Step::Pass { minutes }),
    ]
}

proptest! {
    /// Every notice is sent or dropped exactly once or still waits, no reminder is sent when it is quiet, and no stop waits for the morning.
    #[test]
    fn nothing_is_lost_or_doubled_and_quiet_is_quiet(steps in prop::collection::vec(step(), 0..120), limit in 1usize..8) {
        let (mut queue, quiet) = (Queue::default(), nights());
        let (mut now, mut made, mut made_ids, mut gone) = (at(EVENING, 0), 0, 0, Vec::new());
        for step in steps {
            match step {
                Step::Push { urgent } => {
                    made += 1;
                    let name = made.to_string();
                    let dropped = queue.push(if urgent { stop(&name) } else { reminder(&name) }, limit);
                    gone.extend(dropped);
                    prop_assert!(queue.len() <= limit);
                }
                Step::Next { fails } => {
                    let make_id = || { made_ids += 1; format!("digest-{made_ids}").into() };
                    match queue.next(now, Some(&quiet), make_id) {
                        Next::Try(mut parcel) => {
                            prop_assert!(parcel.urgent || quiet.quiet_until(now.wall).is_none());
                            parcel.tries += 1;
                            if fails {
                                queue.again(parcel, now.up + Duration::from_secs(90), false);
                            } else {
                                gone.push(parcel);
                            }
                        }
                        Next::Wait(time) => prop_assert!(!time.is_zero() && time <= Duration::from_secs(90)),
                        Next::Empty => prop_assert_eq!(queue.len(), 0),
                        Next::Bury(parcel) => prop_assert!(false, "{:?}", parcel),
                    }
                }
                Step::Pass { minutes } => {
                    let passed = Duration::from_secs(u64::from(minutes) * 60);
                    now = Moment { wall: now.wall + passed, up: now.up + passed };
                }
            }
        }
        let waiting = queue.len();
        let left = queue.drain();
        prop_assert_eq!(left.iter().map(|parcel| parcel.entries.len()).sum::<usize>(), waiting);
        gone.extend(left);
        let mut seen: Vec<u32> = gone.iter().flat_map(texts).map(|text| text.parse().unwrap()).collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (1..=made).collect::<Vec<u32>>());
    }
}
