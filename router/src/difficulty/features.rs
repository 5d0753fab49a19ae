//! What is seen of a prompt: its shape as a row of bytes, and its words and pairs of words as places in a table.

use super::lexicon::{GROUPS, group};
use super::text::{Kind, Token, mix, sample, tokens};
use std::sync::LazyLock;

/// How many places there are for words and pairs.
pub(super) const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 15;

/// The features of a prompt's shape, in this order; behind them the groups of the lexicon.
pub(super) const SHAPE: &[&str] = &[
    "bytes",
    "stem_bytes",
    "words",
    "sentences",
    "word_length",
    "distinct_words",
    "long_words",
    "capitals",
    "signs",
    "not_ascii",
    "lines",
    "quotes",
    "items",
    "item_bytes",
    "longest_item",
    "shortest_item",
    "item_spread",
    "item_repeats",
    "numeric_items",
    "item_echo",
    "numbers",
    "stem_numbers",
    "distinct_numbers",
    "largest_number",
    "decimals",
    "percents",
    "dollars",
    "slashes",
    "number_share",
    "asks",
    "colon",
    "stops",
    "blank",
    "commas",
    "commas_per_sentence",
    "calls",
    "code",
    "shouts",
    "sentence_length",
    "last_sentence",
];

/// The features that count in open questions: what makes a problem told in words long and winding.
pub(super) const TOLD: &[&str] = &[
    "bytes",
    "words",
    "sentences",
    "last_sentence",
    "commas",
    "numbers",
    "distinct_numbers",
    "largest_number",
    "decimals",
    "percents",
    "dollars",
    "slashes",
    "numeral",
    "fraction",
    "compare",
    "rest",
    "rate",
    "time",
    "money",
    "condition",
    "order",
    "average",
    "age",
    "sum",
    "negation",
    "change",
    "speed",
    "parts",
];

/// The place of each of them.
pub(super) static TOLD_PLACES: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let names = || SHAPE.iter().copied().chain(GROUPS.iter().map(|(name, _)| *name));
    TOLD.iter().filter_map(|told| names().position(|name| name == *told)).collect()
});

/// Where the count of items stands.
const ITEMS: usize = 12;

/// How many features there are.
pub(super) const COUNT: usize = SHAPE.len() + GROUPS.len();

/// A prompt as the model sees it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// One byte for each feature; counts on a logarithmic scale, shares of 255.
    pub(super) shape: [u8; COUNT],
    /// The places of its words and pairs of words, each once.
    pub(super) buckets: Vec<u16>,
}

impl Seen {
    /// Whether it lists fewer than three things: then it is no choice among given answers.
    pub(super) fn is_open(&self) -> bool {
        self.shape[ITEMS] < log(3)
    }
}

/// Looks at a prompt.
pub(super) fn see(prompt: &str) -> Seen {
    let text = sample(prompt);
    let tokens = tokens(&text);
    let (buckets, distinct) = buckets(&tokens);
    Seen { shape: shape(&text, &tokens, distinct, prompt.len()), buckets }
}

/// The places of words and pairs, and how many different words there are.
fn buckets(tokens: &[Token]) -> (Vec<u16>, usize) {
    let mut seen = vec![0u64; BUCKETS / 64];
    let mut buckets = Vec::with_capacity(tokens.len() * 2);
    let mut new = |hash: u64| {
        let bucket = (mix(hash, 1) >> (64 - BUCKET_BITS)) as u16;
        let (word, bit) = (usize::from(bucket) / 64, 1 << (bucket % 64));
        let is_new = seen[word] & bit == 0;
        if is_new {
            seen[word] |= bit;
            buckets.push(bucket);
        }
        is_new
    };
    let mut distinct = 0;
    let mut before = 0;
    for token in tokens {
        distinct += usize::from(new(token.hash) && token.kind == Kind::Word);
        new(mix(before, token.hash));
        before = token.hash;
    }
    (buckets, distinct)
}

