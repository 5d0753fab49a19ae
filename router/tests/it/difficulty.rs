//! The difficulty of requests: what the shipped weights are worth, that they are what the trainer makes, and that nothing breaks them.

use proptest::prelude::*;
use std::fs;
use std::path::PathBuf;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role, Tool};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::openai::decode_request;
use tollkeeper_protocol::{Operation, Request};
use tollkeeper_router::difficulty::measure::{Calibration, Curve, Scored, cross_validate};
use tollkeeper_router::difficulty::{Case, MOST_BYTES, Model, Settings, WEIGHTS};
use tollkeeper_router::{Difficulty, Score};

fn cases() -> Vec<Case> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/calibration.csv");
    Case::read_csv(&fs::read(path).unwrap()).unwrap()
}

fn said(role: Role, text: &str) -> Message {
    Message {
        role,
        content: vec![Part::Text(text.to_owned())],
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        reasoning: None,
    }
}

fn chat(messages: Vec<Message>) -> ChatRequest {
    ChatRequest { messages, ..ChatRequest::default() }
}

fn score(chat: ChatRequest) -> Score {
    Difficulty::of(&Request::Chat(chat)).unwrap()
}

/// Fewer trees than ship, so that it is quick; what is asked for is what the docs promise, less three times the noise of drawing the parts.
#[test]
fn what_is_unseen_is_sorted_better_than_by_length_and_as_likely_as_said() {
    let cases = cases();
    let settings = Settings { trees: 20, ..Settings::default() };
    let unseen = cross_validate(&cases, &settings, 2, 1).remove(0);
    for (group, least) in [("mmlu", 0.66), ("gsm8k", 0.605)] {
        let places = || (0..cases.len()).filter(|place| cases[*place].group() == group);
        let scored = |score: &dyn Fn(usize) -> f32| {
            let one = |at: usize| Scored { score: score(at), weak: cases[at].weak, strong: cases[at].strong };
            Curve::of(&places().map(one).collect::<Vec<_>>()).unwrap().apgr()
        };
        let (ours, length) = (scored(&|at| unseen[at].gain), scored(&|at| cases[at].prompt.len() as f32));
        assert!(ours > least && ours > length, "{group}: {ours} against {least} and {length}");
        let fails: Vec<(f32, bool)> = places().map(|at| (unseen[at].weak_fails, !cases[at].weak)).collect();
        let calibration = Calibration::of(&fails).unwrap();
        assert!(calibration.brier < calibration.brier_constant, "{group}: {calibration:?}");
        assert!(calibration.error < 0.08, "{group}: {calibration:?}");
    }
}

#[test]
fn training_twice_gives_the_same_bytes() {
    let mut cases = cases();
    cases.retain(|case| case.group() == "gsm8k" || case.source == "mmlu/anatomy");
    let settings = Settings { trees: 5, ..Settings::default() };
    let bytes = Model::train(&cases, &settings).to_bytes();
    assert_eq!(Model::train(&cases, &settings).to_bytes(), bytes);
    assert_ne!(Model::train(&cases, &Settings { seed: 2, ..settings }).to_bytes(), bytes);
    let read = Model::from_bytes(&bytes).unwrap();
    assert_eq!(read.to_bytes(), bytes);
}

#[test]
fn weights_that_are_cut_or_changed_in_their_frame_are_refused() {
    assert!(WEIGHTS.len() < 300_000, "{} bytes", WEIGHTS.len());
    assert!(Model::from_bytes(WEIGHTS).is_some());
    assert!(Model::from_bytes(&WEIGHTS[..WEIGHTS.len() - 1]).is_none());
    assert!(Model::from_bytes(&[WEIGHTS, &[0]].concat()).is_none());
    assert!(Model::from_bytes(b"").is_none());
    assert!(Model::from_bytes(&[b"TKD0", &WEIGHTS[4..]].concat()).is_none());
    let mut turned = WEIGHTS.to_vec();
    // Right children of the last tree that point nowhere.
    let end = turned.len();
    turned[end - 400..].fill(0);
    assert!(Model::from_bytes(&turned).is_none());
}

#[test]
fn the_last_question_counts_and_what_stands_around_it_a_little() {
    let easy = "What is the capital of France?";
    let hard = "A tank holds 1,200 litres, and after two hours, while one pipe fills a third of it, another pipe, which is twice as slow, \
                empties half of what is left. If the first pipe is closed at noon and the next day is 4 hours longer, how much is left?";
    let (plain, other) = (score(chat(vec![said(Role::User, easy)])), score(chat(vec![said(Role::User, hard)])));
    assert!(other.value > plain.value && other.weak_fails > plain.weak_fails, "{plain:?} {other:?}");
    let turns = vec![
        said(Role::System, hard),
        said(Role::User, hard),
        said(Role::Assistant, "600 litres"),
        said(Role::User, easy),
    ];
    assert_eq!(score(chat(turns)), plain);
    assert_eq!(Difficulty::of_text(easy), Some(plain));

    let tool = Tool { name: "clock".into(), description: None, parameters: None, strict: None };
    let with_tool = score(ChatRequest { tools: vec![tool], ..chat(vec![said(Role::User, easy)]) });
    assert!(with_tool.value > plain.value && with_tool.value < plain.value + 0.05, "{plain:?} {with_tool:?}");
}

#[test]
fn what_generates_nothing_or_says_nothing_has_no_difficulty() {
    let embedding = decode_request(Operation::Embeddings, br#"{"model":"m","input":"Why?"}"#).unwrap();
    assert_eq!(Difficulty::of(&embedding), None);
    assert_eq!(Difficulty::of(&Request::Chat(chat(vec![said(Role::User, " \n")]))), None);
    let prompts = |prompts| Request::Completion(CompletionRequest { prompts, ..CompletionRequest::default() });
    assert_eq!(Difficulty::of(&prompts(vec![Prompt::Tokens(vec![1, 2])])), None);
    let (short, long) =
        ("Say hello.", "If a third of 30 apples is left after two days, how many apples were sold per day?");
    let both = Difficulty::of(&prompts(vec![Prompt::Text(short.into()), Prompt::Text(long.into())])).unwrap();
    let each = [short, long].map(|text| Difficulty::of_text(text).unwrap().value);
    assert!(both.value >= each[0].max(each[1]));
}

#[test]
fn of_a_huge_prompt_only_the_ends_are_read() {
    let end = "a".repeat(MOST_BYTES / 2);
    let middle = |filling: &str| format!("{end}{}{end}", filling.repeat(300_000 / filling.len()));
    assert_eq!(Difficulty::of_text(&middle("why? ")), Difficulty::of_text(&middle("12 + ")));
}

proptest! {
    #[test]
    fn any_text_has_a_score_between_0_and_1_and_always_the_same(text in any_text()) {
        match Difficulty::of_text(&text) {
            None => prop_assert!(text.trim().is_empty()),
            Some(score) => {
                prop_assert!((0.0..=1.0).contains(&score.value) && (0.0..=1.0).contains(&score.weak_fails), "{:?}", score);
                prop_assert_eq!(Difficulty::of_text(&text), Some(score));
            }
        }
    }
}

/// Texts of all letters, lists and marks, some of them longer than what is read.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[A-E(]{1,2}[.)] [a-z0-9 é漢😀]{0,20}\n",
        "[0-9.,$%/ ]{0,30}",
        "[a-z ?!.\n]{0,60}",
    ];
    (prop::collection::vec(piece, 0..30), 1usize..40).prop_map(|(pieces, times)| pieces.concat().repeat(times))
}
