//! The OpenAPI document: made of the table of routes and of the types that requests are read into and answers written from.

mod inference;

use crate::admin::agents::{AgentBody, AgentShown, KeyBody, KeyChangeBody, KeyMade, KeyShown, RotateBody, TeamShown};
use crate::admin::budgets::{BudgetBody, BudgetShown};
use crate::admin::learning::{Forgotten, LearningShown};
use crate::admin::models::{ModelShown, ModelsShown};
use crate::admin::operate::{BackendShown, PauseBody, PauseShown, Reloaded, Resumed, SpendShown};
use crate::admin::velocity::{HoldBody, Released, VelocityShown};
use crate::admin::{self, Done};
use crate::body::Body;
use crate::error::ok_json;
use crate::feedback::{FeedbackBody, FeedbackShown};
use crate::health::Health;
use crate::json::List;
use crate::models::Entry;
use crate::quote::{Explained, Sizes};
use crate::routes::{Call, Row, TABLE};
use crate::runs::{Action, Limits, RunBody, RunShown};
use bytes::Bytes;
use http::Response;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use tollkeeper_protocol::Operation;

/// Made when it is first asked for.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| document().to_string().into());

/// Answers with it.
pub(crate) fn serve() -> Response<Body> {
    ok_json(DOCUMENT.clone())
}

/// What there is to know of a call.
struct Doc {
    tag: &'static str,
    summary: &'static str,
    body: Option<Form>,
    answer: Answer,
}

/// The schema of a type.
type Form = fn(&mut SchemaGenerator) -> Schema;

