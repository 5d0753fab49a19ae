//! Leaves out notices that say again what was said a short time ago, and counts them.

use super::Notice;
use std::collections::HashMap;
use std::time::Duration;
use tollkeeper_config::NoticeKind;

/// Notices remembered; there are as many as there are agents, runs and backends with trouble.
const MOST: usize = 4096;

/// What was said of late.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<(NoticeKind, String), Said>);

#[derive(Debug)]
struct Said {
    at: Duration,
    left_out: u64,
    /// The contrary was said since.
    over: bool,
}

impl Repeats {
    /// Whether a notice is to be sent now, and if so, how many of the same were left out since the last one. `after`: for so long they are.
    pub(super) fn admit(&mut self, notice: &Notice, now: Duration, after: Option<Duration>) -> Option<u64> {
        let Some(after) = after else { return Some(0) };
        let name = name(notice.kind, notice);
        if let Some(said) = self.0.get_mut(&name).filter(|said| !said.over && now < said.at + after) {
            said.left_out += 1;
            return None;
        }
        if self.0.len() >= MOST && !self.0.contains_key(&name) {
            self.forget_oldest();
        }
        let before = self.0.insert(name, Said { at: now, left_out: 0, over: false });
        Some(before.map_or(0, |said| said.left_out))
    }

    /// Something has happened, whether or not it is to be told: its contrary is news from now on.
    pub(super) fn happened(&mut self, notice: &Notice) {
        for opposite in notice.kind.opposites() {
            if let Some(said) = self.0.get_mut(&name(*opposite, notice)) {
                said.over = true;
            }
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.0.iter().min_by_key(|(_, said)| said.at).map(|(name, _)| name.clone()) {
            self.0.remove(&oldest);
        }
    }
}

/// What repetitions of a notice have in common, if it were of this kind.
fn name(kind: NoticeKind, notice: &Notice) -> (NoticeKind, String) {
    (kind, format!("{}\0{}", notice.subject, notice.key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    const TEN_MINUTES: Option<Duration> = Some(Duration::from_secs(600));

    fn notice(kind: NoticeKind, subject: &str, key: &str) -> Notice {
        Notice::new(kind, Timestamp::UNIX_EPOCH, subject, "It happened.").key(key)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn of_863_refusals_one_is_told_and_the_next_one_says_how_many_were_left_out() {
        let mut repeats = Repeats::default();
        let denied = notice(NoticeKind::Denied, "agent scout", "day");
        let told: Vec<_> = (0..863).filter_map(|_| repeats.admit(&denied, seconds(5), TEN_MINUTES)).collect();
        assert_eq!(told, [0]);
        assert_eq!(repeats.admit(&denied, seconds(604), TEN_MINUTES), None);
        assert_eq!(repeats.admit(&denied, seconds(605), TEN_MINUTES), Some(863));
        assert_eq!(repeats.admit(&denied, seconds(1205), TEN_MINUTES), Some(0));
    }

    #[test]
    fn another_kind_subject_or_key_is_another_notice() {
        let mut repeats = Repeats::default();
        for notice in [
            notice(NoticeKind::Threshold, "agent scout", "day 50"),
            notice(NoticeKind::Threshold, "agent scout", "day 80"),
            notice(NoticeKind::Threshold, "agent other", "day 80"),
            notice(NoticeKind::Denied, "agent scout", "day 80"),
            notice(NoticeKind::Denied, "agent scoutd", "ay 80"),
        ] {
            assert_eq!(repeats.admit(&notice, seconds(1), TEN_MINUTES), Some(0), "{notice:?}");
        }
    }

    #[test]
    fn a_stop_that_follows_its_contrary_is_news() {
        for (down, up) in [
            (NoticeKind::BackendDown, NoticeKind::BackendUp),
            (NoticeKind::StoreDown, NoticeKind::StoreUp),
            (NoticeKind::Paused, NoticeKind::Resumed),
            (NoticeKind::Killed, NoticeKind::Resumed),
        ] {
            let mut repeats = Repeats::default();
            let (other, down, up) = (notice(up, "other", ""), notice(down, "b", ""), notice(up, "b", ""));
            assert_eq!(repeats.admit(&down, seconds(1), TEN_MINUTES), Some(0));
            assert_eq!(repeats.admit(&down, seconds(2), TEN_MINUTES), None);
            repeats.happened(&other);
            assert_eq!(repeats.admit(&down, seconds(3), TEN_MINUTES), None);
            repeats.happened(&up);
            assert_eq!(repeats.admit(&down, seconds(4), TEN_MINUTES), Some(2));
            assert_eq!(repeats.admit(&down, seconds(5), TEN_MINUTES), None);
        }
    }

    #[test]
    fn nothing_is_left_out_when_that_is_off_and_memory_is_bounded() {
        let mut repeats = Repeats::default();
        let denied = notice(NoticeKind::Denied, "agent scout", "day");
        assert!((0..3).all(|_| repeats.admit(&denied, seconds(1), None) == Some(0)));
        for subject in 0..MOST as u64 + 10 {
            let denied = notice(NoticeKind::Denied, &subject.to_string(), "");
            assert_eq!(repeats.admit(&denied, seconds(subject), TEN_MINUTES), Some(0));
        }
        assert_eq!(repeats.0.len(), MOST);
    }
}
