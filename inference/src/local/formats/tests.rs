//! Real answers of every family, whole, letter by letter and cut anywhere.

use super::grammar::Function;
use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Templates cut down to what their family is known by.
const TEMPLATES: [(&str, &str); 16] = [
    ("hermes", "{% if tools %}<tool_call>{\"name\": <name>, \"arguments\": <args>}</tool_call>{% endif %}"),
    (
        "hermes-thinking",
        "{% if tools %}<tool_call>{\"name\": <name>, \"arguments\": <args>}</tool_call>{% endif %}<think></think>",
    ),
    ("llama", "<|start_header_id|>{% if tools %}{\"name\": name, \"parameters\": dictionary}{% endif %}"),
    ("mistral-list", "{% if tools %}[TOOL_CALLS][ \"id\": {% endif %}"),
    ("mistral", "{% if tools %}[TOOL_CALLS]f[ARGS]{}{% endif %}[THINK][/THINK]"),
    ("deepseek-v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n</think>"),
    ("deepseek-v3.1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}</think>"),
    ("phi-4", "<|tool|>tools<|/tool|><|tool_call|><|/tool_call|>"),
    ("granite", "respond only with <|tool_call|> followed by a JSON list of tools"),
    ("command-r", "Action:```json [{\"tool_name\": }]```"),
    ("command-r7b", "<|START_ACTION|>[{\"tool_name\": }]<|END_ACTION|><|START_THINKING|><|END_THINKING|>"),
    ("harmony", "<|channel|>commentary<|message|>"),
    ("qwen3-coder", "<tool_call><function=f><parameter=a></parameter></function></tool_call>"),
    (
        "seed-oss",
        "<seed:tool_call><function=f><parameter=a></parameter></function></seed:tool_call><seed:think></seed:think>",
    ),
    ("glm", "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call><think></think>"),
    ("minimax-m2", "<minimax:tool_call><invoke name=\"f\"><parameter name=\"a\"></invoke></minimax:tool_call></think>"),
];

pub(super) fn template(name: &str) -> &'static str {
    TEMPLATES.iter().find(|(known, _)| *known == name).unwrap().1
}

pub(super) fn format(name: &str) -> Format {
    let template = template(name);
    let format = Format::of(template);
    assert_eq!(format.name(), name.trim_end_matches("-thinking"), "{template}");
    format
}

/// Joins neighbours that the cuts of the input may have cut.
fn merge(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (merged.last_mut(), piece) {
            (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
            (Some(Piece::Reasoning(before)), Piece::Reasoning(text)) => before.push_str(&text),
            (Some(Piece::Arguments(before)), Piece::Arguments(text)) => before.push_str(&text),
            (_, piece) => merged.push(piece),
        }
    }
    merged
}

/// A function with arguments of all kinds; those of others say nothing about theirs.
pub(super) fn typed() -> Function<'static> {
    let arguments = json!({"type": "object", "properties": {
        "text": {"type": "string"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "list": {"type": "array", "items": {"type": ["string", "integer"]}},
        "any": {"description": "anything"},
        "one": {"enum": ["red", "<b>"]},
        "short": {"type": "string", "minLength": 2, "maxLength": 3},
        "day": {"type": "string", "format": "date"}
    }, "additionalProperties": false});
    Function { name: "typed", arguments, enforced: true }
}

fn signatures() -> Arc<[Signature]> {
    Arc::new([Signature::of(&typed())])
}

pub(super) fn read(format: &Format, thinking: bool, cuts: &[&str]) -> Vec<Piece> {
    let mut reader = Reader::new(format, thinking, Some(signatures()));
    let mut pieces: Vec<Piece> = cuts.iter().flat_map(|cut| reader.push(cut)).collect();
    pieces.extend(reader.finish());
    merge(pieces)
}

fn letters(text: &str) -> Vec<&str> {
    text.char_indices().map(|(at, letter)| &text[at..at + letter.len_utf8()]).collect()
}

fn text(text: &str) -> Vec<Piece> {
    vec![Piece::Text(text.into())]
}

