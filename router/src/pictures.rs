//! How many tokens a picture can be billed as, by the families of models whose providers say so.
//!
//! OpenAI counts pictures by tiles (a base and so much for each square of 512 pixels, of which there are at most eight after a picture was
//! made to fit 2048 by 768) or by patches (at most 1,536, times a factor of the model): developers.openai.com/api/docs/guides/images-vision.
//! Gemini counts 258 for each tile of 768 pixels (ai.google.dev/gemini-api/docs/tokens); sixteen of them are a picture of 3072 by 3072.

use crate::ask::MEDIA_TOKENS;

/// Of those that nobody says: as many as a picture of 1024 by 1024 has in patches of 16.
const UNKNOWN: u64 = 4096;

/// The beginning of a model's name, and the most tokens of one picture. The longest beginning that fits counts.
const FAMILIES: &[(&str, u64)] = &[
    ("gpt-4o", tiles(85, 170)),
    ("gpt-4o-mini", tiles(2833, 5667)),
    ("gpt-4.1", tiles(85, 170)),
    ("gpt-4.1-mini", patches(162)),
    ("gpt-4.1-nano", patches(246)),
    ("gpt-4.5", tiles(85, 170)),
    ("gpt-4-turbo", tiles(85, 170)),
    ("o1", tiles(75, 150)),
    ("o3", tiles(75, 150)),
    ("o4-mini", patches(172)),
    ("claude-", MEDIA_TOKENS),
    ("gemini-", 16 * 258),
];

const fn tiles(base: u64, each: u64) -> u64 {
    base + 8 * each
}

/// The factor in hundredths.
const fn patches(factor: u64) -> u64 {
    (1536 * factor).div_ceil(100)
}

/// The most tokens that one picture can be billed as by a model such as `gpt-4o-mini` or `openai/gpt-4o-mini`.
pub fn most_tokens(model: &str) -> u64 {
    let name = model.rsplit('/').next().unwrap_or(model);
    let known = FAMILIES.iter().filter(|(prefix, _)| name.starts_with(prefix));
    known.max_by_key(|(prefix, _)| prefix.len()).map_or(UNKNOWN, |(_, tokens)| *tokens)
}

#[cfg(test)]
mod tests {
    use super::most_tokens;

    #[test]
    fn the_longest_beginning_of_a_name_counts() {
        let cases = [
            ("gpt-4o", 1445),
            ("openai/gpt-4o-2024-11-20", 1445),
            ("gpt-4o-mini-2024-07-18", 48_169),
            ("gpt-4.1-mini", 2489),
            ("gemini-2.5-flash", 4128),
            ("claude-sonnet-4-5", 1600),
            ("who-knows", 4096),
        ];
        for (model, tokens) in cases {
            assert_eq!(most_tokens(model), tokens, "{model}");
        }
    }
}
