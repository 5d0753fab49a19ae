//! What is known of the tiers of each group of requests, how it is kept, and how it is shown.

use super::{Group, Routed};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{BackendId, Config, Learning as Settings};
use tollkeeper_router::learning::{Beta, Evidence, Outcome, choose};

/// So many groups are known: clients name types of tasks as they like.
const MOST_GROUPS: usize = 1024;

/// A group with less evidence makes room for a new one.
const LITTLE: f64 = 1.0;

/// A report's interval: of ten such, nine hold what they are about.
const INTERVAL: (f64, f64) = (0.05, 0.95);

/// What is known of a tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tier {
    good: f64,
    bad: f64,
    at_ms: i64,
    /// Who is in it: with others it is another tier.
    backends: Vec<String>,
    /// What the local ones among them are: by another file a name is another model.
    #[serde(default)]
    files: Vec<String>,
    /// Requests that it answered since it is known.
    pub(super) answered: u64,
    /// Those of them that came to it to be learned from.
    pub(super) explored: u64,
}

/// What is known of a group.
#[derive(Debug, Default)]
struct Entry {
    tiers: BTreeMap<u8, Tier>,
    /// Whether that is more than was kept.
    is_new: bool,
    /// Whether anything of it was ever kept, and has to be taken away when it is forgotten.
    was_kept: bool,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Book {
    groups: HashMap<Arc<Group>, Entry>,
    /// Those that are forgotten here and not yet where they are kept.
    gone: HashSet<Arc<str>>,
}

/// A group in the report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupView {
    pub(crate) group: Arc<Group>,
    /// The tier that such a request begins with now, if all can answer.
    pub(crate) begins: u8,
    pub(crate) tiers: Vec<TierView>,
}

/// A tier in the report.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TierView {
    pub(crate) tier: u8,
    pub(crate) backends: Vec<String>,
    pub(crate) evidence: Evidence,
    pub(crate) belief: Beta,
    /// The probability of success lies in it with nine chances of ten.
    pub(crate) interval: (f64, f64),
    pub(crate) answered: u64,
    pub(crate) explored: u64,
    /// When its last outcome was counted, milliseconds since 1970.
    pub(crate) changed_ms: i64,
}

impl Tier {
    fn new(backends: Vec<String>, files: Vec<String>, at_ms: i64) -> Self {
        Self { good: 0.0, bad: 0.0, at_ms, backends, files, answered: 0, explored: 0 }
    }

    fn evidence(&self) -> Evidence {
        Evidence { good: self.good, bad: self.bad, at_ms: self.at_ms }
    }

    pub(super) fn add(&mut self, outcome: Outcome, half_life: Duration) {
        let mut evidence = self.evidence();
        evidence.add(outcome, half_life);
        self.set(evidence);
    }

    pub(super) fn take_back(&mut self, outcome: Outcome, now_ms: i64, half_life: Duration) {
        let mut evidence = self.evidence();
        evidence.take_back(outcome, now_ms, half_life);
        self.set(evidence);
    }

    fn set(&mut self, evidence: Evidence) {
        (self.good, self.bad, self.at_ms) = (evidence.good, evidence.bad, evidence.at_ms);
    }
}

impl Entry {
    fn evidence(&self, settings: &Settings, now_ms: i64) -> f64 {
        self.tiers.values().map(|tier| tier.evidence().aged(now_ms, settings.half_life).all()).sum()
    }
}

impl Book {
    /// What can be read of what was kept, of tiers that are still the same.
    pub(super) fn restore(kept: Vec<(Arc<str>, Arc<str>)>, config: &Config) -> Self {
        let mut book = Self::default();
        for (id, body) in kept {
            let tiers = serde_json::from_str(&body)
                .ok()
                .filter(|tiers: &BTreeMap<u8, Tier>| tiers.values().all(|tier| tier.evidence().is_plausible()));
            match (group_of(&id), tiers) {
                (Some(group), Some(tiers)) => {
                    book.groups.insert(Arc::new(group), Entry { tiers, is_new: false, was_kept: true });
                }
                // It is learned anew.
                _ => _ = book.gone.insert(id),
            }
        }
        book.reload(config);
        book
    }

