//! A time of day at which something happens every day, in UTC or in the local time of a place.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;

/// Days looked at for the next time: a zone may skip one, and time may be near the end of another.
const DAYS: usize = 3;

/// A time of day, such as `08:30 Europe/Berlin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DailyTime {
    time: Time,
    zone: TimeZone,
}

impl DailyTime {
    /// Reads `HH:MM` (UTC) or `HH:MM ZONE`, where the zone is one of the IANA database that this machine has.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (time, zone) = text.split_once(' ').unwrap_or((text, "UTC"));
        let time = time_of_day(time).ok_or_else(|| format!(", found \"{text}\""))?;
        let zone = zone_named(zone)?;
        Ok(Self { time, zone })
    }

    /// The first moment after this one at which it is that time. A time that a change of the clocks leaves out comes as much later as
    /// they are moved; one that comes twice counts the first time.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let mut date = self.zone.to_datetime(after).date();
        for _ in 0..DAYS {
            let moment = DateTime::from_parts(date, self.time).to_zoned(self.zone.clone()).ok()?.timestamp();
            if moment > after {
                return Some(moment);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }
}

/// Reads `HH:MM`.
pub(crate) fn time_of_day(text: &str) -> Option<Time> {
    let (hour, minute) = text.split_once(':')?;
    let number = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<i8>().ok()).flatten()
    };
    Time::new(number(hour)?, number(minute)?, 0, 0).ok()
}

/// A zone of the IANA database that this machine has, or `UTC`.
///
/// # Errors
/// There is none of that name; the text is the end of a sentence.
pub fn zone_named(name: &str) -> Result<TimeZone, String> {
    let unknown = |_| format!("; \"{name}\" is no time zone that this machine knows");
    if name == "UTC" { Ok(TimeZone::UTC) } else { TimeZone::get(name).map_err(unknown) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_time_is_today_or_tomorrow_or_when_the_clocks_say() {
        let table = [
            ("08:30", "2026-11-21T08:29:59Z", "2026-11-21T08:30:00Z"),
            ("08:30", "2026-11-21T08:30:00Z", "2026-11-22T08:30:00Z"),
            ("00:00", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"),
            ("08:30 Europe/Berlin", "2026-11-21T08:00:00Z", "2026-11-22T07:30:00Z"),
            ("08:30 Europe/Berlin", "2026-07-01T00:00:00Z", "2026-07-01T06:30:00Z"),
            ("08:30 Asia/Kolkata", "2026-11-21T02:59:00Z", "2026-11-21T03:00:00Z"),
            // Left out on this day, and twice on that one.
            ("02:30 Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"),
            ("02:30 Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25T00:30:00Z"),
            ("02:30 Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ];
        for (time, after, expected) in table {
            let next = DailyTime::parse(time).unwrap().next(after.parse().unwrap());
            assert_eq!(next, Some(expected.parse().unwrap()), "{time} after {after}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in ["", "8:30", "08:60", "24:00", "08.30", "+8:30", "08:30:00", "08:30 Mars/Olympus", "08:30 "] {
            DailyTime::parse(text).unwrap_err();
        }
    }
}
