//! Which models there are, for whom, and under which spelling; and whether the gateway is well.

use serde_json::Value;
use std::collections::BTreeSet;
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::Upstream;

fn ids(answer: &Answer) -> BTreeSet<String> {
    let list = answer.json();
    assert_eq!(list["object"], "list");
    let check = |model: &Value| {
        assert_eq!(model["object"], "model");
        assert!(model["created"].is_u64() && model["owned_by"].is_string(), "{model}");
        model["id"].as_str().unwrap().to_owned()
    };
    list["data"].as_array().unwrap().iter().map(check).collect()
}

#[tokio::test]
async fn the_list_holds_what_the_agent_may_use() {
    let narrow = "[[agents]]\nname = \"narrow\"\nkey = \"tk-narrow\"\nmodels = [\"team/*\"]\n";
    let setup = Setup::with(&Upstream::start().await)
        .alias("team/fast", &["up/plain"])
        .alias("lone", &["up/plain"])
        .raw(narrow);
    let gateway = Gateway::start(setup).await;
    let all = ids(&gateway.client().get("/v1/models").await);
    for alias in
        ["team/fast", "lone", "auto", "local/fast", "local/quality", "cloud/fast", "cloud/mid", "cloud/frontier"]
    {
        assert!(all.contains(alias), "{alias} is not in {all:?}");
    }
    let few = ids(&Client::new(gateway.addr()).key("tk-narrow").get("/v1/models").await);
    assert_eq!(few, BTreeSet::from(["team/fast".to_owned()]));
}

#[tokio::test]
async fn a_model_is_found_in_every_spelling() {
    let setup = Setup::with(&Upstream::start().await).alias("team/a/b", &["up/plain"]);
    let gateway = Gateway::start(setup).await;
    for path in [
        "/v1/models/team/a/b",
        "/v1/models/team%2Fa%2Fb",
        "/v1/models/team%2fa/b",
        "/v1/models/team%2Fa/b?x=1",
        "/v1/models/up/plain",
    ] {
        let answer = gateway.client().get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let id = if path.contains("up/") { "up/plain" } else { "team/a/b" };
        assert_eq!(
            (&answer.json()["id"], &answer.json()["object"]),
            (&Value::from(id), &Value::from("model")),
            "{path}"
        );
    }
    assert_eq!(gateway.client().get("/v1/models/%ff%fe").await.status, 404);
    for path in ["/v1/models/team", "/v1/models/team/a", "/v1/models/team%2", "/v1/models/team//a/b"] {
        let answer = gateway.client().get(path).await;
        assert_eq!((answer.status, answer.error()["code"].as_str()), (404, Some("model_not_found")), "{path}");
    }
}

#[tokio::test]
async fn health_is_told_without_a_key() {
    let gateway = Gateway::start(Setup::with(&Upstream::start().await)).await;
    let anybody = Client::new(gateway.addr());
    assert_eq!(anybody.get("/health/live").await.status, 200);
    let ready = anybody.get("/health/ready").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
}
