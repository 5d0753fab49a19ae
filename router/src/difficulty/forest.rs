//! Extremely randomised trees: how they are grown, how they are kept in bytes, and what they say.
//!
//! A node takes four bytes. An inner one holds its feature, its threshold and the place of its right child in the tree (the left one
//! follows it): a value below the threshold goes left. A leaf holds [`LEAF`], the gain and the share of failures.

use super::features::{COUNT, Seen};
use super::text::mix;

const LEAF: u8 = 255;
/// A leaf's gain is kept in steps of this.
const GAIN_STEP: f32 = 1.0 / 127.0;

/// What the trees say of a prompt, or what happened.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Outcome {
    /// Right answers more of the strong model, -1 to 1.
    pub(super) gain: f32,
    /// Whether the weak model fails, 0 to 1.
    pub(super) fails: f32,
}

/// The trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forest {
    /// All nodes of all trees.
    nodes: Vec<[u8; 4]>,
    /// Where each tree begins.
    roots: Vec<u32>,
}

/// How trees are grown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Growth {
    pub(super) trees: usize,
    /// The fewest cases in a leaf.
    pub(super) leaf: usize,
    /// Features that are tried at each node.
    pub(super) tries: usize,
    /// The weight of failures beside that of gain when a split is judged.
    pub(super) fails_weight: f32,
    pub(super) seed: u64,
}

/// Numbers that look random, the same for the same seed (SplitMix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        ((u128::from(mix(self.0, 3)) * bound as u128) >> 64) as usize
    }

    fn shuffle<T>(&mut self, all: &mut [T], first: usize) {
        for place in 0..first.min(all.len()) {
            let other = place + self.below(all.len() - place);
            all.swap(place, other);
        }
    }
}

impl Forest {
    /// Grows trees, each from two thirds of the cases. Also gives what the trees that have not seen a case say of it.
    pub(super) fn grow(seen: &[&Seen], outcomes: &[Outcome], growth: Growth) -> (Self, Vec<Outcome>) {
        let columns: Vec<Vec<u8>> =
            (0..COUNT).map(|feature| seen.iter().map(|seen| seen.shape[feature]).collect()).collect();
        let mut forest = Self { nodes: Vec::new(), roots: Vec::new() };
        let mut unseen = vec![(Outcome::default(), 0u32); seen.len()];
        let mut draws = Draws(mix(growth.seed, 7));
        let mut order: Vec<usize> = (0..seen.len()).collect();
        for _ in 0..growth.trees {
            let drawn = seen.len() * 2 / 3;
            draws.shuffle(&mut order, drawn);
            let root = forest.nodes.len();
            forest.roots.push(root as u32);
            let (inside, outside) = order.split_at_mut(drawn);
            Grower { columns: &columns, outcomes, growth, draws: &mut draws, nodes: &mut forest.nodes, root }
                .grow(inside);
            for case in outside {
                let said = forest.ask(root, &seen[*case].shape);
                let (sum, count) = &mut unseen[*case];
                sum.gain += said.gain;
                sum.fails += said.fails;
                *count += 1;
            }
        }
        let mean = |(sum, count): (Outcome, u32)| {
            let count = count.max(1) as f32;
            Outcome { gain: sum.gain / count, fails: sum.fails / count }
        };
        (forest, unseen.into_iter().map(mean).collect())
    }

    /// The mean of what the trees say.
    pub(super) fn says(&self, shape: &[u8; COUNT]) -> Outcome {
        let count = self.roots.len().max(1) as f32;
        let sum = self.roots.iter().fold(Outcome::default(), |sum, root| {
            let said = self.ask(*root as usize, shape);
            Outcome { gain: sum.gain + said.gain, fails: sum.fails + said.fails }
        });
        Outcome { gain: sum.gain / count, fails: sum.fails / count }
    }

    fn ask(&self, root: usize, shape: &[u8; COUNT]) -> Outcome {
        let mut at = root;
        loop {
            let [feature, threshold, low, high] = self.nodes[at];
            if feature == LEAF {
                return Outcome { gain: f32::from(threshold as i8) * GAIN_STEP, fails: f32::from(low) / 255.0 };
            }
            let right = root + usize::from(u16::from_le_bytes([low, high]));
            at = if shape[usize::from(feature)] < threshold { at + 1 } else { right };
        }
    }

