//! What is posted: a JSON object with all that is known, or a message for Slack.

use super::queue::{Entry, Parcel};
use serde_json::{Map, Value, json};
use tollkeeper_config::WebhookFormat;

/// The event of reminders that were sent together.
const DIGEST: &str = "digest";
/// Slack's limit of the text of a section, in UTF-16 units to be safe.
const SECTION: usize = 3000;
/// Sections of a message, below Slack's limit of 50 blocks.
const SECTIONS: usize = 20;
/// A reminder among others is one line of at most this length.
const LINE: usize = 600;

/// The event that headers and bodies name.
pub(super) fn event(parcel: &Parcel) -> &'static str {
    match &parcel.entries[..] {
        [entry] => entry.notice.kind.name(),
        _ => DIGEST,
    }
}

/// The bytes to be posted.
pub(super) fn of(format: WebhookFormat, parcel: &Parcel) -> Vec<u8> {
    let body = match format {
        WebhookFormat::Generic => generic(parcel),
        WebhookFormat::Slack => slack(parcel),
    };
    body.to_string().into_bytes()
}

/// A notice as a JSON object, without an id.
pub(super) fn object(entry: &Entry) -> Map<String, Value> {
    let notice = &entry.notice;
    Map::from_iter([
        ("event".to_owned(), notice.kind.name().into()),
        ("at".to_owned(), notice.at.to_string().into()),
        ("subject".to_owned(), notice.subject.as_str().into()),
        ("text".to_owned(), sentence(entry).into()),
        ("fields".to_owned(), Value::Object(notice.fields.clone())),
        ("left_out".to_owned(), entry.left_out.into()),
    ])
}

fn generic(parcel: &Parcel) -> Value {
    let mut body = Map::from_iter([("id".to_owned(), Value::from(&*parcel.id))]);
    match &parcel.entries[..] {
        [entry] => body.extend(object(entry)),
        entries => {
            let lines: Vec<_> = entries.iter().map(sentence).collect();
            body.extend([
                ("event".to_owned(), DIGEST.into()),
                ("at".to_owned(), entries.last().map(|entry| entry.notice.at.to_string()).into()),
                ("subject".to_owned(), title(entries).into()),
                ("text".to_owned(), lines.join("\n").into()),
                ("fields".to_owned(), Value::Object(Map::new())),
                ("left_out".to_owned(), entries.iter().map(|entry| entry.left_out).sum::<u64>().into()),
                ("notices".to_owned(), entries.iter().map(object).collect()),
            ]);
        }
    }
    Value::Object(body)
}

/// The sentence for people, and how many like it they were spared.
fn sentence(entry: &Entry) -> String {
    let text = &entry.notice.text;
    match entry.left_out {
        0 => text.clone(),
        1 => format!("{text} (One more like it was left out.)"),
        n => format!("{text} ({n} more like it were left out.)"),
    }
}

fn title(entries: &[Entry]) -> String {
    format!("{} notices from quiet hours", entries.len())
}

fn slack(parcel: &Parcel) -> Value {
    let head = |entry: &Entry| {
        let kind = entry.notice.kind.name().replace('_', " ");
        format!("*{kind}* · {}", escape(&entry.notice.subject, LINE / 2))
    };
    let (text, sections, at) = match &parcel.entries[..] {
        [entry] => {
            let head = head(entry);
            let room = SECTION - units(&head) - 1;
            let text = format!("{head}\n{}", escape(&sentence(entry), room));
            (text.clone(), vec![text], entry.notice.at.to_string())
        }
        entries => {
            let line = |entry: &Entry| format!("• {}: {}", head(entry), escape(&sentence(entry), LINE / 2));
            let mut sections = pack(entries.iter().map(line));
            let title = title(entries);
            sections.insert(0, format!("*{title}*"));
            let times: Vec<_> =
                [entries.first(), entries.last()].into_iter().flatten().map(|e| e.notice.at.to_string()).collect();
            (title, sections, times.join(" to "))
        }
    };
    let section = |text: String| json!({"type": "section", "text": {"type": "mrkdwn", "text": text}});
    let mut blocks: Vec<_> = sections.into_iter().map(section).collect();
    let foot = format!("{at} · {}", parcel.id);
    blocks.push(json!({"type": "context", "elements": [{"type": "mrkdwn", "text": foot}]}));
    json!({"text": text, "blocks": blocks})
}

/// Puts lines into as few sections as hold them; of too many the last ones are left out, and their number is said.
fn pack(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut sections: Vec<String> = Vec::new();
    let mut left_out = 0;
    for line in lines {
        let full = sections.len() == SECTIONS;
        match sections.last_mut().filter(|last| units(last) + 1 + units(&line) <= SECTION) {
            // What comes after a line that was left out is left out too.
            Some(last) if left_out == 0 => {
                last.push('\n');
                last.push_str(&line);
            }
            None if !full => sections.push(line),
            _ => left_out += 1,
        }
    }
    if left_out > 0 {
        sections.push(format!("… and {left_out} more"));
    }
    sections
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

/// Text as Slack wants it: three characters are written as entities, so that nothing is taken for a link or a call to everybody. What is
/// longer than `limit` ends in an ellipsis, never within an entity.
fn escape(text: &str, limit: usize) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut length = 0;
    let whole: usize = text.chars().map(|c| entity(c).map_or(c.len_utf16(), str::len)).sum();
    for c in text.chars() {
        let entity = entity(c);
        length += entity.map_or(c.len_utf16(), str::len);
        // One place is kept for the ellipsis where there will be one.
        if length + usize::from(whole > limit) > limit {
            escaped.push('…');
            break;
        }
        match entity {
            Some(entity) => escaped.push_str(entity),
            None => escaped.push(c),
        }
    }
    escaped
}

fn entity(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
