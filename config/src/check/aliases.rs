//! Checks `[[aliases]]`, adds those that exist out of the box, and flattens all of them down to backends.

use super::server::small;
use super::{Check, is_first};
use crate::catalog::Catalog;
use crate::defaults::{AUTO_TARGETS, CLOUD_ALIASES};
use crate::file::{RawAlias, RawCascade};
use crate::problem::{Span, did_you_mean, nearest};
use crate::read::At;
use crate::settings::{Alias, BackendId, LocalModel, Provider, RateLimits};
use crate::strategy::{Cascade, Strategy};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Aliases inside aliases inside aliases …: deeper is a mistake, and must not exhaust the stack.
const MAX_DEPTH: usize = 16;

/// An alias as it is written.
struct List {
    strategy: Strategy,
    entries: Vec<Entry>,
    rates: RateLimits,
    escalate_at: Vec<u16>,
    cascade: Option<Cascade>,
    weights: Vec<u32>,
}

/// One entry of an alias's list.
enum Entry {
    /// The name of an alias or of a backend.
    Name(At<String>),
    /// A backend that is known to be there.
    Backend(BackendId),
}

/// What names can stand for.
pub(super) struct Names<'a> {
    lists: BTreeMap<String, List>,
    local: &'a [Arc<LocalModel>],
    providers: &'a BTreeMap<String, Arc<Provider>>,
    catalog: &'a Catalog,
}

impl Check<'_> {
    pub(super) fn names<'n>(
        &mut self,
        raw: Vec<RawAlias>,
        local: &'n [Arc<LocalModel>],
        providers: &'n BTreeMap<String, Arc<Provider>>,
        catalog: &'n Catalog,
    ) -> Names<'n> {
        Names { lists: self.lists(raw, local, providers, catalog), local, providers, catalog }
    }

    pub(super) fn aliases(&mut self, names: &Names<'_>) -> BTreeMap<String, Arc<Alias>> {
        let mut flat = BTreeMap::new();
        // `auto` first: a circle through its built-in targets is then closed by a target that is in the file.
        for name in std::iter::once("auto").chain(names.lists.keys().map(String::as_str)) {
            self.flatten(name, names, &mut Vec::new(), &mut flat);
        }
        let alias = |(name, list): (&String, &List)| {
            let targets = flat.remove(name).unwrap_or_default();
            self.warn_if_unusable(name, &targets, names.providers);
            let alias = Alias {
                name: name.clone(),
                strategy: list.strategy,
                targets,
                rates: list.rates,
                escalate_at: list.escalate_at.clone(),
                cascade: list.cascade.clone(),
                weights: list.weights.clone(),
            };
            (name.clone(), Arc::new(alias))
        };
        names.lists.iter().map(alias).collect()
    }

    /// The lists of the file, and the built-in ones that it does not define.
    fn lists(
        &mut self,
        raw: Vec<RawAlias>,
        local: &[Arc<LocalModel>],
        providers: &BTreeMap<String, Arc<Provider>>,
        catalog: &Catalog,
    ) -> BTreeMap<String, List> {
        let mut seen = HashMap::new();
        let mut lists = built_in(local, providers, catalog);
        for raw in raw {
            let rates = self.rates(raw.rates);
            let Some(name) = raw.name.map(|name| name.value) else { continue };
            if local.iter().any(|model| model.name == name.value.0) {
                let message = format!("the alias `{}` has the name of a local model", name.value.0);
                self.problems.add(&name.span, message);
            }
            let what = format_args!("the alias `{}`", name.value.0);
            if is_first(&mut seen, &name.value.0, &name.span, what, &mut self.problems) {
                let targets = raw.targets.map(|targets| targets.value).unwrap_or_default();
                let entries = targets.into_iter().map(Entry::Name).collect();
                let escalate_at = self.escalate_at(&raw.escalate_at.value);
                let weights = raw.weights.value.iter().map(|at| small(at.value.0)).collect();
                let strategy = raw.strategy.value;
                let cascade = raw.cascade.at.map(|at| cascade(&at.value));
                lists.insert(name.value.0, List { strategy, entries, rates, escalate_at, cascade, weights });
            }
        }
        lists
    }

    /// Puts the backends of an alias into `flat`, each with the place of the entry it came from. `path` leads here.
    fn flatten<'n>(
        &mut self,
        name: &'n str,
        names: &'n Names<'_>,
        path: &mut Vec<&'n str>,
        flat: &mut BTreeMap<String, Vec<(BackendId, u8)>>,
    ) {
        let Some(list) = names.lists.get(name).filter(|_| !flat.contains_key(name)) else { return };
        path.push(name);
        let mut targets: Vec<(BackendId, u8)> = Vec::new();
        for (place, entry) in list.entries.iter().enumerate() {
            let backends = match entry {
                Entry::Backend(id) => vec![id.clone()],
                Entry::Name(target) if names.lists.contains_key(&target.value) => {
                    self.nested(target, names, path, flat)
                }
                Entry::Name(target) => self.backend(target, names).into_iter().collect(),
            };
            for id in backends {
                if !targets.iter().any(|(known, _)| *known == id) {
                    targets.push((id, u8::try_from(place).unwrap_or(u8::MAX)));
                }
            }
        }
        path.pop();
        flat.insert(name.to_owned(), targets);
    }

    fn nested<'n>(
        &mut self,
        target: &'n At<String>,
        names: &'n Names<'_>,
        path: &mut Vec<&'n str>,
        flat: &mut BTreeMap<String, Vec<(BackendId, u8)>>,
    ) -> Vec<BackendId> {
        if let Some(start) = path.iter().position(|above| *above == target.value) {
            let cycle = [&path[start..], &[target.value.as_str()]].concat().join(" -> ");
            self.problems.add(&target.span, format!("aliases go in a circle: {cycle}"));
            return Vec::new();
        }
        if path.len() >= MAX_DEPTH {
            self.problems.add(&target.span, format!("aliases are nested more than {MAX_DEPTH} deep"));
            return Vec::new();
        }
        self.flatten(&target.value, names, path, flat);
        flat.get(&target.value).into_iter().flatten().map(|(id, _)| id.clone()).collect()
    }

    /// The backend that a target names; reports a target that names none.
    pub(super) fn backend(&mut self, target: &At<String>, names: &Names<'_>) -> Option<BackendId> {
        let text = target.value.as_str();
        if names.local.iter().any(|model| model.name == text) {
            return Some(BackendId::Local(text.into()));
        }
        let split = text.split_once('/').filter(|(_, model)| !model.is_empty());
        let provider = split.map_or(text, |(provider, _)| provider);
        if self.broken.contains(provider) || self.broken.contains(text) {
            return None;
        }
        match split {
            Some((provider, model)) if names.providers.contains_key(provider) => {
                let id = BackendId::Remote { provider: provider.into(), model: model.into() };
                if names.catalog.facts(&id).is_none() {
                    self.problems.add(&target.span, no_price(text, names));
                    return None;
                }
                Some(id)
            }
            _ => {
                self.problems.add(&target.span, no_target(text, split, names));
                None
            }
        }
    }

    fn warn_if_unusable(
        &mut self,
        name: &str,
        targets: &[(BackendId, u8)],
        providers: &BTreeMap<String, Arc<Provider>>,
    ) {
        let usable = |id: &BackendId| match id {
            BackendId::Local(_) => true,
            BackendId::Remote { provider, .. } => providers.get(&**provider).is_some_and(|p| p.disabled.is_none()),
        };
        if targets.is_empty() {
            self.warnings.push(format!("the alias `{name}` has no target: requests to it will be refused"));
        } else if !targets.iter().any(|(id, _)| usable(id)) {
            self.warnings
                .push(format!("all targets of the alias `{name}` are disabled: requests to it will be refused"));
        }
    }
}