/// What a good answer is.
enum Answer {
    /// JSON, with this status.
    Json(&'static str, Form),
    /// JSON, or server-sent events with such data.
    Streamed(Form, Form),
    /// Something else, with its content type.
    Other(&'static str, &'static str),
}

fn form<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Schema {
    schemas.subschema_for::<T>()
}

/// JSON whose form is told elsewhere.
fn open_form(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({"type": "object"})
}

fn get<T: JsonSchema>(tag: &'static str, summary: &'static str) -> Doc {
    Doc { tag, summary, body: None, answer: Answer::Json("200", form::<T>) }
}

fn order<B: JsonSchema, T: JsonSchema>(tag: &'static str, summary: &'static str) -> Doc {
    Doc { tag, summary, body: Some(form::<B>), answer: Answer::Json("200", form::<T>) }
}

fn make<B: JsonSchema, T: JsonSchema>(tag: &'static str, summary: &'static str) -> Doc {
    Doc { tag, summary, body: Some(form::<B>), answer: Answer::Json("201", form::<T>) }
}

/// What a model is asked.
fn infer(operation: Operation, summary: &'static str) -> Doc {
    let (body, whole, event) = inference::forms(operation);
    let answer = event.map_or(Answer::Json("200", whole), |event| Answer::Streamed(whole, event));
    Doc { tag: "models", summary, body: Some(body), answer }
}

fn doc(call: Call) -> Doc {
    match call {
        Call::Infer(operation) => {
            let summary = match operation {
                Operation::Chat => "Chat completion, unary or streamed (server-sent events), in OpenAI's form",
                Operation::TextCompletion => "Text completion, unary or streamed, in OpenAI's form",
                Operation::Embeddings => "Embeddings in OpenAI's form",
                Operation::Rerank => "Documents by relevance to a query, in Cohere's form",
            };
            infer(operation, summary)
        }
        Call::Explain => {
            let (body, _, _) = inference::forms(Operation::Chat);
            let summary = "How a chat completion would be routed: who would be tried, who not, and why";
            Doc { tag: "models", summary, body: Some(body), answer: Answer::Json("200", form::<Explained>) }
        }
        Call::Quote => order::<Sizes, Explained>(
            "models",
            "What a request of a size (or a chat completion, as for explain) would cost and take, by backend",
        ),
        Call::Feedback => {
            order::<FeedbackBody, FeedbackShown>("models", "Say how good an answer was, for those that come after it")
        }
        Call::Models => get::<List<Entry>>("models", "What the key's agent may name, in OpenAI's form"),
        Call::Model => get::<Entry>("models", "One of them"),
        Call::Live => get::<Health>("health", "The process answers"),
        Call::Ready => get::<Health>("health", "It can serve requests"),
        Call::Metrics => {
            let answer = Answer::Other("200", "text/plain");
            Doc { tag: "health", summary: "Metrics for Prometheus", body: None, answer }
        }
        Call::Document => {
            let answer = Answer::Json("200", open_form);
            Doc { tag: "health", summary: "This document", body: None, answer }
        }
        Call::Runs => get::<List<RunShown>>("runs", "Runs that are open or ended within a day, the newest first"),
        Call::NewRun => make::<RunBody, RunShown>("runs", "Make a run; its key is shown this once"),
        Call::Run => get::<RunShown>("runs", "A run"),
        Call::RunEvents => {
            let answer = Answer::Other("200", "text/event-stream");
            Doc { tag: "runs", summary: "What happens in a run and below it, as it happens", body: None, answer }
        }
        Call::RunAction(Action::Extend) => order::<Limits, RunShown>("runs", "Add to the limits of a run"),
        Call::RunAction(Action::Cancel) => get::<RunShown>("runs", "End a run and all below it at once"),
        Call::Admin(call) => admin_doc(call),
    }
}

fn admin_doc(call: admin::Call) -> Doc {
    use admin::Call as Admin;
    match call {
        Admin::Agents => get::<List<AgentShown>>("agents", "All agents, of the file and made through the API"),
        Admin::NewAgent => make::<AgentBody, AgentShown>("agents", "Make an agent, which has no keys yet"),
        Admin::Agent => get::<AgentShown>("agents", "The agent of that name that counts"),
        Admin::ChangeAgent => order::<AgentBody, AgentShown>("agents", "Change an agent that was made through the API"),
        Admin::RemoveAgent => get::<Done>("agents", "Take such an agent away, with its keys, budgets and pause"),
        Admin::Keys => get::<List<KeyShown>>("keys", "The keys of an agent that was made through the API"),
        Admin::NewKey => make::<KeyBody, KeyMade>("keys", "Make a key; its secret is shown this once"),
        Admin::ChangeKey => {
            order::<KeyChangeBody, KeyShown>("keys", "Disable or enable a key, change its end or scopes")
        }
        Admin::RemoveKey => get::<Done>("keys", "Take a key away"),
        Admin::RotateKey => make::<RotateBody, KeyMade>("keys", "Replace a key; for a while both work"),
        Admin::Teams => get::<List<TeamShown>>("agents", "The teams that agents belong to"),
        Admin::Budgets => get::<List<BudgetShown>>("budgets", "All budgets as they stand"),
        Admin::NewBudget => make::<BudgetBody, BudgetShown>("budgets", "Make a budget; what was spent counts"),
        Admin::Budget => get::<BudgetShown>("budgets", "A budget that was made through the API"),
        Admin::ChangeBudget => order::<BudgetBody, BudgetShown>("budgets", "Change such a budget"),
        Admin::RemoveBudget => get::<Done>("budgets", "Take such a budget away"),
        Admin::Pauses => get::<List<PauseShown>>("pauses", "Who is paused, and why"),
        Admin::Pause(_) => order::<PauseBody, PauseShown>("pauses", "Refuse everything from now on"),
        Admin::Resume(_) => get::<Resumed>("pauses", "Let it go on"),
        Admin::Velocities => {
            get::<List<VelocityShown>>("velocity", "How fast everybody spends, what is normal for it, and its stage")
        }
        Admin::Velocity(_) => get::<VelocityShown>("velocity", "The same of one"),
        Admin::Hold(_) => {
            order::<HoldBody, VelocityShown>("velocity", "Set its stage by hand; it holds over a restart")
        }
        Admin::Release(_) => get::<Released>("velocity", "Let its traffic decide again"),
        Admin::Learning => {
            get::<LearningShown>("learning", "What was learned of the tiers of pyramids, by type of task")
        }
        Admin::Unlearn => get::<Forgotten>("learning", "Forget it"),
        Admin::Spend => get::<SpendShown>("spend", "What was charged, by groups, from the ledger"),
        Admin::FlushLedger => get::<Done>(
            "spend",
            "Wait until all that was charged before is in the ledger, so that it can be read there",
        ),
        Admin::Backends => {
            get::<List<BackendShown>>("backends", "Local models, providers and their models as they are")
        }
        Admin::Reload => get::<Reloaded>("backends", "Read the configuration file again"),
        Admin::LocalModels => get::<ModelsShown>("backends", "Local models, the memory they share, and the last swaps"),
        Admin::LocalModel(_) => {
            let answer = Answer::Json("202", form::<ModelShown>);
            Doc { tag: "backends", summary: "Move a local model; the order is carried out later", body: None, answer }
        }
    }
}

/// The query parameters of a call: names and descriptions.
fn query(call: Call) -> &'static [(&'static str, &'static str)] {
    match call {
        Call::Admin(admin::Call::Spend) => &[
            ("group", "One or more of agent, team, model, alias, run, day and gateway, with commas; without it agent."),
            ("agent", "Only this agent."),
            ("since", "Only what was admitted since then: a date, a time, or an age such as 24h."),
            ("until", "Only what was admitted before then."),
        ],
        Call::Admin(admin::Call::Unlearn) => &[
            ("task_type", "Only what was learned of tasks of this type."),
            ("alias", "Only what was learned of this alias."),
        ],
        _ => &[],
    }
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for Row(method, pattern, call) in &TABLE {
        let path = pattern.replace("*}", "}");
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method.to_ascii_lowercase()] = operation(pattern, *call, &mut schemas);
    }
    let mut components = json!({
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "responses": {"Error": {
            "description": "What went wrong, whose fault it is, and what to do.",
            "content": {"application/json": {"schema": error_schema()}},
        }},
    });
    let mut definitions = schemas.take_definitions(true);
    inference::define(&mut definitions);
    components["schemas"] = definitions.into();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tollkeeper",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Agents' keys ask models and make runs; the operator's key (`server.admin_key`) opens `/admin`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": components,
    })
}