fn thought(text: &str) -> Vec<Piece> {
    vec![Piece::Reasoning(text.into())]
}

fn call(name: &str, arguments: &str) -> Vec<Piece> {
    vec![Piece::Call(name.into()), Piece::Arguments(arguments.into()), Piece::CallEnd]
}

/// Format, answer, what it says.
pub(super) fn golden() -> Vec<(&'static str, &'static str, Vec<Vec<Piece>>)> {
    vec![
        ("hermes", "plain < text ", vec![text("plain < text ")]),
        (
            "hermes",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            vec![call("f", "{\"a\": 1}")],
        ),
        ("hermes", "Wait.\n<tool_call>{\"name\":\"f\"}</tool_call>\n", vec![text("Wait."), call("f", "{}")]),
        (
            "hermes",
            "<tool_call>{\"name\":\"f\",\"arguments\":{\"x\":\"}\\\"{\"}}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
            vec![call("f", "{\"x\":\"}\\\"{\"}"), call("g", "{}")],
        ),
        ("hermes", "<tool_call>{\"name\":\"f\",\"arguments\":{}}", vec![call("f", "{}")]),
        ("hermes", "a <tool_call>{\"name\": }</tool_call> b", vec![text("a <tool_call>{\"name\": }</tool_call> b")]),
        ("hermes", "a <tool_call>{\"na", vec![text("a <tool_call>{\"na")]),
        ("hermes", "a <tool_ca", vec![text("a <tool_ca")]),
        ("hermes", "<tool_call>[1]</tool_call>", vec![text("<tool_call>[1]</tool_call>")]),
        (
            "hermes",
            "<tool_call>{\"arguments\":{},\"name\":\"f\"}</tool_call>",
            vec![text("<tool_call>{\"arguments\":{},\"name\":\"f\"}</tool_call>")],
        ),
        ("hermes", "<tool_call><tool_call>{\"name\":\"f\"}</tool_call>", vec![text("<tool_call>"), call("f", "{}")]),
        ("hermes", "<think>not a mark here</think>", vec![text("<think>not a mark here</think>")]),
        ("hermes-thinking", "<think>\nHm <tool_call>.\n</think>\n\nYes", vec![thought("Hm <tool_call>."), text("Yes")]),
        (
            "hermes-thinking",
            "\n<think>\n\n</think>\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
            vec![call("f", "{}")],
        ),
        ("hermes-thinking", "Say <think>", vec![text("Say <think>")]),
        ("hermes-thinking", "<think>never ends </thi", vec![thought("never ends </thi")]),
        ("llama", "{\"name\": \"f\", \"parameters\": {\"q\": \"ü\"}}", vec![call("f", "{\"q\": \"ü\"}")]),
        ("llama", "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}", vec![call("f", "{}")]),
        ("llama", "\n{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", vec![call("f", "{}")]),
        ("llama", "{\"answer\": [1]}", vec![text("{\"answer\": [1]}")]),
        ("llama", "So: {\"name\": \"f\", \"parameters\": {}}", vec![text("So: {\"name\": \"f\", \"parameters\": {}}")]),
        (
            "mistral-list",
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": [1]}, \"id\": \"abcdefghi\"}, {\"name\": \"g\", \"arguments\": {}}]",
            vec![call("f", "{\"a\": [1]}"), call("g", "{}")],
        ),
        ("mistral-list", "[TOOL_CALLS] nothing", vec![text("[TOOL_CALLS] nothing")]),
        (
            "mistral",
            "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]a1b2c3d4e[ARGS]{}",
            vec![call("f", "{\"a\": 1}"), call("g", "{}")],
        ),
        ("mistral", "[THINK]Hm.[/THINK]Hello", vec![thought("Hm."), text("Hello")]),
        (
            "deepseek-v3",
            "<think>\nOk.\n</think>\n\nLet me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            vec![thought("Ok."), text("Let me see."), call("f", "{\"a\": 1}"), call("g", "{}")],
        ),
        (
            "deepseek-v3.1",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            vec![call("f", "{\"a\": 1}"), call("g", "{}")],
        ),
        (
            "phi-4",
            "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]<|/tool_call|>",
            vec![call("f", "{\"a\": 1}")],
        ),
        (
            "granite",
            "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {}}]",
            vec![call("f", "{}"), call("g", "{}")],
        ),
        (
            "command-r",
            "Action: ```json\n[\n    {\n        \"tool_name\": \"f\",\n        \"parameters\": {\"q\": \"x\"}\n    }\n]```",
            vec![call("f", "{\"q\": \"x\"}")],
        ),
        (
            "command-r7b",
            "<|START_THINKING|>I will search.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"f\", \"parameters\": {\"q\": 1}}\n]<|END_ACTION|>",
            vec![thought("I will search."), call("f", "{\"q\": 1}")],
        ),
        ("command-r7b", "<|START_RESPONSE|>Hello.<|END_RESPONSE|>", vec![text("Hello.")]),
        (
            "harmony",
            "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"a\": 1}",
            vec![thought("Think."), call("f", "{\"a\": 1}")],
        ),
        ("harmony", " to=functions.f<|channel|>commentary json<|message|>{}", vec![call("f", "{}")]),
        (
            "harmony",
            "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>final<|message|>4 < 5",
            vec![text("Let me look."), text("4 < 5")],
        ),
        ("harmony", "no header <|message|>", vec![text("no header <|message|>")]),
    ]
    .into_iter()
    .chain(golden_between_marks())
    .collect()
}

