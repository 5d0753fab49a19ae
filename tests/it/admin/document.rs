//! An operator who holds the gateway to its own OpenAPI document.

use http::Method;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::setup::ADMIN_KEY;

/// Asks with the operator's key, and checks each answer against the document.
pub(crate) struct Operator {
    client: Client,
    document: Value,
}

impl Operator {
    pub(crate) async fn of(addr: SocketAddr) -> Self {
        let client = Client::new(addr).key(ADMIN_KEY);
        let document = client.get("/openapi.json").await.json();
        assert_eq!(document["openapi"], "3.1.0");
        Self { client, document }
    }

    /// Every method and path of the document, with `x` for what is to be filled in.
    pub(crate) fn operations(&self) -> Vec<(Method, String)> {
        let mut all = Vec::new();
        for (path, item) in self.document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                all.push((method.to_ascii_uppercase().parse().unwrap(), filled(path)));
            }
        }
        all
    }

    /// Asks; `Value::Null` sends no body. The answer has the form that the document says.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.client.open(method.clone(), path, body.clone()).await.rest().await;
        let (template, operation) = self.operation(&method, path.split('?').next().unwrap());
        let status = answer.status.to_string();
        let named = operation["responses"].get(&status).is_some();
        assert!(named || answer.status >= 400, "{method} {template} does not say that it answers {status}");
        let schema = if named {
            operation["responses"][&status]["content"]["application/json"]["schema"].clone()
        } else {
            self.document["components"]["responses"]["Error"]["content"]["application/json"]["schema"].clone()
        };
        let wrong = self.wrong(&schema, &answer.json());
        assert!(wrong.is_empty(), "{method} {template}: {wrong:?}\n{}", answer.text());
        if answer.status < 300 && !body.is_empty() {
            let asked: Value = serde_json::from_str(&body).unwrap();
            let wrong = self.wrong(Self::body_schema(operation), &asked);
            assert!(wrong.is_empty(), "{method} {template} takes what the document does not allow: {wrong:?}\n{asked}");
        }
        answer
    }

    /// Asks for a stream, and returns the data of its events, each of which has the form that the document says.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let answer = self.client.post_json(path, body).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/event-stream; charset=utf-8"));
        let (template, operation) = self.operation(&Method::POST, path);
        let schema = &operation["responses"]["200"]["content"]["text/event-stream"]["schema"];
        let mut events = answer.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        let events: Vec<Value> = events.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
        for event in &events {
            let wrong = self.wrong(schema, event);
            assert!(wrong.is_empty(), "{template}: {wrong:?}\n{event}");
        }
        let wrong = self.wrong(Self::body_schema(operation), body);
        assert!(wrong.is_empty(), "{template} takes what the document does not allow: {wrong:?}\n{body}");
        events
    }

    /// Whether the document allows this body.
    pub(crate) fn allows(&self, method: &Method, path: &str, body: &Value) -> bool {
        let (_, operation) = self.operation(method, path);
        self.wrong(Self::body_schema(operation), body).is_empty()
    }

    /// The same that asks with another key.
    pub(crate) fn with_key(self, key: &str) -> Self {
        Self { client: self.client.key(key), ..self }
    }

    fn body_schema(operation: &Value) -> &Value {
        &operation["requestBody"]["content"]["application/json"]["schema"]
    }

    /// What is wrong with a value of this schema. A schema that is not there allows nothing.
    fn wrong(&self, schema: &Value, value: &Value) -> Vec<String> {
        assert!(schema.is_object(), "there is no schema for {value}");
        let mut whole = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "allOf": [schema]});
        whole["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&whole).unwrap();
        validator.iter_errors(value).map(|error| error.to_string()).collect()
    }

    /// Asks, and expects that it works.
    pub(crate) async fn good(&self, method: Method, path: &str, body: &Value) -> Value {
        let answer = self.ask(method.clone(), path, body).await;
        assert!(answer.status < 300, "{method} {path}: {} {}", answer.status, answer.text());
        answer.json()
    }

    fn operation(&self, method: &Method, path: &str) -> (&String, &Value) {
        let fits = |template: &str| {
            let (known, asked) = (template.split('/'), path.split('/'));
            known.clone().count() == asked.clone().count()
                && known.zip(asked).all(|(known, asked)| known.starts_with('{') || known == asked)
        };
        let paths = self.document["paths"].as_object().unwrap();
        let method = method.as_str().to_ascii_lowercase();
        let found = paths.iter().find(|(template, item)| fits(template) && item.get(&method).is_some());
        let (template, item) = found.unwrap_or_else(|| panic!("{method} {path} is not in the document"));
        (template, &item[&method])
    }
}

fn filled(template: &str) -> String {
    template.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/")
}
