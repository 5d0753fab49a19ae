//! Several gateways on one server that is well.

use super::*;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use tollkeeper_policies::shared::{Ended, Tally};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_for_137_serves_137_of_1000_through_two_gateways() {
    let server = RedisServer::start(false);
    let gates = pair(&server, "t").await;
    // Prices beyond what a double tells apart.
    let price = (1_i64 << 54) + 1;
    let limit = i128::from(price) * 138 - 1;
    let before = server.calls("evalsha");
    let asks = (0..1000).map(|which| {
        let gate = gates[which % 2].clone();
        tokio::spawn(async move { gate.take(&take(&format!("l{which}"), &total("c"), limit, price)).await })
    });
    let (mut served, mut refused) = (0, 0);
    for ask in asks.collect::<Vec<_>>() {
        match ask.await.unwrap() {
            Ok(_) => served += 1,
            Err(SharedError::Refused { short, .. }) if short == [0] => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((served, refused), (137, 863));
    // One round trip each, and none besides.
    assert_eq!(server.calls("evalsha") - before, 1000);
    let standing = gates[0].standing(&[total("c")], 0).await.unwrap();
    assert_eq!(standing, [Tally { held: 0, settled: 0, leased: i128::from(price) * 137 }]);
}

#[tokio::test]
async fn what_a_dead_gateway_held_is_charged_once_and_put_right_when_it_comes_back() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let counter = total("c");
    for lease in ["a", "b"] {
        left.take(&take(lease, &counter, 1000, 300)).await.unwrap();
    }
    let spent = async || right.standing(std::slice::from_ref(&counter), 0).await.unwrap()[0];
    let died = Instant::now();
    let mut reaped = 0;
    eventually("the other's death", async || {
        assert!(right.beat().await.unwrap().live);
        reaped += right.reap().await.unwrap();
        (reaped > 0).then_some(())
    })
    .await;
    assert!(died.elapsed() > Duration::from_secs(1), "it was given no time");
    assert_eq!((reaped, spent().await), (2, Tally { held: 0, settled: 600, leased: 0 }));
    let list = right.unknown(&[]).await.unwrap();
    let mut leases: Vec<_> = list.iter().map(|unknown| (&*unknown.lease, &*unknown.gateway, &*unknown.memo)).collect();
    leases.sort_unstable();
    assert_eq!(leases, [("a", "left", "memo"), ("b", "left", "memo")]);
    assert_eq!((list[0].admitted, &list[0].charged[..]), (1_000_000, &[("c".into(), 300)][..]));
    // Recorded, they are not told again.
    assert_eq!(right.unknown(&["a".into(), "b".into()]).await, Ok(Vec::new()));

    let ended = left.settle("a", 2_000_000, &[120]).await.unwrap();
    assert_eq!(ended.charged_by.as_deref(), Some("right"));
    assert_eq!(spent().await, Tally { held: 0, settled: 420, leased: 0 });
    assert_eq!(left.settle("a", 2_000_000, &[120]).await, Err(SharedError::Gone));
    assert_eq!(left.extend(&extend(&take("b", &counter, 1000, 300), 1, 400)).await, Err(SharedError::Gone));
    assert_eq!(spent().await, Tally { held: 0, settled: 420, leased: 0 });
    left.take(&take("c", &counter, 1000, 580)).await.unwrap();
}

#[tokio::test]
async fn who_is_late_is_asked_twice_before_it_is_dead() {
    let server = RedisServer::start(false);
    let clock = Arc::new(AtomicI64::new(1_772_582_400_000));
    let pass = |ms: i64| _ = clock.fetch_add(ms, Relaxed);
    let [left, right] = ["left", "right"]
        .map(|name| SharedAccounts::new(&settings(server.url(), "t", name), Clock::fixed(clock.clone())).unwrap());
    for gate in [&left, &right] {
        gate.restore(&nothing()).await.unwrap();
    }
    right.take(&take("a", &total("c"), 10, 3)).await.unwrap();
    // Nobody could say anything for longer than the lease age of two seconds: the server stood still.
    pass(60_000);
    left.beat().await.unwrap();
    assert_eq!(left.reap().await, Ok(0), "suspected only");
    right.beat().await.unwrap();
    pass(1_000);
    assert_eq!(left.reap().await, Ok(0), "it has said that it lives");
    pass(1_001);
    assert_eq!(left.reap().await, Ok(0), "late, and suspected anew");
    pass(499);
    assert_eq!(left.reap().await, Ok(0), "not yet");
    pass(1);
    assert_eq!(left.reap().await, Ok(1));
    assert_eq!(left.reap().await, Ok(0));
}

#[tokio::test]
async fn what_a_process_held_is_charged_when_its_successor_comes() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let counter = total("c");
    left.take(&take("a", &counter, 1000, 300)).await.unwrap();
    let successor = gateway(&settings(server.url(), "t", "left"));
    successor.beat().await.unwrap();
    // No age has to pass, and its ledger is not counted a second time.
    assert_eq!(right.reap().await, Ok(1));
    successor.take(&take("b", &counter, 1000, 700)).await.unwrap();
    let replaced = left.take(&take("c", &counter, 1000, 0)).await;
    assert_eq!(replaced, Err(SharedError::Replaced("left".into())));
}

