//! Hours of every day in which people are not to be disturbed, in the local time of a place.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;

/// Days looked at for the end, and changes of the clocks looked at within them.
const AHEAD: usize = 3;

/// The hours from one time of day to another, such as 22:00 to 07:00 in Berlin. What the clock on the wall shows decides: hours that a
/// change of the clocks leaves out are not there, and those that come twice are quiet twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuietHours {
    from: Time,
    to: Time,
    zone: TimeZone,
}

impl QuietHours {
    /// From one time to another one, the next day's where it is the earlier one; `None` when they are the same.
    pub fn try_new(from: Time, to: Time, zone: TimeZone) -> Option<Self> {
        (from != to).then_some(Self { from, to, zone })
    }

    /// When the quiet hours that this moment lies in will end; `None` when it lies in none.
    pub fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        if !self.is_quiet(now) {
            return None;
        }
        // They end when the clock shows `to`, or where it is moved over it.
        let today = self.zone.to_datetime(now).date();
        let days = std::iter::successors(Some(today), |day| day.tomorrow().ok()).take(AHEAD);
        let shown = days.flat_map(|day| {
            let moment = self.zone.to_ambiguous_timestamp(DateTime::from_parts(day, self.to));
            [moment.earlier(), moment.later()].into_iter().flatten()
        });
        let moved = self.zone.following(now).take(AHEAD).map(|change| change.timestamp());
        shown.chain(moved).filter(|moment| *moment > now && !self.is_quiet(*moment)).min()
    }

    fn is_quiet(&self, moment: Timestamp) -> bool {
        let time = self.zone.to_datetime(moment).time();
        if self.from < self.to { self.from <= time && time < self.to } else { self.from <= time || time < self.to }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daily::{time_of_day, zone_named};
    use jiff::ToSpan;
    use proptest::prelude::*;

    fn hours(from: &str, to: &str, zone: &str) -> QuietHours {
        QuietHours::try_new(time_of_day(from).unwrap(), time_of_day(to).unwrap(), zone_named(zone).unwrap()).unwrap()
    }

    #[test]
    fn they_end_in_the_morning_whatever_the_clocks_do() {
        let berlin = "Europe/Berlin";
        let table = [
            ("22:00", "07:00", "UTC", "2026-11-21T21:59:59Z", None),
            ("22:00", "07:00", "UTC", "2026-11-21T22:00:00Z", Some("2026-11-22T07:00:00Z")),
            ("22:00", "07:00", "UTC", "2026-11-22T06:59:59Z", Some("2026-11-22T07:00:00Z")),
            ("22:00", "07:00", "UTC", "2026-11-22T07:00:00Z", None),
            ("12:30", "13:15", "UTC", "2026-12-31T13:00:00Z", Some("2026-12-31T13:15:00Z")),
            ("12:30", "13:15", "UTC", "2026-12-31T23:00:00Z", None),
            ("22:00", "07:00", berlin, "2026-11-21T20:59:59Z", None),
            ("22:00", "07:00", berlin, "2026-11-21T21:00:00Z", Some("2026-11-22T06:00:00Z")),
            ("22:00", "07:00", berlin, "2026-07-01T20:00:00Z", Some("2026-07-02T05:00:00Z")),
            // The nights in which the clocks change have an hour less and an hour more.
            ("22:00", "07:00", berlin, "2026-03-28T21:00:00Z", Some("2026-03-29T05:00:00Z")),
            ("22:00", "07:00", berlin, "2026-10-24T20:00:00Z", Some("2026-10-25T06:00:00Z")),
            // 02:00 to 03:00 is left out: what would end or begin within it ends or begins with the change.
            ("22:00", "02:30", berlin, "2026-03-29T00:30:00Z", Some("2026-03-29T01:00:00Z")),
            ("02:30", "03:15", berlin, "2026-03-29T01:05:00Z", Some("2026-03-29T01:15:00Z")),
            ("02:30", "03:15", berlin, "2026-03-29T01:20:00Z", None),
            // 02:00 to 03:00 comes twice.
            ("02:10", "02:40", berlin, "2026-10-25T00:20:00Z", Some("2026-10-25T00:40:00Z")),
            ("02:10", "02:40", berlin, "2026-10-25T00:50:00Z", None),
            ("02:10", "02:40", berlin, "2026-10-25T01:20:00Z", Some("2026-10-25T01:40:00Z")),
        ];
        for (from, to, zone, now, expected) in table {
            let until = hours(from, to, zone).quiet_until(now.parse().unwrap());
            assert_eq!(until, expected.map(|end| end.parse().unwrap()), "{from} to {to} {zone} at {now}");
        }
    }

    proptest! {
        /// Minute by minute through the days around both changes of the clocks.
        #[test]
        fn they_end_at_the_first_minute_that_is_not_quiet(from in 0i8..96, to in 0i8..96, start in 0i64..3000, spring: bool) {
            prop_assume!(from != to);
            let time = |quarter: i8| Time::constant(quarter / 4, quarter % 4 * 15, 0, 0);
            let zone = zone_named("Europe/Berlin").unwrap();
            let hours = QuietHours::try_new(time(from), time(to), zone).unwrap();
            let day: Timestamp = if spring { "2026-03-28T00:00:00Z" } else { "2026-10-24T00:00:00Z" }.parse().unwrap();
            let now = day + start.minutes();
            let loud = (0..3000).map(|minutes| now + minutes.minutes()).find(|moment| !hours.is_quiet(*moment));
            prop_assert_eq!(hours.quiet_until(now), loud.filter(|end| *end > now));
        }
    }
}
