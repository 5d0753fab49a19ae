//! What the gateway sees of policies: agents, leases, budgets, the ledger and its reports.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod agents;
mod budgets;
mod crash;
mod created;
mod events;
mod exports;
mod fit;
mod fleet;
mod invariant;
mod keys;
mod kills;
mod leases;
mod ledger;
mod pauses;
mod postgres;
mod rates;
mod setup;
mod shared;
mod sweep;
mod targets;
mod tasks;
mod together;
mod traffic;
mod velocity;
