//! Repeating text word for word, and JSON objects and lists from what the request names.

use super::words::{ADJECTIVES, CAPITALS, COLOURS, NOUNS, VERBS};
use super::{Split, loosen, made_up, name, phrase, upper_first, value, word};
use crate::rng::Rng;

/// "Repeat after me: ..."
pub(super) fn repeat(split: Split, rng: &mut Rng) -> (String, String) {
    let text = value(split, rng, payload);
    let ask = phrase(
        split,
        rng,
        &[
            "Repeat after me: {}",
            "Repeat: {}",
            "Say: {}",
            "Copy this: {}",
            "Please repeat after me: {}",
            "Say \"{}\"",
            "Repeat \"{}\"",
            "Echo: {}",
            "Repeat this: {}",
            "Say this: {}",
            "Repeat the following: {}",
            "Copy the following text: {}",
            "Say exactly: {}",
            "Repeat exactly: {}",
            "Repeat this text: {}",
            "echo {}",
            "Write this again: {}",
            "Repeat the words: {}",
            "Answer with exactly this: {}",
            "Copy: {}",
            "Say after me: {}",
            "Reply with exactly: {}",
            "Repeat what I say: {}",
            "Reply with: {}",
            "Copy this text: {}",
        ],
    );
    (loosen(rng, ask).replace("{}", &text), text)
}

fn payload(rng: &mut Rng) -> String {
    let list = |rng: &mut Rng, n: usize, f: fn(&mut Rng) -> String, gap: &str| {
        (0..n).map(|_| f(rng)).collect::<Vec<_>>().join(gap)
    };
    let n = rng.between(1, 6);
    match rng.below(10) {
        0 | 1 => list(rng, n, word, " "),
        2 => list(rng, n, made_up, " "),
        3 => list(rng, n, name, " "),
        4 => list(rng, n, word, ", "),
        5 => list(rng, rng.clone().between(1, 9), digit, ""),
        6 => list(rng, n, |rng| rng.between(0, 999).to_string(), " "),
        7 => list(rng, rng.clone().between(2, 8), letter, if n > 3 { " " } else { "" }),
        _ => sentence(rng),
    }
}

fn digit(rng: &mut Rng) -> String {
    rng.below(10).to_string()
}

fn letter(rng: &mut Rng) -> String {
    char::from(b'a' + rng.below(26) as u8).to_string()
}

/// A short sentence that means something, with or without its full stop.
fn sentence(rng: &mut Rng) -> String {
    let (subject, verb, object) = (word(rng), rng.pick(VERBS), word(rng));
    let (adjective, other, who) = (rng.pick(ADJECTIVES), rng.pick(ADJECTIVES), name(rng));
    let text = match rng.below(6) {
        0 => format!("the {adjective} {subject} {verb} the {object}"),
        1 => format!("{who} {verb} a {adjective} {object}"),
        2 => format!("the {subject} is {adjective}"),
        3 => format!("the {subject} is {adjective} and the {object} is {other}"),
        4 => format!("{who} has {} {adjective} {object}s", rng.between(2, 99)),
        _ => format!("my {subject} {verb} your {object}"),
    };
    match rng.below(3) {
        0 => text,
        1 => upper_first(&text),
        _ => format!("{}{}", upper_first(&text), rng.pick(&[".", ".", "!"])),
    }
}

/// A JSON object or list with the values that the request names.
pub(super) fn json(split: Split, rng: &mut Rng) -> (String, String) {
    if rng.chance(25) { list(split, rng) } else { object(split, rng) }
}

