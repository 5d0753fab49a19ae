//! Tool definitions, calls as JSON, plain answers when no tool fits, and answers from a tool's result.

use super::families::{FAMILIES, Family, small};
use super::words::{ADJECTIVES, NAMES, NOUNS};
use super::{Dialogue, Kind, Split, Turn, loose_phrase, made_up, phrase, value, word};
use crate::rng::Rng;

/// A tool as one request sees it: its name, its parameters' names, its definition.
struct Tool {
    name: String,
    params: Vec<String>,
    json: String,
}

/// Just enough of JSON to print a definition in the ways that templates do.
enum Json {
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    fn object(fields: Vec<(&str, Self)>) -> Self {
        Self::Object(fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    fn print(&self, spaced: bool, sorted: bool) -> String {
        let (comma, colon) = if spaced { (", ", ": ") } else { (",", ":") };
        match self {
            Self::Text(text) => format!("\"{text}\""),
            Self::List(items) => {
                format!("[{}]", items.iter().map(|i| i.print(spaced, sorted)).collect::<Vec<_>>().join(comma))
            }
            Self::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if sorted {
                    fields.sort_by(|a, b| a.0.cmp(&b.0));
                }
                let fields: Vec<_> =
                    fields.iter().map(|(k, v)| format!("\"{k}\"{colon}{}", v.print(spaced, sorted))).collect();
                format!("{{{}}}", fields.join(comma))
            }
        }
    }
}

/// How one request's definitions are printed: template engines differ in spaces and in the order of keys.
#[derive(Clone, Copy)]
struct Style {
    spaced: bool,
    sorted: bool,
    described: bool,
    required: bool,
}

impl Style {
    fn draw(rng: &mut Rng) -> Self {
        Self { spaced: rng.chance(50), sorted: rng.chance(25), described: rng.chance(75), required: rng.chance(70) }
    }
}

fn define(rng: &mut Rng, family: &'static Family, style: Style) -> Tool {
    let name = rng.pick(family.names).to_owned();
    let params: Vec<(String, bool)> =
        family.params.iter().map(|(names, text, _)| (rng.pick(names).to_owned(), *text)).collect();
    let json = definition(&name, rng.pick(family.about), &params, style);
    Tool { name, params: params.into_iter().map(|(name, _)| name).collect(), json }
}

fn definition(name: &str, about: &str, params: &[(String, bool)], style: Style) -> String {
    let text = |text: &str| Json::Text(text.to_owned());
    let fields = params
        .iter()
        .map(|(name, is_text)| {
            (name.clone(), Json::object(vec![("type", text(if *is_text { "string" } else { "integer" }))]))
        })
        .collect();
    let mut schema = vec![("type", text("object")), ("properties", Json::Object(fields))];
    if style.required {
        schema.push(("required", Json::List(params.iter().map(|(name, _)| text(name)).collect())));
    }
    let mut function = vec![("name", text(name))];
    if style.described {
        function.push(("description", text(about)));
    }
    function.push(("parameters", Json::object(schema)));
    let tool = Json::object(vec![("type", text("function")), ("function", Json::object(function))]);
    tool.print(style.spaced, style.sorted)
}

/// The answer that calls `tool`.
fn call_text(tool: &Tool, family: &Family, values: &[String]) -> String {
    let args: Vec<String> = tool
        .params
        .iter()
        .zip(family.params)
        .zip(values)
        .map(
            |((name, (_, text, _)), v)| if *text { format!("\"{name}\": \"{v}\"") } else { format!("\"{name}\": {v}") },
        )
        .collect();
    format!("<tool_call>\n{{\"name\": \"{}\", \"arguments\": {{{}}}}}\n</tool_call>", tool.name, args.join(", "))
}

/// The wanted tool and up to two others, in random order.
fn toolbox(rng: &mut Rng, wanted: usize, style: Style) -> (Tool, Vec<String>) {
    let tool = define(rng, &FAMILIES[wanted], style);
    let mut all = vec![tool.json.clone()];
    for _ in 0..[0, 0, 1, 1, 2][rng.below(5)] {
        let other = rng.below(FAMILIES.len());
        // Two tools that add would make the right call a guess.
        let sums = |i: usize| i == 2 || i == 3;
        if other != wanted && !(sums(other) && sums(wanted)) {
            all.push(define(rng, &FAMILIES[other], style).json);
        }
    }
    rng.shuffle(&mut all);
    (tool, all)
}

/// A request that one of the given tools serves.
pub(super) fn call(split: Split, rng: &mut Rng) -> Dialogue {
    let style = Style::draw(rng);
    if rng.chance(12) {
        return made_up_call(split, rng, style);
    }
    let wanted = rng.below(FAMILIES.len());
    let family = &FAMILIES[wanted];
    let (tool, tools) = toolbox(rng, wanted, style);
    let (ask, values) = request(split, rng, family);
    let answer = call_text(&tool, family, &values);
    Dialogue { tools, ..Dialogue::from((ask, answer)) }
}

fn request(split: Split, rng: &mut Rng, family: &Family) -> (String, Vec<String>) {
    let mut values = Vec::new();
    value(split, rng, |rng| {
        values = family.params.iter().map(|(_, _, draw)| draw(rng)).collect();
        values.join("|")
    });
    let mut ask = loose_phrase(split, rng, family.asks);
    for (i, v) in values.iter().enumerate() {
        ask = ask.replace(&format!("{{{i}}}"), v);
    }
    (ask, values)
}

/// A tool whose very name was never seen: only reading the definition helps.
fn made_up_call(split: Split, rng: &mut Rng, style: Style) -> Dialogue {
    let verb = rng.pick(&[
        "open", "close", "start", "stop", "delete", "create", "move", "check", "print", "clean", "lock", "fetch",
    ]);
    let thing = if rng.chance(70) { rng.pick(NOUNS).to_owned() } else { made_up(rng) };
    let param = rng.pick(&["name", "id", "label", "target", "key"]);
    let text = param != "id";
    let v = value(split, rng, |rng| if text { word(rng) } else { small(rng) });
    let ask = phrase(
        split,
        rng,
        &[
            "{v} the {t} {x}.",
            "Please {v} the {t} {x}.",
            "Can you {v} the {t} {x}?",
            "I want to {v} the {t} {x}.",
            "{v} {t} {x}",
            "You must {v} the {t} {x}.",
            "I need you to {v} the {t} {x}.",
            "{v} the {t} called {x}.",
            "Now {v} the {t} {x}.",
            "Could you {v} the {t} {x}?",
        ],
    );
    let ask = super::upper_first(&ask.replace("{v}", verb).replace("{t}", &thing).replace("{x}", &v));
    let name = format!("{verb}_{thing}");
    let about = format!("{} a {thing}.", super::upper_first(verb));
    let mut tools = vec![definition(&name, &about, &[(param.to_owned(), text)], style)];
    if rng.chance(50) {
        let other = &FAMILIES[rng.below(FAMILIES.len())];
        tools.push(define(rng, other, style).json);
        rng.shuffle(&mut tools);
    }
    let quote = if text { "\"" } else { "" };
    let answer = format!(
        "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {{\"{param}\": {quote}{v}{quote}}}}}\n</tool_call>"
    );
    Dialogue { tools, ..Dialogue::from((ask, answer)) }
}

/// Tools are given and the question needs none of them.
pub(super) fn no_tool(split: Split, rng: &mut Rng) -> Dialogue {
    const PLAIN: [Kind; 5] = [Kind::Capital, Kind::Opposite, Kind::Identity, Kind::Tollkeeper, Kind::Copy];
    let style = Style::draw(rng);
    let wanted = rng.below(FAMILIES.len());
    let (_, tools) = toolbox(rng, wanted, style);
    let exchange = PLAIN[rng.below(PLAIN.len())].exchange(split, rng);
    Dialogue { tools, ..Dialogue::from(exchange) }
}

/// A call, the tool's result, and the answer that says it.
pub(super) fn result(split: Split, rng: &mut Rng) -> Dialogue {
    let style = Style::draw(rng);
    let wanted = rng.below(FAMILIES.len());
    let family = &FAMILIES[wanted];
    let (tool, tools) = toolbox(rng, wanted, style);
    let (ask, values) = request(split, rng, family);
    let (returned, answer) = if wanted == 0 {
        let (sky, degrees) =
            (rng.pick(&["sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear"]), rng.below(40));
        let (comma, colon) = if rng.chance(50) { (", ", ": ") } else { (",", ":") };
        let first = rng.pick(&["temperature", "temp", "degrees", "temperature_c"]);
        let second = rng.pick(&["condition", "sky", "weather", "conditions"]);
        let (one, two) = (format!("\"{first}\"{colon}{degrees}"), format!("\"{second}\"{colon}\"{sky}\""));
        let (one, two) = if rng.chance(50) { (one, two) } else { (two, one) };
        (format!("{{{one}{comma}{two}}}"), format!("It is {sky} in {}, {degrees} degrees.", values[0]))
    } else {
        let text = value(split, rng, |rng| match rng.below(4) {
            0 => rng.between(0, 9999).to_string(),
            1 => format!("{} {}", rng.pick(ADJECTIVES), word(rng)),
            2 => format!("{} {}", rng.pick(NAMES), small(rng)),
            _ => {
                rng.pick(&["ok", "done", "not found", "12:30", "8:15", "error", "sent"]).to_owned() + " " + &small(rng)
            }
        });
        let shown = match rng.below(3) {
            0 => format!("{{\"result\": \"{text}\"}}"),
            1 => format!("{{\"result\":\"{text}\"}}"),
            _ => text.clone(),
        };
        (shown, format!("The result is {text}."))
    };
    let turns = vec![
        Turn::User(ask),
        Turn::Assistant(call_text(&tool, family, &values)),
        Turn::Tool(returned),
        Turn::Assistant(answer),
    ];
    Dialogue { tools, turns, ..Dialogue::default() }
}
