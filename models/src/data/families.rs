//! The families of tools that the made dialogues offer, each with its requests.

use super::words::{ADJECTIVES, CAPITALS, COLOURS, NOUNS, TOPICS};
use super::{made_up, name, word};
use crate::rng::Rng;

/// A parameter: the names it goes by, whether it is a string, and how to draw a value.
pub(super) type Param = (&'static [&'static str], bool, fn(&mut Rng) -> String);

/// A family of tools that do the same under several names.
pub(super) struct Family {
    pub(super) names: &'static [&'static str],
    pub(super) about: &'static [&'static str],
    pub(super) params: &'static [Param],
    /// `{0}`, `{1}` stand for the values in the order of `params`; every fifth phrasing is held out.
    pub(super) asks: &'static [&'static str],
}

fn city(rng: &mut Rng) -> String {
    match rng.below(10) {
        0..=5 => CAPITALS[rng.below(CAPITALS.len())].1.to_owned(),
        6 | 7 => rng
            .pick(&[
                "Hamburg",
                "Munich",
                "Split",
                "Porto",
                "Milan",
                "Boston",
                "Chicago",
                "Osaka",
                "Lyon",
                "Graz",
                "San Francisco",
                "New York",
                "Los Angeles",
            ])
            .to_owned(),
        _ => super::upper_first(&made_up(rng)),
    }
}

pub(super) fn small(rng: &mut Rng) -> String {
    rng.between(1, 99).to_string()
}

fn words(rng: &mut Rng) -> String {
    match rng.below(3) {
        0 => word(rng),
        1 => format!("{} {}", rng.pick(ADJECTIVES), word(rng)),
        _ => rng.pick(TOPICS).to_owned(),
    }
}

fn mail(rng: &mut Rng) -> String {
    format!("{}@{}.{}", name(rng).to_lowercase(), word(rng), rng.pick(&["com", "org", "net", "io"]))
}

fn room(rng: &mut Rng) -> String {
    if rng.chance(30) {
        return word(rng);
    }
    rng.pick(&["kitchen", "bedroom", "living room", "bathroom", "office", "garage", "hall", "garden"]).to_owned()
}

fn day(rng: &mut Rng) -> String {
    rng.pick(&["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today", "tomorrow"])
        .to_owned()
}

fn sum(rng: &mut Rng) -> String {
    format!("{} {} {}", rng.between(1, 999), rng.pick(&["+", "-", "*", "/"]), rng.between(1, 999))
}

fn file(rng: &mut Rng) -> String {
    format!("{}.{}", word(rng), rng.pick(&["txt", "md", "json", "toml", "csv"]))
}

fn symbol(rng: &mut Rng) -> String {
    (0..rng.between(2, 4)).map(|_| char::from(b'A' + rng.below(26) as u8)).collect()
}

fn language(rng: &mut Rng) -> String {
    rng.pick(&["French", "German", "Spanish", "Italian", "Polish", "Dutch", "Greek", "Japanese"]).to_owned()
}

fn currency(rng: &mut Rng) -> String {
    rng.pick(&["USD", "EUR", "GBP", "JPY", "CHF", "SEK", "PLN"]).to_owned()
}

