//! What receivers read.

use super::*;
use crate::notify::Notice;
use jiff::Timestamp;
use std::sync::Arc;
use tollkeeper_config::NoticeKind;

fn at(minute: u32) -> Timestamp {
    format!("2026-11-21T21:{minute:02}:00Z").parse().unwrap()
}

fn entry(minute: u32, subject: &str, text: &str, left_out: u64) -> Entry {
    let notice = Notice::new(NoticeKind::BackendDown, at(minute), subject, text).field("status", 503);
    Entry { notice: Arc::new(notice), left_out }
}

fn parcel(entries: Vec<Entry>) -> Parcel {
    let mut parcel = Parcel::new("ntc_1".into(), entries[0].clone());
    parcel.entries = entries;
    parcel
}

fn read(format: WebhookFormat, entries: Vec<Entry>) -> Value {
    serde_json::from_slice(&of(format, &parcel(entries))).unwrap()
}

/// The texts of all blocks but the last, which is the foot.
fn sections(message: &Value) -> Vec<&str> {
    let blocks = message["blocks"].as_array().unwrap();
    let (foot, sections) = blocks.split_last().unwrap();
    assert_eq!(foot["type"], "context");
    assert!(blocks.len() <= 50);
    let text = |block: &'_ Value| block["type"] == "section" && block["text"]["type"] == "mrkdwn";
    assert!(sections.iter().all(text), "{message}");
    sections.iter().map(|block| block["text"]["text"].as_str().unwrap()).collect()
}

#[test]
fn the_generic_body_says_all() {
    let body = read(WebhookFormat::Generic, vec![entry(0, "backend openai/x", "It is down.", 2)]);
    let expected = json!({
        "id": "ntc_1",
        "event": "backend_down",
        "at": "2026-11-21T21:00:00Z",
        "subject": "backend openai/x",
        "text": "It is down. (2 more like it were left out.)",
        "fields": {"status": 503},
        "left_out": 2,
    });
    assert_eq!(body, expected);
}

#[test]
fn a_digest_holds_its_notices() {
    let body = read(WebhookFormat::Generic, vec![entry(0, "a", "First.", 0), entry(5, "b", "Second.", 1)]);
    assert_eq!(body["event"], "digest");
    assert_eq!(body["subject"], "2 notices from quiet hours");
    assert_eq!(body["text"], "First.\nSecond. (One more like it was left out.)");
    assert_eq!((&body["at"], &body["left_out"]), (&json!("2026-11-21T21:05:00Z"), &json!(1)));
    assert_eq!(body["notices"][1]["subject"], "b");
    assert_eq!(body["notices"].as_array().unwrap().len(), 2);
}

#[test]
fn slack_gets_no_links_and_no_calls_to_everybody() {
    let text = "<!channel> said \"a < b & c > d\" <https://evil.example|click>";
    let message = read(WebhookFormat::Slack, vec![entry(0, "agent <@U1>", text, 0)]);
    let escaped = "&lt;!channel&gt; said \"a &lt; b &amp; c &gt; d\" &lt;https://evil.example|click&gt;";
    let expected = format!("*backend down* · agent &lt;@U1&gt;\n{escaped}");
    assert_eq!(sections(&message), [expected.as_str()]);
    assert_eq!(message["text"], expected);
    assert_eq!(message["blocks"][1]["elements"][0]["text"], "2026-11-21T21:00:00Z · ntc_1");
}

#[test]
fn slack_texts_end_within_their_limit_and_never_within_an_entity() {
    for text in ["&".repeat(4000), "x".repeat(4000), "💸".repeat(4000), "x&💸".repeat(1500)] {
        let message = read(WebhookFormat::Slack, vec![entry(0, "s", &text, 0)]);
        let section = sections(&message)[0];
        let length = section.encode_utf16().count();
        assert!((2990..=3000).contains(&length), "{length}");
        let (_, body) = section.split_once('\n').unwrap();
        let kept = body.strip_suffix('…').unwrap().replace("&amp;", "&");
        assert!(text.starts_with(&kept), "{kept}");
    }
}

#[test]
fn what_fits_exactly_is_not_cut() {
    assert_eq!(escape("abc", 3), "abc");
    assert_eq!(escape("abcd", 3), "ab…");
    assert_eq!(escape("a&", 6), "a&amp;");
    assert_eq!(escape("a&b", 6), "a…");
    assert_eq!(escape("", 3), "");
}

#[test]
fn a_slack_digest_has_a_line_for_each_notice_in_few_sections() {
    let entries = (0..50).map(|minute| entry(minute, &format!("agent {minute}"), "Half is spent.", 0)).collect();
    let message = read(WebhookFormat::Slack, entries);
    let sections = sections(&message);
    assert_eq!(
        (message["text"].as_str(), sections[0]),
        (Some("50 notices from quiet hours"), "*50 notices from quiet hours*")
    );
    let lines: Vec<_> = sections[1..].iter().flat_map(|section| section.lines()).collect();
    assert_eq!(lines.len(), 50);
    assert_eq!(lines[7], "• *backend down* · agent 7: Half is spent.");
    assert_eq!(sections.len(), 2);
}

#[test]
fn a_slack_digest_that_is_too_long_says_how_many_are_missing() {
    let entries = (0..200).map(|_| entry(0, "agent", &"long ".repeat(200), 0)).collect();
    let message = read(WebhookFormat::Slack, entries);
    let sections = sections(&message);
    assert!(sections.iter().all(|section| section.encode_utf16().count() <= 3000));
    let shown = sections.iter().flat_map(|section| section.lines()).filter(|line| line.starts_with('•')).count();
    assert_eq!(*sections.last().unwrap(), format!("… and {} more", 200 - shown));
    assert!(shown > 100);
}
