//! The judge's decisions, without an engine: what was seen, and what is to become of the answer.

use super::*;
use serde_json::{Value, json};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::chat::FinishReason;
use tollkeeper_protocol::openai::decode_request;
use tollkeeper_protocol::usage::Usage;

const ALL: [Flaw; 4] = [Flaw::Form, Flaw::Calls, Flaw::Refusal, Flaw::Empty];

fn judge(min_confidence: u16, rest: &str) -> Judge {
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{rest}}}"#);
    Judge {
        cascade: Cascade { hold_tokens: 4, min_confidence, checks: ALL.to_vec() },
        curve: Some(Curve { base: 2.0, logprob: 2.0, entropy: 0.0 }),
        request: Arc::new(decode_request(Operation::Chat, body.as_bytes()).unwrap()),
        above: Price::free(),
    }
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "f"}}])
}

const STREAMED: &str = r#","stream":true"#;

/// Tokens of this text, each with this log-probability.
fn token(seen: &mut Seen, text: &str, logprob: f32) {
    seen.certainty.saw(logprob, 0.5);
    seen.take(ChatEvent::Text { choice: 0, text: text.into(), tokens: 1, logprobs: Vec::new() });
}

fn end(seen: &mut Seen) {
    seen.take(ChatEvent::Finish { choice: 0, reason: FinishReason::Stop });
    seen.take(ChatEvent::Usage(Usage::default()));
}

#[test]
fn a_streamed_answer_is_held_for_its_first_tokens_and_no_longer() {
    let judge = judge(500, STREAMED);
    let mut seen = Seen::default();
    for place in 0..3 {
        token(&mut seen, "word ", -0.1);
        assert_eq!(judge.cause(&seen), None, "{place}");
    }
    token(&mut seen, "word ", -0.1);
    assert_eq!(judge.cause(&seen), Some(Cause::Fit));
}

#[test]
fn a_whole_answer_is_looked_at_to_its_end_and_given_up_at_once_when_it_is_unsure() {
    let judge = judge(500, "");
    let mut seen = Seen::default();
    (0..40).for_each(|_| token(&mut seen, "word ", -0.1));
    assert_eq!(judge.cause(&seen), None);
    end(&mut seen);
    assert_eq!(judge.cause(&seen), Some(Cause::Fit));

    let mut unsure = Seen::default();
    (0..4).for_each(|_| token(&mut unsure, "word ", -1.5));
    assert_eq!(judge.cause(&unsure), Some(Cause::Unsure));
}

#[test]
fn the_least_confidence_decides_where_a_model_is_unsure() {
    // 1 / (1 + exp(-(2 - 2))) is a half.
    for (least, expected) in [(499, Cause::Fit), (500, Cause::Fit), (501, Cause::Unsure), (0, Cause::Fit)] {
        let mut seen = Seen::default();
        (0..4).for_each(|_| token(&mut seen, "word ", -1.0));
        assert_eq!(judge(least, STREAMED).cause(&seen), Some(expected), "{least}");
    }
}

#[test]
fn without_a_curve_the_mean_probability_of_the_tokens_is_the_confidence() {
    for (least, expected) in [(499, Cause::Fit), (501, Cause::Unsure)] {
        let judge = Judge { curve: None, ..judge(least, STREAMED) };
        let mut seen = Seen::default();
        (0..4).for_each(|_| token(&mut seen, "word ", 0.5f32.ln()));
        assert_eq!(judge.cause(&seen), Some(expected), "{least}");
    }
}

#[test]
fn short_answers_are_judged_at_their_end() {
    for (text, expected) in [("Paris.", Cause::Fit), ("", Cause::Flawed(Flaw::Empty))] {
        let mut seen = Seen::default();
        token(&mut seen, text, -0.01);
        assert_eq!(judge(500, STREAMED).cause(&seen), None);
        end(&mut seen);
        assert_eq!(judge(500, STREAMED).cause(&seen), Some(expected));
    }
}

#[test]
fn json_and_calls_are_held_until_they_can_be_checked_but_not_without_end() {
    let json = judge(0, r#","stream":true,"response_format":{"type":"json_object"}"#);
    let mut seen = Seen::default();
    (0..9).for_each(|_| token(&mut seen, "[", -0.01));
    assert_eq!(json.cause(&seen), None);
    let mut endless = Seen::default();
    (0..9).for_each(|_| token(&mut endless, &"[".repeat(MOST_BYTES / 8), -0.01));
    assert_eq!(json.cause(&endless), Some(Cause::Fit), "too long to hold");
    end(&mut seen);
    assert_eq!(json.cause(&seen), Some(Cause::Flawed(Flaw::Form)));

    let calling = judge(0, &format!(r#","stream":true,"tools":{}"#, tools()));
    let mut seen = Seen::default();
    // What may be a call is held back until its name is read: then an empty piece carries the token, before the call itself.
    for place in 0..9 {
        token(&mut seen, "", -0.01);
        assert_eq!(calling.cause(&seen), None, "{place}");
    }
    let (id, name) = (Some("c".to_owned()), Some("g".to_owned()));
    seen.take(ChatEvent::ToolCall { choice: 0, index: 0, id, name, arguments: "{}".into(), tokens: 1 });
    assert_eq!(calling.cause(&seen), None);
    end(&mut seen);
    assert_eq!(calling.cause(&seen), Some(Cause::Flawed(Flaw::Calls)), "there is no tool `g`");
}

#[test]
fn text_beside_tools_is_held_no_longer_than_other_text_unless_there_must_be_a_call() {
    for (choice, expected) in [("\"auto\"", Some(Cause::Fit)), ("\"none\"", Some(Cause::Fit)), ("\"required\"", None)] {
        let judge = judge(0, &format!(r#","stream":true,"tools":{},"tool_choice":{choice}"#, tools()));
        let mut seen = Seen::default();
        (0..3).for_each(|_| token(&mut seen, "", -0.01));
        token(&mut seen, "It turned out to be text.", -0.01);
        assert_eq!(judge.cause(&seen), expected, "{choice}");
    }
}

#[test]
fn only_the_checks_that_are_wanted_count() {
    let mut seen = Seen::default();
    (0..4).for_each(|_| token(&mut seen, "I cannot ", -0.01));
    let mut judge = judge(0, STREAMED);
    assert_eq!(judge.cause(&seen), Some(Cause::Flawed(Flaw::Refusal)));
    judge.cascade.checks = vec![Flaw::Empty];
    assert_eq!(judge.cause(&seen), Some(Cause::Fit));
}

#[test]
fn a_verdict_is_shown_with_what_it_rests_on() {
    let mut certainty = Certainty::default();
    certainty.saw(-0.25, 0.5);
    let verdict = Verdict { cause: Cause::Unsure, certainty, confidence: Some(0.4321) };
    assert_eq!(verdict.to_string(), "cascade=unsure;confidence=0.432;logprob=-0.250;entropy=0.500");
    let blind = Verdict { cause: Cause::Fit, certainty: Certainty::default(), confidence: None };
    assert_eq!(blind.to_string(), "cascade=fit");
}
