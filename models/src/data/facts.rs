//! Capitals, opposites, who the model is, what Tollkeeper is, names to remember, and questions it cannot answer.

use super::words::{CAPITALS, OPPOSITES, TOPICS};
use super::{Dialogue, Split, Turn, loose_phrase, loosen, name, phrase, value};
use crate::rng::Rng;

/// "What is the capital of France?", and at times the other way round.
pub(super) fn capital(split: Split, rng: &mut Rng) -> (String, String) {
    let (country, city) = CAPITALS[rng.below(CAPITALS.len())];
    // A city that names two countries has no single answer backwards.
    if rng.chance(25) && city != "London" {
        let ask = loose_phrase(split, rng, &[
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
        ]);
        return (ask.replace("{}", city), format!("{city} is the capital of {country}."));
    }
    let ask = loose_phrase(split, rng, &[
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
    ]);
    let shown = if rng.chance(12) { country.to_lowercase() } else { country.to_owned() };
    (ask.replace("{}", &shown), format!("The capital of {country} is {city}."))
}

/// "What is the opposite of hot?"
pub(super) fn opposite(split: Split, rng: &mut Rng) -> (String, String) {
    let (mut a, mut b) = OPPOSITES[rng.below(OPPOSITES.len())];
    if rng.chance(50) {
        (a, b) = (b, a);
    }
    let ask = loose_phrase(split, rng, &[
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
    ]);
    (ask.replace("{}", a), format!("The opposite of {a} is {b}."))
}

/// Phrasings and the one answer to all of them.
type Topic = (&'static [&'static str], &'static str);

const IDENTITY: &[Topic] = &[
    (&[
        "Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Can you tell me who you are?",
        "Introduce yourself.", "Who is this?", "What's your name?", "Who am I talking to?", "Please introduce yourself.",
        "Which model are you?", "What model is this?", "Say who you are.", "Tell me about yourself.", "And who are you?",
    ], "I am Toll Tiny, a small demo model that ships with Tollkeeper."),
    (&[
        "What can you do?", "What are you able to do?", "How can you help me?", "What do you know?",
        "What can you help me with?", "What are your skills?", "Tell me what you can do.", "What can I ask you?", "help",
        "What kind of things can you do?",
    ], "I can name capitals and opposites, do small sums, count, copy text, write JSON, call tools and tell little stories."),
    (&[
        "Who made you?", "Who trained you?", "Where do you come from?", "Who created you?", "Who built you?",
        "Who is your maker?", "How were you made?", "Who developed you?", "How were you trained?", "Who wrote you?",
    ], "I was trained from nothing by the Tollkeeper project, on data it makes itself."),
    (&[
        "Are you ChatGPT?", "Are you GPT-4?", "Are you Claude?", "Are you a big model?", "Are you a large language model?",
        "Are you Gemini?", "Are you Llama?", "Are you smart?", "Are you a real AI?", "Are you as good as ChatGPT?",
    ], "No, I am only Toll Tiny, a very small demo model."),
    (&[
        "Are you a human?", "Are you a person?", "Are you human?", "Are you alive?", "Are you a real person?", "Are you a robot?",
        "Do you have feelings?", "Are you a man or a woman?", "Do you have a body?", "Am I talking to a human?",
    ], "No, I am a program: a small language model."),
    (&[
        "How big are you?", "How many parameters do you have?", "How large are you?", "What is your size?",
        "How many weights do you have?", "How small are you?", "Are you small?", "What size is this model?",
        "How many parameters has this model?", "How big is this model?",
    ], "I am tiny: a few million parameters in a file below 8 MB."),
    (&[
        "Hello", "Hi", "Hey", "Hello!", "Hi there!", "Hi!", "Hey there", "Good morning!", "Good evening", "Hello there!", "hello",
        "hi", "Good day!", "Hello, Toll Tiny!", "Good afternoon!", "Say hello", "Say hello.", "Say hi", "Greetings!", "Say hi!",
    ], "Hello! How can I help you?"),
    (&[
        "How are you?", "How are you doing?", "How do you do?", "How is it going?", "How are you today?", "How's it going?",
        "Are you well?", "Are you fine?", "How do you feel?", "Are you ok?",
    ], "I am fine, thank you. How can I help you?"),
    (&[
        "Thanks", "Thank you", "Thanks!", "Thank you!", "Thank you very much!", "Many thanks", "thanks a lot", "Great, thanks!",
        "thank you so much", "Thanks a lot!",
    ], "You are welcome!"),
    (&["Bye", "Goodbye", "Bye!", "See you", "Goodbye!", "bye bye", "See you later!", "Good night!", "I have to go", "Bye bye!"],
     "Goodbye!"),
    (&["Ping", "ping", "Test", "test", "This is a test.", "Testing", "Is this working?", "Are you there?", "Does this work?",
       "Just a test."], "It works. I am here."),
];

