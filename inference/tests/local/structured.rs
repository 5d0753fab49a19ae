//! Answers that must have a form, drawn by a model with random weights: whatever it would like to say, all of them parse and validate.

use crate::ask::{Answer, ask, chat, completion, engines};
use crate::model::{Folder, TRAINED, write_model};
use crate::schemas::Schemas;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU32, Ordering};
use tollkeeper_config::LocalModel;
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_models::gguf;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, ResponseFormat, Sampling, Tool, ToolChoice};
use tollkeeper_protocol::completion::CompletionRequest;
use tollkeeper_protocol::fault::FaultKind;

const NAME: &str = "random.gguf";

/// Everything open: the grammar alone decides.
fn wild(seed: u64) -> Sampling {
    Sampling {
        temperature: Some(1.5),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        seed: Some(seed),
        ..Sampling::default()
    }
}

async fn random() -> (LocalEngines, Folder) {
    let folder = Folder::new();
    (engines([LocalModel { context: TRAINED, ..folder.model() }]).await, folder)
}

fn valid(schema: &Value, text: &str) -> Result<(), String> {
    let value = serde_json::from_str(text).map_err(|error| format!("{error}: {text}"))?;
    let validator =
        jsonschema::options().should_validate_formats(true).build(schema).map_err(|error| error.to_string())?;
    validator.validate(&value).map_err(|error| format!("{error}: {text}"))
}

/// Asks for `count` answers to random schemas and checks each; an answer that is cut by its length proves nothing and is counted.
async fn all_validate(count: u64, seed: u64, tools: bool) {
    let (engines, _folder) = random().await;
    let cut = AtomicU32::new(0);
    stream::iter(0..count)
        .for_each_concurrent(4, |number| {
            let (engines, cut) = (&engines, &cut);
            async move {
                // Tools are explained in the prompt, which takes its room.
                let most = if tools { 250 } else { 4000 };
                let schemas = (0..).map(|again| Schemas::new((seed << 48) + (number << 16) + again).root(tools));
                let schema = schemas.into_iter().find(|schema| schema.to_string().len() <= most).unwrap();
                let mut request = ChatRequest { sampling: wild(number), ..chat("go") };
                if tools {
                    let tool = Tool {
                        name: "f".into(),
                        description: None,
                        parameters: Some(schema.clone()),
                        strict: Some(true),
                    };
                    request = ChatRequest { tools: vec![tool], tool_choice: ToolChoice::Required, ..request };
                    // A model that draws at random would call on and on.
                    request.parallel_tool_calls = Some(number.is_multiple_of(8));
                } else {
                    request.response_format = ResponseFormat::JsonSchema(json!({"name": "x", "schema": schema}));
                }
                let answer = ask(engines, NAME, Request::Chat(request)).await;
                let answer = answer.unwrap_or_else(|fault| panic!("{number}: {fault}\n{schema}"));
                assert!(answer.fault.is_none(), "{number}: {schema}\n{answer:?}");
                if answer.finishes[0] == Some(FinishReason::Length) {
                    cut.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                let expected = if tools { FinishReason::ToolCalls } else { FinishReason::Stop };
                assert_eq!(answer.finishes[0], Some(expected), "{number}: {schema}\n{answer:?}");
                let texts: Vec<&str> = if tools {
                    assert!(!answer.calls.is_empty() && answer.text().is_empty(), "{number}: {schema}\n{answer:?}");
                    answer.calls.iter().map(|(_, arguments)| arguments.as_str()).collect()
                } else {
                    vec![answer.text()]
                };
                for text in texts {
                    valid(&schema, text).unwrap_or_else(|error| panic!("{number}: {error}\n{schema}"));
                }
            }
        })
        .await;
    let cut = cut.into_inner();
    println!("{cut} of {count} answers were cut by their length");
    assert!(u64::from(cut) * 20 <= count, "{cut} of {count} answers were cut: the test proves too little");
}

#[tokio::test]
async fn random_schemas_are_followed() {
    all_validate(200, 1, false).await;
}

#[tokio::test]
async fn random_arguments_are_followed() {
    all_validate(60, 2, true).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn ten_thousand_random_schemas_are_followed() {
    all_validate(10_000, 3, false).await;
    all_validate(2_000, 4, true).await;
}

/// How templates of the families look to us.
const TEMPLATES: [&str; 11] = [
    "<|start_header_id|>{{ tools | tojson }}{# \"parameters\": #}",
    "[TOOL_CALLS]{{ tools | tojson }}{# \"id\" #}",
    "[TOOL_CALLS]{{ tools | tojson }}{# [ARGS] #}",
    "{{ tools | tojson }}{# <｜tool▁calls▁begin｜>```json #}",
    "<|tool|>{{ tools | tojson }}<|/tool|>",
    "{{ tools | tojson }}{# <|START_ACTION|>tool_name #}",
    "{{ tools | tojson }}{# Action: ```json tool_name #}",
    "{{ tools | tojson }}{# <tool_call><function=<parameter= #}",
    "{{ tools | tojson }}{# <seed:tool_call><function=<parameter= #}",
    "{{ tools | tojson }}{# <tool_call><arg_key><arg_value> #}",
    "{{ tools | tojson }}{# <minimax:tool_call><invoke name= #}",
];

#[tokio::test]
async fn every_family_calls_when_it_must() {
    let folder = Folder::new();
    let mut models = Vec::new();
    for (number, template) in TEMPLATES.iter().enumerate() {
        let name = format!("{number}.gguf");
        write_model(&folder.path(&name), 1, |meta| {
            meta.push(("tokenizer.chat_template".into(), gguf::Value::Text((*template).into())));
        });
        models.push(LocalModel { context: TRAINED, ..folder.named(&name) });
    }
    let engines = engines(models).await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2]}}, "required": ["city"], "additionalProperties": false});
    let tool =
        |name: &str| Tool { name: name.into(), description: None, parameters: Some(schema.clone()), strict: None };
    for (number, template) in TEMPLATES.iter().enumerate() {
        let mut whole = 0;
        for seed in 0..6 {
            let request = ChatRequest {
                tools: vec![tool("weather"), tool("news")],
                tool_choice: if seed % 2 == 0 { ToolChoice::Required } else { ToolChoice::Named("news".into()) },
                sampling: wild(seed),
                parallel_tool_calls: Some(seed < 4),
                max_tokens: Some(700),
                ..chat("go")
            };
            let answer: Answer = ask(&engines, &format!("{number}.gguf"), Request::Chat(request)).await.unwrap();
            if answer.finishes[0] == Some(FinishReason::Length) {
                continue;
            }
            whole += 1;
            assert_eq!(answer.finishes[0], Some(FinishReason::ToolCalls), "{template}: {answer:?}");
            assert_eq!(answer.text().trim(), "", "{template}: {answer:?}");
            for (name, arguments) in &answer.calls {
                assert!(name == "news" || (name == "weather" && seed % 2 == 0), "{template}: {answer:?}");
                valid(&schema, arguments).unwrap();
            }
            assert!(!answer.calls.is_empty() && (seed < 4 || answer.calls.len() == 1), "{template}: {answer:?}");
        }
        assert!(whole > 0, "{template}");
    }
}

