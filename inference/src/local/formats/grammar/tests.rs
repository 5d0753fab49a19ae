//! Grammars of all formats: what models really say is in them, what is drawn from them is read as calls, and nothing else is.

use super::*;
use crate::local::formats::tests::{format, golden, read, typed};
use crate::local::formats::{FAMILIES, Piece, Reader, Signature};
use crate::local::guide::{Guide, Guides};
use crate::local::sampler::SplitMix;
use crate::local::scripted::{IM_END, ScriptedTokenizer};
use serde_json::json;
use std::sync::Arc;

fn guides() -> Guides {
    Guides::new(Arc::new(ScriptedTokenizer))
}

fn functions() -> Vec<Function<'static>> {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "s": {"enum": ["a\"b", "}"]}}, "required": ["n"], "additionalProperties": false});
    let any = json!({"type": "object"});
    vec![
        typed(),
        Function { name: "f", arguments: any.clone(), enforced: true },
        Function { name: "g", arguments: any, enforced: true },
        Function { name: "strict", arguments: schema, enforced: true },
    ]
}

fn guide(guides: &Guides, format: &Format, thinking: bool, text: Option<&str>, offer: &Offer<'_>) -> Guide {
    let answer = Answer { format, thinking, text, rules: "", offer: Some(offer) };
    let grammar = answer.grammar().unwrap();
    guides.compile(&grammar).unwrap_or_else(|error| panic!("{error}\n{grammar}"))
}

/// Whether a grammar takes an answer, and may end behind it.
fn takes(guide: &Guide, answer: &str) -> Result<bool, String> {
    let mut follower = guide.start();
    for (at, byte) in answer.bytes().enumerate() {
        if !follower.allows(byte.into()) {
            return Err(String::from_utf8_lossy(&answer.as_bytes()[..=at]).into_owned());
        }
        follower.accept(byte.into()).unwrap();
    }
    Ok(follower.allows(IM_END))
}

/// An answer drawn at random among all that the grammar allows; `None` if it gets too long.
fn walk(guide: &Guide, random: &mut SplitMix) -> Option<String> {
    let mut follower = guide.start();
    let mut answer = Vec::new();
    loop {
        let mut candidates: Vec<(u32, f32)> = (0..=IM_END).map(|token| (token, 0.0)).collect();
        follower.filter(&mut candidates);
        assert!(!candidates.is_empty(), "a dead end behind {:?}", String::from_utf8_lossy(&answer));
        // The end, where it may come, comes often enough for answers to be short.
        let ends = candidates.iter().any(|(token, _)| *token == IM_END) && random.bits().is_multiple_of(4);
        let token = if ends { IM_END } else { candidates[random.bits() as usize % candidates.len()].0 };
        assert!(follower.allows(token), "filter and check agree");
        if token == IM_END {
            return Some(String::from_utf8(answer).unwrap());
        }
        follower.accept(token).unwrap();
        answer.push(u8::try_from(token).unwrap());
        if answer.len() > 600 {
            return None;
        }
    }
}

#[test]
fn the_answers_that_models_really_give_are_in_the_grammar() {
    let guides = guides();
    for (name, answer, pieces) in golden() {
        let format = format(name);
        let calls = pieces.iter().flatten().filter(|piece| matches!(piece, Piece::Call(_))).count();
        let broken = calls == 0 && (answer.contains("tool_call>") || answer.contains("TOOL_CALLS"));
        // What is no call, has no arguments, or is cut short is what the grammar is there to prevent; the order of the keys is ours.
        if broken
            || answer.contains("\"f\"}")
            || answer.contains("never ends")
            || answer.contains("no header")
            || answer.contains("\"type\"")
        {
            continue;
        }
        let offer = Offer { functions: functions(), required: false, several: true };
        let auto = guide(&guides, &format, false, None, &offer);
        let closed = !(name == "hermes" && answer.ends_with("{}}"));
        assert_eq!(takes(&auto, answer), Ok(closed), "{name}: {answer}");
        if calls > 0
            && !answer.starts_with(|letter: char| letter.is_alphabetic() && letter != 'A')
            && !answer.contains("Let me see")
        {
            let required =
                guide(&guides, &format, false, None, &Offer { functions: functions(), required: true, several: true });
            assert_eq!(takes(&required, answer), Ok(closed), "{name}, required: {answer}");
        }
    }
}

