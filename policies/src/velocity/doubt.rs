//! False alarms are few: what came of the last ones decides how much evidence the next one takes.

use serde::{Deserialize, Serialize};

/// An alarm is remembered for so long, in microseconds: 30 days.
const MEMORY: i64 = 30 * 86_400_000_000;
/// So many times the evidence is asked for after none, one and more alarms within that time.
const TIMES: [f64; 3] = [1.0, 1.5, 2.0];

/// Alarms of late. Each spends of an allowance that comes back with time, as in alpha-investing (Foster & Stine 2008):
/// somebody has been told and has let the agent go on, so that the next alarm has to be surer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Doubt {
    alarms: u8,
    /// When the last of them ended, in microseconds since 1970.
    last: i64,
}

impl Doubt {
    /// An alarm has ended.
    pub(super) fn alarm(&mut self, now: i64) {
        *self = Self { alarms: self.alarms.saturating_add(1), last: now };
    }

    /// Forgets alarms of long ago. Returns whether there were any.
    pub(super) fn forget(&mut self, now: i64) -> bool {
        let over = self.alarms > 0 && now.saturating_sub(self.last) >= MEMORY;
        if over {
            *self = Self::default();
        }
        over
    }

    /// So many times the evidence is asked for.
    pub(super) fn times(self) -> f64 {
        TIMES[usize::from(self.alarms).min(TIMES.len() - 1)]
    }
}
