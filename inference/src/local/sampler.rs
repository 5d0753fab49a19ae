//! How a token is drawn from logits: biases, penalties, temperature, top-k, typical, top-p, min-p, XTC, a grammar, and a seed.
//!
//! The order is llama.cpp's: biases and penalties (DRY last), grammar, top-k, typical, top-p, min-p, XTC, temperature, draw. What a
//! request leaves open takes llama.cpp's defaults too (temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, the others off). The repeat
//! penalty looks at the last 64 tokens of prompt and answer, DRY at all of them, the other two at the whole answer. With temperature 0
//! the best token is taken whatever the cuts say; so XTC, which would leave it out, does nothing then.

use super::dry::Repetitions;
use super::engine::{Constraint, Token, Tokenizer};
use std::collections::{HashMap, VecDeque};
use tollkeeper_protocol::chat::{Sampling, Xtc};
use tollkeeper_protocol::event::TokenLogprob;

const REPEAT_WINDOW: usize = 64;

/// The logits are unusable: the model or its file is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model gave no usable probabilities")]
pub(crate) struct NoCandidate;

/// Draws the tokens of one answer.
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    typical_p: f32,
    xtc: Option<Xtc>,
    frequency: f32,
    presence: f32,
    /// `None` is no penalty.
    repeat: Option<f32>,
    dry: Option<Repetitions>,
    bias: Vec<(Token, f32)>,
    random: SplitMix,
    counts: HashMap<Token, u32>,
    recent: VecDeque<Token>,
    constraint: Option<Box<dyn Constraint>>,
    adjusted: Vec<f32>,
    candidates: Vec<(Token, f32)>,
}