fn operation(pattern: &str, call: Call, schemas: &mut SchemaGenerator) -> Value {
    let Doc { tag, summary, body, answer } = doc(call);
    let parts = pattern.split('{').skip(1).filter_map(|part| part.split_once('}'));
    let in_path = parts.map(|(name, _)| {
        let name = name.trim_end_matches('*');
        json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})
    });
    let in_query = query(call)
        .iter()
        .map(|(name, text)| json!({"name": name, "in": "query", "description": text, "schema": {"type": "string"}}));
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    let (status, content) = match answer {
        Answer::Json(status, form) => (status, json!({"application/json": {"schema": form(schemas)}})),
        Answer::Streamed(whole, event) => {
            let events = json!({"schema": event(schemas), "x-data": "The schema is that of each event's data; the last one is `[DONE]`."});
            ("200", json!({"application/json": {"schema": whole(schemas)}, "text/event-stream": events}))
        }
        Answer::Other(status, content) => (status, json!({content: {"schema": {"type": "string"}}})),
    };
    let mut operation = json!({
        "tags": [tag],
        "summary": summary,
        "responses": {
            status: {"description": summary, "content": content},
            "default": {"$ref": "#/components/responses/Error"},
        },
    });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(form) = body {
        operation["requestBody"] = json!({"content": {"application/json": {"schema": form(schemas)}}});
    }
    operation
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
                "budget": {
                    "type": "object",
                    "description": "The budget that refused. Amounts (`limit_…`, `spent_…`, `reserved_…`, `estimate_…`) end in `usd`, `tokens` or `requests` and are texts, exact.",
                    "required": ["scope", "id", "window", "resets_at"],
                    "properties": {
                        "scope": {"type": "string"},
                        "id": {"type": "string"},
                        "window": {"type": "string"},
                        "resets_at": {"type": ["string", "null"]},
                    },
                    "additionalProperties": {"type": "string"},
                },
            },
        }},
    })
}