#[test]
fn an_answer_that_must_call_calls_and_nothing_else() {
    let guides = guides();
    let mut random = SplitMix(7);
    let schema = jsonschema::validator_for(&functions()[3].arguments).unwrap();
    for name in FAMILIES.iter().map(|family| family.name) {
        let format = Format {
            family: FAMILIES.iter().find(|family| family.name == name).unwrap(),
            reasoning: None,
            reads_calls: true,
        };
        for several in [false, true] {
            let strict = vec![functions().pop().unwrap()];
            let guide = guide(&guides, &format, false, None, &Offer { functions: strict, required: true, several });
            let mut whole = 0;
            for _ in 0..10 {
                let Some(answer) = walk(&guide, &mut random) else { continue };
                whole += 1;
                let pieces = read(&format, false, &[&answer]);
                // gpt-oss may think aloud first.
                let pieces: Vec<Piece> = pieces
                    .into_iter()
                    .filter(|piece| name != "harmony" || !matches!(piece, Piece::Text(_) | Piece::Reasoning(_)))
                    .collect();
                assert!(
                    pieces.len().is_multiple_of(3) && (several || pieces.len() == 3),
                    "{name}: {answer} {pieces:?}"
                );
                for call in pieces.chunks(3) {
                    let [Piece::Call(name), Piece::Arguments(arguments), Piece::CallEnd] = call else {
                        panic!("{answer}: {call:?}")
                    };
                    assert_eq!(name, "strict");
                    let arguments = serde_json::from_str(arguments).unwrap();
                    assert!(schema.is_valid(&arguments), "{arguments}");
                }
            }
            assert!(whole > 0, "{name}");
        }
    }
}

#[test]
fn arguments_between_marks_follow_their_schemas() {
    let guides = guides();
    let mut random = SplitMix(11);
    let schema = json!({"type": "object", "properties": {
        "short": {"type": "string", "minLength": 2, "maxLength": 3},
        "one": {"enum": ["red", "null", "<b>"]},
        "day": {"type": "string", "format": "date"},
        "maybe": {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "null"}]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2},
        "flag": {"type": ["boolean", "null"]}
    }, "required": ["one", "short"], "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0},
    "$defs": {"item": {"enum": ["a", 1]}}});
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    for name in ["qwen3-coder", "seed-oss", "glm", "minimax-m2"] {
        let format = Format {
            family: FAMILIES.iter().find(|family| family.name == name).unwrap(),
            reasoning: None,
            reads_calls: true,
        };
        let function = || Function { name: "f", arguments: schema.clone(), enforced: true };
        let offer = Offer { functions: vec![function()], required: true, several: false };
        let guide = guide(&guides, &format, false, None, &offer);
        let (mut whole, mut keys) = (0, std::collections::BTreeSet::new());
        for _ in 0..60 {
            let Some(answer) = walk(&guide, &mut random) else { continue };
            whole += 1;
            let mut reader = Reader::new(&format, false, Some(Arc::new([Signature::of(&function())])));
            let pieces: Vec<Piece> = reader.push(&answer).into_iter().chain(reader.finish()).collect();
            let part = |piece: &Piece| if let Piece::Arguments(part) = piece { part.clone() } else { String::new() };
            let arguments: String = pieces.iter().map(part).collect();
            assert!(matches!((&pieces[0], &pieces[pieces.len() - 1]), (Piece::Call(_), Piece::CallEnd)), "{pieces:?}");
            let arguments = serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {answer}"));
            assert!(validator.is_valid(&arguments), "{name}: {arguments}\n{answer}");
            keys.extend(arguments.as_object().unwrap().keys().map(|key| key.chars().take(5).collect::<String>()));
        }
        assert!(whole > 5 && keys.len() > 6, "{name}: {whole} {keys:?}");
    }
}

