//! Random interleavings of two gateways on one server, checked against a naive book: takes, extensions, settlements,
//! repeated calls, deaths, returns, restarts, window edges, changed limits, and a server that forgets.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use tollkeeper_policies::shared::{OpenLease, Restore, Rolls, Share, Tally};

/// Amounts are multiples of this and a bit, up to and beyond 2^62.
const UNIT: i64 = (1 << 62) / 60 - 11;
const MINUTE: i64 = 60_000_000;
const ROLLS: Rolls = Rolls { length: 10 * MINUTE, slot: 10 * MINUTE / 64 };
const NAMES: [&str; 2] = ["left", "right"];
/// In microseconds; clocks are set by hand here.
const AGE: i64 = 10_000_000;

#[derive(Debug, Clone)]
enum Step {
    Take {
        gate: usize,
        least: i64,
        more: i64,
    },
    Extend {
        which: usize,
        least: i64,
        more: i64,
    },
    Settle {
        which: usize,
        cost: i64,
    },
    /// A lease that was charged as unknown is settled after all.
    Late {
        which: usize,
        cost: i64,
    },
    Silence {
        gate: usize,
    },
    Return {
        gate: usize,
    },
    Restart {
        gate: usize,
    },
    Reap {
        gate: usize,
    },
    Advance {
        seconds: i64,
    },
    Limits([i64; 3]),
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = |most: i64| (0..most, 0..3_i64).prop_map(|(units, bit)| units * UNIT + bit);
    let gate = || 0..2_usize;
    let which = || 0..8_usize;
    let step = prop_oneof![
        9 => (gate(), amount(8), amount(8)).prop_map(|(gate, least, more)| Step::Take { gate, least, more }),
        6 => (which(), amount(9), amount(6)).prop_map(|(which, least, more)| Step::Extend { which, least, more }),
        6 => (which(), amount(12)).prop_map(|(which, cost)| Step::Settle { which, cost }),
        3 => (which(), amount(12)).prop_map(|(which, cost)| Step::Late { which, cost }),
        1 => gate().prop_map(|gate| Step::Silence { gate }),
        1 => gate().prop_map(|gate| Step::Return { gate }),
        1 => gate().prop_map(|gate| Step::Restart { gate }),
        3 => gate().prop_map(|gate| Step::Reap { gate }),
        2 => (1..200_i64).prop_map(|seconds| Step::Advance { seconds }),
        1 => (amount(60), amount(60), amount(60)).prop_map(|(a, b, c)| Step::Limits([a, b, c])),
        1 => Just(Step::Forget),
    ];
    proptest::collection::vec(step, 1..80)
}

/// The counters of what is admitted then: a minute, a total and a rolling window.
fn counters(admitted: i64) -> [Counter; 3] {
    let minute = admitted / MINUTE;
    [
        Counter { key: format!("minute:{minute}").into(), ends: Some((minute + 1) * MINUTE), rolls: None },
        total("total"),
        Counter { key: "rolling".into(), ends: None, rolls: Some(ROLLS) },
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Charged for a gateway that was dead, by this one.
    Unknown(usize),
    Closed,
}

/// What the naive book knows of a lease.
struct Entry {
    id: String,
    gate: usize,
    admitted: i64,
    /// In the order of [`counters`].
    held: [i64; 3],
    step: u32,
    state: State,
}

/// What some gateway's ledger says was spent.
struct Charge {
    gate: usize,
    admitted: i64,
    amounts: [i64; 3],
}

struct World<'a> {
    server: &'a RedisServer,
    prefix: String,
    gates: [SharedAccounts; 2],
    silent: [bool; 2],
    /// Processes that have ended and that nobody has looked after.
    ended: Vec<usize>,
    clock: Arc<AtomicI64>,
    limits: [i64; 3],
    entries: Vec<Entry>,
    charges: Vec<Charge>,
    count: usize,
}

