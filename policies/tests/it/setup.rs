//! A small world: one configuration, a clock by hand, prices that are easy to reckon with.

use jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;
use tollkeeper_config::{
    AgentConfig, BackendId, BudgetConfig, Config, Limit, OnLimit, OnSharedDown, Owner, PicoUsd, Price, PriceSource,
    Priority, RateLimits, Rates, Scope, Secret, Usd, VelocityConfig, Window,
};
use tollkeeper_policies::{Caller, Clock, Outcome, OutputBound, Policies, Settlement, Spend};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::usage::Usage;

/// A configuration with one agent, `scout`, whose key is `scout-key`.
pub(crate) fn config(budgets: &[(Window, i64)]) -> Config {
    let mut config = tollkeeper_config::parse("", Path::new("/nowhere/test.toml"), &|_| None).unwrap();
    config.agents.clear();
    add_agent(&mut config, "scout", budgets);
    config
}

pub(crate) fn add_agent(config: &mut Config, name: &str, budgets: &[(Window, i64)]) {
    let owner = Owner::new(Scope::Agent, name);
    config.budgets.retain(|budget| budget.owner != owner);
    let own = budgets.iter().map(|(window, limit)| budget(owner.clone(), *window, Limit::Usd(Usd(*limit))));
    config.budgets.extend(own);
    let key = Some(Secret::new(format!("{name}-key")));
    let agent = AgentConfig {
        name: name.to_owned(),
        key,
        models: vec!["*".to_owned()],
        priority: Priority::Interactive,
        rates: RateLimits::default(),
        team: None,
        max_request: None,
        degrade_to: None,
        task_type: None,
        velocity: VelocityConfig::default(),
    };
    config.agents.insert(name.to_owned(), Arc::new(agent));
}

/// A budget that refuses, in UTC, without notices.
pub(crate) fn budget(owner: Owner, window: Window, limit: Limit) -> BudgetConfig {
    let (zone, notify_at) = (jiff::tz::TimeZone::UTC, Vec::new());
    BudgetConfig {
        owner,
        window,
        zone,
        limit,
        notify_at,
        on_limit: OnLimit::Deny,
        wrap_up_pct: 0,
        on_shared_down: OnSharedDown::Deny,
    }
}

/// The same with its ledger in this folder.
pub(crate) fn stored(folder: &Path, budgets: &[(Window, i64)]) -> Config {
    let mut config = config(budgets);
    config.store.path = folder.join("tollkeeper.db");
    config
}

/// The same with its ledger in a database, under this gateway's name.
pub(crate) fn stored_in(url: &str, gateway: &str, budgets: &[(Window, i64)]) -> Config {
    let mut config = config(budgets);
    config.store.url = Some(Secret::new(url));
    config.store.gateway = Some(gateway.to_owned());
    config
}

/// A clock, and the hand that sets it.
pub(crate) fn clock(at: &str) -> (Clock, Hand) {
    let hand = Hand(Arc::new(AtomicI64::new(0)));
    hand.set(at);
    (Clock::fixed(hand.0.clone()), hand)
}

/// Sets a clock.
#[derive(Clone)]
pub(crate) struct Hand(Arc<AtomicI64>);

impl Hand {
    /// The clock that it sets.
    pub(crate) fn clock(&self) -> Clock {
        Clock::fixed(self.0.clone())
    }

    pub(crate) fn set(&self, at: &str) {
        self.0.store(at.parse::<Timestamp>().unwrap().as_millisecond(), Relaxed);
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).unwrap(), Relaxed);
    }
}

pub(crate) fn scout(policies: &Policies) -> Caller {
    policies.authenticate("scout-key").unwrap()
}

/// One of an agent's own budgets in USD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) window: Window,
    pub(crate) limit: Usd,
    pub(crate) spent: Usd,
    pub(crate) reserved: Usd,
    pub(crate) remaining: Usd,
    pub(crate) resets_at: Option<Timestamp>,
}

/// An agent's own budgets in USD.
pub(crate) fn own(policies: &Policies, caller: &Caller) -> Vec<Own> {
    let usd = |units: i128| Usd(i64::try_from(units).unwrap());
    let views = policies.budgets(&Owner::new(Scope::Agent, caller.agent.name.clone()));
    let own = views.into_iter().map(|view| Own {
        window: view.rule.window,
        limit: usd(view.rule.limit.units()),
        spent: usd(view.spent),
        reserved: usd(view.reserved),
        remaining: usd(view.remaining),
        resets_at: view.resets_at,
    });
    own.collect()
}

/// One nano-dollar per token of either kind, so that tokens read as money.
pub(crate) fn nano_per_token() -> Price {
    price(1_000, 1_000)
}

/// Pico-dollars per token of input (cached or not) and of output.
pub(crate) fn price(input: u64, output: u64) -> Price {
    let input = PicoUsd(input);
    let base = Rates { input, cached_input: input, cache_write: input, output: PicoUsd(output), ..Rates::default() };
    Price { base, above: Vec::new(), tiers: Vec::new(), source: PriceSource::File }
}

pub(crate) fn spend(price: Price, input_tokens: u64, output: OutputBound) -> Spend {
    Spend {
        request_id: "req-1".into(),
        attempt: 1,
        operation: Operation::Chat,
        alias: "cloud/fast".into(),
        backend: BackendId::Remote { provider: "openai".into(), model: "small".into() },
        price,
        catalog_version: "2026-01-01".into(),
        answers: 1,
        input_tokens,
        output,
        request_left: None,
        final_answer: false,
        task: None,
        signature: None,
        billable: Default::default(),
    }
}

/// A stream's bound without a maximum.
pub(crate) fn growing(slice: u64) -> OutputBound {
    OutputBound::Growing { slice, max: None }
}

/// A finished answer with these tokens, as the backend counted them.
pub(crate) fn used(input: u64, output: u64) -> Settlement {
    Settlement {
        usage: Usage { input, output, ..Usage::default() },
        estimated: false,
        outcome: Outcome::Done,
        ttft: Some(Duration::from_millis(3)),
        duration: Duration::from_millis(40),
    }
}