/// The same for families whose arguments stand between marks.
fn golden_between_marks() -> Vec<(&'static str, &'static str, Vec<Vec<Piece>>)> {
    vec![
        (
            "qwen3-coder",
            "I look.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
            vec![text("I look."), call("f", "{\"a\": 1}"), call("g", "{}")],
        ),
        (
            "qwen3-coder",
            "<tool_call>\n<function=typed>\n<parameter=text>\n\nif a < b:\n\tsay(\"</b> é\")\n\n</parameter>\n<parameter=maybe>\nnull\n</parameter>\n<parameter=list>\n[\"</parameter>\", 12]\n</parameter>\n<parameter=any>\n[1, 2]\n</parameter>\n<parameter=one>\n<b>\n</parameter>\n<parameter=short>\n12\n</parameter>\n<parameter=day>\n\"2024-02-29\"\n</parameter>\n</function>\n</tool_call>",
            vec![call(
                "typed",
                "{\"text\": \"\\nif a < b:\\n\\tsay(\\\"</b> é\\\")\\n\", \"maybe\": null, \"list\": [\"</parameter>\", 12], \"any\": [1, 2], \"one\": \"<b>\", \"short\": \"12\", \"day\": \"2024-02-29\"}",
            )],
        ),
        (
            "qwen3-coder",
            "<tool_call>\n<function=typed>\n<parameter=maybe>\nnullify\n</parameter>\n<parameter=any>\n\"1\"\n</parameter>\n</function>\n</tool_call>",
            vec![call("typed", "{\"maybe\": \"nullify\", \"any\": \"\\\"1\\\"\"}")],
        ),
        (
            "qwen3-coder",
            "<tool_call> is no call, nor is <tool_call><function=f g>",
            vec![text("<tool_call> is no call, nor is <tool_call><function=f g>")],
        ),
        (
            "seed-oss",
            "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=typed>\n<parameter=text>a\n</parameter>\n</function>\n</seed:tool_call>",
            vec![thought("Hm."), call("typed", "{\"text\": \"a\\n\"}")],
        ),
        (
            "glm",
            "\n<think></think>\n<tool_call>typed\n<arg_key>text</arg_key>\n<arg_value>12</arg_value>\n<arg_key>list</arg_key>\n<arg_value>[12, \"a\"]</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
            vec![call("typed", "{\"text\": \"12\", \"list\": [12, \"a\"]}"), call("g", "{}")],
        ),
        (
            "glm",
            "<tool_call>typed<arg_key>maybe</arg_key><arg_value>a </arg_valu</arg_value></tool_call>",
            vec![call("typed", "{\"maybe\": \"a </arg_valu\"}")],
        ),
        ("glm", "<tool_call> no call", vec![text("<tool_call> no call")]),
        (
            "minimax-m2",
            "<minimax:tool_call>\n<invoke name=\"typed\">\n<parameter name=\"text\">a\"b</parameter>\n</invoke>\n<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>",
            vec![call("typed", "{\"text\": \"a\\\"b\"}"), call("g", "{}")],
        ),
    ]
}

