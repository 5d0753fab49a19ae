//! Checks `[[tasks]]`.

use super::aliases::Names;
use super::{Check, is_first};
use crate::file::{RawLink, RawTask};
use crate::read::At;
use crate::settings::Alias;
use crate::strategy::{Link, TaskRule};
use crate::value::Difficulty;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

impl Check<'_> {
    pub(super) fn tasks(
        &mut self,
        raw: Vec<RawTask>,
        names: &Names<'_>,
        aliases: &BTreeMap<String, Arc<Alias>>,
    ) -> BTreeMap<String, TaskRule> {
        let mut seen = HashMap::new();
        let mut tasks = BTreeMap::new();
        for raw in raw {
            let tier = |tier: u64| u8::try_from(tier).unwrap_or(u8::MAX);
            let rule = TaskRule {
                min_tier: raw.min_tier.at.as_ref().map(|at| tier(at.value.0)),
                max_tier: raw.max_tier.at.as_ref().map(|at| tier(at.value.0)),
                max_cost: raw.max_cost_usd.at.as_ref().map(|at| at.value),
                strategy: raw.strategy.at.as_ref().map(|at| at.value),
                chain: self.chain(raw.chain.value, names, aliases),
            };
            if let (Some(min), Some(max), Some(at)) = (rule.min_tier, rule.max_tier, &raw.max_tier.at)
                && min > max
            {
                self.problems.add(&at.span, format!("`max_tier` {max} is below `min_tier` {min}: nobody could answer"));
            }
            let Some(name) = raw.name.map(|name| name.value) else { continue };
            let what = format_args!("the task `{}`", name.value.0);
            if is_first(&mut seen, &name.value.0, &name.span, what, &mut self.problems) {
                tasks.insert(name.value.0, rule);
            }
        }
        tasks
    }

    /// The backends of a chain; what an alias stands for comes in its order, and a backend that is named twice where it is named first.
    fn chain(
        &mut self,
        raw: Vec<RawLink>,
        names: &Names<'_>,
        aliases: &BTreeMap<String, Arc<Alias>>,
    ) -> Option<Arc<[Link]>> {
        let mut chain: Vec<Link> = Vec::new();
        let is_written = !raw.is_empty();
        for raw in raw {
            let Some(target) = raw.target else { continue };
            let backends: Vec<_> = match aliases.get(&target.value) {
                Some(alias) => alias.targets.iter().map(|(id, _)| id.clone()).collect(),
                None => self.backend(&target, names).into_iter().collect(),
            };
            let max_cost = raw.max_cost_usd.at.as_ref().map(|at| at.value);
            for id in backends {
                if !chain.iter().any(|link| link.id == id) {
                    chain.push(Link { id, max_cost });
                }
            }
        }
        is_written.then(|| chain.into())
    }

    /// Difficulties must ascend.
    pub(super) fn escalate_at(&mut self, raw: &[At<Difficulty>]) -> Vec<u16> {
        for pair in raw.windows(2).filter(|pair| pair[0].value.0 >= pair[1].value.0) {
            self.problems.add(&pair[1].span, "`escalate_at` must ascend: each tier begins at a higher difficulty");
        }
        raw.iter().map(|at| at.value.0).collect()
    }
}
