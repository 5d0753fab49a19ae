//! The training data, made by rule: one generator per kind of task, with phrasings and values that training never sees.

mod chat;
mod copying;
mod facts;
mod families;
mod numbers;
mod stories;
mod tools;
mod topics;
mod words;

pub use chat::{Dialogue, Piece, TEMPLATE, Turn};
pub use stories::is_story;

use crate::rng::Rng;
use words::{NAMES, NOUNS, SYLLABLES};

/// What a sample may draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Four of five phrasings and most values.
    Train,
    /// The other phrasings and values, for the evaluation only.
    Held,
}

/// One kind of task, a row of the accuracy table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each name says what is asked; `Kind::label` spells it out")]
pub enum Kind {
    Capital,
    Opposite,
    Sum,
    Product,
    Count,
    Copy,
    Identity,
    Tollkeeper,
    Story,
    Json,
    ToolCall,
    NoTool,
    ToolResult,
    Memory,
    Unknown,
}

impl Kind {
    /// Every kind, with its weight in the first part of training (copying and digits first) and in the rest.
    pub const MIX: [(Self, usize, usize); 15] = [
        (Self::Capital, 4, 7),
        (Self::Opposite, 3, 6),
        (Self::Sum, 40, 36),
        (Self::Product, 8, 11),
        (Self::Count, 10, 11),
        (Self::Copy, 30, 12),
        (Self::Identity, 2, 7),
        (Self::Tollkeeper, 2, 5),
        (Self::Story, 2, 4),
        (Self::Json, 8, 7),
        (Self::ToolCall, 3, 11),
        (Self::NoTool, 0, 5),
        (Self::ToolResult, 1, 3),
        (Self::Memory, 1, 3),
        (Self::Unknown, 1, 3),
    ];

    /// The name in the printed table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Capital => "capitals",
            Self::Opposite => "opposites",
            Self::Sum => "sums and differences",
            Self::Product => "products",
            Self::Count => "counting",
            Self::Copy => "copying",
            Self::Identity => "who are you, greetings",
            Self::Tollkeeper => "questions about Tollkeeper",
            Self::Story => "little stories",
            Self::Json => "JSON on request",
            Self::ToolCall => "tool calls",
            Self::NoTool => "tools given, none fits",
            Self::ToolResult => "answer from a tool result",
            Self::Memory => "name said earlier",
            Self::Unknown => "says it does not know",
        }
    }

    /// A kind by the weights of [`Kind::MIX`].
    pub fn draw(rng: &mut Rng, warm_up: bool) -> Self {
        let weight = |row: &(Self, usize, usize)| if warm_up { row.1 } else { row.2 };
        let mut left = rng.below(Self::MIX.iter().map(weight).sum());
        for row in &Self::MIX {
            if left < weight(row) {
                return row.0;
            }
            left -= weight(row);
        }
        Self::Copy
    }

    /// A question and its answer; only for the kinds that are one plain exchange.
    fn exchange(self, split: Split, rng: &mut Rng) -> (String, String) {
        match self {
            Self::Capital => facts::capital(split, rng),
            Self::Opposite => facts::opposite(split, rng),
            Self::Sum => numbers::sum(split, rng),
            Self::Product => numbers::product(split, rng),
            Self::Count => numbers::count(split, rng),
            Self::Identity => facts::identity(split, rng),
            Self::Tollkeeper => facts::tollkeeper(split, rng),
            Self::Story => stories::story(split, rng),
            Self::Json => copying::json(split, rng),
            Self::Unknown => facts::unknown(split, rng),
            _ => copying::repeat(split, rng),
        }
    }
}

/// One dialogue of `kind`; its last turn is the answer that the evaluation compares.
pub fn sample(kind: Kind, split: Split, rng: &mut Rng) -> Dialogue {
    let mut dialogue = match kind {
        Kind::ToolCall => tools::call(split, rng),
        Kind::NoTool => tools::no_tool(split, rng),
        Kind::ToolResult => tools::result(split, rng),
        Kind::Memory => facts::memory(split, rng),
        _ => Dialogue::from(kind.exchange(split, rng)),
    };
    if dialogue.tools.is_empty() && rng.chance(15) {
        precede(&mut dialogue, rng);
    }
    if dialogue.system.is_none() && rng.chance(40) {
        dialogue.system = Some(rng.pick(SYSTEMS).to_owned());
    }
    dialogue
}