fn no_price(text: &str, names: &Names<'_>) -> String {
    let near = did_you_mean(text, names.catalog.models.keys().map(String::as_str));
    format!(
        "`{text}` has no known price: add `[prices.\"{text}\"]`, or `prices.\"{text}\" = \"free\"` if it costs nothing{near}"
    )
}

fn no_target(text: &str, split: Option<(&str, &str)>, names: &Names<'_>) -> String {
    let local = names.local.iter().map(|model| &model.name);
    let all = names.lists.keys().chain(local).chain(names.catalog.models.keys());
    let near = did_you_mean(text, all.map(String::as_str));
    match split {
        None => format!("there is no alias or local model `{text}`{near}"),
        Some((provider, model)) => {
            let other = nearest(provider, names.providers.keys().map(String::as_str)).filter(|_| near.is_empty());
            let near = other.map_or(near, |other| format!("; did you mean `{other}/{model}`?"));
            format!("there is no alias `{text}` and no provider `{provider}`{near}")
        }
    }
}

fn cascade(raw: &RawCascade) -> Cascade {
    Cascade {
        hold_tokens: small(raw.hold_tokens.value.0),
        min_confidence: raw.min_confidence.value.0,
        checks: raw.checks.value.iter().map(|check| check.value).collect(),
    }
}

/// The aliases that exist out of the box.
fn built_in(
    local: &[Arc<LocalModel>],
    providers: &BTreeMap<String, Arc<Provider>>,
    catalog: &Catalog,
) -> BTreeMap<String, List> {
    let list = |strategy, entries| List {
        strategy,
        entries,
        rates: RateLimits::default(),
        escalate_at: Vec::new(),
        cascade: None,
        weights: Vec::new(),
    };
    let backends = |ids: Vec<BackendId>| list(Strategy::Ordered, ids.into_iter().map(Entry::Backend).collect());
    let model = |model: Option<&Arc<LocalModel>>| {
        backends(model.map(|model| BackendId::Local(model.name.as_str().into())).into_iter().collect())
    };
    let mut lists = BTreeMap::from([
        ("local/fast".to_owned(), model(local.first())),
        ("local/quality".to_owned(), model(local.last())),
    ]);
    for (name, choices) in CLOUD_ALIASES {
        let served = choices.iter().flat_map(|(kind, model)| {
            let of_kind = providers.values().filter(move |provider| provider.kind == *kind);
            of_kind.map(|p| BackendId::Remote { provider: p.name.as_str().into(), model: (*model).into() })
        });
        lists.insert((*name).to_owned(), backends(served.filter(|id| catalog.facts(id).is_some()).collect()));
    }
    let nowhere = Span::default();
    let auto = AUTO_TARGETS.map(|name| Entry::Name(At { value: name.to_owned(), span: nowhere.clone() }));
    lists.insert("auto".to_owned(), list(Strategy::Pyramid, auto.into()));
    lists
}
