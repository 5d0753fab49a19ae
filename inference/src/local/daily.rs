//! Wishes for models at their times of day.

use super::swap::ModelKey;
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::watch;
use tollkeeper_config::DailyTime;

/// A model that could not be loaded without disturbing others for so long after its time is not loaded for that time any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// The clock on the wall may be set, and a machine may sleep: it is looked at so often.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Which models are loaded when.
pub(crate) type Timetable = Vec<(ModelKey, Vec<DailyTime>)>;

/// Wishes for each model at its times, as long as there is somebody who may change the timetable.
pub(crate) async fn ring(
    mut timetable: watch::Receiver<Timetable>,
    wall: impl Fn() -> Timestamp,
    wish: impl Fn(ModelKey),
) {
    let mut seen = wall();
    loop {
        let table = timetable.borrow_and_update().clone();
        let times = table.iter().flat_map(|(_, times)| times);
        let next = times.filter_map(|time| time.next(seen)).min();
        let wait = next.map_or(LONGEST_SLEEP, |next| until(wall(), next).min(LONGEST_SLEEP));
        if let Ok(Err(_)) = tokio::time::timeout(wait, timetable.changed()).await {
            return;
        }
        let now = wall();
        let due = |time: &DailyTime| time.next(seen).is_some_and(|at| at <= now);
        table.iter().filter(|(_, times)| times.iter().any(due)).for_each(|(model, _)| wish(*model));
        seen = now;
    }
}

fn until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(then.duration_since(now)).unwrap_or(Duration::ZERO).max(SHORTEST_SLEEP)
}

/// Timers are not as fine as clocks: a moment too early would be slept through in many small steps.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;
    use std::cell::RefCell;
    use std::rc::Rc;
    use tokio::time::Instant;

    fn daily(times: &[&str]) -> Vec<DailyTime> {
        let times: Vec<String> = times.iter().map(|time| format!("{time:?}")).collect();
        let text = format!("[[local.models]]\nname = \"m\"\npath = \"m\"\npreload_at = [{}]", times.join(","));
        let config = tollkeeper_config::parse(&text, "t.toml".as_ref(), &|_| None).unwrap();
        config.local.models["m"].preload_at.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn models_are_wished_for_at_their_times_every_day() {
        let (start, base): (Instant, Timestamp) = (Instant::now(), "2026-11-21T06:00:00Z".parse().unwrap());
        // Once the clock is set an hour forward, over a time.
        let set = Rc::new(RefCell::new(SignedDuration::ZERO));
        let clock = set.clone();
        let wall = move || base + SignedDuration::try_from(start.elapsed()).unwrap() + *clock.borrow();
        let wished = Rc::new(RefCell::new(Vec::new()));
        let (change, timetable) =
            watch::channel(vec![(1, daily(&["08:30", "20:00"])), (2, daily(&["08:30 Europe/Berlin"]))]);
        let (noted, at) = (wished.clone(), wall.clone());
        let wish = move |model| noted.borrow_mut().push((model, at().strftime("%dT%H:%M:%S").to_string()));
        let bell = ring(timetable, wall, wish);
        let script = async {
            tokio::time::sleep(Duration::from_secs(30 * 3600)).await;
            let two_days: Vec<_> = std::mem::take(&mut *wished.borrow_mut());
            change.send(vec![(3, daily(&["12:30"]))]).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            *set.borrow_mut() = SignedDuration::from_hours(1);
            tokio::time::sleep(Duration::from_secs(120)).await;
            drop(change);
            two_days
        };
        let (two_days, ()) = tokio::join!(script, bell);
        let expected =
            [(2, "21T07:30:00"), (1, "21T08:30:00"), (1, "21T20:00:00"), (2, "22T07:30:00"), (1, "22T08:30:00")];
        let shown: Vec<(u32, &str)> = two_days.iter().map(|(model, at)| (*model, &at[..11])).collect();
        assert_eq!(shown, expected);
        let late = wished.borrow().clone();
        assert!(matches!(&late[..], [(3, at)] if at.starts_with("22T13:")), "slept over and made up for: {late:?}");
    }
}