/// Puts one or two other exchanges before, so that the model learns to answer the last question.
fn precede(dialogue: &mut Dialogue, rng: &mut Rng) {
    const BEFORE: [Kind; 9] = [
        Kind::Capital,
        Kind::Opposite,
        Kind::Sum,
        Kind::Product,
        Kind::Copy,
        Kind::Identity,
        Kind::Tollkeeper,
        Kind::Json,
        Kind::Unknown,
    ];
    for _ in 0..rng.between(1, 2) {
        let (question, answer) = BEFORE[rng.below(BEFORE.len())].exchange(Split::Train, rng);
        dialogue.turns.splice(0..0, [Turn::User(question), Turn::Assistant(answer)]);
    }
}

const SYSTEMS: &[&str] = &[
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are Toll Tiny.",
    "You are a friendly assistant. Answer in one short sentence.",
    "Be brief.",
    "Answer briefly.",
    "You are an agent that helps the user.",
    "Answer the question of the user.",
    "You are a test assistant.",
    "You are a helpful, honest and harmless assistant. Be concise.",
];

/// One of `phrasings`; every fifth belongs to the held-out split.
fn phrase<'a>(split: Split, rng: &mut Rng, phrasings: &[&'a str]) -> &'a str {
    loop {
        let i = rng.below(phrasings.len());
        if (i % 5 == 4) == (split == Split::Held) {
            return phrasings[i];
        }
    }
}

/// A phrasing as people really write it.
fn loose_phrase(split: Split, rng: &mut Rng, phrasings: &[&str]) -> String {
    let text = phrase(split, rng, phrasings);
    loosen(rng, text)
}

/// Draws after which a value is taken for one that cannot be held back: by then one in eight has come up but for one case in 10^11.
const MOST_DRAWS: usize = 200;

/// Whether a value belongs to the held-out split: about one in eight, decided by its text alone (FNV-1a).
fn held_value(text: &str) -> bool {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 32).is_multiple_of(8)
}

/// Draws until the value belongs to `split`. Where there are too few values to hold one back, the last draw serves: the phrasing around it
/// is unseen all the same.
fn value(split: Split, rng: &mut Rng, mut draw: impl FnMut(&mut Rng) -> String) -> String {
    let mut text = draw(rng);
    for _ in 0..MOST_DRAWS {
        if held_value(&text) == (split == Split::Held) {
            break;
        }
        text = draw(rng);
    }
    text
}