impl Sampler {
    /// `prompt` feeds the repeat penalty and DRY; `choice` makes the answers to one request differ.
    pub(crate) fn new(
        wanted: &Sampling,
        choice: u32,
        prompt: &[Token],
        tokenizer: &dyn Tokenizer,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Self {
        let seed = wanted.seed.map_or_else(random_seed, |seed| seed.wrapping_add(u64::from(choice)));
        Self {
            temperature: wanted.temperature.unwrap_or(0.8),
            top_p: wanted.top_p.unwrap_or(0.95),
            top_k: wanted.top_k.unwrap_or(40) as usize,
            min_p: wanted.min_p.unwrap_or(0.05),
            typical_p: wanted.typical_p.unwrap_or(1.0),
            xtc: wanted.xtc.filter(|xtc| xtc.threshold <= 0.5),
            frequency: wanted.frequency_penalty.unwrap_or(0.0),
            presence: wanted.presence_penalty.unwrap_or(0.0),
            repeat: wanted.repeat_penalty.filter(|penalty| *penalty > 0.0 && (penalty - 1.0).abs() > f32::EPSILON),
            dry: wanted.dry.clone().map(|dry| Repetitions::new(*dry, prompt, tokenizer)),
            bias: wanted.logit_bias.clone(),
            random: SplitMix(seed),
            counts: HashMap::new(),
            recent: prompt[prompt.len().saturating_sub(REPEAT_WINDOW)..].iter().copied().collect(),
            constraint,
            adjusted: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Draws the next token. The tokenizer tells end tokens, which a grammar does not follow, and the text of the others.
    pub(crate) fn draw(&mut self, logits: &[f32], tokenizer: &dyn Tokenizer) -> Result<Token, NoCandidate> {
        let mut adjusted = std::mem::take(&mut self.adjusted);
        let logits = if self.adjusts() {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            &adjusted[..]
        } else {
            logits
        };
        let drawn = self.choose(logits);
        self.adjusted = adjusted;
        let token = drawn?;
        self.note(token, tokenizer)?;
        Ok(token)
    }

    fn adjusts(&self) -> bool {
        let penalises = self.frequency != 0.0 || self.presence != 0.0 || self.repeat.is_some() || self.dry.is_some();
        penalises || !self.bias.is_empty()
    }

    fn adjust(&mut self, logits: &mut [f32]) {
        for (token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(penalty) = self.repeat {
            let mut seen: Vec<Token> = self.recent.iter().copied().collect();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= *count as f32 * self.frequency + self.presence;
            }
        }
        if let Some(dry) = &mut self.dry {
            dry.penalise(logits);
        }
    }

    /// Draws freely first; only if the grammar refuses that token is the whole vocabulary filtered.
    fn choose(&mut self, logits: &[f32]) -> Result<Token, NoCandidate> {
        let mut candidates = std::mem::take(&mut self.candidates);
        let mut token = if self.greedy() {
            best(logits.iter().copied().zip(0..).map(|(logit, token)| (token, logit)))
        } else {
            all(logits, &mut candidates);
            self.pick(&mut candidates)
        };
        if let (Some(free), Some(constraint)) = (token, &mut self.constraint)
            && !constraint.allows(free)
        {
            all(logits, &mut candidates);
            constraint.filter(&mut candidates);
            token = if self.greedy() { best(candidates.iter().copied()) } else { self.pick(&mut candidates) };
        }
        self.candidates = candidates;
        token.ok_or(NoCandidate)
    }

    fn greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    fn note(&mut self, token: Token, tokenizer: &dyn Tokenizer) -> Result<(), NoCandidate> {
        if let (false, Some(constraint)) = (tokenizer.is_end(token), &mut self.constraint) {
            constraint.accept(token).map_err(|_| NoCandidate)?;
        }
        if self.frequency != 0.0 || self.presence != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
        if self.repeat.is_some() {
            self.recent.push_back(token);
            if self.recent.len() > REPEAT_WINDOW {
                self.recent.pop_front();
            }
        }
        if let Some(dry) = &mut self.dry {
            dry.note(token, tokenizer);
        }
        Ok(())
    }

    fn pick(&mut self, candidates: &mut Vec<(Token, f32)>) -> Option<Token> {
        if self.top_k > 0 && self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, by_logit);
            candidates.truncate(self.top_k);
        }
        if self.typical_p < 1.0 {
            keep_typical(candidates, self.typical_p);
        }
        if self.top_p < 1.0 || self.min_p > 0.0 {
            candidates.sort_unstable_by(by_logit);
            cut(candidates, self.top_p, self.min_p);
        }
        if let Some(xtc) = self.xtc
            && self.random.unit() < f64::from(xtc.probability)
        {
            exclude_top_choices(candidates, xtc.threshold);
        }
        let (_, highest) = *candidates.iter().max_by(|a, b| a.1.total_cmp(&b.1))?;
        let weight = |logit: f32| f64::from((logit - highest) / self.temperature).exp();
        let total: f64 = candidates.iter().map(|(_, logit)| weight(*logit)).sum();
        let mut left = self.random.unit() * total;
        for (token, logit) in candidates.iter() {
            left -= weight(*logit);
            if left < 0.0 {
                return Some(*token);
            }
        }
        candidates.last().map(|(token, _)| *token)
    }
}

/// Best first; equal logits by token, so that sorting decides nothing at random.
fn by_logit(a: &(Token, f32), b: &(Token, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// All tokens with a finite logit.
fn all(logits: &[f32], into: &mut Vec<(Token, f32)>) {
    into.clear();
    into.extend((0..).zip(logits.iter().copied()).filter(|(_, logit)| logit.is_finite()));
}

/// The first of the highest finite logits.
fn best(candidates: impl Iterator<Item = (Token, f32)>) -> Option<Token> {
    let mut best: Option<(Token, f32)> = None;
    for (token, logit) in candidates {
        if logit.is_finite() && best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

/// Keeps of the sorted candidates the fewest whose probabilities reach `top_p`, of those the ones with at least `min_p` of the
/// best one's probability, and always the best.
fn cut(candidates: &mut Vec<(Token, f32)>, top_p: f32, min_p: f32) {
    let Some((_, highest)) = candidates.first().copied() else { return };
    let weight = |logit: f32| f64::from(logit - highest).exp();
    let total: f64 = candidates.iter().map(|(_, logit)| weight(*logit)).sum();
    let mut reached = 0.0;
    let mut keep = 0;
    for (_, logit) in candidates.iter() {
        let share = weight(*logit);
        if keep > 0 && (reached >= f64::from(top_p) * total || share < f64::from(min_p)) {
            break;
        }
        reached += share;
        keep += 1;
    }
    candidates.truncate(keep);
}

/// The probabilities of candidates, in their order.
fn probabilities(candidates: &[(Token, f32)]) -> Vec<f64> {
    let highest = candidates.iter().map(|(_, logit)| *logit).fold(f32::MIN, f32::max);
    let weights: Vec<f64> = candidates.iter().map(|(_, logit)| f64::from(logit - highest).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// Keeps the candidates whose surprise is closest to what is to be expected (the entropy), as many as it takes to reach `share`
/// of the probability, and always one.
fn keep_typical(candidates: &mut Vec<(Token, f32)>, share: f32) {
    let mut typical: Vec<((Token, f32), f64)> = candidates
        .iter()
        .copied()
        .zip(probabilities(candidates))
        .filter(|(_, probability)| *probability > 0.0)
        .collect();
    let entropy: f64 = typical.iter().map(|(_, probability)| -probability * probability.ln()).sum();
    let oddness = |probability: f64| (-probability.ln() - entropy).abs();
    typical.sort_unstable_by(|a, b| oddness(a.1).total_cmp(&oddness(b.1)).then(by_logit(&a.0, &b.0)));
    candidates.clear();
    let mut reached = 0.0;
    for (candidate, probability) in typical {
        if !candidates.is_empty() && reached >= f64::from(share) {
            break;
        }
        reached += probability;
        candidates.push(candidate);
    }
}

/// Leaves out all candidates with a probability of at least `threshold` but the least likely of them.
fn exclude_top_choices(candidates: &mut Vec<(Token, f32)>, threshold: f32) {
    candidates.sort_unstable_by(by_logit);
    let likely = probabilities(candidates).iter().take_while(|share| **share >= f64::from(threshold)).count();
    candidates.drain(..likely.saturating_sub(1));
}

/// The log-probability of `token` and the entropy in nats of the model's own distribution (before biases, penalties and temperature).
pub(crate) fn certainty(logits: &[f32], token: Token) -> (f32, f32) {
    let finite = || logits.iter().copied().filter(|logit| logit.is_finite());
    let highest = finite().fold(f32::MIN, f32::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for below in finite().map(|logit| f64::from(logit - highest)) {
        let weight = below.exp();
        sum += weight;
        weighted += weight * below;
    }
    // With p = exp(below) / sum, the entropy -sum(p ln p) is ln(sum) - sum(p * below).
    let normal = sum.ln();
    let logprob = logits.get(token as usize).map_or(f64::NEG_INFINITY, |logit| f64::from(logit - highest) - normal);
    (logprob as f32, (normal - weighted / sum) as f32)
}

/// The log-probability of `token` and of the `top` most likely tokens, under the model's own distribution (before biases,
/// penalties and temperature).
pub(crate) fn logprob(logits: &[f32], token: Token, top: u8, tokenizer: &dyn Tokenizer) -> TokenLogprob {
    let highest = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().filter(|logit| logit.is_finite()).map(|logit| f64::from(logit - highest).exp()).sum();
    let normal = f64::from(highest) + sum.ln();
    let of = |logit: f32| (f64::from(logit) - normal) as f32;
    let mut alternatives = Vec::new();
    all(logits, &mut alternatives);
    let count = usize::from(top).min(alternatives.len());
    if count > 0 && count < alternatives.len() {
        alternatives.select_nth_unstable_by(count - 1, by_logit);
    }
    alternatives.truncate(count);
    alternatives.sort_unstable_by(by_logit);
    let name = |token: Token| {
        let bytes = tokenizer.piece(token);
        (String::from_utf8_lossy(&bytes).into_owned(), bytes)
    };
    let (text, bytes) = name(token);
    TokenLogprob {
        token: text,
        bytes,
        logprob: Some(logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| of(*logit))),
        top: alternatives
            .into_iter()
            .map(|(token, logit)| {
                let (text, bytes) = name(token);
                (text, bytes, of(logit))
            })
            .collect(),
    }
}

/// Sebastiano Vigna's SplitMix64: small, and the same on every machine and in every release.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    /// The next 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to but not including 1.
    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed nobody chose.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::scripted::{IM_END, ScriptedTokenizer};
    use proptest::prelude::*;
    use tollkeeper_protocol::chat::Dry;

    fn greedy() -> Sampling {
        Sampling { temperature: Some(0.0), ..Sampling::default() }
    }

    /// Everything open: the bare distribution.
    fn bare() -> Sampling {
        Sampling {
            temperature: Some(1.0),
            top_p: Some(1.0),
            top_k: Some(0),
            min_p: Some(0.0),
            seed: Some(1),
            ..Sampling::default()
        }
    }

    fn sampler(sampling: &Sampling) -> Sampler {
        Sampler::new(sampling, 0, &[], &ScriptedTokenizer, None)
    }

    fn draws(sampling: &Sampling, logits: &[f32], count: usize) -> Vec<Token> {
        let mut sampler = sampler(sampling);
        (0..count).map(|_| sampler.draw(logits, &ScriptedTokenizer).unwrap()).collect()
    }

    fn support(sampling: &Sampling, logits: &[f32]) -> Vec<Token> {
        let mut seen = draws(sampling, logits, 2000);
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn certainty_is_the_log_of_the_probability_and_the_entropy() {
        // Probabilities 1/2, 1/4, 1/4, and a token that cannot be.
        let logits = [3.0 + 2f32.ln(), 3.0, 3.0, f32::NEG_INFINITY];
        let (logprob, entropy) = certainty(&logits, 0);
        assert!((logprob - 0.5f32.ln()).abs() < 1e-6, "{logprob}");
        assert!((entropy - 1.5 * 2f32.ln()).abs() < 1e-6, "{entropy}");
        assert!((certainty(&logits, 2).0 - 0.25f32.ln()).abs() < 1e-6);
        assert!(certainty(&logits, 3).0.is_infinite());
        let (logprob, entropy) = certainty(&[7.0], 0);
        assert!(logprob.abs() < 1e-6 && entropy.abs() < 1e-6, "{logprob} {entropy}");
    }

    #[test]
    fn temperature_zero_takes_the_best_and_unusable_logits_are_passed_over() {
        assert_eq!(draws(&greedy(), &[0.0, 3.0, 3.0, f32::NAN, f32::INFINITY], 1), [1]);
        assert_eq!(sampler(&greedy()).draw(&[f32::NAN, f32::NEG_INFINITY], &ScriptedTokenizer), Err(NoCandidate));
        assert_eq!(sampler(&bare()).draw(&[f32::NAN; 3], &ScriptedTokenizer), Err(NoCandidate));
        assert_eq!(sampler(&bare()).draw(&[], &ScriptedTokenizer), Err(NoCandidate));
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0];
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let drawn = draws(&bare(), &logits, 20_000);
        for (token, logit) in (0..).zip(logits) {
            let share = drawn.iter().filter(|drawn| **drawn == token).count() as f64 / 20_000.0;
            assert!((share - f64::from(logit).exp() / total).abs() < 0.015, "token {token}: {share}");
        }
    }

    #[test]
    fn the_cuts_leave_what_they_should() {
        // Probabilities 0.5, 0.25, 0.15, 0.1.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|share| share.ln()).collect();
        let xtc = |probability, threshold| Some(Xtc { probability, threshold });
        let table: [(Sampling, &[Token]); 14] = [
            (bare(), &[0, 1, 2, 3]),
            (Sampling { top_k: Some(2), ..bare() }, &[0, 1]),
            (Sampling { top_p: Some(0.6), ..bare() }, &[0, 1]),
            (Sampling { top_p: Some(0.0), ..bare() }, &[0]),
            (Sampling { min_p: Some(0.25), ..bare() }, &[0, 1, 2]),
            (Sampling { top_k: Some(3), top_p: Some(0.99), min_p: Some(0.4), ..bare() }, &[0, 1]),
            // Their entropy is 1.21 nats, their surprise 0.69, 1.39, 1.90 and 2.30.
            (Sampling { typical_p: Some(0.2), ..bare() }, &[1]),
            (Sampling { typical_p: Some(0.7), ..bare() }, &[0, 1]),
            (Sampling { typical_p: Some(0.8), ..bare() }, &[0, 1, 2]),
            (Sampling { xtc: xtc(1.0, 0.2), ..bare() }, &[1, 2, 3]),
            (Sampling { xtc: xtc(1.0, 0.12), ..bare() }, &[2, 3]),
            (Sampling { xtc: xtc(1.0, 0.5), ..bare() }, &[0, 1, 2, 3]),
            (Sampling { xtc: xtc(0.5, 0.2), ..bare() }, &[0, 1, 2, 3]),
            (Sampling { min_p: Some(0.25), xtc: xtc(1.0, 0.16), ..bare() }, &[2]),
        ];
        for (sampling, expected) in table {
            assert_eq!(support(&sampling, &logits), expected, "{sampling:?}");
        }
    }

    #[test]
    fn biases_and_penalties_move_the_choice() {
        let logits = [2.0, 1.9, 0.0];
        assert_eq!(draws(&Sampling { logit_bias: vec![(2, 100.0)], ..greedy() }, &logits, 1), [2]);
        assert_eq!(draws(&Sampling { logit_bias: vec![(0, -100.0)], ..greedy() }, &logits, 2), [1, 1]);
        assert_eq!(draws(&Sampling { presence_penalty: Some(0.2), ..greedy() }, &logits, 4), [0, 1, 0, 0]);
        assert_eq!(draws(&Sampling { frequency_penalty: Some(0.2), ..greedy() }, &logits, 4), [0, 1, 0, 1]);
        let mut repeated =
            Sampler::new(&Sampling { repeat_penalty: Some(2.0), ..greedy() }, 0, &[0], &ScriptedTokenizer, None);
        assert_eq!(repeated.draw(&logits, &ScriptedTokenizer), Ok(1), "the prompt counts");
    }

    #[test]
    fn xtc_excludes_as_often_as_it_should_and_never_at_temperature_zero() {
        let logits = [2.0, 1.9, 1.8];
        let xtc = Some(Xtc { probability: 0.25, threshold: 0.1 });
        let drawn = draws(&Sampling { top_k: Some(2), xtc, ..bare() }, &logits, 4000);
        let best = drawn.iter().filter(|token| **token == 0).count() as f64 / 4000.0;
        assert!((best - 0.75 * 0.525).abs() < 0.03, "{best}");
        assert_eq!(
            draws(&Sampling { xtc: Some(Xtc { probability: 1.0, threshold: 0.1 }), ..greedy() }, &logits, 1),
            [0]
        );
    }

    #[test]
    fn dry_ends_a_loop() {
        // Whatever came before, the next letter of "abc" is best, and "z" is second.
        let next = |last: Token| {
            let mut logits = vec![0.0; 128];
            logits[b"bca"[last as usize - 97] as usize] = 2.0;
            logits[b'z' as usize] = 1.0;
            logits
        };
        let dry = Dry { multiplier: 0.8, base: 1.75, allowed_length: 2, last_n: None, breakers: Vec::new() };
        let letters = |sampling: &Sampling| {
            let prompt = [Token::from(b'a')];
            let mut sampler = Sampler::new(sampling, 0, &prompt, &ScriptedTokenizer, None);
            let mut said = String::from("a");
            while said.len() < 20 && !said.ends_with('z') {
                let last = Token::from(*said.as_bytes().last().unwrap());
                let token = sampler.draw(&next(last), &ScriptedTokenizer).unwrap();
                said.push(char::from(u8::try_from(token).unwrap()));
            }
            said
        };
        assert_eq!(letters(&greedy()), "abcabcabcabcabcabcab");
        assert_eq!(letters(&Sampling { dry: Some(dry.into()), ..greedy() }), "abcabcz");
    }

    #[test]
    fn a_seed_repeats_and_choices_differ() {
        let logits = [0.0; 100];
        assert_eq!(draws(&bare(), &logits, 50), draws(&bare(), &logits, 50));
        let mut other = Sampler::new(&bare(), 1, &[], &ScriptedTokenizer, None);
        let others: Vec<Token> = (0..50).map(|_| other.draw(&logits, &ScriptedTokenizer).unwrap()).collect();
        assert_ne!(draws(&bare(), &logits, 50), others);
        let unseeded = Sampling { seed: None, ..bare() };
        assert_ne!(draws(&unseeded, &logits, 50), draws(&unseeded, &logits, 50));
    }

    /// Allows even tokens and the end token, which it does not take.
    struct Even(Vec<Token>);

    impl Constraint for Even {
        fn allows(&mut self, token: Token) -> bool {
            token.is_multiple_of(2) || token == IM_END
        }

        fn filter(&mut self, candidates: &mut Vec<(Token, f32)>) {
            candidates.retain(|(token, _)| token % 2 == 0);
        }

        fn accept(&mut self, token: Token) -> Result<(), String> {
            self.0.push(token);
            if token.is_multiple_of(2) { Ok(()) } else { Err("odd".into()) }
        }
    }

    #[test]
    fn a_constraint_is_obeyed_and_never_fed_an_end() {
        let even = || Some(Box::new(Even(Vec::new())) as Box<dyn Constraint>);
        let mut best = Sampler::new(&greedy(), 0, &[], &ScriptedTokenizer, even());
        assert_eq!(best.draw(&[1.0, 9.0, 3.0, 2.0], &ScriptedTokenizer), Ok(2));
        let mut drawn = Sampler::new(&bare(), 0, &[], &ScriptedTokenizer, even());
        assert!((0..200).all(|_| drawn.draw(&[1.0; 9], &ScriptedTokenizer).unwrap().is_multiple_of(2)));
        assert_eq!(best.draw(&[f32::NAN, 9.0], &ScriptedTokenizer), Err(NoCandidate), "nothing is left");
        let mut over = vec![1.0; 258];
        over[IM_END as usize] = 9.0;
        assert_eq!(best.draw(&over, &ScriptedTokenizer), Ok(IM_END));
    }

    proptest! {
        #[test]
        fn log_probabilities_are_a_distribution(logits in prop::collection::vec(-30.0f32..30.0, 21..200), token in 0u32..21) {
            let said = logprob(&logits, token, 20, &ScriptedTokenizer);
            prop_assert!(said.logprob.unwrap() <= 1e-5);
            prop_assert_eq!(said.top.len(), 20);
            prop_assert!(said.top.windows(2).all(|pair| pair[0].2 >= pair[1].2));
            let sum: f64 = said.top.iter().map(|(_, _, logprob)| f64::from(*logprob).exp()).sum();
            prop_assert!(sum <= 1.0 + 1e-4);
            let all: f64 = (0..logits.len()).map(|token| f64::from(logprob(&logits, token as Token, 0, &ScriptedTokenizer).logprob.unwrap()).exp()).sum();
            prop_assert!((all - 1.0).abs() < 1e-3, "{}", all);
        }
    }
}
