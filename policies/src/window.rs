//! Calendar windows in UTC: when the one that holds a moment began, and when it ends.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};
use tollkeeper_config::Window;

/// All windows, in the order of `window as usize`.
pub(crate) const WINDOWS: [Window; 6] =
    [Window::Minute, Window::Hour, Window::Day, Window::Week, Window::Month, Window::Total];

/// The name of a window in configuration files, errors and metrics.
pub fn window_name(window: Window) -> &'static str {
    match window {
        Window::Minute => "minute",
        Window::Hour => "hour",
        Window::Day => "day",
        Window::Week => "week",
        Window::Month => "month",
        Window::Total => "total",
    }
}

/// First microsecond of the window that holds `at` and first microsecond after it, both since 1970. Years that a
/// timestamp cannot hold, and totals, have no bounds.
pub(crate) fn bounds(window: Window, at: i64) -> (i64, i64) {
    calendar(window, at).unwrap_or((i64::MIN, i64::MAX))
}

fn calendar(window: Window, at: i64) -> Option<(i64, i64)> {
    let now = TimeZone::UTC.to_datetime(Timestamp::from_microsecond(at).ok()?);
    let (date, midnight) = (now.date(), now.date().at(0, 0, 0, 0));
    let (start, length): (DateTime, Span) = match window {
        Window::Minute => (date.at(now.hour(), now.minute(), 0, 0), 1.minute()),
        Window::Hour => (date.at(now.hour(), 0, 0, 0), 1.hour()),
        Window::Day => (midnight, 1.day()),
        Window::Week => {
            (midnight.checked_sub(i64::from(date.weekday().to_monday_zero_offset()).days()).ok()?, 7.days())
        }
        Window::Month => (date.first_of_month().at(0, 0, 0, 0), 1.month()),
        Window::Total => return None,
    };
    let micros = |time: DateTime| TimeZone::UTC.to_timestamp(time).ok().map(Timestamp::as_microsecond);
    Some((micros(start)?, micros(start.checked_add(length).ok()?)?))
}

/// The end of a window as callers read it: `None` when it has none.
pub(crate) fn reset_time(end: i64) -> Option<Timestamp> {
    (end != i64::MAX).then(|| Timestamp::from_microsecond(end).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_and_end_where_the_calendar_says() {
        let cases = [
            (Window::Minute, "2024-02-29T23:59:59.999999Z", "2024-02-29T23:59:00Z", "2024-03-01T00:00:00Z"),
            (Window::Hour, "2024-02-29T23:59:59.999999Z", "2024-02-29T23:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Day, "2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Window::Week, "2024-03-03T23:59:59Z", "2024-02-26T00:00:00Z", "2024-03-04T00:00:00Z"), // a Sunday
            (Window::Week, "2024-03-04T00:00:00Z", "2024-03-04T00:00:00Z", "2024-03-11T00:00:00Z"), // a Monday
            (Window::Month, "2023-12-31T23:59:59Z", "2023-12-01T00:00:00Z", "2024-01-01T00:00:00Z"),
            (Window::Month, "2024-02-10T12:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ];
        let micros = |text: &str| text.parse::<Timestamp>().unwrap().as_microsecond();
        for (window, at, start, end) in cases {
            assert_eq!(bounds(window, micros(at)), (micros(start), micros(end)), "{window:?} at {at}");
        }
        assert_eq!(bounds(Window::Total, 0), (i64::MIN, i64::MAX));
    }

    #[test]
    fn the_ends_of_time_do_not_panic() {
        for at in [i64::MIN, i64::MAX, Timestamp::MAX.as_microsecond(), Timestamp::MIN.as_microsecond()] {
            for window in WINDOWS {
                let (start, end) = bounds(window, at);
                assert!(start < end);
            }
        }
    }

    #[test]
    fn windows_are_listed_in_the_order_of_their_discriminants() {
        for (place, window) in WINDOWS.into_iter().enumerate() {
            assert_eq!(window as usize, place);
        }
    }
}