#[tokio::test]
async fn expressions_choices_and_grammars_are_followed() {
    let (engines, _folder) = random().await;
    let extra = |fields: Value| fields.as_object().unwrap().clone();
    for seed in 0..4 {
        for (fields, fits) in [
            (
                json!({"guided_regex": "[a-c]{2,4}-\\d{2}"}),
                (|text: &str| text.len() <= 7 && text.contains('-')) as fn(&str) -> bool,
            ),
            (json!({"structured_outputs": {"choice": ["yes", "no"]}}), |text| text == "yes" || text == "no"),
            (json!({"grammar": "root ::= sum \"=\" [0-9]\nsum ::= [0-9] | \"(\" sum \"+\" sum \")\""}), |text| {
                let (sum, result) = text.split_at(text.len() - 2);
                result.starts_with('=') && sum.matches('(').count() == sum.matches(')').count()
            }),
            (json!({"guided_json": {"type": "integer", "minimum": 3, "maximum": 12}}), |text| {
                text.trim().parse::<u8>().is_ok_and(|number| (3..=12).contains(&number))
            }),
        ] {
            let request = ChatRequest { extra: extra(fields.clone()), sampling: wild(seed), ..chat("go") };
            let answer = ask(&engines, NAME, Request::Chat(request)).await.unwrap();
            assert_eq!(answer.finishes[0], Some(FinishReason::Stop), "{fields}: {}", answer.text());
            assert!(fits(answer.text()), "{fields}: {}", answer.text());
            let request =
                CompletionRequest { extra: extra(fields.clone()), sampling: wild(seed), ..completion("go", 500) };
            let answer = ask(&engines, NAME, Request::Completion(request)).await.unwrap();
            assert!(fits(answer.text()), "{fields}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn what_cannot_be_enforced_is_refused_and_says_why() {
    let (engines, _folder) = random().await;
    let schema = |schema: Value| ChatRequest {
        response_format: ResponseFormat::JsonSchema(json!({"name": "x", "schema": schema})),
        ..chat("x")
    };
    let strict = |parameters: Value, strict: bool| ChatRequest {
        tools: vec![Tool { name: "f".into(), description: None, parameters: Some(parameters), strict: Some(strict) }],
        tool_choice: ToolChoice::Required,
        max_tokens: Some(2),
        ..chat("x")
    };
    let unique = json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    for (request, words) in [
        (schema(json!({"type": "array", "uniqueItems": true})), "uniqueItems"),
        (schema(json!({"not": {"type": "string"}})), "not"),
        (schema(json!({"if": {}, "then": {}})), "if"),
        (schema(json!({"type": "string", "format": "iri"})), "iri"),
        (schema(json!({"type": "string", "pattern": "(?=a)b"})), "look"),
        (schema(json!({"type": "integer", "minimum": 5, "maximum": 4})), "schema"),
        (schema(json!(false)), "not"),
        (schema(json!({"enum": ["x".repeat(70_000)]})), "bytes"),
        (strict(unique.clone(), true), "uniqueItems"),
        (strict(json!({"type": "array"}), false), "must describe an object"),
        (ChatRequest { extra: json!({"guided_regex": "("}).as_object().unwrap().clone(), ..chat("x") }, "guided_regex"),
    ] {
        let fault = ask(&engines, NAME, Request::Chat(request)).await.expect_err(words);
        assert_eq!(fault.kind, FaultKind::BadRequest, "{fault}");
        assert!(fault.message.contains(words), "{words}: {fault}");
        println!("{fault}");
    }
    let loose = ask(&engines, NAME, Request::Chat(strict(unique, false))).await.unwrap();
    assert_eq!(loose.usage.output, 2, "without `strict` the schema is a description");
}
