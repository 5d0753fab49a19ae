//! The table of families: how each writes reasoning and calls, and how its chat template is known.

use serde_json::{Map, Value};
use tollkeeper_config::ReasoningFormat;

/// The marks around reasoning: a template that has the closing one is for a model that writes it.
pub(super) const REASONING: [(ReasoningFormat, (&str, &str)); 4] = [
    (ReasoningFormat::Think, ("<think>", "</think>")),
    (ReasoningFormat::Mistral, ("[THINK]", "[/THINK]")),
    (ReasoningFormat::CommandR7b, ("<|START_THINKING|>", "<|END_THINKING|>")),
    (ReasoningFormat::SeedOss, ("<seed:think>", "</seed:think>")),
];

#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    /// A template of the family has all of these,
    pub(super) marks: &'static [&'static str],
    /// and none of these.
    pub(super) never: &'static [&'static str],
    pub(super) shape: Shape,
    /// Marks that mean nothing to the client.
    pub(super) silent: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum Shape {
    Tagged(Tagged),
    /// gpt-oss: every part of the answer names its channel.
    Harmony,
}

/// Calls between an opening and a closing mark.
#[derive(Debug)]
pub(super) struct Tagged {
    pub(super) open: &'static str,
    /// Whether the mark may be missing when the answer begins with a call.
    pub(super) bare: bool,
    pub(super) wrap: Wrap,
    pub(super) item: Item,
    /// Empty where the end of the answer closes.
    pub(super) close: &'static str,
}

/// How many calls are between the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrap {
    One,
    /// A JSON array.
    List,
    /// One behind the other.
    Many,
}

/// How one call is written.
#[derive(Debug)]
pub(super) enum Item {
    /// A JSON object with these keys; `first` and `last` are keys with an id that models of the family write too.
    Json { first: Option<&'static str>, name: &'static str, arguments: &'static str, last: Option<&'static str> },
    /// The name between marks, then the JSON of the arguments. `id` may follow the name.
    Named { before: &'static str, id: Option<&'static str>, between: &'static str, after: &'static str },
    /// The name between marks, then each argument between marks of its own.
    Marked(Marks),
}

/// The marks around a call whose texts are written as they are, and all other values as JSON.
#[derive(Debug)]
pub(super) struct Marks {
    /// Before the name.
    pub(super) before: &'static str,
    /// Behind the name; empty where whitespace or the next mark ends it.
    pub(super) named: &'static str,
    /// Before a key.
    pub(super) key: &'static str,
    /// Behind a key.
    pub(super) keyed: &'static str,
    /// Before a value; there may be whitespace between this and the mark before it.
    pub(super) value: &'static str,
    /// Behind a value.
    pub(super) valued: &'static str,
    /// Behind the last argument; empty where the mark that closes the calls is enough.
    pub(super) after: &'static str,
    /// Whether a value has lines of its own: a line break before it and one behind it are not part of it.
    pub(super) lines: bool,
}

