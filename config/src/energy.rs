//! `[local.energy]`: what local computing costs.

use crate::check::Check;
use crate::read::{Whole, table};
use crate::units::Usd;

table! {
    /// What a second of local computing costs.
    RawEnergy "[local.energy]" {
        /// The tariff.
        usd_per_kwh: Usd = required,
        /// What the machine draws while it computes; without it what the card says, and 300 where there is none.
        watts: Whole<1, 100_000> = optional,
        /// What the machine cost.
        hardware_usd: Usd = default("0"),
        /// How long it is used.
        hardware_years: Whole<1, 50> = default(4),
        /// How long it computes, of 24 hours: its cost is shared by these only.
        hours_per_day: Whole<1, 24> = default(24),
    }
}

/// What local computing costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Energy {
    /// What a kilowatt-hour costs.
    pub usd_per_kwh: Usd,
    /// What the machine draws while it computes; `None` is what its card says.
    pub watts: Option<u64>,
    /// What the machine cost.
    pub hardware: Usd,
    /// The seconds of computing that share its cost.
    pub hardware_seconds: u64,
}

impl Check<'_> {
    /// What the table means.
    pub(crate) fn energy(&mut self, raw: &RawEnergy) -> Option<Energy> {
        const DAYS_OF_FOUR_YEARS: u64 = 1461;
        let usd_per_kwh = raw.usd_per_kwh.as_ref()?;
        let mut negative = false;
        for price in [usd_per_kwh, &raw.hardware_usd].into_iter().filter(|price| price.value < Usd::ZERO) {
            self.problems.add(&price.span, "what computing costs cannot be negative");
            negative = true;
        }
        if usd_per_kwh.value == Usd::ZERO && raw.hardware_usd.value == Usd::ZERO {
            self.problems.add(&usd_per_kwh.span, "computing that costs nothing needs no `energy`; leave it out");
            return None;
        }
        let hours = raw.hardware_years.value.0 * DAYS_OF_FOUR_YEARS * raw.hours_per_day.value.0 / 4;
        (!negative).then(|| Energy {
            usd_per_kwh: usd_per_kwh.value,
            watts: raw.watts.at.as_ref().map(|watts| watts.value.0),
            hardware: raw.hardware_usd.value,
            hardware_seconds: hours * 3600,
        })
    }
}