fn gateway_by_hand(server: &RedisServer, prefix: &str, gate: usize, clock: &Arc<AtomicI64>) -> SharedAccounts {
    let settings = SharedStore {
        lease_age: Duration::from_micros(AGE.unsigned_abs()),
        answer: PATIENCE,
        connect: PATIENCE,
        ..settings(server.url(), prefix, NAMES[gate])
    };
    SharedAccounts::new(&settings, Clock::fixed(clock.clone())).unwrap()
}

impl<'a> World<'a> {
    async fn new(server: &'a RedisServer, prefix: String) -> Self {
        let clock = Arc::new(AtomicI64::new(1_772_582_400_000));
        let gates = [0, 1].map(|gate| gateway_by_hand(server, &prefix, gate, &clock));
        let mut world = Self {
            server,
            prefix,
            gates,
            silent: [false; 2],
            ended: Vec::new(),
            clock,
            limits: [20 * UNIT, 50 * UNIT, 40 * UNIT],
            entries: Vec::new(),
            charges: Vec::new(),
            count: 0,
        };
        world.restore().await;
        world
    }

    fn now(&self) -> i64 {
        self.clock.load(Relaxed) * 1000
    }

    /// (settled, leased) in the counters of what is admitted then.
    fn sums(&self, at: i64) -> [(i128, i128); 3] {
        let edge = self.now() - ROLLS.length;
        let counts = |admitted: i64| {
            let slot = admitted - admitted % ROLLS.slot;
            [admitted / MINUTE == at / MINUTE, true, slot + ROLLS.slot > edge]
        };
        std::array::from_fn(|place| {
            let charged = self.charges.iter().filter(|charge| counts(charge.admitted)[place]);
            let open = self.entries.iter().filter(|entry| entry.state == State::Open);
            // A rolling window holds every open lease, however old.
            let open = open.filter(|entry| place == 2 || counts(entry.admitted)[place]);
            (
                charged.map(|charge| i128::from(charge.amounts[place])).sum(),
                open.map(|entry| i128::from(entry.held[place])).sum(),
            )
        })
    }

    fn wants(&self, admitted: i64, least: i64, most: i64) -> Vec<Want> {
        let each = counters(admitted).into_iter().zip(self.limits);
        each.map(|(counter, limit)| Want { counter, limit: limit.into(), least, most }).collect()
    }

    /// What the book says is granted, or which counters cannot pay.
    fn grant(&self, at: i64, held: [i64; 3], least: i64, most: i64) -> Result<[i64; 3], Vec<usize>> {
        let sums = self.sums(at);
        let room = |place: usize| {
            let (settled, leased) = sums[place];
            (i128::from(self.limits[place]) - settled - leased).max(0) + i128::from(held[place])
        };
        let short: Vec<_> = (0..3).filter(|place| room(*place) < least.into()).collect();
        if short.is_empty() {
            Ok(std::array::from_fn(|place| i64::try_from(room(place).min(most.into())).unwrap()))
        } else {
            Err(short)
        }
    }

    fn nth(&self, which: usize, wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        let found: Vec<_> = (0..self.entries.len()).filter(|place| wanted(&self.entries[*place])).collect();
        (!found.is_empty()).then(|| found[which % found.len()])
    }

    fn compare(&self, answer: Result<Vec<Tally>, SharedError>, expected: &Result<[i64; 3], Vec<usize>>) {
        match (answer, expected) {
            (Ok(tallies), Ok(held)) => {
                let found: Vec<_> = tallies.iter().map(|tally| tally.held).collect();
                assert_eq!(found, held.map(i128::from));
            }
            (Err(SharedError::Refused { short, .. }), Err(expected)) => assert_eq!(&short, expected),
            (answer, expected) => panic!("{answer:?} instead of {expected:?}"),
        }
    }

    async fn take(&mut self, gate: usize, least: i64, more: i64) {
        let (now, most) = (self.now(), least.saturating_add(more));
        self.count += 1;
        let id = format!("l{}", self.count);
        let ask = Take { now, wants: self.wants(now, least, most), ..take(&id, &total(""), 0, 0) };
        let expected = self.grant(now, [0; 3], least, most);
        self.compare(self.gates[gate].take(&ask).await, &expected);
        if let Ok(held) = expected {
            self.entries.push(Entry { id, gate, admitted: now, held, step: 0, state: State::Open });
            // Asked again, it holds what it holds.
            self.compare(self.gates[gate].take(&ask).await, &expected);
        }
    }