/// A field: its key and how to draw its value; the flag says whether it is a string.
type Field = (&'static str, bool, fn(&mut Rng) -> String);

const FIELDS: &[Field] = &[
    ("name", true, name),
    ("age", false, |rng| rng.between(1, 99).to_string()),
    ("city", true, |rng| CAPITALS[rng.below(CAPITALS.len())].1.to_owned()),
    ("color", true, |rng| rng.pick(COLOURS).to_owned()),
    ("animal", true, |rng| {
        rng.pick(&["cat", "dog", "horse", "bird", "fish", "mouse", "lion", "bear", "wolf"]).to_owned()
    }),
    ("id", false, |rng| rng.between(1, 9999).to_string()),
    ("price", false, |rng| rng.between(1, 500).to_string()),
    ("title", true, |rng| upper_first(&word(rng))),
    ("item", true, |rng| rng.pick(NOUNS).to_owned()),
    ("count", false, |rng| rng.between(0, 99).to_string()),
    ("status", true, |rng| rng.pick(&["ok", "open", "closed", "done", "new", "failed"]).to_owned()),
    ("active", false, |rng| rng.pick(&["true", "false"]).to_owned()),
    ("user", true, word),
    ("year", false, |rng| rng.between(1900, 2030).to_string()),
];

fn object(split: Split, rng: &mut Rng) -> (String, String) {
    let mut fields = Vec::new();
    let mut values = Vec::new();
    // The whole object decides the split, so a held-out one was never seen in this form.
    let answer = value(split, rng, |rng| {
        fields = FIELDS.to_vec();
        rng.shuffle(&mut fields);
        fields.truncate(rng.between(1, 3));
        values = fields.iter().map(|(_, _, draw)| draw(rng)).collect::<Vec<_>>();
        let parts: Vec<String> = fields
            .iter()
            .zip(&values)
            .map(|((key, text, _), v)| if *text { format!("\"{key}\": \"{v}\"") } else { format!("\"{key}\": {v}") })
            .collect();
        format!("{{{}}}", parts.join(", "))
    });
    let style = rng.below(4);
    let said: Vec<String> = fields
        .iter()
        .zip(&values)
        .map(|((key, _, _), v)| match style {
            0 => format!("{key} {v}"),
            1 => format!("{key} = {v}"),
            2 => format!("{key}: {v}"),
            _ => format!("{key} \"{v}\""),
        })
        .collect();
    let said = match said.as_slice() {
        [first @ .., last] if !first.is_empty() && style != 1 => format!("{} and {last}", first.join(", ")),
        all => all.join(", "),
    };
    let ask = phrase(
        split,
        rng,
        &[
            "Give me a JSON object with {}",
            "Give me JSON with {}",
            "Write a JSON object with {}",
            "Return a JSON object with {}",
            "Make a JSON object with {}",
            "Return JSON: {}",
            "JSON object: {}",
            "Answer in JSON: {}",
            "Write JSON with {}",
            "Please give me a JSON object with {}",
            "Create a JSON object with {}",
            "As JSON: {}",
            "I need a JSON object with {}",
            "Turn this into JSON: {}",
            "Please write a JSON object with {}",
            "Convert to JSON: {}",
            "Output a JSON object with {}",
            "json with {}",
            "Respond in JSON with {}",
            "Output JSON with {}",
        ],
    );
    let end = if rng.chance(50) { "." } else { "" };
    (format!("{}{end}", loosen(rng, ask).replace("{}", &said)), answer)
}

fn list(split: Split, rng: &mut Rng) -> (String, String) {
    let numbers = rng.chance(40);
    let mut items = Vec::new();
    let answer = value(split, rng, |rng| {
        let n = rng.between(2, 5);
        items = (0..n).map(|_| if numbers { rng.between(0, 99).to_string() } else { word(rng) }).collect::<Vec<_>>();
        let parts: Vec<String> = items.iter().map(|i| if numbers { i.clone() } else { format!("\"{i}\"") }).collect();
        format!("[{}]", parts.join(", "))
    });
    let ask = phrase(
        split,
        rng,
        &[
            "Give me a JSON list of {}",
            "Give me a JSON array with {}",
            "Write a JSON array of {}",
            "Return a JSON list with {}",
            "Make a JSON list of {}",
            "JSON array: {}",
            "As a JSON list: {}",
            "Write a JSON list with {}",
            "Return a JSON array of {}",
            "Please give me a JSON array of {}",
        ],
    );
    (loosen(rng, ask).replace("{}", &items.join(", ")), answer)
}
