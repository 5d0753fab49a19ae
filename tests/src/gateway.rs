//! The real gateway in this process, on a free port, with its configuration and ledger in a temporary folder.

use crate::client::Client;
use crate::metrics::Samples;
use crate::setup::{KEY, Setup};
use crate::wait::{eventually, within};
use std::net::SocketAddr;
use std::sync::Arc;
use tollkeeper_config::Usd;
use tollkeeper_gateway::Running;
use tollkeeper_policies::Clock;
use tollkeeper_policies::report::{self, SpendGroup, SpendQuery, SpendSum, VerifyReport};

/// A running gateway. [`Gateway::stop`] drains it; dropping it ends it with the test's runtime.
#[derive(Debug)]
pub struct Gateway {
    running: Running,
    setup: Setup,
}

impl Gateway {
    /// Starts with this set-up.
    pub async fn start(setup: Setup) -> Self {
        Self::start_by(setup, Clock::system()).await
    }

    /// Starts with this set-up, and with this clock for the policies.
    pub async fn start_by(setup: Setup, clock: Clock) -> Self {
        let path = setup.write();
        let config = tollkeeper_config::load(&path).unwrap_or_else(|problems| panic!("{problems}\n{}", setup.toml()));
        let reloader = Some(tollkeeper_config::Reloader::new(&path));
        let options = tollkeeper_gateway::Options { clock, reloader, ..tollkeeper_gateway::Options::default() };
        let started = tollkeeper_gateway::Gateway::start(Arc::new(config), options);
        let running = within("the start of the gateway", started).await.unwrap();
        Self { running, setup }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.running.addr
    }

    /// A client with the key of the agent `scout`.
    pub fn client(&self) -> Client {
        Client::new(self.addr()).key(KEY)
    }

    /// Takes over another set-up's configuration.
    pub fn reload(&self, setup: &Setup) {
        let config = tollkeeper_config::load(&setup.write()).unwrap_or_else(|problems| panic!("{problems}"));
        self.running.reload(&Arc::new(config));
    }

    /// Where it listens for the operator, when that is a place of its own.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.running.admin_addr
    }

    /// Its set-up.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// What `/metrics` shows now.
    pub async fn metrics(&self) -> Samples {
        let answer = Client::new(self.addr()).get("/metrics").await;
        assert_eq!(answer.status, 200);
        Samples::parse(&answer.text())
    }

    /// Waits until no lease is open: every request there was is settled.
    pub async fn settled(&self) {
        eventually("the settlement of all leases", async || {
            (self.metrics().await.sum("tollkeeper_open_leases", &[]) == 0.0).then_some(())
        })
        .await;
    }

    /// Drains and stops it, and reads the ledger it leaves.
    pub async fn stop(self) -> Ledger {
        Ledger::read(self.shut().await)
    }

    /// Drains and stops it, wherever its ledger is.
    pub async fn shut(self) -> Setup {
        within("the drain of the gateway", self.running.shutdown()).await;
        self.setup
    }
}

/// A ledger, read from outside when its gateway is gone.
#[derive(Debug)]
pub struct Ledger {
    /// The set-up of the gateway that wrote it.
    pub setup: Setup,
    /// Charges by agent and backend.
    pub rows: Vec<SpendSum>,
    /// What a check of the whole ledger found.
    pub report: VerifyReport,
}

impl Ledger {
    /// Reads and verifies it; panics when it is not sound.
    pub fn read(setup: Setup) -> Self {
        let path = setup.ledger();
        let groups = vec![SpendGroup::Agent, SpendGroup::Model];
        let rows = report::spend_by(&path, &SpendQuery { groups, ..SpendQuery::default() }).unwrap();
        let report = report::verify(&path).unwrap();
        Self { setup, rows, report }
    }

    /// What was charged for a backend (all agents together).
    pub fn cost(&self, backend: &str) -> Usd {
        Usd(self.of(backend).map(|row| row.cost.0).sum())
    }

    /// What was charged in all.
    pub fn total(&self) -> Usd {
        Usd(self.rows.iter().map(|row| row.cost.0).sum())
    }

    /// Attempts at a backend.
    pub fn attempts(&self, backend: &str) -> u64 {
        self.of(backend).map(|row| row.attempts).sum()
    }

    fn of(&self, backend: &str) -> impl Iterator<Item = &SpendSum> {
        self.rows.iter().filter(move |row| row.group[1].as_deref() == Some(backend))
    }
}