    async fn extend(&mut self, which: usize, least: i64, more: i64) {
        let Some(place) = self.nth(which, |entry| entry.state == State::Open && !self.silent[entry.gate]) else {
            return;
        };
        let entry = &self.entries[place];
        let (admitted, gate, step, held) = (entry.admitted, entry.gate, entry.step + 1, entry.held);
        let most = least.saturating_add(more);
        let wants = self.wants(admitted, least, most);
        let ask = Extend { lease: entry.id.as_str().into(), step, now: self.now(), wants };
        let expected = self.grant(admitted, held, least, most);
        self.compare(self.gates[gate].extend(&ask).await, &expected);
        if let Ok(held) = expected {
            (self.entries[place].held, self.entries[place].step) = (held, step);
            self.compare(self.gates[gate].extend(&ask).await, &expected);
        }
    }

    async fn settle(&mut self, place: usize, cost: i64) {
        let now = self.now();
        let Entry { id, gate, admitted, held, state, .. } = &self.entries[place];
        let costs = [cost, cost / 2, cost.saturating_add(1)];
        let ended = self.gates[*gate].settle(id, now, &costs).await.unwrap();
        let by = match state {
            State::Unknown(by) => Some(NAMES[*by]),
            _ => None,
        };
        assert_eq!(ended.charged_by.as_deref(), by);
        assert_eq!(ended.tallies.iter().map(|tally| tally.held).collect::<Vec<_>>(), held.map(i128::from));
        let before = if by.is_some() { *held } else { [0; 3] };
        let amounts = std::array::from_fn(|place| costs[place] - before[place]);
        self.charges.push(Charge { gate: *gate, admitted: *admitted, amounts });
        assert_eq!(self.gates[*gate].settle(id, now, &costs).await, Err(SharedError::Gone));
        self.entries[place].state = State::Closed;
    }

    /// Both beats of a reaper: the first finds who is late, the second, later, that he is dead.
    async fn reap(&mut self, gate: usize) {
        let dead: Vec<usize> = (0..2).filter(|other| self.silent[*other] && *other != gate).collect();
        if !dead.is_empty() {
            for seconds in [AGE / 1000 + 1000, AGE / 3000] {
                self.clock.fetch_add(seconds, Relaxed);
                self.beat().await;
                self.gates[gate].reap().await.unwrap();
            }
        }
        while self.gates[gate].reap().await.unwrap() > 0 {}
        // Leases of ended processes are marked by a gateway that does not exist.
        let lost: Vec<_> = (0..self.entries.len())
            .filter(|place| self.entries[*place].state == State::Open)
            .filter(|place| dead.contains(&self.entries[*place].gate) || self.ended.contains(place))
            .collect();
        self.ended.clear();
        let list = self.gates[gate].unknown(&[]).await.unwrap();
        let mut found: Vec<_> = list.iter().map(|unknown| unknown.lease.to_string()).collect();
        let mut expected: Vec<_> = lost.iter().map(|place| self.entries[*place].id.clone()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "charged as unknown");
        let recorded: Vec<_> = list.iter().map(|unknown| unknown.lease.clone()).collect();
        assert_eq!(self.gates[gate].unknown(&recorded).await, Ok(Vec::new()));
        for place in lost {
            let Entry { id, admitted, held, state, .. } = &mut self.entries[place];
            let unknown = list.iter().find(|unknown| *unknown.lease == **id).unwrap();
            let charged: Vec<_> = unknown.charged.iter().map(|(_, amount)| *amount).collect();
            assert_eq!(charged, held.map(i128::from));
            *state = State::Unknown(gate);
            self.charges.push(Charge { gate, admitted: *admitted, amounts: *held });
        }
    }

    async fn beat(&self) {
        for gate in (0..2).filter(|gate| !self.silent[*gate]) {
            assert!(self.gates[gate].beat().await.unwrap().live);
        }
    }