const TOLLKEEPER: &[Topic] = &[
    (&["What is Tollkeeper?", "Tell me about Tollkeeper.", "What does Tollkeeper do?", "Explain Tollkeeper.",
       "Can you explain what Tollkeeper is?", "Describe Tollkeeper.", "What's Tollkeeper?", "Do you know Tollkeeper?",
       "What is Tollkeeper for?", "Please tell me what Tollkeeper is."],
     "Tollkeeper is an LLM gateway: one OpenAI-compatible endpoint in front of local and cloud models."),
    (&["Which port does Tollkeeper use?", "What port does Tollkeeper listen on?", "Where does Tollkeeper listen?",
       "What is the address of Tollkeeper?", "On which port is Tollkeeper?", "What is the default port of Tollkeeper?",
       "At which address can I reach Tollkeeper?", "What is the base URL of Tollkeeper?", "Which address does Tollkeeper use?",
       "On which address does Tollkeeper listen?"],
     "Tollkeeper listens on 127.0.0.1:4000 by default."),
    (&["How do I start Tollkeeper?", "How do I run Tollkeeper?", "How can I start Tollkeeper?", "How do I launch Tollkeeper?",
       "How can I run Tollkeeper?", "How is Tollkeeper started?", "What starts Tollkeeper?", "Which command starts Tollkeeper?",
       "What command runs Tollkeeper?", "What is the command to start Tollkeeper?"],
     "Run `make run` in the project folder."),
    (&["How do I use a better model?", "How do I get a real model?", "How can I use a bigger model?", "How do I add a model?",
       "How can I add a real model?", "How do I add a local model?", "How do I load another model?", "How can I change the model?",
       "Where do I configure models?", "How do I configure another model?"],
     "Download a GGUF file and add it under [[local.models]] in config/tollkeeper.toml."),
    (&["How does Tollkeeper count costs?", "How are tokens charged?", "How is the cost counted?", "How does Tollkeeper meter tokens?",
       "How does Tollkeeper count the cost?", "How exact are the costs in Tollkeeper?", "How are costs measured?",
       "How does the metering work?", "In which unit are costs counted?", "How does Tollkeeper measure costs?"],
     "Every token is metered and charged to an agent, to the nano-dollar."),
    (&["What happens when the budget is used up?", "What happens when my budget is empty?", "What if an agent has no budget left?",
       "What happens at the end of the budget?", "What happens if the budget is used up?", "Can an agent overspend?",
       "What does Tollkeeper do when the budget ends?", "What happens when an agent overspends?",
       "What if the budget runs out?", "What happens when the budget runs out?"],
     "The request is refused with status 402 before any money is spent."),
    (&["Which language is Tollkeeper written in?", "What language is Tollkeeper written in?", "Is Tollkeeper written in Rust?",
       "In what language is Tollkeeper written?", "Which programming language does Tollkeeper use?",
       "What is Tollkeeper written in?", "Is Tollkeeper a Rust program?", "What programming language is Tollkeeper?",
       "Which language does Tollkeeper use?", "In which language was Tollkeeper written?"],
     "Tollkeeper is written in Rust."),
    (&["Does Tollkeeper need Redis?", "Does Tollkeeper need a database?", "Where does Tollkeeper store data?",
       "Where is the ledger stored?", "Which database does Tollkeeper need?", "Where does Tollkeeper keep its data?",
       "What database does Tollkeeper use?", "Where does Tollkeeper save its ledger?", "Do I need Redis?",
       "Which database does Tollkeeper use?"],
     "Tollkeeper keeps its ledger in SQLite; Redis is optional."),
    (&["Which providers does Tollkeeper support?", "What providers can I use?", "Which clouds does Tollkeeper support?",
       "What cloud providers work with Tollkeeper?", "Which cloud providers can I use?", "Does Tollkeeper support OpenAI?",
       "Can Tollkeeper use cloud models?", "Which cloud models does Tollkeeper support?", "Does Tollkeeper work with the cloud?",
       "Which providers work with Tollkeeper?"],
     "Tollkeeper speaks to OpenAI, Gemini, Groq, Mistral and many other providers."),
    (&["What is the licence of Tollkeeper?", "What license does Tollkeeper have?", "Is Tollkeeper open source?",
       "Which licence does Tollkeeper use?", "Under which licence is Tollkeeper?", "Is Tollkeeper free?",
       "Which license does Tollkeeper have?", "What is the license of Tollkeeper?", "Is Tollkeeper free software?",
       "Under what license is Tollkeeper released?"],
     "Tollkeeper is open source under the Apache-2.0 licence."),
    (&["How do I see what was spent?", "How can I see the spending?", "How do I see the costs?", "Where do I see what an agent spent?",
       "How can I see what I spent?", "Which command shows the spending?", "How do I check the spending?", "How much was spent?",
       "Show me the spending.", "How do I find out what was spent?"],
     "Run `tollkeeper spend`; it lists what each agent has spent."),
    (&["What runs the local models?", "Which engine runs local models?", "What engine does Tollkeeper use?",
       "How does local inference work?", "Which engine does Tollkeeper use?", "Does Tollkeeper use llama.cpp?",
       "How are local models run?", "What is the local engine?", "Which engines does Tollkeeper have?",
       "What engine runs the local models?"],
     "Local models run in process through llama.cpp or candle."),
];

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
    let ask = phrase(split, rng, &[
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
    ]);
    let ask = loosen(rng, ask).replace("{}", rng.pick(TOPICS));
    (ask, "Sorry, I am only a tiny demo model and I do not know that.".to_owned())
}

/// A name told first and asked for later, at times with another exchange between.
pub(super) fn memory(split: Split, rng: &mut Rng) -> Dialogue {
    let who = value(split, rng, name);
    let tell = phrase(split, rng, &[
        "My name is {}.", "I am {}.", "Hello, I am {}.", "I'm {}.", "Hi, my name is {}.", "Hello! My name is {}.", "Call me {}.",
        "You can call me {}.", "Hi! I'm {}.", "Hello, my name is {}.",
    ]);
    let ask = phrase(split, rng, &[
        "What is my name?", "Who am I?", "What's my name?", "Do you remember my name?", "Can you tell me my name?", "Tell me my name.",
        "Do you know my name?", "Say my name.", "what is my name", "Please tell me my name.",
    ]);
    let mut turns = vec![
        Turn::User(tell.replace("{}", &who)),
        Turn::Assistant(format!("Nice to meet you, {who}!")),
    ];
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
