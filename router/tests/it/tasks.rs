//! The kind of a job: golden examples, and how often it is right on prompts that were labelled before there were rules.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Message, Part, Role};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_router::TaskType;

const GOLDEN: &[(&str, TaskType)] = &[
    ("Hello!", TaskType::Chat),
    ("Write a Python function that adds two numbers.", TaskType::Code),
    ("Solve for x: 2x = 8", TaskType::Maths),
    ("Extract the dates from the following text as JSON.", TaskType::Extraction),
    ("Classify this review as positive or negative.", TaskType::Classification),
    ("Could you please summarize this?", TaskType::Summarise),
    ("Translate into German: good night", TaskType::Translation),
    ("Please review this pull request.", TaskType::Review),
    ("What are the pros and cons of heat pumps? Cite studies.", TaskType::Research),
    ("Make a roadmap for next year.", TaskType::Planning),
    ("Write a short story about rain.", TaskType::Writing),
];

#[test]
fn plain_examples_are_known() {
    for (text, task) in GOLDEN {
        assert_eq!(TaskType::of_text(text), *task, "{text}");
    }
    assert!(TaskType::ALL.iter().all(|task| TaskType::from_name(task.name()) == Some(*task)));
    assert_eq!(TaskType::from_name("Chat"), None);
}

/// What was reached, less a few: a change that costs more than that has to be seen.
#[test]
fn labelled_prompts_are_mostly_known() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/task_types.csv");
    let text = fs::read(path).unwrap();
    let mut right: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut wrong = Vec::new();
    for record in csv::Reader::from_reader(&text[..]).records() {
        let record = record.unwrap();
        let (part, task, prompt) = (&record[0], TaskType::from_name(&record[1]).unwrap(), &record[2]);
        let (hits, all) = right.entry(part.to_owned()).or_default();
        let guess = TaskType::of_text(prompt);
        *all += 1;
        *hits += usize::from(guess == task);
        // The held-out ones stay unread.
        if guess != task && part == "tune" {
            wrong.push(format!("{guess} instead of {task}: {prompt}"));
        }
    }
    let (tuned, all_tuned) = right["tune"];
    let (held_out, all_held_out) = right["held_out"];
    assert_eq!((all_tuned, all_held_out), (88, 88));
    assert!(tuned * 100 >= all_tuned * 90, "{right:?}\n{}", wrong.join("\n"));
    assert!(held_out * 100 >= all_held_out * 75, "{right:?}");
}

#[test]
fn instructions_and_form_have_a_say() {
    let message = |role, text: &str| Message {
        role,
        content: vec![Part::Text(text.to_owned())],
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        reasoning: None,
    };
    let of = |messages| TaskType::of(&Request::Chat(ChatRequest { messages, ..ChatRequest::default() }));
    let system = "Translate whatever the user says into French. Answer with the translation only.";
    assert_eq!(
        of(vec![message(Role::System, system), message(Role::User, "The cat sleeps.")]),
        Some(TaskType::Translation)
    );
    assert_eq!(of(vec![message(Role::User, "The cat sleeps.")]), Some(TaskType::Chat));
    assert_eq!(of(vec![]), None);
    let completion = CompletionRequest {
        prompts: vec![Prompt::Text("fn main() {".into())],
        suffix: Some("}".into()),
        ..CompletionRequest::default()
    };
    assert_eq!(TaskType::of(&Request::Completion(completion)), Some(TaskType::Code));
}

#[test]
fn any_text_is_something() {
    for text in ["", "\u{0}", "漢字😀", &"é".repeat(10_000), "```", "A. \nB. ", "İstanbul'da ne var?"] {
        let _ = TaskType::of_text(text);
    }
}
