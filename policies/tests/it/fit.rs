//! How much of a budget agents can use before the first of them is refused: a dozen with long prompts, short answers and no
//! limit of their own, with leases that grow, and with reservations of the longest possible answer.

use crate::setup::{clock, config, own, price, scout, spend, used};
use std::cell::Cell;
use std::rc::Rc;
use tollkeeper_config::{Price, Usd, Window};
use tollkeeper_policies::{OutputBound, Policies};

const AGENTS: u64 = 12;
const BUDGET: Usd = Usd(5_000_000_000);
/// The longest answer of the model.
const LONGEST: u64 = 16_384;

/// USD 3 for a million tokens of input, 15 of output.
fn prices() -> Price {
    price(3_000_000, 15_000_000)
}

/// Prompt and answer of an agent's turn: 2,000 to 32,000 tokens, and 20 to 1,200, most of them short.
fn turn(agent: u64, number: u64) -> (u64, u64) {
    let mut mixed = agent.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ number.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let (one, two) = ((mixed >> 11) % 1000, (mixed >> 31) % 1000);
    (2000 + one * 30, 20 + two * two * two * 1180 / 1_000_000_000)
}

/// The part of the budget that is used by all that was admitted before somebody was refused or cut for the first time.
async fn used_before_the_first_refusal(worst_case: bool) -> f64 {
    let policies = Policies::in_memory(&config(&[(Window::Day, BUDGET.0)]), clock("2026-03-04T05:06:07Z").0);
    let agent = scout(&policies);
    let refused: Rc<Cell<bool>> = Rc::default();
    let local = tokio::task::LocalSet::new();
    for number in 0..AGENTS {
        let (policies, agent, refused) = (policies.clone(), agent.clone(), refused.clone());
        local.spawn_local(async move {
            for round in 0.. {
                if refused.get() {
                    return;
                }
                let (input, output) = turn(number, round);
                let slice = policies.expected_output(&agent.agent, &spend(prices(), 1, OutputBound::Whole(0)).backend);
                let bound = match worst_case {
                    true => OutputBound::Whole(LONGEST),
                    false => OutputBound::Growing { slice: slice.unwrap_or(512).clamp(64, 4096), max: Some(LONGEST) },
                };
                let admitted = policies.admit(&agent, spend(prices(), input, bound)).await;
                // A reservation that is shrunk to what is left is a refusal too: the answer would be cut.
                let shrunk = |lease: &tollkeeper_policies::Lease| worst_case && lease.covered() < LONGEST;
                let Some(mut lease) = admitted.ok().filter(|lease| !shrunk(lease)) else { break };
                let mut written = 0;
                while written < output {
                    written = (written + 40).min(output);
                    tokio::task::yield_now().await;
                    if lease.cover(written).is_err() {
                        break;
                    }
                }
                let covered = lease.covered().min(written);
                lease.settle(used(input, covered));
                if covered < output {
                    break;
                }
            }
            refused.set(true);
        });
    }
    local.await;
    let budget = own(&policies, &agent)[0];
    assert!(refused.get() && budget.reserved == Usd::ZERO);
    budget.spent.0 as f64 / BUDGET.0 as f64
}

#[tokio::test]
async fn leases_that_grow_use_a_budget_up_where_reservations_block() {
    let (leases, reservations) =
        (used_before_the_first_refusal(false).await, used_before_the_first_refusal(true).await);
    println!(
        "used before the first refusal: {:.1} % with leases, {:.1} % with reservations",
        leases * 100.0,
        reservations * 100.0
    );
    assert!(leases >= 0.97, "leases block at {leases}");
    assert!(reservations < 0.5, "reservations block at {reservations}");
}
