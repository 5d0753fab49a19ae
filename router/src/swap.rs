//! Whether bringing a local model back pays: what its absence has cost against what the swap would cost.
//!
//! A request for a model that is not in memory is answered by a cloud, which costs what its tokens cost there: the model's *regret*. As
//! long as nobody knows what comes next, waiting until the regret has reached the price of the swap costs at most twice what
//! somebody with foresight would have paid for the same change: that is the ski-rental rule (rent until the rent paid is the price of
//! the skis). Where models come and go it is a metrical task system (Borodin, Linial and Saks, 1992), and three things are added:
//!
//! - **What is in memory earns.** A request that it answers takes as much from the regret of those that want its place, and, as
//!   [`Rules::credit_percent`] allows, is credit against their next regret. With all of it (100 %) the account is the work function of two
//!   states, with none the plain ski rental.
//! - **The price of a swap is what it loses**: while models move, those that go answer nobody, and their requests cost what the cloud
//!   takes for as many as they answered lately; and the energy of the load.
//! - **A swap settles the accounts of those that wanted the same place**: what was regretted before is not regretted twice.
//!
//! Nothing is forgotten by time alone: a model that is wanted once a day while nobody uses the other shall come too, and the bound holds
//! only so. An old regret goes when its opponents earn, and it is never more than one swap's price.
//!
//! What is decided here is only whether a swap pays for requests that something else can answer. Requests that can wait for nothing but
//! the model bring it in by themselves, whatever it costs, and no account stands against them.

pub mod simulation;
pub mod traces;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use tollkeeper_config::Usd;
use window::Window;

/// How swaps are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What a model in memory can have earned against others, in percent of the price of a swap.
    pub credit_percent: u16,
    /// What models were asked lately is judged by one to two times this, in milliseconds.
    pub look_back_ms: u64,
}

impl Default for Rules {
    /// As [`simulation`] finds them to cost least over all traces.
    fn default() -> Self {
        Self { credit_percent: 60, look_back_ms: 60_000 }
    }
}

/// What a swap would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move<'a> {
    /// The models that have to go.
    pub victims: &'a [Arc<str>],
    /// How long the victims answer nobody, and the wanted model not yet, in milliseconds.
    pub takes_ms: u64,
    /// What the electricity for it costs.
    pub energy: Usd,
}

/// What to do about a model that was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether this is the first time since it was in memory.
    pub opened: bool,
    /// Whether the swap pays.
    pub swap: bool,
    /// Whether it did not when the model was missed before.
    pub first: bool,
    /// What the model's absence has cost, less what those in its place have earned; negative if they earned more.
    pub regret: Usd,
    /// What the swap would cost.
    pub price: Usd,
}

/// What is known of a model.
#[derive(Debug, Clone, Default)]
struct Account {
    /// What its requests are worth, lately, whoever answered them.
    asked: Window,
    /// While it is not in memory, from the first time that it was missed.
    absence: Option<Absence>,
}

/// The account of a model that is not in memory.
#[derive(Debug, Clone)]
struct Absence {
    /// Nano-dollars: its regret, or if negative what stands against it.
    regret: i64,
    /// Nano-dollars, by the last look.
    price: i64,
    /// Who would go for it, by the last look.
    victims: Vec<Arc<str>>,
    /// The swap has been found to pay, and nobody has earned that back since.
    ordered: bool,
}

/// The accounts of all local models of a device. Times are milliseconds since any fixed start, and never go back.
#[derive(Debug, Clone, Default)]
pub struct Book {
    rules: Rules,
    accounts: BTreeMap<Arc<str>, Account>,
}

impl Book {
    /// An empty book.
    pub fn new(rules: Rules) -> Self {
        Self { rules, accounts: BTreeMap::new() }
    }

    /// Other rules from now on; what was counted stays.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// A model in memory has answered what would have cost so much more elsewhere.
    pub fn served(&mut self, now_ms: u64, model: &Arc<str>, worth: Usd) {
        self.came(model);
        let worth = worth.0.max(0);
        let rules = self.rules;
        self.accounts.entry(model.clone()).or_default().asked.add(rules.look_back_ms, now_ms, worth);
        for absence in self.accounts.values_mut().filter_map(|account| account.absence.as_mut()) {
            if absence.victims.contains(model) {
                absence.regret = absence.regret.saturating_sub(worth).max(absence.floor(rules));
                // All of it has to be earned back: else an order would be taken back for one answer and given again for the next miss.
                absence.ordered &= worth == 0 || absence.regret > 0;
            }
        }
    }

