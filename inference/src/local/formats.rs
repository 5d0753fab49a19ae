//! How families of models write reasoning and tool calls: a table of them, found by the chat template.
//!
//! A format says three things: which marks must be visible in the text although they are control tokens ([`Format::spoken`]),
//! how an answer is read ([`Reader`]), and what an answer may look like, as a grammar ([`grammar`]). A template that shows no tools to
//! the model, or in a way that is not in the table, gets the [`Format::taught`] one: the tools are explained in the system message.

mod calls;
mod families;
pub(crate) mod grammar;
mod harmony;
mod parameters;
mod reasoning;
mod scan;

use calls::Calls;
use families::{FAMILIES, Family, Item, REASONING, Shape, Tagged, Wrap};
use harmony::Harmony;
pub(crate) use parameters::Signature;
use reasoning::{Reasoning, Silence};
use std::sync::Arc;
use tollkeeper_config::{ReasoningFormat, ToolFormat};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Text for the client.
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call of this function begins.
    Call(String),
    /// The next part of the JSON text of the arguments of the latest call.
    Arguments(String),
    /// The latest call is complete.
    CallEnd,
}

/// How a model writes what is not plain text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    family: &'static Family,
    /// The marks around reasoning.
    reasoning: Option<(&'static str, &'static str)>,
    reads_calls: bool,
}

impl Format {
    /// The format of a model with this chat template.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn of(template: &str) -> Self {
        Self::chosen(template, ToolFormat::Auto, ReasoningFormat::Auto)
    }

    /// The format of a model with this chat template, as far as the configuration does not say another.
    pub(crate) fn chosen(template: &str, tools: ToolFormat, reasoning: ReasoningFormat) -> Self {
        let has = |mark: &&str| template.contains(*mark);
        let fits = |family: &&Family| match tools {
            ToolFormat::Auto | ToolFormat::None => family.marks.iter().all(has) && !family.never.iter().any(has),
            named => family.name == named.name(),
        };
        let family = FAMILIES.iter().find(fits).unwrap_or(&FAMILIES[FAMILIES.len() - 1]);
        let marks = |(format, (_, close)): &&(ReasoningFormat, (&str, &str))| match reasoning {
            ReasoningFormat::Auto => template.contains(close),
            reasoning => *format == reasoning,
        };
        let reasoning = match family.shape {
            Shape::Harmony => None,
            Shape::Tagged(_) => REASONING.iter().find(marks).map(|(_, marks)| *marks),
        };
        Self { family, reasoning, reads_calls: tools != ToolFormat::None }
    }

    /// Whether calls are told from text.
    pub(crate) fn reads_calls(&self) -> bool {
        self.reads_calls
    }

    /// Its name, for logs and tests.
    pub(crate) fn name(&self) -> &'static str {
        self.family.name
    }

    /// Whether the template knows no calls, or writes them in a way that is not known here.
    pub(crate) fn taught(&self) -> bool {
        self.family.marks.is_empty()
    }

    /// Whether an answer is anything but plain text when no tools are offered.
    pub(crate) fn thinks(&self) -> bool {
        self.reasoning.is_some() || !self.family.silent.is_empty() || matches!(self.family.shape, Shape::Harmony)
    }

    /// Whether a call cannot be told from a JSON answer by how it begins.
    pub(crate) fn calls_look_like_json(&self) -> bool {
        matches!(self.family.shape, Shape::Tagged(Tagged { bare: true, .. }))
    }

    /// Calls as the model would write them: names and the JSON text of the arguments.
    pub(crate) fn write(&self, calls: &[(&str, &str)]) -> String {
        let Shape::Tagged(tagged) = &self.family.shape else {
            let call = |(name, arguments): &(&str, &str)| {
                format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}")
            };
            return calls.iter().map(call).collect::<Vec<_>>().join("\n");
        };
        let call = |(name, arguments): &(&str, &str)| match &tagged.item {
            Item::Json { name: name_key, arguments: arguments_key, .. } => {
                let name = serde_json::Value::from(*name);
                format!("{{\"{name_key}\": {name}, \"{arguments_key}\": {arguments}}}")
            }
            Item::Named { before, between, after, .. } => format!("{before}{name}{between}{arguments}{after}"),
            Item::Marked(marks) => marks.write(name, arguments),
        };
        let written: Vec<String> = calls.iter().map(call).collect();
        match tagged.wrap {
            Wrap::List => format!("{}[{}]{}", tagged.open, written.join(", "), tagged.close),
            Wrap::Many => format!("{}{}{}", tagged.open, written.join("\n"), tagged.close),
            Wrap::One => {
                let open = if tagged.bare { "" } else { tagged.open };
                let marked: Vec<String> = written.iter().map(|call| format!("{open}{call}{}", tagged.close)).collect();
                marked.join("\n")
            }
        }
    }

    /// Marks that are part of the text although a vocabulary may have them as control tokens.
    #[cfg(any(feature = "llama-cpp", feature = "candle", test))]
    pub(crate) fn spoken(&self) -> Vec<&'static str> {
        let mut spoken = self.family.silent.to_vec();
        spoken.extend(self.reasoning.into_iter().flat_map(|(open, close)| [open, close]));
        match &self.family.shape {
            Shape::Harmony => spoken.extend(harmony::MARKS),
            Shape::Tagged(Tagged { open, close, item, .. }) => {
                spoken.extend([*open, *close]);
                // A mark of the table may be several tokens of the vocabulary; each of them ends with its bracket.
                match item {
                    Item::Json { .. } => {}
                    Item::Named { before, id, between, after } => {
                        spoken.extend([*before, id.unwrap_or(""), *between, *after].into_iter().flat_map(marks_in));
                    }
                    Item::Marked(marks) => {
                        let families::Marks { before, named, key, keyed, value, valued, after, .. } = marks;
                        spoken
                            .extend([*before, named, key, keyed, value, valued, after].into_iter().flat_map(marks_in));
                    }
                }
            }
        }
        spoken.retain(|mark| !mark.is_empty());
        spoken
    }

    /// Whether a prompt leaves the model in the middle of its reasoning.
    pub(crate) fn begins_thinking(&self, prompt: &str) -> bool {
        self.reasoning.is_some_and(|(open, _)| prompt.trim_end().ends_with(open))
    }
}