    /// Every gateway tells what its own ledger says.
    async fn restore(&mut self) {
        for gate in 0..2 {
            self.gates[gate].beat().await.unwrap();
        }
        for gate in 0..2 {
            let own = |charge: &&Charge| charge.gate == gate;
            let shares = self.charges.iter().filter(own).flat_map(|charge| {
                let each = counters(charge.admitted).into_iter().zip(charge.amounts);
                each.map(|(counter, settled)| Share { counter, settled, admitted: charge.admitted })
            });
            let open = self.entries.iter().filter(|entry| entry.state == State::Open && entry.gate == gate);
            let leases = open.map(|entry| OpenLease {
                lease: entry.id.as_str().into(),
                admitted: entry.admitted,
                memo: "memo".into(),
                step: entry.step,
                held: counters(entry.admitted).into_iter().zip(entry.held).collect(),
            });
            let all =
                Restore { now: self.now(), shares: shares.collect(), leases: leases.collect(), marks: Vec::new() };
            self.gates[gate].restore(&all).await.unwrap();
        }
        // Who was alone at first may have waited for somebody.
        self.clock.fetch_add(AGE / 1000, Relaxed);
        self.beat().await;
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Take { gate, least, more } if !self.silent[gate] => self.take(gate, least, more).await,
            Step::Extend { which, least, more } => self.extend(which, least, more).await,
            Step::Settle { which, cost } => {
                let open = |entry: &Entry| entry.state == State::Open && !self.silent[entry.gate];
                if let Some(place) = self.nth(which, open) {
                    self.settle(place, cost).await;
                }
            }
            Step::Late { which, cost } => {
                let unknown = |entry: &Entry| matches!(entry.state, State::Unknown(_)) && !self.silent[entry.gate];
                if let Some(place) = self.nth(which, unknown) {
                    self.settle(place, cost).await;
                }
            }
            Step::Silence { gate } if !self.silent[1 - gate] => self.silent[gate] = true,
            Step::Return { gate } => self.silent[gate] = false,
            Step::Restart { gate } if !self.silent[gate] => {
                self.gates[gate] = gateway_by_hand(self.server, &self.prefix, gate, &self.clock);
                self.gates[gate].beat().await.unwrap();
                let open =
                    |place: &usize| self.entries[*place].state == State::Open && self.entries[*place].gate == gate;
                self.ended.extend((0..self.entries.len()).filter(open));
            }
            Step::Reap { gate } if !self.silent[gate] => self.reap(gate).await,
            Step::Advance { seconds } => _ = self.clock.fetch_add(seconds * 1000, Relaxed),
            Step::Limits(limits) => self.limits = limits,
            Step::Forget => {
                // Both know of each other: one that believes to be alone counts rather too much.
                self.silent = [false; 2];
                self.beat().await;
                self.beat().await;
                self.ended.clear();
                let pattern = format!("{{{}}}*", self.prefix);
                let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
                self.server.cli(&["EVAL", script, "0", &pattern]);
                // What was charged for others is in a ledger, and final.
                for entry in self.entries.iter_mut().filter(|entry| matches!(entry.state, State::Unknown(_))) {
                    entry.state = State::Closed;
                }
                let now = self.now();
                let lost = self.gates[0].take(&Take { now, ..take("probe", &total("total"), 1, 0) }).await;
                assert_eq!(lost, Err(SharedError::Lost));
                self.restore().await;
            }
            _ => {}
        }
        self.beat().await;
        let gate = usize::from(self.silent[0]);
        let standing = self.gates[gate].standing(&counters(self.now()), self.now()).await.unwrap();
        let found: Vec<_> = standing.iter().map(|tally| (tally.settled, tally.leased)).collect();
        assert_eq!(found, self.sums(self.now()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn two_gateways_count_what_one_book_would(all in proptest::collection::vec(steps(), 4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = RedisServer::start(false);
        for (case, steps) in all.into_iter().enumerate() {
            runtime.block_on(async {
                let mut world = World::new(&server, format!("case{case}")).await;
                for step in steps {
                    world.step(step).await;
                }
            });
        }
    }
}
