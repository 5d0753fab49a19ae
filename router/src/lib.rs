//! Which backend should answer: pure decisions. No I/O, no clock, no randomness: the same arguments give the same [`Plan`].
//!
//! [`ask()`] reads what a request needs, [`fit`] says which backends can do it, a strategy puts those in order, and [`plan()`]
//! makes a list of attempts of them, each with the reason why it stands where it stands and with what it may cost.

pub mod ask;
pub mod candidate;
pub mod confidence;
pub mod difficulty;
pub mod energy;
pub mod estimate;
pub mod fit;
pub mod learning;
pub mod pictures;
pub mod plan;
pub mod recent;
pub mod simulation;
mod strategy;
pub mod swap;
pub mod task;
pub mod tokens;

pub use ask::{Ask, ask};
pub use candidate::{Candidate, Health, Pace, Strain};
pub use difficulty::{Difficulty, Score};
pub use estimate::{CostEstimate, TimeEstimate};
pub use fit::Reason;
pub use plan::{Attempt, Plan, Rules, Why, Wishes, plan, plan_from, start_tier};
pub use recent::Recent;
pub use task::TaskType;
