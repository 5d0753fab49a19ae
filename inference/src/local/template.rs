//! Chat templates: a conversation becomes the text a model was trained to continue.
//!
//! The template is the model's own (Jinja, from its file), in the dialect of Hugging Face's `apply_chat_template`: Python methods
//! on strings and maps, Python's JSON, loop controls, `raise_exception`, `strftime_now`. A model without one is spoken to in ChatML.

use super::control::ControlTokens;
use super::engine::{Token, Tokenizer};
use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::{Map, json};
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role, Tool, ToolCall};

/// ChatML, with tools in the Hermes form.
const CHATML: &str = "\
{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}
{{ messages[0].content }}
{% endif %}
These tools can be called, each given as JSON:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
To call one, write <tool_call>{\"name\": its name, \"arguments\": its arguments}</tool_call>.<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message.role == 'system') %}<|im_start|>
{%- if message.role == 'tool' %}user
<tool_response>
{{ message.content }}
</tool_response>
{%- else %}{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>{\"name\": {{ call.function.name | tojson }}, \"arguments\": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}
{%- endif %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}";

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// The template itself refuses this conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template is broken or needs something we do not have.
    #[error("the model's chat template failed: {0}")]
    Broken(String),
}

/// What a template said with `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A model's chat template, compiled.
pub(crate) struct Template {
    environment: Result<Environment<'static>, String>,
    control: ControlTokens,
    edges: (String, String),
}

impl Template {
    /// The template of a model, or ChatML. A template that does not compile fails each time it is used.
    pub(crate) fn of(tokenizer: &dyn Tokenizer) -> Self {
        let source = tokenizer.chat_template().unwrap_or_else(|| CHATML.to_owned());
        Self {
            environment: compile(source),
            control: ControlTokens::new(tokenizer.control_tokens()),
            edges: tokenizer.edge_names(),
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
    ) -> Result<Vec<Token>, TemplateError> {
        Ok(self.control.encode(&self.render(request, tools)?, tokenizer))
    }

    fn render(&self, request: &ChatRequest, tools: bool) -> Result<String, TemplateError> {
        let environment = self.environment.as_ref().map_err(|reason| TemplateError::Broken(reason.clone()))?;
        let template = environment.get_template("chat").map_err(explain)?;
        template.render(Value::from_serialize(self.context(request, tools))).map_err(explain)
    }

    fn context(&self, request: &ChatRequest, tools: bool) -> Map<String, serde_json::Value> {
        let mut context = match request.extra.get("chat_template_kwargs") {
            Some(serde_json::Value::Object(extra)) => extra.clone(),
            _ => Map::new(),
        };
        let offered = tools.then(|| request.tools.iter().map(tool_json).collect::<Vec<_>>());
        context.insert("messages".into(), request.messages.iter().map(message_json).collect());
        context.insert("tools".into(), json!(offered.filter(|tools| !tools.is_empty())));
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

fn compile(source: String) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", tojson);
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

fn message_json(message: &Message) -> serde_json::Value {
    let role = match message.role {
        Role::System | Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let mut fields = Map::new();
    fields.insert("role".into(), json!(role));
    fields.insert("content".into(), json!(content_text(&message.content)));
    if let Some(name) = &message.name {
        fields.insert("name".into(), json!(name));
    }
    if let Some(reasoning) = &message.reasoning {
        fields.insert("reasoning_content".into(), json!(reasoning));
    }
    if !message.tool_calls.is_empty() {
        fields.insert("tool_calls".into(), message.tool_calls.iter().map(call_json).collect());
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".into(), json!(id));
    }
    serde_json::Value::Object(fields)
}

/// The text parts, each on its own line. Other parts were refused before.
fn content_text(parts: &[Part]) -> String {
    let texts: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Text(text) => Some(text.as_str()),
            Part::Image(_) | Part::Other(_) => None,
        })
        .collect();
    texts.join("\n")
}

/// Templates want arguments as an object; what is no JSON object stays text.
fn call_json(call: &ToolCall) -> serde_json::Value {
    let arguments = match serde_json::from_str(&call.arguments) {
        Ok(object @ serde_json::Value::Object(_)) => object,
        _ => json!(call.arguments),
    };
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

fn tool_json(tool: &Tool) -> serde_json::Value {
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