#[test]
fn what_marks_cannot_follow_is_said_and_can_be_left_open() {
    let guides = guides();
    let format = format("qwen3-coder");
    let string = json!({"type": "string"});
    for (schema, words) in [
        (json!({"type": "object", "properties": {"a": string}, "minProperties": 1}), "minProperties"),
        (json!({"type": "object", "properties": {"a>b": string}}), "a>b"),
        (json!({"type": "object", "properties": {"a": {"enum": ["x</parameter>"]}}}), "x</parameter>"),
        (json!({"type": "object", "properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}), "`#`"),
    ] {
        let offer = |enforced: bool| Offer {
            functions: vec![Function { name: "f", arguments: schema.clone(), enforced }],
            required: true,
            several: false,
        };
        let closed = Answer { format: &format, thinking: false, text: None, rules: "", offer: Some(&offer(true)) };
        let error = closed.grammar().unwrap_err();
        assert!(error.contains(words), "{error}");
        let open = guide(&guides, &format, false, None, &offer(false));
        let answer = "<tool_call>\n<function=f>\n<parameter=b>\nx\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(takes(&open, answer), Ok(true));
    }
}

#[test]
fn free_answers_are_free_until_a_call_begins() {
    let guides = guides();
    let offer = Offer { functions: vec![functions().pop().unwrap()], required: false, several: true };
    for (name, good, bad) in [
        ("hermes", "No <tool_cal here, {\"n\": 1}.", "x <tool_call>{\"name\": \"other"),
        ("llama", " [{\"name\": \"strict\"}]", "{\"name\": \"other"),
        ("mistral", "[TOOL CALLS]", "[TOOL_CALLS]other"),
        ("phi-4", "tools", "<|tool_call|>{"),
        ("qwen3-coder", "<function=strict> <tool_cal", "<tool_call><function=other"),
        ("glm", "arg_key", "<tool_call>other"),
        ("minimax-m2", "<invoke", "<minimax:tool_call><invoke name=\"other"),
        (
            "hermes-thinking",
            "<think>a <tool_call> b</think>\nYes <think>",
            "<think>x</think> <tool_call>{\"name\": \"other",
        ),
        ("harmony", "<|channel|>final<|message|>any {text}", "<|channel|>commentary to=functions.other"),
    ] {
        let guide = guide(&guides, &format(name), false, None, &offer);
        assert_eq!(takes(&guide, good), Ok(true), "{name}");
        assert!(takes(&guide, bad).is_err(), "{name}");
        assert_eq!(takes(&guide, ""), Ok(name != "harmony"), "{name}: nothing is text too");
    }
}

#[test]
fn a_form_and_tools_go_together() {
    let guides = guides();
    let offer = Offer { functions: functions(), required: false, several: true };
    let schema = json(&json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}), false);
    for (name, json, call) in [
        ("hermes", "{\"a\": 1}", "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"),
        (
            "hermes-thinking",
            "<think>so</think>\n{\"a\": 1}",
            "<think>so</think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>",
        ),
        ("mistral", "{\"a\": 1}", "[TOOL_CALLS]f[ARGS]{}"),
        (
            "harmony",
            "<|channel|>final<|message|>{\"a\": 1}",
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}",
        ),
    ] {
        let guide = guide(&guides, &format(name), false, Some(&schema), &offer);
        assert_eq!(takes(&guide, json), Ok(true), "{name}");
        assert_eq!(takes(&guide, call), Ok(true), "{name}");
        assert!(takes(&guide, "text").is_err(), "{name}");
    }
    assert!(Format::of(crate::local::formats::tests::template("llama")).calls_look_like_json());
}

#[test]
fn a_model_in_the_middle_of_its_reasoning_ends_it_first() {
    let guides = guides();
    let offer = Offer { functions: functions(), required: true, several: false };
    let guide = guide(&guides, &format("hermes-thinking"), true, None, &offer);
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    assert_eq!(takes(&guide, &format!("hm\n</think>\n\n{call}")), Ok(true));
    assert_eq!(takes(&guide, call), Ok(false), "that was thought, not said");
}
