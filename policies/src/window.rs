//! When the calendar window that holds a moment began, and when it ends, in a time zone.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use tollkeeper_config::Window;

const MINUTE: i64 = 60_000_000;
const HOUR: i64 = 60 * MINUTE;

/// First microsecond of the calendar window that holds `at` and first microsecond after it, both since 1970. Totals, and
/// years that a timestamp cannot hold, have no bounds. An hour that the clocks repeat is two hours; a day or more is as
/// long as the clocks make it.
pub(crate) fn bounds(window: Window, zone: &TimeZone, at: i64) -> (i64, i64) {
    let found = match window {
        Window::Minute => aligned(zone, at, MINUTE),
        Window::Hour => aligned(zone, at, HOUR),
        Window::Day | Window::Week | Window::Month => dates(window, zone, at),
        Window::Total | Window::Rolling(_) => None,
    };
    // A clock that jumps at a window's edge must not leave a moment outside its window.
    found.filter(|(start, end)| (*start..*end).contains(&at)).unwrap_or((i64::MIN, i64::MAX))
}

fn aligned(zone: &TimeZone, at: i64, length: i64) -> Option<(i64, i64)> {
    let offset = zone.to_offset(Timestamp::from_microsecond(at).ok()?);
    let local = at.checked_add(i64::from(offset.seconds()) * 1_000_000)?;
    let start = at.checked_sub(local.rem_euclid(length))?;
    Some((start, start.checked_add(length)?))
}

fn dates(window: Window, zone: &TimeZone, at: i64) -> Option<(i64, i64)> {
    let date = zone.to_datetime(Timestamp::from_microsecond(at).ok()?).date();
    let (first, length) = match window {
        Window::Week => (date.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()?, 7.days()),
        Window::Month => (date.first_of_month(), 1.month()),
        _ => (date, 1.day()),
    };
    let midnight = |date: Date| Some(date.to_zoned(zone.clone()).ok()?.timestamp().as_microsecond());
    Some((midnight(first)?, midnight(first.checked_add(length).ok()?)?))
}

/// The beginning of a window as callers read it: `None` when it has none.
pub(crate) fn start_time(start: i64) -> Option<Timestamp> {
    (start != i64::MIN).then(|| Timestamp::from_microsecond(start).ok()).flatten()
}

/// The end of a window as callers read it: `None` when it has none.
pub(crate) fn reset_time(end: i64) -> Option<Timestamp> {
    (end != i64::MAX).then(|| Timestamp::from_microsecond(end).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALENDAR: [Window; 6] =
        [Window::Minute, Window::Hour, Window::Day, Window::Week, Window::Month, Window::Total];

    fn micros(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    #[test]
    fn windows_begin_and_end_where_the_calendar_says() {
        let cases = [
            (Window::Minute, "UTC", "2024-02-29T23:59:59.999999Z", "2024-02-29T23:59:00Z", "2024-03-01T00:00:00Z"),
            (Window::Hour, "UTC", "2024-02-29T23:59:59.999999Z", "2024-02-29T23:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Hour, "Asia/Kolkata", "2024-02-29T12:29:59Z", "2024-02-29T11:30:00Z", "2024-02-29T12:30:00Z"),
            // The clocks are put back at 01:00 UTC: the hour from two to three comes twice.
            (Window::Hour, "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
            (Window::Hour, "Europe/Berlin", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"),
            (Window::Day, "UTC", "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Day, "Europe/Berlin", "2026-11-21T23:00:00Z", "2026-11-21T23:00:00Z", "2026-11-22T23:00:00Z"),
            // 25 hours, and 23.
            (Window::Day, "Europe/Berlin", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (Window::Day, "Europe/Berlin", "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),
            // A day that begins at one o'clock, since midnight is left out.
            (Window::Day, "America/Asuncion", "2023-10-01T12:00:00Z", "2023-10-01T04:00:00Z", "2023-10-02T03:00:00Z"),
            (Window::Week, "UTC", "2024-03-03T23:59:59Z", "2024-02-26T00:00:00Z", "2024-03-04T00:00:00Z"), // a Sunday
            (Window::Week, "UTC", "2024-03-04T00:00:00Z", "2024-03-04T00:00:00Z", "2024-03-11T00:00:00Z"), // a Monday
            (Window::Month, "UTC", "2023-12-31T23:59:59Z", "2023-12-01T00:00:00Z", "2024-01-01T00:00:00Z"),
            (Window::Month, "UTC", "2024-02-10T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Month, "America/New_York", "2024-03-01T04:59:59Z", "2024-02-01T05:00:00Z", "2024-03-01T05:00:00Z"),
        ];
        for (window, zone, at, start, end) in cases {
            let zone = TimeZone::get(zone).unwrap();
            assert_eq!(bounds(window, &zone, micros(at)), (micros(start), micros(end)), "{window} at {at}");
        }
        assert_eq!(bounds(Window::Total, &TimeZone::UTC, 0), (i64::MIN, i64::MAX));
    }

    #[test]
    fn every_moment_lies_in_its_window() {
        for zone in ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Asuncion"] {
            let zone = TimeZone::get(zone).unwrap();
            let (mut at, end) = (micros("2023-01-01T00:00:00Z"), micros("2024-02-01T00:00:00Z"));
            while at < end {
                for window in CALENDAR {
                    let (start, end) = bounds(window, &zone, at);
                    assert!(start <= at && at < end, "{window} at {at}");
                    assert!(window == Window::Total || start != i64::MIN);
                }
                at += 17 * MINUTE + 1;
            }
        }
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for at in [i64::MIN, i64::MAX, Timestamp::MAX.as_microsecond(), Timestamp::MIN.as_microsecond()] {
            for window in CALENDAR {
                let (start, end) = bounds(window, &TimeZone::UTC, at);
                assert!(start < end);
            }
        }
    }
}
