//! What holds of every plan.

use crate::{candidate, chat, price};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use tollkeeper_config::Usd;
use tollkeeper_config::{Abilities, BackendId, Link, Strategy as Order};
use tollkeeper_protocol::Operation;
use tollkeeper_router::fit::fit;
use tollkeeper_router::{Ask, Candidate, Health, Pace, Rules, Wishes, plan};

fn health() -> impl Strategy<Value = Health> {
    prop_oneof![
        4 => Just(Health::Ready),
        1 => (0u64..4000).prop_map(|ready_in_ms| Health::Absent { ready_in_ms }),
        2 => (0u64..9).prop_map(|until_ms| Health::Cooling { until_ms }),
        1 => Just(Health::Unavailable("gone".into())),
    ]
}

fn abilities() -> impl Strategy<Value = Abilities> {
    prop_oneof![
        2 => Just(Abilities::ALL),
        1 => prop::array::uniform8(any::<bool>()).prop_map(|[chat, completion, embeddings, tools, json_schema, vision, reasoning, rerank]| {
            Abilities { chat, completion, embeddings, tools, json_schema, vision, reasoning, rerank }
        }),
    ]
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let limits = (prop::option::of(0u64..3000), prop::option::of(0u64..3000));
    let busy = (0u32..3, 0u64..3, 0u32..4, paces());
    let one = (0u8..4, 0u64..5, 0u64..5, limits, abilities(), health(), busy);
    prop::collection::vec(one, 0..8).prop_map(|all| {
        let make = |(
            place,
            (tier, input, output, (context, max_output), abilities, health, (in_flight, queue_tokens, weight, pace)),
        )| {
            let mut made: Candidate = candidate(&format!("m{place}"), tier, price(input, output));
            let facts = Arc::make_mut(&mut made.facts);
            (facts.context, facts.max_output, facts.abilities) = (context, max_output, abilities);
            Candidate { health, in_flight, queue_tokens, weight, pace, ..made }
        };
        all.into_iter().enumerate().map(make).collect()
    })
}

fn asks() -> impl Strategy<Value = Ask> {
    let operation = prop::sample::select(vec![
        Operation::Chat,
        Operation::Chat,
        Operation::TextCompletion,
        Operation::Embeddings,
        Operation::Rerank,
    ]);
    (operation, 0u64..2000, 1u64..4, prop::option::of(0u64..2000), any::<[bool; 3]>()).prop_map(
        |(operation, input, answers, each, [tools, vision, json_schema])| Ask {
            operation,
            answers,
            longest_input: input / answers,
            tools,
            vision,
            json_schema,
            ..chat(input, each.map(|each| each * answers))
        },
    )
}

fn orders() -> impl Strategy<Value = Order> {
    prop::sample::select(Order::NAMES.map(|(_, order)| order).to_vec())
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let tier = || prop::option::of(0u8..4);
    let cost = prop::option::of((0i64..5_000_000).prop_map(Usd));
    (tier(), tier(), cost, prop::option::of(0u64..20_000), prop::option::of(any::<u64>())).prop_map(
        |(min_tier, max_tier, max_cost, deadline_ms, session)| Wishes {
            min_tier,
            max_tier,
            max_cost,
            deadline_ms,
            session,
            ..Wishes::default()
        },
    )
}

