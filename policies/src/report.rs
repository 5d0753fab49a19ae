//! Reads the ledger for people, while the gateway may be running.

mod compact;
mod export;
mod invoice;
mod reconcile;
mod spend;
mod sums;
mod verify;

pub(crate) use compact::keep;
pub use compact::{CompactError, Compacted, compact};
pub use export::{ExportError, ExportFilter, Exported, Format, export};
pub use invoice::InvoiceError;
pub use reconcile::{Figures, Reconcile, ReconcileError, ReconcileLine, reconcile};
pub use spend::{SpendGroup, SpendQuery, SpendSum, spend_by};
pub use sums::{CounterQuery, CounterSum, counters};
pub use verify::{AgentTotals, VerifyError, VerifyReport, verify};

pub use crate::store::schema::{Losses, MigrateError, Migrated, migrate};

use crate::place::Place;
use crate::store::StoreError;
use crate::store::reader::Reader;
use std::sync::Arc;

/// Why a ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It could not be opened or read.
    #[error("cannot read the ledger {place}: {reason}")]
    Unreadable {
        /// Where it is.
        place: Place,
        /// What the store said.
        reason: Arc<str>,
    },
}

/// The ledgers that there are: of a file itself, of a database those of its gateways, ordered by name.
///
/// # Errors
/// They cannot be read.
pub fn ledgers(place: impl Into<Place>) -> Result<Vec<Place>, ReportError> {
    let place = place.into();
    let chains = Reader::open(&place).and_then(|mut ledger| ledger.chains()).map_err(unreadable(&place))?;
    let of = |chain: Option<Arc<str>>| chain.and_then(|name| place.clone().of_gateway(&name));
    Ok(chains.into_iter().map(|chain| of(chain).unwrap_or_else(|| place.clone())).collect())
}

fn unreadable(place: &Place) -> impl Fn(StoreError) -> ReportError + Copy + '_ {
    move |StoreError(reason)| ReportError::Unreadable { place: place.clone(), reason }
}
