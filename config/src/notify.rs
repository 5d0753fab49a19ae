//! Who is told of what happens: kinds of notices, and the webhooks that get them.

use crate::quiet::QuietHours;
use crate::units::Secret;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NoticeKind {
    /// A budget is spent up to one of its thresholds.
    Threshold,
    /// A request was refused because a budget does not afford it.
    Denied,
    /// Requests go to cheaper targets.
    Degraded,
    /// Requests are slowed down.
    Throttled,
    /// An agent or run may send nothing.
    Paused,
    /// It may again.
    Resumed,
    /// An agent or run was ended.
    Killed,
    /// A provider charged more than was set aside.
    Overrun,
    /// A run came to its end.
    RunEnded,
    /// A backend cannot be used.
    BackendDown,
    /// It can again.
    BackendUp,
    /// The store cannot be written, so that nothing that costs money is served.
    StoreDown,
    /// It can again.
    StoreUp,
}

/// A kind, its name, whether it is urgent, and the kinds that say the contrary.
type Row = (NoticeKind, &'static str, bool, &'static [NoticeKind]);

impl NoticeKind {
    /// All kinds. Urgent is what stops somebody's work or costs more than it may; the rest are reminders.
    const TABLE: [Row; 13] = [
        (Self::Threshold, "threshold", false, &[]),
        (Self::Denied, "denied", true, &[]),
        (Self::Degraded, "degraded", false, &[]),
        (Self::Throttled, "throttled", false, &[]),
        (Self::Paused, "paused", true, &[Self::Resumed]),
        (Self::Resumed, "resumed", false, &[Self::Paused, Self::Killed]),
        (Self::Killed, "killed", true, &[Self::Resumed]),
        (Self::Overrun, "overrun", true, &[]),
        (Self::RunEnded, "run_ended", false, &[]),
        (Self::BackendDown, "backend_down", true, &[Self::BackendUp]),
        (Self::BackendUp, "backend_up", false, &[Self::BackendDown]),
        (Self::StoreDown, "store_down", true, &[Self::StoreUp]),
        (Self::StoreUp, "store_up", false, &[Self::StoreDown]),
    ];

    /// Every kind, in the order of the documentation.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        Self::TABLE.into_iter().map(|(kind, ..)| kind)
    }

    /// Its name in the configuration, in bodies and in metrics.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Whether it is sent at once even in quiet hours. What is not urgent is a reminder.
    pub fn is_urgent(self) -> bool {
        self.row().2
    }

    /// The kinds that say the contrary of the same subject: after one of them, this one is news.
    pub fn opposites(self) -> &'static [Self] {
        self.row().3
    }

    fn row(self) -> Row {
        // The table has the order of the enum; a test holds it to that.
        Self::TABLE[self as usize]
    }
}

/// What is sent to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    /// The file of notices that could not be delivered, JSON lines.
    pub dead_letter: PathBuf,
    /// Bytes of that file before it becomes the older one; of those there is one.
    pub dead_letter_limit: u64,
    /// How long a stop waits for notices that are still to be delivered.
    pub drain_timeout: Duration,
    /// Receivers, in the order of the file.
    pub webhooks: Vec<Arc<Webhook>>,
}

/// A receiver of notices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Its name in logs, metrics and the dead-letter file.
    pub name: Arc<str>,
    /// An absolute `http` or `https` URL. Whoever knows that of a chat may write there, so it is a secret.
    pub url: Secret,
    /// What bodies are signed with.
    pub secret: Option<Secret>,
    /// The form of bodies.
    pub format: WebhookFormat,
    /// What it is told of.
    pub events: Vec<NoticeKind>,
    /// When it is told of nothing but what is urgent.
    pub quiet_hours: Option<QuietHours>,
    /// Longest duration of one try.
    pub timeout: Duration,
    /// Most tries after the first.
    pub retries: u32,
    /// Longest pause before the second try; it doubles with each further one, up to [`Webhook::longest_pause`].
    pub retry_pause: Duration,
    /// Longest pause between two tries.
    pub longest_pause: Duration,
    /// So long after a notice the same one is left out and counted; `None` leaves out nothing.
    pub repeat_after: Option<Duration>,
    /// Most notices that wait.
    pub queue: usize,
}

/// The form of a webhook's bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookFormat {
    /// A JSON object with all that is known.
    Generic,
    /// What Slack's incoming webhooks take, and those of Mattermost and others.
    Slack,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_in_the_order_of_their_table_and_opposites_agree() {
        for (place, kind) in NoticeKind::all().enumerate() {
            assert_eq!(kind as usize, place, "{}", kind.name());
            let mut others = kind.opposites().iter();
            assert!(others.all(|other| other.opposites().contains(&kind)), "{}", kind.name());
        }
    }

    #[test]
    fn every_stop_is_urgent() {
        let urgent: Vec<_> = NoticeKind::all().filter(|kind| kind.is_urgent()).map(NoticeKind::name).collect();
        assert_eq!(urgent, ["denied", "paused", "killed", "overrun", "backend_down", "store_down"]);
    }
}
