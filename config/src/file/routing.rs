//! The tables of aliases and of types of tasks as they are written.

use super::RawRateLimits;
use crate::read::{At, Whole, table};
use crate::strategy::{Flaw, Strategy};
use crate::units::Usd;
use crate::value::{AliasName, Difficulty, Slug};

table! {
    /// A name that stands for a list of models.
    RawAlias "[[aliases]]" {
        /// Its name; may hold slashes.
        name: At<AliasName> = required,
        /// Order of the targets: as written (`"ordered"`), bottom-up by tier (`"pyramid"`), by estimated cost, by estimated time, by both
        /// (`"balanced"`), where the conversation was before (`"sticky"`), where least waits, or by lot (`"weighted"`). See `docs/routing.md`.
        strategy: Strategy = default("ordered"),
        /// Of a pyramid: difficulties from 0 to 1, ascending; a request that reaches the first begins a tier higher, and so on.
        /// `tollkeeper route calibrate` finds them; without any, and in `auto`, difficulty is no matter.
        escalate_at: Vec<At<Difficulty>> = default([]),
        /// Of `"weighted"`: one for each target; 1 for those that have none.
        weights: Vec<At<Whole<0, 1_000_000>>> = default([]),
        /// `"provider/model"`, local models and other aliases; the place in the list is the tier.
        targets: Vec<At<String>> = required,
        /// Holds local answers back until they are known to be fit, and else asks the next target above; such as
        /// `cascade = { min_confidence = 0.7 }`.
        cascade: RawCascade = optional,
        /// How much may be asked of it, by all agents together.
        rates: RawRateLimits = flat,
    }
}

table! {
    /// When a local answer is good enough to be shown (`docs/cascade.md`).
    RawCascade "`cascade`" {
        /// Tokens of a streamed answer that are held back and looked at before the client sees any.
        hold_tokens: Whole<1, 256> = default(16),
        /// From 0 to 1: an answer that is less probably good goes to the next target above; 0 never sends one there for that.
        min_confidence: Difficulty = default(0.5),
        /// What an answer must not be: `form` (not the JSON that was asked for), `calls` (calls of tools that cannot be carried out), `refusal`,
        /// `empty`.
        checks: Vec<At<Flaw>> = default(["form", "calls", "refusal", "empty"]),
    }
}

table! {
    /// What holds for tasks of a type: the table from task type to tier. The type comes from the client (`x-tollkeeper-task-type`), else from the
    /// request itself (`docs/routing.md`).
    RawTask "[[tasks]]" {
        /// The type: `chat`, `code`, `maths`, `extraction`, `classification`, `summarise`, `translation`, `review`, `research`, `planning`,
        /// `writing`, or one that only clients name.
        name: At<Slug> = required,
        /// The lowest tier that answers; 0 is the bottom.
        min_tier: Whole<0, 255> = optional,
        /// The highest tier that answers.
        max_tier: Whole<0, 255> = optional,
        /// The most that an answer may be expected to cost; dearer targets are left out.
        max_cost_usd: Usd = optional,
        /// How targets are ordered, instead of the alias's way.
        strategy: Strategy = optional,
        /// Who of an alias's targets answers, in this order; without it all of them may.
        chain: Vec<RawLink> = default([]),
    }
}

table! {
    /// Who may answer tasks of a type.
    RawLink "a link of `chain`" {
        /// A model, `"provider/model"` or a local one, or an alias: all of its targets.
        target: String = required,
        /// The most that an answer by it may be expected to cost.
        max_cost_usd: Usd = optional,
    }
}
