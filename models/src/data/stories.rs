//! Little stories: a few sentences about a named animal, each drawn from the lines of its place in the story.

use super::{Split, loosen, name, phrase, value};
use crate::rng::Rng;

const ANIMALS: &[&str] = &[
    "fox", "cat", "dog", "bear", "mouse", "rabbit", "owl", "horse", "frog", "duck", "wolf", "hedgehog", "robot",
    "dragon",
];

/// The lines of a story in order; `{n}` is the name and `{k}` the animal.
const LINES: &[&[&str]] = &[
    &[
        "Once there was a little {k} named {n}.",
        "Once upon a time there was a clever {k} named {n}.",
        "Far away in a green valley lived a {k} named {n}.",
    ],
    &[
        "{n} lived near a big river and loved to explore.",
        "{n} loved the sun, the wind and the old forest.",
        "Every morning {n} went for a long walk.",
    ],
    &[
        "One day {n} found a golden key under a stone.",
        "One day {n} heard a small voice behind a tree.",
        "One day {n} met a stranger who had lost the way.",
    ],
    &[
        "{n} was afraid at first, but then took a deep breath.",
        "{n} did not know what to do, so {n} asked a friend.",
        "{n} thought for a while and smiled.",
    ],
    &[
        "Together they found the way home before the night came.",
        "In the end everything was good, and they shared some bread and honey.",
        "From that day on {n} was never alone again.",
    ],
];

/// "Tell me a story about a fox named Viktor."; without a name the story picks one.
pub(super) fn story(split: Split, rng: &mut Rng) -> (String, String) {
    let kind = rng.pick(ANIMALS);
    let who = value(split, rng, name);
    let (ask, who) = if rng.chance(75) {
        let ask = phrase(
            split,
            rng,
            &[
                "Tell me a story about a {k} named {n}.",
                "Write a short story about a {k} named {n}.",
                "Tell me a little story about a {k} called {n}.",
                "Write a story about {n} the {k}.",
                "Can you tell me a story about a {k} named {n}?",
                "Tell a story about a {k} named {n}.",
                "I want a story about a {k} called {n}.",
                "Make up a story about a {k} named {n}.",
                "Please tell me a story about {n} the {k}.",
                "Write me a short story about a {k} called {n}.",
            ],
        );
        (ask, who)
    } else {
        let ask = phrase(
            split,
            rng,
            &[
                "Tell me a story about a {k}.",
                "Write a short story about a {k}.",
                "Tell me a little story about a {k}.",
                "Write a story about a {k}.",
                "Can you tell me a story about a {k}?",
                "Tell a story about a {k}.",
                "I want a story about a {k}.",
                "Make up a story about a {k}.",
                "Once upon a time there was a {k}. Go on.",
                "Write me a short story about a {k}.",
            ],
        );
        // One name per animal, so that the answer is not a guess.
        let at = ANIMALS.iter().position(|a| *a == kind).unwrap_or(0);
        (ask, super::words::NAMES[at].to_owned())
    };
    let fill = |text: &str| text.replace("{k}", kind).replace("{n}", &who);
    let lines: Vec<String> = LINES.iter().map(|lines| fill(rng.pick(lines))).collect();
    (fill(&loosen(rng, ask)), lines.join(" "))
}

/// Whether `answer` is a whole story about the same animal and name as `reference`, with any line in each place.
pub fn is_story(answer: &str, reference: &str) -> bool {
    let animal = ANIMALS.iter().find(|a| reference.contains(&format!(" {a} named ")));
    let who = reference.split(" named ").nth(1).and_then(|rest| rest.split('.').next());
    let (Some(animal), Some(who)) = (animal, who) else { return false };
    let mut rest = answer;
    for lines in LINES {
        let found = lines
            .iter()
            .find_map(|line| rest.trim_start().strip_prefix(&line.replace("{k}", animal).replace("{n}", who)));
        let Some(tail) = found else { return false };
        rest = tail;
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_judged_by_its_lines_animal_and_name() {
        let mut rng = Rng::new(9);
        let (_, one) = story(Split::Train, &mut rng);
        let other = loop {
            let (_, other) = story(Split::Train, &mut rng);
            if other != one {
                break other;
            }
        };
        assert!(is_story(&one, &one));
        assert!(!is_story(&one[..one.len() - 1], &one), "the end is missing");
        assert!(!is_story(&one, &other) || one.split('.').next() != other.split('.').next());
    }
}
