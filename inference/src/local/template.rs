//! Chat templates: a conversation becomes the text a model was trained to continue.
//!
//! The template is the model's own (Jinja, from its file), in the dialect of Hugging Face's `apply_chat_template`: Python methods
//! on strings and maps, Python's JSON, loop controls, `raise_exception`, `strftime_now`. A model without one is spoken to in ChatML.

use super::control::ControlTokens;
use super::engine::{Token, Tokenizer};
use super::formats::Format;
use super::picture::{is_picture, number_of};
use super::teach;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::{Map, json};
use std::hash::{DefaultHasher, Hash, Hasher};
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role, Tool, ToolCall};

/// For models without a template of their own.
const CHATML: &str = include_str!("chatml.jinja");

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// The template itself refuses this conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template is broken or needs something we do not have.
    #[error("the model's chat template failed: {0}")]
    Broken(String),
    /// The pictures did not come through it as they went in.
    #[error("{0}")]
    Pictures(&'static str),
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A prompt.
pub(crate) struct Rendered {
    pub(crate) tokens: Vec<Token>,
    /// Whether it leaves the model in the middle of its reasoning.
    pub(crate) thinking: bool,
}

/// What templates disagree about: how they want to be given a call.
#[derive(Debug, Clone, Copy, Default)]
struct Habits {
    /// Whether the content of a message that only calls is null, not empty.
    null_content: bool,
    /// Whether the arguments are JSON text, not an object.
    text_arguments: bool,
    /// Whether the ids of calls must have nine letters (Mistral).
    short_ids: bool,
}

/// What a template tells the model by itself; the rest is told as text.
#[derive(Debug, Clone, Copy, Default)]
struct Shows {
    tools: bool,
    calls: bool,
}

/// A model's chat template, compiled.
pub(crate) struct Template {
    environment: Result<Environment<'static>, String>,
    format: Format,
    habits: Habits,
    shows: Shows,
    /// Whether it looks for the tools in the system message.
    tools_in_message: bool,
    control: ControlTokens,
    edges: (String, String),
}

impl Template {
    /// The template of a model, or ChatML. A template that does not compile fails each time it is used. `format` finds the format of
    /// calls and reasoning for the text of the template.
    pub(crate) fn of(tokenizer: &dyn Tokenizer, format: impl Fn(&str) -> Format) -> Self {
        let source = tokenizer.chat_template().unwrap_or_else(|| CHATML.to_owned());
        let mut template = Self {
            format: format(&source),
            habits: Habits { short_ids: source.contains("length != 9"), ..Habits::default() },
            shows: Shows::default(),
            tools_in_message: source.contains("'tools' in message"),
            environment: compile(without_generation_tags(&source)),
            control: ControlTokens::new(tokenizer.control_tokens()),
            edges: tokenizer.edge_names(),
        };
        template.learn();
        template
    }

    /// Finds out by trial what the template shows of tools and calls, and how it wants to be given them.
    fn learn(&mut self) {
        // Whose calls are not read may still be shown tools.
        if self.format.taught() && self.format.reads_calls() {
            return;
        }
        let probe = teach::probe();
        let question = ChatRequest { messages: probe.messages[..1].to_vec(), ..probe.clone() };
        self.shows.tools = self.fill(&question, true, self.habits).is_ok_and(|text| text.contains(teach::PROBE_TOOL));
        for (null_content, text_arguments) in [(false, false), (true, false), (false, true), (true, true)] {
            let habits = Habits { null_content, text_arguments, ..self.habits };
            let text = self.fill(&probe, self.shows.tools, habits).unwrap_or_default();
            if teach::PROBE_WORDS.iter().all(|word| text.contains(word)) {
                self.habits = habits;
                self.shows.calls = true;
                return;
            }
        }
    }

    /// Why the template cannot be used at all.
    pub(crate) fn defect(&self) -> Option<&str> {
        self.environment.as_ref().err().map(String::as_str)
    }

    /// The prompt of a conversation, up to where the assistant begins to speak. `tools` says whether they are offered.
    pub(crate) fn prompt(
        &self,
        request: &ChatRequest,
        tools: bool,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Rendered, TemplateError> {
        let text = self.render(request, tools)?;
        let thinking = self.format.begins_thinking(&text);
        let pictures = pictures_of(request);
        if pictures > 0 {
            self.check_marks(request, tools, pictures, &text)?;
        }
        let tokens = self.control.encode_with(&text, pictures, tokenizer);
        match tokens.last() {
            Some(last) if is_picture(*last) => {
                Err(TemplateError::Pictures("the model's chat template puts nothing behind the last picture"))
            }
            _ => Ok(Rendered { tokens, thinking }),
        }
    }

    /// Whether the marks of pictures stand for pictures only, and all of them have come through the template in their order.
    fn check_marks(
        &self,
        request: &ChatRequest,
        tools: bool,
        pictures: usize,
        rendered: &str,
    ) -> Result<(), TemplateError> {
        let given = json!(self.context(request, tools, self.habits)).to_string();
        if given.chars().filter_map(number_of).count() != pictures {
            return Err(TemplateError::Pictures(
                "beside pictures a text cannot have the characters from U+FDD1 to U+FDE0, which stand for them",
            ));
        }
        if !rendered.chars().filter_map(number_of).eq(0..pictures) {
            return Err(TemplateError::Pictures(
                "the model's chat template leaves out or moves a picture; send pictures in messages of the user",
            ));
        }
        Ok(())
    }

    /// How the model writes reasoning and calls.
    pub(crate) fn format(&self) -> &Format {
        &self.format
    }

    fn render(&self, request: &ChatRequest, tools: bool) -> Result<String, TemplateError> {
        let calls = request.messages.iter().any(|message| message.role == Role::Tool || !message.tool_calls.is_empty());
        match self.render_with(request, tools, self.shows, calls) {
            // It knows tools, but cannot show these.
            Err(TemplateError::Broken(_)) if self.shows.tools && (tools || calls) => {
                self.render_with(request, tools, Shows::default(), calls)
            }
            result => result,
        }
    }

    /// Renders; what the template does not show is told as text.
    fn render_with(
        &self,
        request: &ChatRequest,
        tools: bool,
        shows: Shows,
        calls: bool,
    ) -> Result<String, TemplateError> {
        let told = teach::tell(
            request,
            tools && !shows.tools && self.format.reads_calls(),
            calls && !shows.calls,
            &self.format,
        );
        match self.fill(&told, tools && shows.tools, self.habits) {
            // The template may know no system message.
            Err(TemplateError::Refused(reason)) => self
                .fill(&teach::without_system(told.into_owned()), tools && shows.tools, self.habits)
                .map_err(|_| TemplateError::Refused(reason)),
            result => result,
        }
    }

    fn fill(&self, request: &ChatRequest, tools: bool, habits: Habits) -> Result<String, TemplateError> {
        let environment = self.environment.as_ref().map_err(|reason| TemplateError::Broken(reason.clone()))?;
        let template = environment.get_template("chat").map_err(explain)?;
        template.render(Value::from_serialize(self.context(request, tools, habits))).map_err(explain)
    }

    fn context(&self, request: &ChatRequest, tools: bool, habits: Habits) -> Map<String, serde_json::Value> {
        let mut context = match request.extra.get("chat_template_kwargs") {
            Some(serde_json::Value::Object(extra)) => extra.clone(),
            _ => Map::new(),
        };
        let offered: Vec<serde_json::Value> =
            if tools { request.tools.iter().map(tool_json).collect() } else { Vec::new() };
        let mut messages: Vec<serde_json::Value> =
            request.messages.iter().map(|message| message_json(message, habits)).collect();
        if self.tools_in_message && !offered.is_empty() {
            if !request.messages.first().is_some_and(|first| is_system(first.role)) {
                messages.insert(0, json!({"role": "system", "content": ""}));
            }
            messages[0]["tools"] = json!(serde_json::Value::from(offered.clone()).to_string());
        }
        context.insert("messages".into(), json!(messages));
        // What some older templates ask for beside `tools`.
        context.insert("functions".into(), json!(serde_json::Value::from(offered.clone()).to_string()));
        context.insert("datetime".into(), json!(jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()));
        context.insert("tools".into(), json!(Some(offered).filter(|tools| !tools.is_empty())));
        context.insert("documents".into(), json!(null));
        context.insert("add_generation_prompt".into(), json!(true));
        context.values_mut().for_each(|value| self.disarm(value));
        context.insert("bos_token".into(), json!(self.edges.0));
        context.insert("eos_token".into(), json!(self.edges.1));
        context
    }

    /// Disarms every text and every key of what the client sent.
    fn disarm(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = self.control.disarm(text),
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| self.disarm(item)),
            serde_json::Value::Object(fields) => {
                *fields = std::mem::take(fields)
                    .into_iter()
                    .map(|(key, mut field)| {
                        self.disarm(&mut field);
                        (self.control.disarm(&key), field)
                    })
                    .collect();
            }
            _ => {}
        }
    }
}