    /// What is known of the tiers of a group, as of now.
    pub(super) fn known(&self, group: &Group, settings: &Settings, now_ms: i64) -> Vec<(u8, Evidence)> {
        let tiers = self.groups.get(group).into_iter().flat_map(|entry| &entry.tiers);
        tiers.map(|(number, tier)| (*number, tier.evidence().aged(now_ms, settings.half_life))).collect()
    }

    /// A tier that something is to be counted for. `None` when who answered is not in it any more, or too many groups are known better.
    pub(super) fn tier(
        &mut self,
        Routed { group, tier: number, backend, .. }: &Routed,
        settings: &Settings,
        config: &Config,
        now_ms: i64,
    ) -> Option<&mut Tier> {
        let backends = backends(config, group, *number)?;
        if !backends.iter().any(|name| **name == **backend) {
            return None;
        }
        if !self.groups.contains_key(group) && self.groups.len() >= MOST_GROUPS {
            let evidence = self.groups.iter().map(|(group, entry)| (group, entry.evidence(settings, now_ms)));
            let least = evidence.min_by(|one, other| one.1.total_cmp(&other.1));
            let (least, _) = least.filter(|(_, evidence)| *evidence < LITTLE)?;
            let least = least.clone();
            self.remove(&least);
        }
        let entry = self.groups.entry(group.clone()).or_default();
        entry.is_new = true;
        let new = || Tier::new(backends, files(config, group, *number), now_ms);
        Some(entry.tiers.entry(*number).or_insert_with(new))
    }

    /// Forgets tiers that are not what they were. Returns which.
    pub(super) fn reload(&mut self, config: &Config) -> HashSet<(Arc<Group>, u8)> {
        let mut gone = HashSet::new();
        for (group, entry) in &mut self.groups {
            let before = entry.tiers.len();
            entry.tiers.retain(|number, tier| {
                let same = backends(config, group, *number).is_some_and(|backends| backends == tier.backends)
                    && files(config, group, *number) == tier.files;
                if !same {
                    gone.insert((group.clone(), *number));
                }
                same
            });
            entry.is_new |= entry.tiers.len() < before;
        }
        let empty: Vec<_> =
            self.groups.iter().filter(|(_, entry)| entry.tiers.is_empty()).map(|(group, _)| group.clone()).collect();
        empty.iter().for_each(|group| self.remove(group));
        gone
    }

    /// Forgets these groups. Returns how many.
    pub(super) fn forget(&mut self, which: impl Fn(&Group) -> bool) -> usize {
        let gone: Vec<_> = self.groups.keys().filter(|group| which(group)).cloned().collect();
        gone.iter().for_each(|group| self.remove(group));
        gone.len()
    }

    fn remove(&mut self, group: &Arc<Group>) {
        if self.groups.remove(group).is_some_and(|entry| entry.was_kept) {
            self.gone.insert(id_of(group));
        }
    }

    /// What is to be kept since the last time, by id; `None` is to be taken away.
    pub(super) fn changed(&mut self) -> Vec<(Arc<str>, Option<Arc<str>>)> {
        let mut changed: Vec<(Arc<str>, Option<Arc<str>>)> = Vec::new();
        let mut gone = std::mem::take(&mut self.gone);
        for (group, entry) in self.groups.iter_mut().filter(|(_, entry)| entry.is_new) {
            entry.is_new = false;
            entry.was_kept = true;
            let id = id_of(group);
            gone.remove(&id);
            changed.push((id, Some(json!(entry.tiers).to_string().into())));
        }
        changed.extend(gone.into_iter().map(|id| (id, None)));
        changed
    }

    /// These were not kept after all.
    pub(super) fn unkept(&mut self, ids: &[Arc<str>]) {
        for id in ids {
            match group_of(id).and_then(|group| self.groups.get_mut(&group)) {
                Some(entry) => entry.is_new = true,
                None => _ = self.gone.insert(id.clone()),
            }
        }
    }