#[tokio::test]
async fn a_mark_set_by_one_gateway_stops_the_other_at_once() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let ask = |lease: &str| Take {
        marks: vec!["pause:agent:scout".into(), "cancel:run:7".into()],
        ..take(lease, &total("c"), 1000, 1)
    };
    right.take(&ask("a")).await.unwrap();
    let before = right.marks_changed();
    assert_eq!(left.mark("cancel:run:7", "enough").await, Ok(true));
    assert_eq!(left.mark("cancel:run:7", "enough").await, Ok(false));
    let stopped = SharedError::Stopped { mark: "cancel:run:7".into(), reason: "enough".into() };
    assert_eq!(right.take(&ask("b")).await, Err(stopped));
    // A stream in flight hears of it with its next extension.
    right.extend(&extend(&ask("a"), 1, 2)).await.unwrap();
    assert_eq!(right.marks_changed(), before + 1);
    assert_eq!(right.marks().await, Ok(vec![("cancel:run:7".into(), "enough".into())]));
    assert_eq!(left.unmark("cancel:run:7").await, Ok(true));
    right.take(&ask("b")).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_repeated_counts_once() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let counter = total("c");
    let first = take("a", &counter, 1000, 300);
    let once = left.take(&first).await.unwrap();
    assert_eq!(left.take(&first).await, Ok(once));
    let more = extend(&first, 1, 500);
    let once = left.extend(&more).await.unwrap();
    assert_eq!(once, [Tally { held: 500, settled: 0, leased: 500 }]);
    assert_eq!(left.extend(&more).await, Ok(once));
    let less = left.extend(&extend(&first, 2, 200)).await.unwrap();
    assert_eq!(less[0].leased, 200);
    // A step that comes late undoes nothing.
    assert_eq!(left.extend(&more).await.unwrap()[0], Tally { held: 200, settled: 0, leased: 200 });
    let ended = left.settle("a", 1_000_000, &[250]).await.unwrap();
    let tallies = vec![Tally { held: 200, settled: 250, leased: 0 }];
    assert_eq!(ended, Ended { charged_by: None, tallies });
    assert_eq!(left.settle("a", 1_000_000, &[250]).await, Err(SharedError::Gone));
    assert_eq!(left.take(&first).await, Err(SharedError::Gone));
    let standing = right.standing(&[counter], 0).await.unwrap();
    assert_eq!(standing, [Tally { held: 0, settled: 250, leased: 0 }]);
}

#[tokio::test]
async fn a_budget_that_is_new_counts_what_each_ledger_knows_once() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let share = |settled| tollkeeper_policies::shared::Restore {
        shares: vec![tollkeeper_policies::shared::Share { counter: total("new"), settled, admitted: 0 }],
        ..nothing()
    };
    for (gate, settled) in [(&left, 300), (&right, 450), (&left, 300)] {
        assert_eq!(gate.restore(&share(settled)).await, Ok(true));
    }
    let refused = left.take(&take("a", &total("new"), 1000, 251)).await;
    let tallies = vec![Tally { held: 0, settled: 750, leased: 0 }];
    assert_eq!(refused, Err(SharedError::Refused { short: vec![0], tallies }));
}

#[tokio::test]
async fn a_server_that_throws_keys_away_is_not_used() {
    let server = RedisServer::start(false);
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let gate = gateway(&settings(server.url(), "t", "left"));
    assert!(matches!(gate.beat().await, Err(SharedError::Unfit(why)) if why.contains("noeviction")));
}

#[tokio::test]
async fn what_a_gateway_spent_that_does_not_come_back_is_known_from_the_other() {
    let server = RedisServer::start(false);
    let [left, right] = pair(&server, "t").await;
    let counter = total("c");
    let share = |settled| tollkeeper_policies::shared::Restore {
        shares: vec![tollkeeper_policies::shared::Share { counter: counter.clone(), settled, admitted: 0 }],
        ..nothing()
    };
    for (gate, lease, cost) in [(&left, "a", 300), (&right, "b", 500)] {
        gate.take(&take(lease, &counter, 1000, cost)).await.unwrap();
        gate.settle(lease, 1_000_000, &[cost]).await.unwrap();
    }
    assert!(left.take(&take("c", &counter, 1000, 201)).await.is_err());
    drop(right);
    server.cli(&["FLUSHALL"]);
    assert_eq!(left.take(&take("c", &counter, 1000, 200)).await, Err(SharedError::Lost));
    let start = Instant::now();
    assert_eq!(left.restore(&share(300)).await, Ok(false));
    assert_eq!(left.take(&take("c", &counter, 1000, 200)).await, Err(SharedError::Waiting));
    eventually("the end of the waiting", async || left.beat().await.unwrap().live.then_some(())).await;
    assert!(start.elapsed() < Duration::from_secs(3), "longer than the lease age");
    let tallies = vec![Tally { held: 0, settled: 800, leased: 0 }];
    let refused = left.take(&take("c", &counter, 1000, 201)).await;
    assert_eq!(refused, Err(SharedError::Refused { short: vec![0], tallies }));
    left.take(&take("c", &counter, 1000, 200)).await.unwrap();
    // It comes back after all, and is not counted twice.
    let right = gateway(&settings(server.url(), "t", "right"));
    assert_eq!(right.take(&take("d", &counter, 1000, 0)).await, Err(SharedError::Lost));
    assert_eq!(right.restore(&share(500)).await, Ok(true));
    let standing = right.standing(std::slice::from_ref(&counter), 0).await.unwrap();
    assert_eq!(standing, [Tally { held: 0, settled: 800, leased: 200 }]);
}