/// All families. The first is the weather, whose results have an answer of their own.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        names: &["get_weather", "get_current_weather", "weather", "weather_lookup"],
        about: &[
            "Get the weather in a city.",
            "Get the current weather.",
            "Current weather for a place",
            "Get weather",
        ],
        params: &[(&["city", "location", "place"], true, city)],
        asks: &[
            "What is the weather in {0}?",
            "What's the weather like in {0}?",
            "Tell me the weather in {0}.",
            "How is the weather in {0}?",
            "What is the weather like in {0}?",
            "Is it raining in {0}?",
            "Weather in {0}?",
            "Do I need a coat in {0}?",
            "What is the weather in {0} today?",
            "Can you check the weather in {0}?",
            "Is it sunny in {0}?",
            "What is the temperature in {0}?",
            "How warm is it in {0}?",
            "Get the weather for {0}.",
            "How is the weather in {0} today?",
        ],
    },
    Family {
        names: &["get_time", "current_time", "get_current_time", "clock"],
        about: &["Get the time in a city.", "Current local time", "Get the current time."],
        params: &[(&["city", "timezone", "location"], true, city)],
        asks: &[
            "What time is it in {0}?",
            "What is the time in {0}?",
            "Tell me the time in {0}.",
            "How late is it in {0}?",
            "What is the current time in {0}?",
            "Time in {0}?",
            "Which time is it in {0}?",
            "Give me the local time in {0}.",
            "What's the time in {0}?",
            "Can you tell me the time in {0}?",
        ],
    },
    Family {
        names: &["calculator", "calculate", "calc", "evaluate"],
        about: &["Work out an expression.", "Evaluate a mathematical expression.", "A calculator"],
        params: &[(&["expression", "input", "formula"], true, sum)],
        asks: &[
            "What is {0}?",
            "Calculate {0}.",
            "Compute {0}.",
            "How much is {0}?",
            "Work out {0}.",
            "{0}",
            "{0} = ?",
            "What do you get for {0}?",
            "Use the calculator for {0}.",
            "Please calculate {0}.",
        ],
    },
    Family {
        names: &["add", "add_numbers", "sum"],
        about: &["Add two numbers.", "Sum of two numbers"],
        params: &[(&["a", "x", "first"], false, small), (&["b", "y", "second"], false, small)],
        asks: &[
            "Add {0} and {1}.",
            "What is {0} plus {1}?",
            "What is {0} + {1}?",
            "What is the sum of {0} and {1}?",
            "How much is {0} plus {1}?",
            "{0} + {1}",
            "Sum of {0} and {1}?",
            "Compute {0} + {1}.",
            "Calculate {0} plus {1}.",
            "Please add {0} and {1}.",
        ],
    },
    Family {
        names: &["search", "web_search", "search_web", "find"],
        about: &["Search the web.", "Find pages about something.", "Search for information"],
        params: &[(&["query", "q", "text"], true, words)],
        asks: &[
            "Search for {0}.",
            "Search the web for {0}.",
            "Find pages about {0}.",
            "Look up {0}.",
            "Look for {0} on the web.",
            "Find information about {0}.",
            "Google {0}.",
            "Can you search for {0}?",
            "What does the web say about {0}?",
            "Please search for {0}.",
        ],
    },
    Family {
        names: &["send_email", "email", "send_mail"],
        about: &["Send an email.", "Send a mail to somebody."],
        params: &[(&["to", "recipient", "address"], true, mail), (&["subject", "title", "body"], true, words)],
        asks: &[
            "Send an email to {0} about {1}.",
            "Write an email to {0} about {1}.",
            "Mail {0} about {1}.",
            "Please email {0} about {1}.",
            "Send a mail to {0} about {1}.",
            "Email {0} about {1}.",
            "Send {0} a mail about {1}.",
            "Send {0} an email about {1}.",
            "I want to email {0} about {1}.",
            "Can you send an email to {0} about {1}?",
        ],
    },
    Family {
        names: &["translate", "translate_text"],
        about: &["Translate a text.", "Translate into another language"],
        params: &[(&["text", "input"], true, words), (&["language", "target", "to"], true, language)],
        asks: &[
            "Translate {0} into {1}.",
            "Translate \"{0}\" to {1}.",
            "How do you say {0} in {1}?",
            "What is {0} in {1}?",
            "Can you translate {0} into {1}?",
            "Please translate {0} to {1}.",
            "Say {0} in {1}.",
            "Translate into {1}: {0}",
            "Translate {0} to {1}.",
            "What does {0} mean in {1}?",
        ],
    },
    Family {
        names: &["create_event", "add_event", "schedule", "book_meeting"],
        about: &["Put an event in the calendar.", "Create a calendar event."],
        params: &[(&["title", "name", "event"], true, words), (&["day", "date", "when"], true, day)],
        asks: &[
            "Add {0} to my calendar on {1}.",
            "Schedule {0} on {1}.",
            "Create an event {0} on {1}.",
            "Put {0} in the calendar for {1}.",
            "Plan {0} for {1}.",
            "Make an event called {0} on {1}.",
            "Schedule {0} for {1}.",
            "Book {0} on {1}.",
            "Create an event called {0} for {1}.",
            "Please schedule {0} on {1}.",
        ],
    },
    Family {
        names: &["set_timer", "timer", "start_timer"],
        about: &["Set a timer.", "Start a timer for some minutes."],
        params: &[(&["minutes", "duration", "min"], false, small)],
        asks: &[
            "Set a timer for {0} minutes.",
            "Start a timer for {0} minutes.",
            "Timer {0} minutes",
            "Wake me in {0} minutes.",
            "Set a {0} minute timer.",
            "Please set a timer for {0} minutes.",
            "Remind me in {0} minutes.",
            "Can you set a timer for {0} minutes?",
            "Start a {0} minute timer.",
            "I need a timer for {0} minutes.",
        ],
    },
    Family {
        names: &["get_stock_price", "stock_price", "stock"],
        about: &["Get the price of a share.", "Current stock price"],
        params: &[(&["symbol", "ticker"], true, symbol)],
        asks: &[
            "What is the stock price of {0}?",
            "What is the price of {0}?",
            "How much is {0} stock?",
            "Stock price of {0}?",
            "Tell me the stock price of {0}.",
            "Get the stock price for {0}.",
            "How is {0} doing?",
            "Price of {0} shares?",
            "What does a share of {0} cost?",
            "What's the stock price of {0}?",
        ],
    },
    Family {
        names: &["turn_on_light", "light_on", "switch_light"],
        about: &["Switch on the light in a room.", "Turn a light on."],
        params: &[(&["room", "location", "place"], true, room)],
        asks: &[
            "Turn on the light in the {0}.",
            "Switch on the {0} light.",
            "Light on in the {0}.",
            "Make some light in the {0}.",
            "Please turn on the light in the {0}.",
            "Turn the {0} light on.",
            "It is dark in the {0}.",
            "Switch on the light in the {0}.",
            "Turn on the {0} light.",
            "Can you turn on the light in the {0}?",
        ],
    },
    Family {
        names: &["book_flight", "find_flight", "search_flights"],
        about: &["Book a flight.", "Find flights between two cities."],
        params: &[(&["from", "origin", "departure"], true, city), (&["to", "destination", "arrival"], true, city)],
        asks: &[
            "Book a flight from {0} to {1}.",
            "Find a flight from {0} to {1}.",
            "I want to fly from {0} to {1}.",
            "Flights from {0} to {1}?",
            "I need a flight from {0} to {1}.",
            "Fly me from {0} to {1}.",
            "Get me from {0} to {1}.",
            "Search flights from {0} to {1}.",
            "Is there a flight from {0} to {1}?",
            "Please book a flight from {0} to {1}.",
        ],
    },
    Family {
        names: &["read_file", "open_file", "cat"],
        about: &["Read a file.", "Show what is in a file."],
        params: &[(&["path", "file", "filename"], true, file)],
        asks: &[
            "Read the file {0}.",
            "Open {0}.",
            "Show me {0}.",
            "What is in {0}?",
            "Show me the file {0}.",
            "Read {0}.",
            "What does {0} say?",
            "Print the file {0}.",
            "Open the file {0}.",
            "Please read {0}.",
        ],
    },
    Family {
        names: &["get_user", "find_user", "lookup_user", "find_contact"],
        about: &["Look a user up by name.", "Find a contact."],
        params: &[(&["name", "user", "username"], true, name)],
        asks: &[
            "Find the user {0}.",
            "Look up the user {0}.",
            "Who is {0}?",
            "Get me the contact {0}.",
            "Find {0} in the contacts.",
            "Show the user {0}.",
            "What do we know about {0}?",
            "Find the contact {0}.",
            "Get the user {0}.",
            "Look up {0} for me.",
        ],
    },
    Family {
        names: &["convert_currency", "exchange", "convert"],
        about: &["Convert an amount of money.", "Currency conversion"],
        params: &[
            (&["amount", "value"], false, small),
            (&["from", "source"], true, currency),
            (&["to", "target"], true, currency),
        ],
        asks: &[
            "Convert {0} {1} to {2}.",
            "How much is {0} {1} in {2}?",
            "What is {0} {1} in {2}?",
            "Change {0} {1} into {2}.",
            "Exchange {0} {1} for {2}.",
            "{0} {1} in {2}?",
            "Please convert {0} {1} to {2}.",
            "{0} {1} to {2}",
            "How many {2} are {0} {1}?",
            "Convert {0} {1} into {2}.",
        ],
    },
    Family {
        names: &["play_music", "play_song", "play"],
        about: &["Play a song.", "Play music"],
        params: &[(&["song", "title", "track"], true, words)],
        asks: &[
            "Play {0}.",
            "Play the song {0}.",
            "I want to hear {0}.",
            "Put on {0}.",
            "Start the song {0}.",
            "Please play {0}.",
            "Let me hear {0}.",
            "Play {0} for me.",
            "Can you play {0}?",
            "I would like to hear {0}.",
        ],
    },
    Family {
        names: &["paint", "set_color", "set_colour"],
        about: &["Set the colour of a thing.", "Paint something."],
        params: &[
            (&["item", "object", "thing"], true, |rng| rng.pick(NOUNS).to_owned()),
            (&["color", "colour"], true, |rng| rng.pick(COLOURS).to_owned()),
        ],
        asks: &[
            "Paint the {0} {1}.",
            "Make the {0} {1}.",
            "Set the color of the {0} to {1}.",
            "The {0} should be {1}.",
            "Turn the {0} {1}.",
            "I want a {1} {0}.",
            "Colour the {0} {1}.",
            "Please paint the {0} {1}.",
            "Change the {0} to {1}.",
            "Let the {0} be {1}.",
        ],
    },
];