/// The bracketed names in a mark: `<a>function<b>` has two.
#[cfg(any(feature = "llama-cpp", feature = "candle", test))]
fn marks_in(mark: &'static str) -> Vec<&'static str> {
    let starts: Vec<usize> = mark.match_indices(['<', '[']).map(|(at, _)| at).collect();
    starts.into_iter().filter_map(|at| mark[at..].find(['>', ']']).map(|end| &mark[at..=at + end])).collect()
}

/// Takes an answer apart while it comes. The result does not depend on how the answer is cut.
#[derive(Debug)]
pub(crate) struct Reader(Kind);

#[derive(Debug)]
enum Kind {
    Plain,
    Tagged { reasoning: Reasoning, silence: Silence, calls: Option<Calls> },
    Harmony(Harmony),
}

impl Reader {
    /// A reader of text only.
    pub(crate) fn plain() -> Self {
        Self(Kind::Plain)
    }

    /// A reader of answers in this format; `thinking` is [`Format::begins_thinking`], `calls` are the functions that may be called, if
    /// calls are looked for.
    pub(crate) fn new(format: &Format, thinking: bool, calls: Option<Arc<[Signature]>>) -> Self {
        Self(match &format.family.shape {
            Shape::Harmony => Kind::Harmony(Harmony::new(calls.is_some())),
            Shape::Tagged(tagged) => Kind::Tagged {
                reasoning: Reasoning::new(format.reasoning, thinking),
                silence: Silence::new(format.family.silent),
                calls: calls.map(|signatures| Calls::new(tagged, signatures)),
            },
        })
    }

    /// Takes the next text and gives back all that is decided.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        match &mut self.0 {
            Kind::Plain => text_piece(text).into_iter().collect(),
            Kind::Harmony(harmony) => harmony.push(text),
            Kind::Tagged { reasoning, silence, calls } => {
                let pieces = reasoning.push(text);
                pass(pieces, |text| pass(silence.push(text), |text| look_for_calls(calls, text)))
            }
        }
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        match &mut self.0 {
            Kind::Plain => Vec::new(),
            Kind::Harmony(harmony) => harmony.finish(),
            Kind::Tagged { reasoning, silence, calls } => {
                let mut pieces =
                    pass(reasoning.finish(), |text| pass(silence.push(text), |text| look_for_calls(calls, text)));
                pieces.extend(pass(silence.finish(), |text| look_for_calls(calls, text)));
                pieces.extend(calls.as_mut().map(Calls::finish).unwrap_or_default());
                pieces
            }
        }
    }
}

fn look_for_calls(calls: &mut Option<Calls>, text: &str) -> Vec<Piece> {
    calls.as_mut().map_or_else(|| text_piece(text).into_iter().collect(), |calls| calls.push(text))
}

/// Hands the texts among the pieces to the next stage.
fn pass(pieces: Vec<Piece>, mut next: impl FnMut(&str) -> Vec<Piece>) -> Vec<Piece> {
    let mut passed = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => passed.extend(next(&text)),
            piece => passed.push(piece),
        }
    }
    passed
}

fn text_piece(text: &str) -> Option<Piece> {
    (!text.is_empty()).then(|| Piece::Text(text.to_owned()))
}

#[cfg(test)]
mod tests;