fn paces() -> impl Strategy<Value = Pace> {
    let rate = || prop::option::of(0u32..5000);
    let work = (0u64..1000, 0u64..u64::MAX, 0u32..20, prop::option::of(1u32..20), rate());
    (prop::option::of(0u64..5000), rate(), rate(), work).prop_map(
        |(ttft_ms, prefill, decode, (cached, unread, waiting, slots, overall))| Pace {
            ttft_ms,
            prefill,
            decode,
            cached,
            unread,
            waiting,
            slots,
            overall,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_candidate_is_tried_or_rejected_once(ask in asks(), candidates in candidates(), order in orders(), seed: u64) {
        let planned = plan(&ask, candidates.clone(), order, seed);
        prop_assert_eq!(planned.attempts.len() + planned.rejected.len(), candidates.len());
        let tried = planned.attempts.iter().map(|attempt| &attempt.id);
        let all: BTreeSet<_> = tried.chain(planned.rejected.iter().map(|(id, _)| id)).collect();
        prop_assert_eq!(all, candidates.iter().map(|candidate| &candidate.id).collect());
        prop_assert!(planned.attempts.iter().enumerate().all(|(index, attempt)| attempt.why.rank == index + 1));
        prop_assert_eq!(planned.refusal().is_some(), planned.attempts.is_empty());
        prop_assert_eq!(plan(&ask, candidates, order, seed), planned, "the same arguments give the same plan");
    }

    #[test]
    fn no_attempt_violates_a_filter(ask in asks(), candidates in candidates(), order in orders(), seed: u64) {
        let planned = plan(&ask, candidates.clone(), order, seed);
        for attempt in &planned.attempts {
            let candidate = candidates.iter().find(|candidate| candidate.id == attempt.id).unwrap();
            let can = candidate.facts.abilities;
            let does = match ask.operation {
                Operation::Chat => can.chat,
                Operation::TextCompletion => can.completion,
                Operation::Embeddings => can.embeddings,
                Operation::Rerank => can.rerank,
            };
            prop_assert!(does && (can.tools || !ask.tools) && (can.vision || !ask.vision));
            prop_assert!(can.json_schema || !ask.json_schema);
            prop_assert!(!matches!(candidate.health, Health::Unavailable(_)));
            let needed = ask.longest_input + ask.max_output_each().unwrap_or(0);
            prop_assert!(candidate.facts.context.is_none_or(|context| needed <= context));
        }
        for (id, reason) in &planned.rejected {
            let candidate = candidates.iter().find(|candidate| candidate.id == *id).unwrap();
            prop_assert_eq!(fit(&ask, candidate), Err(reason.clone()));
        }
    }

    #[test]
    fn attempts_are_in_the_strategys_order(ask in asks(), candidates in candidates(), order in orders(), seed: u64) {
        let place = |id: &BackendId| candidates.iter().position(|candidate| candidate.id == *id).unwrap();
        let planned = plan(&ask, candidates.clone(), order, seed);
        for pair in planned.attempts.windows(2) {
            let [before, after] = pair else { unreachable!() };
            let late = |attempt: &tollkeeper_router::Attempt| {
                let health = &candidates[place(&attempt.id)].health;
                (attempt.why.cooling, matches!(health, Health::Absent { ready_in_ms } if *ready_in_ms > 2000))
            };
            prop_assert!(late(before) <= late(after), "cooling backends come last, models that take long before them");
            if late(before) != late(after) {
                continue;
            }
            match order {
                Order::Ordered => prop_assert!(place(&before.id) < place(&after.id)),
                Order::Pyramid => prop_assert!((before.why.tier, place(&before.id)) < (after.why.tier, place(&after.id))),
                Order::Cheapest => prop_assert!(before.cost.expected <= after.cost.expected),
                Order::Fastest => prop_assert!(before.time.duration_ms <= after.time.duration_ms),
                Order::LeastBusy => {
                    let busy = |attempt: &tollkeeper_router::Attempt| {
                        let candidate = &candidates[place(&attempt.id)];
                        (candidate.queue_tokens, candidate.in_flight)
                    };
                    prop_assert!(busy(before) <= busy(after));
                }
                Order::Sticky => {
                    let cached = |attempt: &tollkeeper_router::Attempt| candidates[place(&attempt.id)].pace.cached;
                    prop_assert!(cached(before) >= cached(after));
                }
                Order::Balanced => {
                    let worse = before.cost.expected > after.cost.expected && before.time.duration_ms > after.time.duration_ms;
                    prop_assert!(!worse, "who is dearer and slower comes later");
                }
                Order::Weighted => {
                    let weight = |attempt: &tollkeeper_router::Attempt| candidates[place(&attempt.id)].weight;
                    prop_assert!(weight(before) > 0 || weight(after) == 0);
                }
            }
        }
        for attempt in &planned.attempts {
            prop_assert!(attempt.cost.input <= attempt.cost.expected && attempt.cost.expected <= attempt.cost.worst);
        }
    }

    #[test]
    fn nobody_is_tried_whom_the_request_does_not_want(
        ask in asks(), candidates in candidates(), order in orders(), wishes in wishes(), seed: u64
    ) {
        let rules = Rules { wishes: wishes.clone(), ..order.into() };
        let planned = plan(&ask, candidates.clone(), rules.clone(), seed);
        for attempt in &planned.attempts {
            prop_assert!(wishes.max_cost.is_none_or(|most| attempt.cost.expected <= most));
            prop_assert!(wishes.min_tier.is_none_or(|min| attempt.why.tier >= min));
            prop_assert!(wishes.max_tier.is_none_or(|max| attempt.why.tier <= max));
        }
        let is_late = |attempt: &tollkeeper_router::Attempt| attempt.why.late && !attempt.why.cooling;
        let first_late = planned.attempts.iter().position(is_late).unwrap_or(usize::MAX);
        let in_time = planned.attempts.iter().rposition(|attempt| !attempt.why.late && !attempt.why.cooling);
        prop_assert!(in_time.is_none_or(|place| place < first_late), "who is in time comes before who is late");
        prop_assert_eq!(plan(&ask, candidates, rules, seed), planned, "the same arguments give the same plan");
    }

    #[test]
    fn a_chain_lets_in_its_own_at_their_price_and_puts_them_in_its_order(
        ask in asks(), candidates in candidates(), wishes in wishes(), seed: u64,
        links in prop::collection::vec((0usize..9, prop::option::of((0i64..5_000_000).prop_map(Usd))), 0..6)
    ) {
        let link = |(place, max_cost)| Link { id: candidate(&format!("m{place}"), 0, price(0, 0)).id, max_cost };
        let chain: Arc<[Link]> = links.into_iter().map(link).collect();
        let mut in_chain = candidates.clone();
        in_chain.retain(|candidate| chain.iter().any(|link| link.id == candidate.id));
        let place = |id: &BackendId| chain.iter().position(|link| link.id == *id);
        in_chain.sort_by_key(|candidate| place(&candidate.id));
        let free = Rules { wishes: wishes.clone(), ..Order::Ordered.into() };
        let mut wanted = plan(&ask, in_chain, free.clone(), seed);
        let cap = |id: &BackendId| place(id).and_then(|place| chain[place].max_cost);
        wanted.attempts.retain(|attempt| cap(&attempt.id).is_none_or(|most| attempt.cost.expected <= most));
        let rules = Rules { wishes: Wishes { chain: Some(chain.clone()), ..wishes }, ..free };
        let planned = plan(&ask, candidates.clone(), rules, seed);
        let ids = |plan: &tollkeeper_router::Plan| plan.attempts.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
        prop_assert_eq!(ids(&planned), ids(&wanted));
        prop_assert_eq!(planned.attempts.len() + planned.rejected.len(), candidates.len());
    }

    #[test]
    fn a_backend_that_becomes_dearer_moves_no_step_ahead(
        ask in asks(), candidates in candidates(), which in 0usize..8, more in 1u64..9, seed: u64
    ) {
        let Some(place) = which.checked_rem(candidates.len()) else { return Ok(()) };
        let mut dearer = candidates.clone();
        let facts = Arc::make_mut(&mut dearer[place].facts);
        let base = facts.price.base;
        facts.price = price(base.input.0 / 1000 + more, base.output.0 / 1000 + more);
        let id = candidates[place].id.clone();
        for order in [Order::Cheapest, Order::Balanced] {
            let rank = |candidates| plan(&ask, candidates, order, seed).attempts.iter().position(|one| one.id == id);
            let (before, after) = (rank(candidates.clone()), rank(dearer.clone()));
            // Of balanced ones the scale changes with the dearest.
            if order == Order::Cheapest {
                prop_assert!(after >= before, "{order:?}: {before:?} {after:?}");
            } else {
                prop_assert_eq!(after.is_some(), before.is_some());
            }
        }
    }
}