    /// A request went elsewhere because this model was not in memory, and cost so much more there. Says whether it should come back.
    pub fn missed(&mut self, now_ms: u64, model: &Arc<str>, regret: Usd, what: &Move<'_>) -> Verdict {
        let price = self.price(now_ms, what);
        let rules = self.rules;
        let regret = regret.0.max(0);
        let account = self.accounts.entry(model.clone()).or_default();
        account.asked.add(rules.look_back_ms, now_ms, regret);
        let opened = account.absence.is_none();
        let absence = account.absence.get_or_insert_with(|| Absence {
            regret: i64::MIN,
            price,
            victims: Vec::new(),
            ordered: false,
        });
        absence.price = price;
        let same = absence.victims == what.victims;
        if !same {
            absence.victims = what.victims.to_vec();
        }
        let regret = absence.regret.max(absence.floor(rules)).saturating_add(regret);
        let swap = regret > 0 && regret >= price;
        // More than the price is no stronger a reason, and would have to be earned back before the next swap makes sense.
        absence.regret = regret.min(price);
        let first = swap && !absence.ordered;
        absence.ordered = swap || absence.ordered && same;
        Verdict { opened, swap, first, regret: Usd(absence.regret), price: Usd(price) }
    }

    /// What a model's absence has cost so far, and what its swap would cost now.
    pub fn standing(&self, now_ms: u64, model: &str, what: &Move<'_>) -> (Usd, Usd) {
        let absence = self.accounts.get(model).and_then(|account| account.absence.as_ref());
        let price = self.price(now_ms, what);
        (absence.map_or(Usd::ZERO, |absence| Usd(absence.regret)), Usd(price))
    }

    /// What a swap would cost, in nano-dollars: what those that go would have earned meanwhile, and the energy.
    fn price(&self, now_ms: u64, what: &Move<'_>) -> i64 {
        let lost = what.victims.iter().filter_map(|victim| self.accounts.get(victim));
        let lost = lost.map(|account| account.asked.expected(self.rules.look_back_ms, now_ms, what.takes_ms));
        lost.fold(what.energy.0.max(0), i64::saturating_add)
    }

    /// The model is in memory: its account is closed, and what it regretted is taken from that of the others that want its victims' place,
    /// who would have it no better now.
    pub fn came(&mut self, model: &Arc<str>) {
        let Some(gone) = self.accounts.get_mut(model).and_then(|account| account.absence.take()) else { return };
        let rules = self.rules;
        for absence in self.accounts.values_mut().filter_map(|account| account.absence.as_mut()) {
            if absence.victims.iter().any(|victim| gone.victims.contains(victim)) {
                absence.regret = absence.regret.saturating_sub(gone.regret.max(0)).max(absence.floor(rules));
                absence.ordered = false;
            }
        }
    }

    /// The model could not be loaded: if its swap was ordered it has cost its price all the same, and is not ordered again before as much is
    /// regretted anew.
    pub fn failed(&mut self, model: &str) {
        let rules = self.rules;
        let Some(absence) = self.accounts.get_mut(model).and_then(|account| account.absence.as_mut()) else { return };
        if std::mem::take(&mut absence.ordered) {
            absence.regret = absence.regret.saturating_sub(absence.price).max(absence.floor(rules));
        }
    }

    /// The models whose swap was found to pay, and has neither come nor been outweighed since; each with those who were to go for it.
    pub fn ordered(&self) -> impl Iterator<Item = (&Arc<str>, &[Arc<str>])> {
        let absent = self.accounts.iter().filter_map(|(model, account)| Some((model, account.absence.as_ref()?)));
        absent.filter(|(_, absence)| absence.ordered).map(|(model, absence)| (model, &absence.victims[..]))
    }

    /// Forgets the models that are no more.
    pub fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.accounts.retain(|model, _| is_known(model));
    }

    /// The regret of each model that is not in memory, and what its swap was last thought to cost.
    pub fn regrets(&self) -> impl Iterator<Item = (&Arc<str>, Usd, Usd)> {
        let absent = self.accounts.iter().filter_map(|(model, account)| Some((model, account.absence.as_ref()?)));
        absent.map(|(model, absence)| (model, Usd(absence.regret), Usd(absence.price)))
    }
}

impl Absence {
    /// The most that can stand against it.
    fn floor(&self, rules: Rules) -> i64 {
        let percent = i128::from(rules.credit_percent);
        i64::try_from(-(i128::from(self.price) * percent / 100)).unwrap_or(i64::MIN)
    }
}