/// A count on a logarithmic scale: 16 steps for each doubling.
fn log(count: usize) -> u8 {
    ((count as f32 + 1.0).log2() * 16.0).min(255.0) as u8
}

/// A share of 255.
fn share(part: usize, whole: usize) -> u8 {
    (part * 255).checked_div(whole).unwrap_or(0).min(255) as u8
}

/// A line that is an item of a list: where it begins, where its text begins, where it ends.
struct Item {
    start: usize,
    from: usize,
    to: usize,
}

/// Lines that begin with a letter or digit and a dot or bracket: `A. `, `b) `, `(c) `, `3. `.
fn items(text: &str) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let bytes = line.as_bytes();
        let open = usize::from(bytes.first() == Some(&b'('));
        let is_item = bytes.get(open).is_some_and(u8::is_ascii_alphanumeric)
            && matches!(bytes.get(open + 1), Some(b'.' | b')'))
            && matches!(bytes.get(open + 2), Some(b' '));
        let end = at + line.trim_end().len();
        if is_item {
            items.push(Item { start: at, from: at + open + 3, to: end.max(at + open + 3) });
        } else if let Some(last) = items.last_mut()
            && !line.trim_end().ends_with(':')
        {
            last.to = end.max(last.to);
        }
        at += line.len();
    }
    items
}

fn shape(text: &str, tokens: &[Token], distinct: usize, length: usize) -> [u8; COUNT] {
    let bytes = text.as_bytes();
    let items = items(text);
    let stem = text[..items.first().map_or(text.len(), |item| item.start)].trim_end();
    let words = Words::count(bytes, tokens, stem.len());
    let count = |wanted: u8| bytes.iter().filter(|byte| **byte == wanted).count();
    let sizes = || items.iter().map(|item| item.to - item.from);
    let (longest, shortest) = (sizes().max().unwrap_or(0), sizes().min().unwrap_or(0));
    let listed = Listed::of(tokens, &items, stem.len());
    let ends = |mark: char| if stem.ends_with(mark) { 255 } else { 0 };
    let signs = bytes.iter().filter(|byte| b"+-*/=^<>()[]{}\\|".contains(byte)).count();
    let code = bytes.iter().filter(|byte| b"{};`".contains(byte)).count();
    let commas = count(b',');
    let features = [
        log(length),
        log(stem.len()),
        log(words.words),
        log(words.sentences),
        (25 * words.letters).checked_div(words.words).unwrap_or(0).min(255) as u8,
        share(distinct, words.words),
        share(words.long, words.words),
        share(4 * bytes.iter().filter(|byte| byte.is_ascii_uppercase()).count(), bytes.len()),
        log(signs),
        log(bytes.iter().filter(|byte| **byte >= 0xc0).count()),
        log(count(b'\n')),
        log(count(b'"')),
        log(items.len()),
        log(sizes().sum::<usize>().checked_div(items.len()).unwrap_or(0)),
        log(longest),
        log(shortest),
        share(longest - shortest, longest),
        share(listed.repeats, listed.words),
        share(listed.numeric, items.len()),
        share(listed.echo, listed.words),
        log(words.numbers),
        log(words.stem_numbers),
        log(words.distinct_numbers),
        log(words.largest),
        log(words.decimals),
        log(count(b'%')),
        log(count(b'$')),
        log(count(b'/')),
        share(words.numbers, tokens.len()),
        ends('?'),
        ends(':'),
        ends('.'),
        log(count(b'_')),
        log(commas),
        log(4 * commas / words.sentences.max(1)),
        log(words.calls),
        log(code),
        log(words.shouts),
        log(words.words / words.sentences.max(1)),
        log(stem.len() - stem.rfind(". ").unwrap_or(0)),
    ];
    let mut shape = [0; COUNT];
    for (place, value) in shape.iter_mut().zip(features.into_iter().chain(words.groups.map(log))) {
        *place = value;
    }
    shape
}