/// How people really write: a greeting before, a please behind, no capital, no question mark. Slots stay as they are.
fn loosen(rng: &mut Rng, phrase: &str) -> String {
    let mut text = phrase.to_owned();
    if rng.chance(20) && !text.ends_with('}') {
        text.truncate(text.trim_end_matches(['.', '?', '!']).len());
    }
    if rng.chance(8) && text.ends_with('?') {
        text.insert_str(text.len() - 1, " please");
    }
    if rng.chance(20) {
        text = lower_first(&text);
    }
    if rng.chance(14) {
        let before =
            rng.pick(&["Hello! ", "Hi, ", "Hey, ", "Please: ", "Quick question: ", "Ok. ", "Now: ", "And ", "So, "]);
        text = format!("{before}{}", lower_first(&text));
    }
    text
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// A capitalised name: mostly known, at times made up.
fn name(rng: &mut Rng) -> String {
    if rng.chance(65) { rng.pick(NAMES).to_owned() } else { upper_first(&made_up(rng)) }
}

/// A word nobody has seen, of two or three syllables.
fn made_up(rng: &mut Rng) -> String {
    (0..rng.between(2, 3)).map(|_| rng.pick(SYLLABLES)).collect()
}

/// A plain word: mostly known, at times made up.
fn word(rng: &mut Rng) -> String {
    if rng.chance(70) { rng.pick(NOUNS).to_owned() } else { made_up(rng) }
}

fn upper_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    /// The last question and its answer; where the phrasing alone decides the split, without case and punctuation.
    fn last_exchange(kind: Kind, dialogue: &Dialogue) -> String {
        let text = format!("{:?}", &dialogue.turns[dialogue.turns.len() - 2..]);
        match kind {
            Kind::Identity | Kind::Tollkeeper | Kind::Capital | Kind::Opposite => {
                text.to_lowercase().replace(['.', '?', '!'], "")
            }
            _ => text,
        }
    }

    #[test]
    fn training_never_sees_a_held_out_exchange() {
        for (kind, _, _) in Kind::MIX {
            let mut rng = Rng::new(1);
            let seen: HashSet<_> =
                (0..3_000).map(|_| last_exchange(kind, &sample(kind, Split::Train, &mut rng))).collect();
            for _ in 0..200 {
                let held = last_exchange(kind, &sample(kind, Split::Held, &mut rng));
                assert!(!seen.contains(&held), "{kind:?}: {held}");
            }
        }
    }

    /// Renders `dialogue` as a user of the file does: messages and tools as JSON through the template, none of our code.
    fn render(dialogue: &Dialogue, calls_apart: bool) -> String {
        let mut environment = minijinja::Environment::new();
        environment.add_template("chat", TEMPLATE).unwrap();
        let system = dialogue.system.iter().map(|text| json!({"role": "system", "content": text}));
        let turns = dialogue.turns.iter().map(|turn| match turn {
            Turn::User(text) => json!({"role": "user", "content": text}),
            Turn::Tool(text) => json!({"role": "tool", "tool_call_id": "1", "content": text}),
            Turn::Assistant(text) => match text.strip_prefix("<tool_call>\n").filter(|_| calls_apart) {
                None => json!({"role": "assistant", "content": text}),
                Some(call) => {
                    let call = call.strip_suffix("\n</tool_call>").unwrap();
                    let name = serde_json::from_str::<serde_json::Value>(call).unwrap()["name"].clone();
                    let arguments = call.split_once("\"arguments\": ").unwrap().1.strip_suffix('}').unwrap();
                    let function = json!({"name": name, "arguments": arguments});
                    json!({"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": function}]})
                }
            },
        });
        let messages: Vec<_> = system.chain(turns).collect();
        let tools: Vec<serde_json::Value> =
            dialogue.tools.iter().map(|tool| serde_json::from_str(tool).unwrap()).collect();
        let context = minijinja::context! { messages, tools, add_generation_prompt => true };
        environment.get_template("chat").unwrap().render(context).unwrap()
    }

    #[test]
    fn training_text_is_what_the_template_renders() {
        let mut rng = Rng::new(3);
        for i in 0..1_500 {
            let mut dialogue = sample(Kind::MIX[i % Kind::MIX.len()].0, Split::Train, &mut rng);
            // Engines print the tools' JSON each in its own way; here it is this test's engine's.
            let environment = minijinja::Environment::new();
            for tool in &mut dialogue.tools {
                let value: serde_json::Value = serde_json::from_str(tool).unwrap();
                *tool = environment.render_str("{{ tool | tojson }}", minijinja::context! { tool => value }).unwrap();
            }
            assert_eq!(render(&dialogue, false), dialogue.text(true));
            assert_eq!(render(&dialogue, true), dialogue.text(true), "tool calls given as fields");
        }
    }

    #[test]
    fn every_dialogue_ends_with_an_answer_and_has_no_open_slot() {
        let mut rng = Rng::new(2);
        for i in 0..6_000 {
            let (kind, _, _) = Kind::MIX[i % Kind::MIX.len()];
            let dialogue = sample(kind, if i % 2 == 0 { Split::Train } else { Split::Held }, &mut rng);
            let Some(Turn::Assistant(answer)) = dialogue.turns.last() else { panic!("{kind:?}: no answer") };
            assert!(!answer.is_empty() && !answer.contains("{}") && !answer.contains("{0"), "{kind:?}: {answer}");
            for turn in &dialogue.turns {
                if let Turn::User(text) = turn {
                    assert!(!text.is_empty() && !text.contains("{}") && !text.contains("{a}"), "{kind:?}: {text}");
                }
            }
        }
    }
}