    /// The bytes of the trees.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend((self.roots.len() as u32).to_le_bytes());
        out.extend((self.nodes.len() as u32).to_le_bytes());
        self.roots.iter().for_each(|root| out.extend(root.to_le_bytes()));
        self.nodes.iter().for_each(|node| out.extend(node));
    }

    /// Reads trees, and makes sure that every way through them ends at a leaf.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut number = || Some(u32::from_le_bytes(take(bytes)?));
        let (trees, count) = (number()?, number()?);
        let roots: Vec<u32> = (0..trees).map(|_| number()).collect::<Option<_>>()?;
        let nodes: Vec<[u8; 4]> = (0..count).map(|_| take(bytes)).collect::<Option<_>>()?;
        let ends = roots.iter().skip(1).copied().chain([count]);
        let trees_are_whole = roots.first() == Some(&0)
            && roots.iter().zip(ends).all(|(root, end)| {
                *root < end
                    && end <= count
                    && (*root..end).all(|at| {
                        let [feature, _, low, high] = nodes[at as usize];
                        let right = root + u32::from(u16::from_le_bytes([low, high]));
                        feature == LEAF || usize::from(feature) < COUNT && right > at && right < end && at + 1 < end
                    })
            });
        trees_are_whole.then_some(Self { nodes, roots })
    }
}

/// The first bytes of a slice, which then begins behind them.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

struct Grower<'a> {
    columns: &'a [Vec<u8>],
    outcomes: &'a [Outcome],
    growth: Growth,
    draws: &'a mut Draws,
    nodes: &'a mut Vec<[u8; 4]>,
    root: usize,
}

impl Grower<'_> {
    fn grow(&mut self, cases: &mut [usize]) {
        let Some((feature, threshold)) = self.split(cases) else {
            let count = cases.len().max(1) as f32;
            let gain: f32 = cases.iter().map(|case| self.outcomes[*case].gain).sum();
            let fails: f32 = cases.iter().map(|case| self.outcomes[*case].fails).sum();
            let gain = (gain / count / GAIN_STEP).round().clamp(-127.0, 127.0) as i8;
            self.nodes.push([LEAF, gain as u8, (fails / count * 255.0).round() as u8, 0]);
            return;
        };
        let column = &self.columns[feature];
        let mut left = 0;
        for place in 0..cases.len() {
            if column[cases[place]] < threshold {
                cases.swap(left, place);
                left += 1;
            }
        }
        let node = self.nodes.len();
        self.nodes.push([feature as u8, threshold, 0, 0]);
        let (below, above) = cases.split_at_mut(left);
        self.grow(below);
        // A tree has at most twice as many nodes as leaves, and leaves are no smaller than `leaf`: 16 bits do.
        let [low, high] = ((self.nodes.len() - self.root) as u16).to_le_bytes();
        self.nodes[node][2] = low;
        self.nodes[node][3] = high;
        self.grow(above);
    }

    /// The best of a few features, each with a threshold drawn between its least and greatest value.
    fn split(&mut self, cases: &[usize]) -> Option<(usize, u8)> {
        if cases.len() < 2 * self.growth.leaf {
            return None;
        }
        let mut features: [usize; COUNT] = std::array::from_fn(|feature| feature);
        self.draws.shuffle(&mut features, COUNT);
        let mut best: Option<(f32, usize, u8)> = None;
        let mut tried = 0;
        for feature in features {
            let column = &self.columns[feature];
            let (least, most) = cases.iter().fold((255, 0), |(least, most), case| {
                let value = column[*case];
                (value.min(least), value.max(most))
            });
            if least >= most {
                continue;
            }
            let threshold = least + 1 + self.draws.below(usize::from(most - least)) as u8;
            tried += 1;
            if let Some(worth) = self.worth(cases, column, threshold)
                && best.is_none_or(|(most, ..)| worth > most)
            {
                best = Some((worth, feature, threshold));
            }
            if tried == self.growth.tries {
                break;
            }
        }
        best.map(|(_, feature, threshold)| (feature, threshold))
    }

    /// How much of the squared error a split takes away (up to a constant); none when a side is too small.
    fn worth(&self, cases: &[usize], column: &[u8], threshold: u8) -> Option<f32> {
        let mut sums = [(0.0f32, 0.0f32, 0u32); 2];
        for case in cases {
            let (gain, fails, count) = &mut sums[usize::from(column[*case] >= threshold)];
            *gain += self.outcomes[*case].gain;
            *fails += self.outcomes[*case].fails;
            *count += 1;
        }
        let mut worth = 0.0;
        for (gain, fails, count) in sums {
            if (count as usize) < self.growth.leaf {
                return None;
            }
            worth += (gain * gain + self.growth.fails_weight * fails * fails) / count as f32;
        }
        Some(worth)
    }
}
