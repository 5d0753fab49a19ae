//! Sums, differences, products and counting.

use super::{Split, held_value, loosen, phrase};
use crate::rng::Rng;

/// Sums and differences of numbers below 100; differences are never negative.
pub(super) fn sum(split: Split, rng: &mut Rng) -> (String, String) {
    let minus = rng.chance(35);
    let (a, b) = loop {
        let top = if rng.chance(25) { 12 } else { 99 };
        let (a, b) = (rng.between(0, top), rng.between(0, top));
        let (a, b) = if minus { (a.max(b), a.min(b)) } else { (a, b) };
        // The same pair in the other order is the same sum.
        if held_value(&format!("{} {minus} {}", a.max(b), a.min(b))) == (split == Split::Held) {
            break (a, b);
        }
    };
    let ask = if minus {
        phrase(
            split,
            rng,
            &[
                "What is {a} minus {b}?",
                "What is {a} - {b}?",
                "{a} - {b}",
                "{a} minus {b}",
                "What's {a} minus {b}?",
                "{a}-{b}=",
                "How much is {a} minus {b}?",
                "Calculate {a} - {b}.",
                "Subtract {b} from {a}.",
                "Compute {a} minus {b}.",
                "{a}-{b}?",
                "Take {b} away from {a}.",
                "What do you get when you subtract {b} from {a}?",
                "What is {a}-{b}?",
                "{a} - {b} = ?",
            ],
        )
    } else {
        phrase(
            split,
            rng,
            &[
                "What is {a} plus {b}?",
                "What is {a} + {b}?",
                "{a} + {b}",
                "{a} plus {b}",
                "What's {a} plus {b}?",
                "{a}+{b}=",
                "How much is {a} plus {b}?",
                "Calculate {a} + {b}.",
                "Add {a} and {b}.",
                "Compute {a} plus {b}.",
                "{a}+{b}?",
                "What is the sum of {a} and {b}?",
                "What do you get when you add {a} and {b}?",
                "What is {a}+{b}?",
                "{a} + {b} = ?",
                "Sum of {a} and {b}?",
                "Add {b} to {a}.",
                "How much is {a} + {b}?",
                "Please add {a} and {b}.",
                "Tell me {a} plus {b}.",
            ],
        )
    };
    // "Add 3 to 5" names the second number first; the answer keeps the order in which they were said.
    let swapped = ask.starts_with("Add {b}");
    let (first, second) = if swapped { (b, a) } else { (a, b) };
    let ask = fill(rng, ask, a, b);
    let answer = if minus { format!("{a} - {b} = {}.", a - b) } else { format!("{first} + {second} = {}.", a + b) };
    (ask, answer)
}

/// Products of numbers up to 12. A held-out pair was seen in the other order: a product is learnt by heart, not worked out.
pub(super) fn product(split: Split, rng: &mut Rng) -> (String, String) {
    let (a, b) = loop {
        let (a, b) = (rng.between(0, 12), rng.between(0, 12));
        if (a > b && held_value(&format!("{a} times {b}"))) == (split == Split::Held) {
            break (a, b);
        }
    };
    let ask = phrase(
        split,
        rng,
        &[
            "What is {a} times {b}?",
            "What is {a} * {b}?",
            "{a} * {b}",
            "{a} times {b}",
            "What's {a} times {b}?",
            "{a}*{b}=",
            "How much is {a} times {b}?",
            "Calculate {a} * {b}.",
            "Multiply {a} by {b}.",
            "Compute {a} times {b}.",
            "{a} x {b}",
            "What is {a} multiplied by {b}?",
            "What is the product of {a} and {b}?",
            "What is {a} x {b}?",
            "{a} * {b} = ?",
            "Multiply {a} and {b}.",
            "{a}x{b}",
            "What is {a}*{b}?",
            "How much is {a} * {b}?",
            "Tell me {a} times {b}.",
        ],
    );
    (fill(rng, ask, a, b), format!("{a} * {b} = {}.", a * b))
}

fn fill(rng: &mut Rng, phrase: &str, a: usize, b: usize) -> String {
    loosen(rng, phrase).replace("{a}", &a.to_string()).replace("{b}", &b.to_string())
}

/// Counting up and down within 0..=40.
pub(super) fn count(split: Split, rng: &mut Rng) -> (String, String) {
    let style = rng.below(3);
    let (from, to) = loop {
        let from = if style == 0 { 1 } else { rng.between(0, 30) };
        let to = from + rng.between(2, if style == 0 { 19 } else { 10 });
        // Counting from one to something has too few values to hold any back; its phrasings are held back.
        if style == 0 || held_value(&format!("{from} to {to}")) == (split == Split::Held) {
            break (from, to);
        }
    };
    let ask = match style {
        0 => phrase(
            split,
            rng,
            &[
                "Count to {b}.",
                "Please count to {b}.",
                "Can you count to {b}?",
                "Count from one to {b}.",
                "Count up to {b}.",
                "Count to {b} for me.",
                "count to {b}",
                "I want you to count to {b}.",
                "Let us count to {b}.",
                "Can you count up to {b}?",
            ],
        ),
        1 => phrase(
            split,
            rng,
            &[
                "Count from {a} to {b}.",
                "Count up from {a} to {b}.",
                "Please count from {a} to {b}.",
                "List the numbers from {a} to {b}.",
                "Can you count from {a} to {b}?",
                "Count {a} to {b}.",
                "Write the numbers from {a} to {b}.",
                "count from {a} up to {b}",
                "Give me the numbers from {a} to {b}.",
                "Say the numbers from {a} to {b}.",
            ],
        ),
        _ => phrase(
            split,
            rng,
            &[
                "Count down from {b} to {a}.",
                "Count backwards from {b} to {a}.",
                "Please count down from {b} to {a}.",
                "Countdown from {b} to {a}.",
                "Can you count down from {b} to {a}?",
                "Count back from {b} to {a}.",
                "Count from {b} down to {a}.",
                "count down from {b} to {a}",
                "List the numbers from {b} down to {a}.",
                "Can you count backwards from {b} to {a}?",
            ],
        ),
    };
    let mut numbers: Vec<String> = (from..=to).map(|n| n.to_string()).collect();
    if style == 2 {
        numbers.reverse();
    }
    (fill(rng, ask, from, to), format!("{}.", numbers.join(", ")))
}