    /// All groups in order.
    pub(super) fn report(&self, config: &Config, settings: &Settings, now_ms: i64) -> Vec<GroupView> {
        let mut views: Vec<GroupView> =
            self.groups.iter().map(|(group, entry)| view(group, entry, config, settings, now_ms)).collect();
        views.sort_by(|one, other| one.group.cmp(&other.group));
        views
    }
}

fn view(group: &Arc<Group>, entry: &Entry, config: &Config, settings: &Settings, now_ms: i64) -> GroupView {
    let targets = config.aliases.get(&*group.alias).map_or(&[][..], |alias| &alias.targets);
    let mut all: Vec<u8> = targets.iter().map(|(_, tier)| *tier).collect();
    all.dedup();
    let aged = |tier: &Tier| tier.evidence().aged(now_ms, settings.half_life);
    let known = |tier: u8| entry.tiers.get(&tier).map(aged).unwrap_or_default();
    let home = all.iter().copied().find(|tier| *tier >= group.said).or(all.last().copied()).unwrap_or(group.said);
    let wanted = f64::from(settings.wanted) / 1000.0;
    let shown = |(number, tier): (&u8, &Tier)| {
        let belief = aged(tier).belief(wanted, *number >= home);
        TierView {
            tier: *number,
            backends: tier.backends.clone(),
            evidence: aged(tier),
            belief,
            interval: (belief.quantile(INTERVAL.0), belief.quantile(INTERVAL.1)),
            answered: tier.answered,
            explored: tier.explored,
            changed_ms: tier.at_ms,
        }
    };
    GroupView {
        group: group.clone(),
        begins: choose(&all, group.said, known, settings, None).map_or(home, |choice| choice.tier),
        tiers: entry.tiers.iter().map(shown).collect(),
    }
}

/// Who is in that tier of the alias; `None` when nobody is.
fn backends(config: &Config, group: &Group, number: u8) -> Option<Vec<String>> {
    let alias = config.aliases.get(&*group.alias)?;
    let of_tier = alias.targets.iter().filter(|(_, tier)| *tier == number);
    Some(of_tier.map(|(id, _)| id.to_string()).collect::<Vec<_>>()).filter(|backends| !backends.is_empty())
}

/// What the local models of that tier are made of.
fn files(config: &Config, group: &Group, number: u8) -> Vec<String> {
    let targets = config.aliases.get(&*group.alias).map_or(&[][..], |alias| &alias.targets);
    let models = targets.iter().filter(|(_, tier)| *tier == number).filter_map(|(id, _)| match id {
        BackendId::Local(name) => config.local.models.get(&**name),
        BackendId::Remote { .. } => None,
    });
    models.map(|model| format!("{:?}:{}", model.engine, model.path.display())).collect()
}

/// What a group is kept under: types of tasks have no colon in them.
fn id_of(group: &Group) -> Arc<str> {
    format!("{}:{}:{}", group.said, group.task, group.alias).into()
}