#[test]
fn real_answers_are_taken_apart() {
    for (name, answer, expected) in golden() {
        let expected = merge(expected.into_iter().flatten().collect());
        assert_eq!(read(&format(name), false, &[answer]), expected, "{name}: {answer}");
        assert_eq!(read(&format(name), false, &letters(answer)), expected, "{name}, letter by letter: {answer}");
    }
}

#[test]
fn a_prompt_can_leave_the_model_thinking() {
    let thinker = format("hermes-thinking");
    assert!(thinker.begins_thinking("<|im_start|>assistant\n<think>\n"));
    assert!(!thinker.begins_thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    assert!(!format("hermes").begins_thinking("<think>"));
    let expected = merge([thought("Hm."), text("Yes")].concat());
    assert_eq!(read(&thinker, true, &["\nHm.\n</think>\n\nYes"]), expected);
}

#[test]
fn arguments_come_before_the_call_is_complete() {
    for (name, begun) in [
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {\"a"),
        ("llama", "{\"name\": \"f\", \"parameters\": {\"a"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{\"a"),
        ("harmony", "<|channel|>commentary to=functions.f<|message|>{\"a"),
    ] {
        let mut reader = Reader::new(&format(name), false, Some(signatures()));
        let pieces = merge(reader.push(begun));
        assert_eq!(pieces, [Piece::Call("f".into()), Piece::Arguments("{\"a".into())], "{name}");
    }
}

#[test]
fn texts_between_marks_are_passed_on_as_they_come() {
    for (name, begun) in [
        ("qwen3-coder", "<tool_call>\n<function=typed>\n<parameter=text>\nlong\nte"),
        ("seed-oss", "<seed:tool_call>\n<function=typed>\n<parameter=text>long\nte"),
        ("glm", "<tool_call>typed\n<arg_key>text</arg_key>\n<arg_value>long\nte"),
        ("minimax-m2", "<minimax:tool_call>\n<invoke name=\"typed\">\n<parameter name=\"text\">long\nte"),
    ] {
        let mut reader = Reader::new(&format(name), false, Some(signatures()));
        let pieces = merge(reader.push(begun));
        let expected = [Piece::Call("typed".into()), Piece::Arguments("{\"text\": \"long\\nte".into())];
        assert_eq!(pieces, expected, "{name}");
        // What is left incomplete stays so: nothing is invented.
        assert_eq!(reader.finish(), [], "{name}");
    }
}

#[test]
fn without_tools_nothing_is_taken_for_a_call() {
    let answer = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    let mut reader = Reader::new(&format("hermes-thinking"), false, None);
    let mut pieces = reader.push(&format!("<think>a</think>{answer}"));
    pieces.extend(reader.finish());
    assert_eq!(merge(pieces), [thought("a"), text(answer)].concat());
}

#[test]
fn what_opens_a_message_that_never_comes_is_text() {
    let answer = format!("<|start|>{}<|start|>assistant<|channel|>final<|message|>b", "a".repeat(2000));
    let said = text(&format!("<|start|>{}b", "a".repeat(2000)));
    assert_eq!(read(&format("harmony"), false, &[&answer]), said);
    assert_eq!(read(&format("harmony"), false, &letters(&answer)), said);
}

#[test]
fn the_marks_of_a_format_are_spoken() {
    assert_eq!(format("hermes-thinking").spoken(), ["<think>", "</think>", "<tool_call>", "</tool_call>"]);
    let deepseek = format("deepseek-v3").spoken();
    for mark in [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ] {
        assert!(deepseek.contains(&mark), "{mark}: {deepseek:?}");
    }
    assert!(format("mistral").spoken().contains(&"[ARGS]"));
    assert!(Format::of("no tools").taught());
}

#[test]
fn what_is_written_as_a_call_is_read_as_one() {
    for (name, _) in TEMPLATES {
        let written = format(name).write(&[("f", "{\"a\": 1}")]);
        assert_eq!(read(&format(name), false, &[&written]), call("f", "{\"a\": 1}"), "{name}: {written}");
    }
}

proptest! {
    #[test]
    fn the_cuts_do_not_matter(which in 0usize..golden().len(), cuts in prop::collection::vec(0usize..400, 0..12), tail in "[<>{}\\[\\]/|\" a-e]{0,12}") {
        let golden = golden();
        let (name, answer, _) = &golden[which % golden.len()];
        let format = format(name);
        // Real answers, with something behind them that may be or not be part of a mark, whole and cut short.
        let whole = format!("{answer}{tail}");
        let short: String = whole.chars().take(cuts.first().copied().unwrap_or(400)).collect();
        for answer in [whole, short] {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut % (answer.len() + 1)).filter(|cut| answer.is_char_boundary(*cut)).collect();
            at.extend([0, answer.len()]);
            at.sort_unstable();
            let pieces: Vec<&str> = at.windows(2).map(|pair| &answer[pair[0]..pair[1]]).collect();
            let expected = read(&format, false, &[&answer]);
            prop_assert_eq!(&read(&format, false, &pieces), &expected);
            prop_assert_eq!(&read(&format, false, &letters(&answer)), &expected);
        }
    }

    #[test]
    fn random_marks_do_not_break_a_reader(name in 0usize..TEMPLATES.len(), parts in prop::collection::vec(0usize..24, 0..24)) {
        let format = format(TEMPLATES[name].0);
        let mut words: Vec<String> = format.spoken().into_iter().map(str::to_owned).collect();
        words.extend(["{", "}", "\"name\"", ":", "\"f\"", ",", "\"arguments\"", " ", "[", "]", "x"].map(str::to_owned));
        let answer: String = parts.iter().map(|part| words[part % words.len()].as_str()).collect();
        prop_assert_eq!(read(&format, false, &[&answer]), read(&format, false, &letters(&answer)));
    }

    #[test]
    fn text_without_marks_comes_through_whole(pieces in prop::collection::vec("[<>/_tolca \\n{]{0,6}", 0..20)) {
        let input = pieces.concat();
        prop_assume!(!input.contains("<tool_call>"));
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let expected: Vec<Piece> = text_piece(&input).into_iter().collect();
        prop_assert_eq!(read(&format("hermes"), false, &pieces), expected);
    }
}

#[test]
fn the_configuration_knows_the_names_of_all_formats() {
    for (name, tools) in ToolFormat::NAMES {
        let format = Format::chosen("[TOOL_CALLS][ARGS][/THINK]", *tools, ReasoningFormat::Auto);
        let expected = if matches!(tools, ToolFormat::Auto | ToolFormat::None) { "mistral" } else { name };
        assert_eq!((format.name(), format.reads_calls()), (expected, *tools != ToolFormat::None));
        assert_eq!(format.reasoning.is_some(), expected != "harmony", "{name}");
    }
    assert_eq!(FAMILIES.len() + 2, ToolFormat::NAMES.len());
    for (name, reasoning) in ReasoningFormat::NAMES {
        let format = Format::chosen("[TOOL_CALLS][ARGS][/THINK]", ToolFormat::Auto, *reasoning);
        let open = format.reasoning.map(|(open, _)| open);
        match reasoning {
            ReasoningFormat::Auto | ReasoningFormat::Mistral => assert_eq!(open, Some("[THINK]")),
            ReasoningFormat::None => assert_eq!(open, None),
            _ => assert!(open.is_some_and(|open| open != "[THINK]"), "{name}"),
        }
    }
}
