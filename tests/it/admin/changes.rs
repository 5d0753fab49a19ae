//! Changes that say only what they change, and that all of them are on record.

use super::{AGENTS, BUDGETS, Operator, agent};
use http::Method;
use serde_json::{Value, json};
use std::fs;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::Upstream;

#[tokio::test]
async fn a_change_asks_only_for_what_it_names() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let operator = Operator::of(gateway.addr()).await;
    let file = gateway.setup().path("tollkeeper.toml");
    let text = fs::read_to_string(&file).unwrap();
    let spare = format!("{text}\n[[aliases]]\nname = \"spare\"\ntargets = [\"up/plain\"]\n");
    fs::write(&file, spare).unwrap();
    operator.good(Method::POST, "/admin/v1/reload", &Value::Null).await;
    agent(&operator, json!({"name": "miner", "parallel": 2, "queue": 5, "degrade_to": "spare"})).await;
    let budget = json!({"alias": "spare", "window": "day", "limit_usd": "5"});
    let budget = operator.good(Method::POST, BUDGETS, &budget).await;
    let (miner, budget) = (format!("{AGENTS}/miner"), format!("{BUDGETS}/{}", budget["id"].as_str().unwrap()));

    // Whatever waits for places has none without them.
    let changed = operator.good(Method::PATCH, &miner, &json!({"parallel": null})).await;
    assert_eq!(changed["parallel"], Value::Null);
    let wrong = operator.ask(Method::PATCH, &miner, &json!({"queue": 7})).await;
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("queue")), "{}", wrong.text());

    // What they name is gone; that is no reason not to stop them.
    fs::write(&file, &text).unwrap();
    operator.good(Method::POST, "/admin/v1/reload", &Value::Null).await;
    assert_eq!(operator.good(Method::PATCH, &miner, &json!({"disabled": true})).await["disabled"], true);
    assert_eq!(operator.good(Method::PATCH, &budget, &json!({"limit_usd": "1"})).await["limit"], "1");
    let wrong = operator.ask(Method::PATCH, &miner, &json!({"degrade_to": "other"})).await;
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("degrade_to")), "{}", wrong.text());
    let wrong = operator.ask(Method::PATCH, &budget, &json!({"alias": "other"})).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
    gateway.stop().await;
}

#[tokio::test]
async fn what_changes_no_agent_and_no_budget_is_on_record_too() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).raw("[learning]\non = true\n");
    let script = setup.path("local.json");
    fs::write(&script, "{}").unwrap();
    let local = format!("[[local.models]]\nname = \"home\"\npath = {script:?}\nengine = \"scripted\"\n");
    let gateway = Gateway::start(setup.raw(&local)).await;
    let operator = Operator::of(gateway.addr()).await;
    operator.good(Method::POST, "/admin/v1/reload", &Value::Null).await;
    operator.good(Method::DELETE, "/admin/v1/learning", &Value::Null).await;
    operator.good(Method::POST, "/admin/v1/models/home/pin", &Value::Null).await;
    assert_eq!(gateway.stop().await.report.changes, 3);
}
