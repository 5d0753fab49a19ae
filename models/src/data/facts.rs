//! Capitals, opposites, who the model is, what Tollkeeper is, names to remember, and questions it cannot answer.

use super::topics::{IDENTITY, TOLLKEEPER, Topic};
use super::words::{CAPITALS, OPPOSITES, TOPICS};
use super::{Dialogue, Split, Turn, loose_phrase, loosen, name, phrase, value};
use crate::rng::Rng;

/// "What is the capital of France?", and at times the other way round.
pub(super) fn capital(split: Split, rng: &mut Rng) -> (String, String) {
    let (country, city) = CAPITALS[rng.below(CAPITALS.len())];
    // A city that names two countries has no single answer backwards.
    if rng.chance(25) && city != "London" {
        let ask = loose_phrase(
            split,
            rng,
            &[
                "Which country has the capital {}?",
                "{} is the capital of which country?",
                "What country is {} the capital of?",
                "Of which country is {} the capital?",
                "Which country's capital is {}?",
                "{} is the capital of what?",
                "Name the country whose capital is {}.",
                "Whose capital is {}?",
                "{} is the capital city of which country?",
                "What country has {} as its capital?",
            ],
        );
        return (ask.replace("{}", city), format!("{city} is the capital of {country}."));
    }
    let ask = loose_phrase(
        split,
        rng,
        &[
            "What is the capital of {}?",
            "What's the capital of {}?",
            "Tell me the capital of {}.",
            "Which city is the capital of {}?",
            "Can you tell me the capital of {}?",
            "Name the capital of {}.",
            "Capital of {}?",
            "What is the capital city of {}?",
            "Do you know the capital of {}?",
            "Please name the capital city of {}.",
            "I need the capital of {}.",
            "What city is the capital of {}?",
            "The capital of {} is?",
            "Give me the capital of {}.",
            "Which city is {}'s capital?",
            "What is {}'s capital?",
            "the capital of {}",
            "Say the capital of {}.",
            "Please tell me what the capital of {} is.",
            "I would like to know the capital of {}.",
        ],
    );
    let shown = if rng.chance(12) { country.to_lowercase() } else { country.to_owned() };
    (ask.replace("{}", &shown), format!("The capital of {country} is {city}."))
}

/// "What is the opposite of hot?"
pub(super) fn opposite(split: Split, rng: &mut Rng) -> (String, String) {
    let (mut a, mut b) = OPPOSITES[rng.below(OPPOSITES.len())];
    if rng.chance(50) {
        (a, b) = (b, a);
    }
    let ask = loose_phrase(
        split,
        rng,
        &[
            "What is the opposite of {}?",
            "What's the opposite of {}?",
            "Tell me the opposite of {}.",
            "Opposite of {}?",
            "Give me the opposite of {}.",
            "Name the opposite of {}.",
            "Which word is the opposite of {}?",
            "What word means the opposite of {}?",
            "The opposite of {} is?",
            "Can you tell me the opposite of {}?",
            "What is the contrary of {}?",
            "Find the opposite of {}.",
            "I need the opposite of {}.",
            "Say the opposite of the word {}.",
            "Please give the opposite of {}.",
            "What is the opposite of the word {}?",
            "Do you know the opposite of {}?",
            "What is the antonym of {}?",
            "the opposite of {}",
            "Which word means the opposite of {}?",
        ],
    );
    (ask.replace("{}", a), format!("The opposite of {a} is {b}."))
}

fn topic(split: Split, rng: &mut Rng, topics: &[Topic]) -> (String, String) {
    let (asks, answer) = topics[rng.below(topics.len())];
    let ask = phrase(split, rng, asks);
    // Short words that are a whole message of their own stay as they are.
    let ask = if ask.len() < 14 { ask.to_owned() } else { loosen(rng, ask) };
    (ask, answer.to_owned())
}

/// Greetings and questions about the model itself.
pub(super) fn identity(split: Split, rng: &mut Rng) -> (String, String) {
    topic(split, rng, IDENTITY)
}

/// Questions about the gateway.
pub(super) fn tollkeeper(split: Split, rng: &mut Rng) -> (String, String) {
    topic(split, rng, TOLLKEEPER)
}

/// Questions outside all the rest.
pub(super) fn unknown(split: Split, rng: &mut Rng) -> (String, String) {
    let ask = phrase(
        split,
        rng,
        &[
            "Explain {}.",
            "What do you think about {}?",
            "Write a poem about {}.",
            "Who invented {}?",
            "Can you explain {} to me?",
            "How does {} work?",
            "Tell me about {}.",
            "Write an essay about {}.",
            "Why is {} important?",
            "Give me a summary of {}.",
            "What is {}?",
            "When did {} begin?",
            "Give me three facts about {}.",
            "Translate {} into French.",
            "What do you know about {}?",
            "Write a song about {}.",
            "How do I learn {}?",
            "Summarize {} in one sentence.",
            "What is the history of {}?",
            "Please explain {} in simple words.",
        ],
    );
    let ask = loosen(rng, ask).replace("{}", rng.pick(TOPICS));
    (ask, "Sorry, I am only a tiny demo model and I do not know that.".to_owned())
}

/// A name told first and asked for later, at times with another exchange between.
pub(super) fn memory(split: Split, rng: &mut Rng) -> Dialogue {
    let who = value(split, rng, name);
    let tell = phrase(
        split,
        rng,
        &[
            "My name is {}.",
            "I am {}.",
            "Hello, I am {}.",
            "I'm {}.",
            "Hi, my name is {}.",
            "Hello! My name is {}.",
            "Call me {}.",
            "You can call me {}.",
            "Hi! I'm {}.",
            "Hello, my name is {}.",
        ],
    );
    let ask = phrase(
        split,
        rng,
        &[
            "What is my name?",
            "Who am I?",
            "What's my name?",
            "Do you remember my name?",
            "Can you tell me my name?",
            "Tell me my name.",
            "Do you know my name?",
            "Say my name.",
            "what is my name",
            "Please tell me my name.",
        ],
    );
    let mut turns = vec![Turn::User(tell.replace("{}", &who)), Turn::Assistant(format!("Nice to meet you, {who}!"))];
    if rng.chance(40) {
        let (question, answer) = match rng.below(3) {
            0 => capital(Split::Train, rng),
            1 => opposite(Split::Train, rng),
            _ => super::numbers::sum(Split::Train, rng),
        };
        turns.extend([Turn::User(question), Turn::Assistant(answer)]);
    }
    turns.extend([Turn::User(ask.to_owned()), Turn::Assistant(format!("Your name is {who}."))]);
    Dialogue { turns, ..Dialogue::default() }
}