impl Marks {
    /// What ends the arguments, where calls close with this mark.
    pub(super) fn end(&self, close: &'static str) -> &'static str {
        if self.after.is_empty() { close } else { self.after }
    }

    /// A call as the model would write it. Arguments that are no JSON object stand for what they explain.
    pub(super) fn write(&self, name: &str, arguments: &str) -> String {
        let arguments: Map<String, Value> = serde_json::from_str(arguments)
            .unwrap_or_else(|_| Map::from_iter([("name of an argument".to_owned(), "its value".into())]));
        let line = if self.lines { "\n" } else { "" };
        let mut call = format!("{}{name}{}", self.before, self.named);
        for (key, value) in arguments {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let Self { key: before, keyed, value: opens, valued, .. } = self;
            call.push_str(&format!("\n{before}{key}{keyed}{opens}{line}{value}{line}{valued}"));
        }
        format!("{call}\n{}", self.after)
    }
}

const NAME_ARGUMENTS: Item = Item::Json { first: None, name: "name", arguments: "arguments", last: None };

const fn tagged(open: &'static str, wrap: Wrap, item: Item, close: &'static str) -> Shape {
    Shape::Tagged(Tagged { open, bare: false, wrap, item, close })
}

const fn function_parameter(lines: bool) -> Item {
    Item::Marked(Marks {
        before: "<function=",
        named: ">",
        key: "<parameter=",
        keyed: ">",
        value: "",
        valued: "</parameter>",
        after: "</function>",
        lines,
    })
}

/// In order: the first whose marks are in the template. The last one fits every model.
pub(super) static FAMILIES: [Family; 16] = [
    Family { name: "harmony", marks: &["<|channel|>", "<|message|>"], never: &[], shape: Shape::Harmony, silent: &[] },
    Family {
        name: "deepseek-v3.1",
        marks: &["<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"],
        never: &["```json"],
        shape: tagged(
            "<｜tool▁calls▁begin｜>",
            Wrap::Many,
            Item::Named {
                before: "<｜tool▁call▁begin｜>",
                id: None,
                between: "<｜tool▁sep｜>",
                after: "<｜tool▁call▁end｜>",
            },
            "<｜tool▁calls▁end｜>",
        ),
        silent: &[],
    },
    Family {
        name: "deepseek-v3",
        marks: &["<｜tool▁calls▁begin｜>", "```json"],
        never: &[],
        shape: tagged(
            "<｜tool▁calls▁begin｜>",
            Wrap::Many,
            Item::Named {
                before: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
                id: None,
                between: "\n```json\n",
                after: "\n```<｜tool▁call▁end｜>",
            },
            "<｜tool▁calls▁end｜>",
        ),
        silent: &[],
    },
    Family {
        name: "mistral",
        marks: &["[TOOL_CALLS]", "[ARGS]"],
        never: &[],
        shape: tagged(
            "[TOOL_CALLS]",
            Wrap::One,
            Item::Named { before: "", id: Some("[CALL_ID]"), between: "[ARGS]", after: "" },
            "",
        ),
        silent: &[],
    },
    Family {
        name: "mistral-list",
        marks: &["[TOOL_CALLS]", "\"id\""],
        never: &[],
        shape: tagged(
            "[TOOL_CALLS]",
            Wrap::List,
            Item::Json { first: None, name: "name", arguments: "arguments", last: Some("id") },
            "",
        ),
        silent: &[],
    },
    Family {
        name: "command-r7b",
        marks: &["<|START_ACTION|>", "tool_name"],
        never: &[],
        shape: tagged(
            "<|START_ACTION|>",
            Wrap::List,
            Item::Json { first: Some("tool_call_id"), name: "tool_name", arguments: "parameters", last: None },
            "<|END_ACTION|>",
        ),
        silent: &["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"],
    },
    Family {
        name: "command-r",
        marks: &["Action:", "```json", "tool_name"],
        never: &[],
        shape: tagged(
            "Action: ```json",
            Wrap::List,
            Item::Json { first: None, name: "tool_name", arguments: "parameters", last: None },
            "```",
        ),
        silent: &[],
    },
    Family {
        name: "phi-4",
        marks: &["<|tool|>", "<|/tool|>"],
        never: &[],
        shape: tagged("<|tool_call|>", Wrap::List, NAME_ARGUMENTS, "<|/tool_call|>"),
        silent: &[],
    },
    Family {
        name: "granite",
        marks: &["<|tool_call|>", "tools"],
        never: &[],
        shape: tagged("<|tool_call|>", Wrap::List, NAME_ARGUMENTS, ""),
        silent: &[],
    },
    Family {
        name: "llama",
        marks: &["<|start_header_id|>", "\"parameters\": ", "tools"],
        never: &["<tool_call>", "functools["],
        shape: Shape::Tagged(Tagged {
            open: "<|python_tag|>",
            bare: true,
            wrap: Wrap::One,
            item: Item::Json { first: None, name: "name", arguments: "parameters", last: None },
            close: "",
        }),
        silent: &[],
    },
    Family {
        name: "seed-oss",
        marks: &["<seed:tool_call>", "<function=", "<parameter="],
        never: &[],
        shape: tagged("<seed:tool_call>", Wrap::One, function_parameter(false), "</seed:tool_call>"),
        silent: &[],
    },
    Family {
        name: "qwen3-coder",
        marks: &["<tool_call>", "<function=", "<parameter="],
        never: &[],
        shape: tagged("<tool_call>", Wrap::One, function_parameter(true), "</tool_call>"),
        silent: &[],
    },
    Family {
        name: "glm",
        marks: &["<tool_call>", "<arg_key>", "<arg_value>"],
        never: &[],
        shape: tagged(
            "<tool_call>",
            Wrap::One,
            Item::Marked(Marks {
                before: "",
                named: "",
                key: "<arg_key>",
                keyed: "</arg_key>",
                value: "<arg_value>",
                valued: "</arg_value>",
                after: "",
                lines: false,
            }),
            "</tool_call>",
        ),
        silent: &[],
    },
    Family {
        name: "minimax-m2",
        marks: &["<minimax:tool_call>", "<invoke name="],
        never: &[],
        shape: tagged(
            "<minimax:tool_call>",
            Wrap::Many,
            Item::Marked(Marks {
                before: "<invoke name=\"",
                named: "\">",
                key: "<parameter name=\"",
                keyed: "\">",
                value: "",
                valued: "</parameter>",
                after: "</invoke>",
                lines: false,
            }),
            "</minimax:tool_call>",
        ),
        silent: &[],
    },
    Family {
        name: "hermes",
        marks: &["<tool_call>", "arguments", "tools"],
        never: &["<function=", "<arg_key>", "<parameter", "<arg ", "<invoke name="],
        shape: tagged("<tool_call>", Wrap::One, NAME_ARGUMENTS, "</tool_call>"),
        silent: &[],
    },
    Family {
        name: "taught",
        marks: &[],
        never: &[],
        shape: tagged("<tool_call>", Wrap::One, NAME_ARGUMENTS, "</tool_call>"),
        silent: &[],
    },
];