fn group_of(id: &str) -> Option<Group> {
    let mut parts = id.splitn(3, ':');
    let (said, task, alias) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    Some(Group { alias: alias.into(), task: task.into(), said })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const OUTCOME: Outcome = Outcome { score: 0.0, weight: 1.0, at_ms: 0 };

    fn config(targets: &str) -> Config {
        config_with("a.gguf", targets)
    }

    fn config_with(file: &str, targets: &str) -> Config {
        let text = format!(
            "[[local.models]]\nname = \"a\"\npath = \"{file}\"\n[[local.models]]\nname = \"b\"\npath = \"b.gguf\"\n\
             [[aliases]]\nname = \"team/smart\"\nstrategy = \"pyramid\"\ntargets = [{targets}]\n"
        );
        tollkeeper_config::parse(&text, Path::new("t.toml"), &|_| None).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn group(task: &str) -> Arc<Group> {
        Arc::new(Group { alias: "team/smart".into(), task: task.into(), said: 0 })
    }

    /// An answer by the lowest tier.
    fn routed(task: &str) -> Routed {
        let choice = tollkeeper_router::learning::Choice { tier: 0, moved: false, explored: false };
        Routed { group: group(task), tier: 0, backend: "a".into(), choice }
    }

    fn count(book: &mut Book, config: &Config, task: &str, outcomes: u32) {
        let settings = Settings::default();
        for _ in 0..outcomes {
            if let Some(tier) = book.tier(&routed(task), &settings, config, 0) {
                tier.add(OUTCOME, settings.half_life);
            }
        }
    }

    #[test]
    fn what_is_kept_is_restored_unless_its_models_are_others() {
        let (config, settings) = (config("\"a\", \"b\""), Settings::default());
        let mut book = Book::default();
        count(&mut book, &config, "code", 3);
        let kept: Vec<_> = book.changed().into_iter().map(|(id, body)| (id, body.unwrap())).collect();
        assert_eq!(book.changed(), [], "it is kept once");
        let restored = Book::restore(kept.clone(), &config);
        assert_eq!(restored.report(&config, &settings, 0), book.report(&config, &settings, 0));
        assert_eq!(restored.report(&config, &settings, 0)[0].begins, 1);

        let swapped = self::config("\"b\", \"a\"");
        let mut restored = Book::restore(kept.clone(), &swapped);
        assert_eq!(restored.report(&swapped, &settings, 0), []);
        assert_eq!(restored.changed(), [(kept[0].0.clone(), None)]);
        assert!(
            restored.tier(&routed("code"), &settings, &swapped, 0).is_none(),
            "who answered is in another tier now"
        );
        let retrained = config_with("b.gguf", "\"a\", \"b\"");
        assert_eq!(
            Book::restore(kept.clone(), &retrained).report(&retrained, &settings, 0),
            [],
            "another model by that name"
        );
        for bad in [
            "",
            "{",
            "{\"0\":{\"good\":1e999}}",
            "{\"0\":{\"good\":-1.0,\"bad\":0.0,\"at_ms\":0,\"backends\":[\"a\"],\"answered\":0,\"explored\":0}}",
        ] {
            let restored = Book::restore(vec![(kept[0].0.clone(), bad.into())], &config);
            assert_eq!(restored.report(&config, &settings, 0), [], "{bad}");
        }
    }

    #[test]
    fn what_could_not_be_kept_is_kept_the_next_time() {
        let config = config("\"a\", \"b\"");
        let mut book = Book::default();
        count(&mut book, &config, "code", 1);
        count(&mut book, &config, "chat", 1);
        book.changed();
        assert_eq!(book.forget(|group| *group.task == *"chat"), 1);
        count(&mut book, &config, "code", 1);
        let changed = book.changed();
        assert_eq!(changed.len(), 2);
        let ids: Vec<_> = changed.iter().map(|(id, _)| id.clone()).collect();
        book.unkept(&ids);
        let again = book.changed();
        assert_eq!(again.len(), 2);
        assert!(again.iter().all(|one| changed.contains(one)));
    }

    #[test]
    fn names_that_clients_make_up_do_not_push_out_what_was_learned() {
        let config = config("\"a\", \"b\"");
        let mut book = Book::default();
        count(&mut book, &config, "code", 5);
        for number in 0..3 * MOST_GROUPS {
            let settings = Settings::default();
            let tier = book.tier(&routed(&format!("made-up-{number}")), &settings, &config, 0).unwrap();
            tier.add(Outcome { weight: 0.05, ..OUTCOME }, settings.half_life);
        }
        assert_eq!(book.groups.len(), MOST_GROUPS);
        assert!(book.groups.contains_key(&*group("code")));
        assert_eq!(book.gone.len(), 0, "what was never kept need not be taken away");
        // Where all are known well, a new one is not learned.
        for number in 0..MOST_GROUPS {
            count(&mut book, &config, &format!("real-{number}"), 3);
        }
        assert!(book.tier(&routed("late"), &Settings::default(), &config, 0).is_none());
    }
}