fn pictures_of(request: &ChatRequest) -> usize {
    let parts = request.messages.iter().flat_map(|message| &message.content);
    parts.filter(|part| matches!(part, Part::Image(_))).count()
}

/// The template without the marks `{% generation %}` and `{% endgeneration %}`, which matter to trainers only.
fn without_generation_tags(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        plain.push_str(before);
        let word = tag[..end].trim_matches(|letter: char| "{%}-+".contains(letter) || letter.is_whitespace());
        match word {
            // Kept as a tag that does nothing, for the sake of the whitespace that it swallows.
            "generation" => plain.push_str(&tag[..end].replace(word, "if true")),
            "endgeneration" => plain.push_str(&tag[..end].replace(word, "endif")),
            _ => plain.push_str(&tag[..end]),
        }
        rest = &tag[end..];
    }
    plain + rest
}

fn compile(source: String) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
    // In Python nothing is not iterable; here it would be an empty sequence.
    environment.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: &str| {
        let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
        jiff::fmt::strtime::format(format, &now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    environment.add_template_owned("chat", source).map_err(|error| full_text(&error))?;
    Ok(environment)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = indent.or(options.get("indent")?);
    let fail = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonJson)).map_err(fail)?,
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let pretty = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, pretty)).map_err(fail)?;
        }
    }
    String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// JSON on one line with a space behind `,` and `:`.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn explain(error: Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        if let Some(Raised(message)) = this.downcast_ref() {
            return TemplateError::Refused(message.clone());
        }
        cause = this.source();
    }
    TemplateError::Broken(full_text(&error))
}

