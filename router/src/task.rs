//! What kind of job a request is, when nobody says so: phrases with weights, and the structure of the request.

mod phrases;

use crate::difficulty::{boundary, question};
use phrases::{BY_FIRST_WORD, FIRST_WORDS, PHRASES};
use std::fmt;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Part, ResponseFormat, Role};
use tollkeeper_protocol::completion::Prompt;

/// The kind of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskType {
    /// Talk, short questions, and what fits nothing else.
    Chat,
    /// Programs: writing, changing and explaining them.
    Code,
    /// Something to compute or to prove.
    Maths,
    /// Facts out of a text, often as JSON.
    Extraction,
    /// One of a few labels.
    Classification,
    /// A text made shorter.
    Summarise,
    /// A text in another language.
    Translation,
    /// A judgement of a text, a design or of code.
    Review,
    /// Facts and views from many places, compared.
    Research,
    /// Steps, schedules, designs.
    Planning,
    /// A text for people.
    Writing,
}

impl TaskType {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Chat,
        Self::Code,
        Self::Maths,
        Self::Extraction,
        Self::Classification,
        Self::Summarise,
        Self::Translation,
        Self::Review,
        Self::Research,
        Self::Planning,
        Self::Writing,
    ];

    /// The name in configuration, headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Code => "code",
            Self::Maths => "maths",
            Self::Extraction => "extraction",
            Self::Classification => "classification",
            Self::Summarise => "summarise",
            Self::Translation => "translation",
            Self::Review => "review",
            Self::Research => "research",
            Self::Planning => "planning",
            Self::Writing => "writing",
        }
    }

    /// The type of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name)
    }

    /// What a request is; none where nothing is generated (embeddings, reranking) or where there is no text.
    pub fn of(request: &Request) -> Option<Self> {
        match request {
            Request::Chat(chat) => of_chat(chat),
            Request::Completion(completion) if completion.suffix.is_some() => Some(Self::Code),
            Request::Completion(completion) => completion.prompts.iter().find_map(|prompt| match prompt {
                Prompt::Text(text) => Some(Self::of_text(text)),
                Prompt::Tokens(_) => None,
            }),
            Request::Embedding(_) | Request::Rerank(_) => None,
        }
    }

    /// What a text asks for on its own.
    pub fn of_text(text: &str) -> Self {
        let mut points = Points::default();
        points.read(text);
        points.best()
    }
}

impl fmt::Display for TaskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The bytes of a question's beginning and of its end in which phrases are looked for: what is wanted stands before or behind the material.
const EDGE: usize = 400;
/// What the instructions of a system message count beside the question, in percent.
const INSTRUCTIONS_PERCENT: i32 = 60;
/// The fewest points that make anything else than a chat.
const ENOUGH: i32 = 20;

fn of_chat(chat: &ChatRequest) -> Option<TaskType> {
    let mut instructions = Points::default();
    for message in chat.messages.iter().filter(|message| matches!(message.role, Role::System | Role::Developer)) {
        for part in &message.content {
            if let Part::Text(text) = part {
                instructions.read(text);
            }
        }
    }
    let mut points = Points::default();
    points.read(&question(chat)?);
    for (own, told) in points.0.iter_mut().zip(instructions.0) {
        *own += told.min(60) * INSTRUCTIONS_PERCENT / 100;
    }
    if matches!(chat.response_format, ResponseFormat::JsonSchema(_)) {
        points.add(TaskType::Extraction, 12);
        points.add(TaskType::Classification, 8);
    }
    Some(points.best())
}

/// Points of each type, in the order of [`TaskType::ALL`].
#[derive(Debug, Default)]
struct Points([i32; TaskType::ALL.len()]);

impl Points {
    fn add(&mut self, task: TaskType, points: i32) {
        self.0[task as usize] += points;
    }

    fn read(&mut self, text: &str) {
        let edges = edges(text);
        let plain = plain(&edges);
        let mut said = [false; PHRASES.len()];
        let mut at = 0;
        while let Some(length) = plain[at + 1..].find(' ') {
            for place in BY_FIRST_WORD.get(&plain[at + 1..at + 1 + length]).into_iter().flatten() {
                let (phrase, task, points) = &PHRASES[*place];
                // A phrase counts once: who repeats himself asks for nothing else.
                if !said[*place] && plain[at..].starts_with(phrase) {
                    said[*place] = true;
                    // What is said at the very beginning is what is wanted.
                    self.add(*task, if at < 12 { points * 3 / 2 } else { *points });
                }
            }
            at += 1 + length;
        }
        let mut words = plain.split(' ').filter(|word| !word.is_empty() && !POLITE.contains(word));
        if let Some((_, task, points)) = words.next().and_then(|first| FIRST_WORDS.iter().find(|row| row.0 == first)) {
            self.add(*task, *points);
        }
        self.structure(text, &edges, &plain);
    }

    /// What the marks in a text tell.
    fn structure(&mut self, text: &str, edges: &str, plain: &str) {
        let has = |mark: &str| edges.contains(mark);
        if has("```") || has("diff --git") {
            self.add(TaskType::Code, 22);
        }
        let marks = ["();", "){", ") {", "=>", "->", "::", "==", "!=", "</", "#include", "def ", "fn ", "${", "&&"];
        let marks = marks.into_iter().filter(|mark| has(mark)).count() as i32;
        self.add(TaskType::Code, (marks * 8).min(24));
        let numbers = plain.split(' ').filter(|word| word.bytes().any(|byte| byte.is_ascii_digit())).count();
        if numbers >= 2 && text.trim_end().ends_with('?') {
            self.add(TaskType::Maths, 10);
        }
        let signs = edges.as_bytes().windows(3).filter(|window| {
            let [before, sign, after] = window else { return false };
            let side = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b' ' | b')' | b'(');
            matches!(sign, b'^' | b'=' | b'+' | b'*' | b'/') && side(before) && side(after)
        });
        let signs = signs.count() as i32;
        if edges.len() < 200 && numbers > 0 {
            self.add(TaskType::Maths, (signs * 6).min(18));
        }
    }

    fn best(&self) -> TaskType {
        let mut best = (ENOUGH - 1, TaskType::Chat);
        for (task, points) in TaskType::ALL.into_iter().zip(self.0) {
            if points > best.0 {
                best = (points, task);
            }
        }
        best.1
    }
}

const POLITE: &[&str] =
    &["please", "can", "could", "would", "you", "kindly", "now", "hi", "hello", "i", "need", "to", "help", "me", "us"];

/// Beginning and end of a text, or all of it.
fn edges(text: &str) -> String {
    if text.len() <= 2 * EDGE {
        return text.to_owned();
    }
    let (head, tail) = (boundary(text, EDGE), boundary(text, text.len() - EDGE));
    format!("{}\n{}", &text[..head], &text[tail..])
}

/// In lower case, with one space instead of all that is no letter or digit, and one at either end.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len() + 2);
    plain.push(' ');
    for letter in text.chars() {
        if letter.is_alphanumeric() {
            plain.extend(letter.to_lowercase());
        } else if !plain.ends_with(' ') && letter != '\'' {
            plain.push(' ');
        }
    }
    if !plain.ends_with(' ') {
        plain.push(' ');
    }
    plain
}