/// Counts over the tokens.
struct Words {
    words: usize,
    letters: usize,
    long: usize,
    shouts: usize,
    calls: usize,
    sentences: usize,
    numbers: usize,
    stem_numbers: usize,
    distinct_numbers: usize,
    largest: usize,
    decimals: usize,
    groups: [usize; GROUPS.len()],
}

impl Words {
    fn count(bytes: &[u8], tokens: &[Token], stem: usize) -> Self {
        let mut counts = Self {
            words: 0,
            letters: 0,
            long: 0,
            shouts: 0,
            calls: 0,
            sentences: 1,
            numbers: 0,
            stem_numbers: 0,
            distinct_numbers: 0,
            largest: 0,
            decimals: 0,
            groups: [0; GROUPS.len()],
        };
        let mut figures: Vec<&[u8]> = Vec::new();
        for (place, token) in tokens.iter().enumerate() {
            let raw = &bytes[token.at..token.at + token.length];
            let next = bytes.get(token.at + token.length);
            match token.kind {
                Kind::Word => {
                    counts.words += 1;
                    counts.letters += token.length;
                    counts.long += usize::from(token.length > 9);
                    counts.shouts += usize::from(token.length > 2 && raw.iter().all(u8::is_ascii_uppercase));
                    counts.calls += usize::from(next == Some(&b'('));
                    if let Some(group) = group(token.hash) {
                        counts.groups[group] += 1;
                    }
                }
                Kind::Number => {
                    counts.numbers += 1;
                    let value = raw.iter().take(9).fold(0, |value, digit| value * 10 + usize::from(digit - b'0'));
                    counts.largest = counts.largest.max(value);
                    let point = place.checked_sub(1).is_some_and(|before| bytes[tokens[before].at] == b'.');
                    counts.decimals += usize::from(point && token.at > 0 && bytes[token.at - 1] == b'.');
                    if token.at < stem {
                        counts.stem_numbers += 1;
                        // Beyond so many it does not matter whether they are new.
                        if figures.len() < 64 && !figures.contains(&raw) {
                            figures.push(raw);
                        }
                    }
                }
                Kind::Mark => {
                    let ends = matches!(raw, b"." | b"?" | b"!") && next.is_none_or(u8::is_ascii_whitespace);
                    counts.sentences += usize::from(ends && token.at < stem);
                }
            }
        }
        counts.distinct_numbers = figures.len();
        counts
    }
}

/// What the items of a list have in common.
struct Listed {
    words: usize,
    /// Words that stood in an item before.
    repeats: usize,
    /// Words that stand in the text above.
    echo: usize,
    /// Items that are little else than a number.
    numeric: usize,
}

impl Listed {
    fn of(tokens: &[Token], items: &[Item], stem: usize) -> Self {
        let mut counts = Self { words: 0, repeats: 0, echo: 0, numeric: 0 };
        if items.is_empty() {
            return counts;
        }
        // Two small filters by hash; a false hit now and then does no harm.
        let (mut above, mut before) = ([0u64; 64], [0u64; 64]);
        let bit = |token: &Token| ((token.hash >> 8) as usize % 64, 1u64 << ((token.hash >> 32) % 64));
        let mut rest = tokens.iter().peekable();
        while let Some(token) = rest.next_if(|token| token.at < stem) {
            let (word, bit) = bit(token);
            above[word] |= bit;
        }
        for item in items {
            while rest.next_if(|token| token.at < item.from).is_some() {}
            let (mut words, mut numbers) = (0, 0);
            let mut now = [0u64; 64];
            while let Some(token) = rest.next_if(|token| token.at < item.to) {
                let (word, bit) = bit(token);
                match token.kind {
                    Kind::Number => numbers += 1,
                    Kind::Word => words += 1,
                    Kind::Mark => continue,
                }
                counts.words += 1;
                counts.echo += usize::from(above[word] & bit != 0);
                counts.repeats += usize::from(before[word] & bit != 0);
                now[word] |= bit;
            }
            for (all, now) in before.iter_mut().zip(now) {
                *all |= now;
            }
            counts.numeric += usize::from(numbers > 0 && words <= 2);
        }
        counts
    }
}