fn full_text(error: &Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    format!(
        "{}{line}",
        error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()))
    )
}

pub(super) fn is_system(role: Role) -> bool {
    matches!(role, Role::System | Role::Developer)
}

fn message_json(message: &Message, habits: Habits) -> serde_json::Value {
    let role = match message.role {
        Role::System | Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut fields = Map::new();
    fields.insert("role".into(), json!(role));
    let only_calls = message.content.is_empty() && !message.tool_calls.is_empty();
    let content = (!only_calls || !habits.null_content).then(|| content_text(&message.content));
    fields.insert("content".into(), json!(content));
    if let Some(name) = &message.name {
        fields.insert("name".into(), json!(name));
    }
    if let Some(reasoning) = &message.reasoning {
        fields.insert("reasoning_content".into(), json!(reasoning));
    }
    if !message.tool_calls.is_empty() {
        fields.insert("tool_calls".into(), message.tool_calls.iter().map(|call| call_json(call, habits)).collect());
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".into(), json!(call_id(id, habits)));
    }
    serde_json::Value::Object(fields)
}

/// The text parts, each on its own line, and the marks of pictures (see [`super::picture::mark`]). Other parts were refused before.
pub(super) fn content_text(parts: &[Part]) -> String {
    let mut text = String::new();
    let mut begun = false;
    for part in parts {
        match part {
            Part::Text(line) => {
                text.push_str(if begun { "\n" } else { "" });
                text.push_str(line);
                begun = true;
            }
            // Models were trained with nothing between a picture and the text beside it.
            Part::Image(mark) => {
                text.push_str(mark);
                begun = false;
            }
            Part::Other(_) => {}
        }
    }
    text
}

/// Templates want arguments as an object; what is no JSON object stays text.
fn call_json(call: &ToolCall, habits: Habits) -> serde_json::Value {
    let arguments = match serde_json::from_str(&call.arguments) {
        Ok(object @ serde_json::Value::Object(_)) if !habits.text_arguments => object,
        _ => json!(call.arguments),
    };
    json!({"id": call_id(&call.id, habits), "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

/// The id of a call as the template takes it.
fn call_id(id: &str, habits: Habits) -> String {
    if !habits.short_ids || (id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return id.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    format!("{:09}", hasher.finish() % 1_000_000_000)
}

pub(super) fn tool_json(tool: &Tool) -> serde_json::Value {
    let mut function = Map::new();
    function.insert("name".into(), json!(tool.name));
    if let Some(description) = &tool.description {
        function.insert("description".into(), json!(description));
    }
    if let Some(parameters) = &tool.parameters {
        function.insert("parameters".into(), parameters.clone());
    }
    json!({"type": "function", "function": function})
}

#[cfg(test)]
mod tests;
