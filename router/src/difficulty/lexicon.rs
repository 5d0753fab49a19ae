//! Words that say something about a question, in groups; each group is counted as one feature.

use super::text::hash;
use std::sync::LazyLock;

/// The groups: a name, and words in lower case.
pub(super) const GROUPS: &[(&str, &str)] = &[
    ("numeral", "two three four five six seven eight nine ten eleven twelve dozen twenty thirty hundred"),
    ("fraction", "half third quarter fourth fifth thirds quarters"),
    ("compare", "more less fewer than times as twice thrice double triple"),
    ("rest", "left remaining remain remains rest remainder still"),
    ("rate", "per each every apiece"),
    ("time", "day days week weeks month months year years hour hours minute minutes"),
    (
        "money",
        "dollar dollars cent cents cost costs price prices pay paid sell sells sold buy buys bought earn earns spend",
    ),
    ("condition", "if after before until then instead except but when only while"),
    ("order", "first second next last finally"),
    ("average", "average mean median"),
    ("age", "old age older younger"),
    ("sum", "total altogether combined together"),
    ("negation", "not never no without doesn didn don neither nor cannot none isn"),
    (
        "change",
        "profit discount increase increases increased decrease decreased interest tax loss ratio percent percentage",
    ),
    ("speed", "speed mph miles km distance"),
    ("parts", "same equal equally split divide divides divided share shares shared"),
    ("which", "which following"),
    ("what", "what who where whose"),
    ("why", "why how explain describe prove show derive justify"),
    ("count", "many much"),
    ("truth", "true statement statements correct false incorrect"),
    ("assume", "suppose assume given unless"),
    ("all", "all above both any"),
    ("likely", "likely best most least primarily probably main mainly unlikely"),
    ("must", "must always should necessarily"),
    ("person", "he she his her him they their"),
    ("self", "i my me we our"),
    ("law", "court law defendant plaintiff statute contract liable property jury action evidence claim judgment crime"),
    ("medicine", "patient disease blood symptoms treatment diagnosis presents clinical examination physician drug"),
    ("physics", "force energy mass velocity charge current wave light electron particle acceleration momentum"),
    ("chemistry", "acid reaction solution molar atom ion compound hydrogen oxygen carbon electrons bond"),
    ("biology", "cell cells gene genes protein dna species organism bacteria evolution enzyme virus"),
    ("economics", "demand supply market inflation gdp monetary fiscal bank tax income curve firm output aggregate"),
    ("ethics", "wrong morally moral ethical standards ordinary scenarios scenario according ought"),
    ("computing", "algorithm array program memory network computer code data function loop byte software cpu kernel"),
    ("learning", "training model classifier regression neural overfitting gradient bayes kernel features"),
    ("logic", "valid argument premise conclusion fallacy formula implies logic predicate symbolization"),
    ("history", "century war king empire revolution passage author government treaty president"),
    ("society", "social culture political policy religion theory group power women state"),
    ("psychology", "behavior psychologist children anxiety memory therapy personality development child cognitive"),
    ("algebra", "integer matrix polynomial equation group ring field vector subgroup graph root real"),
    ("chance", "probability random sample variance distribution deviation hypothesis independent correlation test"),
    ("geometry", "triangle circle angle area radius length square rectangle perimeter feet meters inches"),
    ("writing", "write story poem essay email letter article summarize translate rewrite"),
    ("planning", "plan design compare analyze evaluate strategy steps research architecture trade"),
];

/// A table of 1,024 places: hash of a word and its group.
static TABLE: LazyLock<Vec<(u64, u8)>> = LazyLock::new(|| {
    let mut table = vec![(0, 0); SIZE];
    for (group, (_, words)) in GROUPS.iter().enumerate() {
        for word in words.split(' ') {
            let hash = hash(word.as_bytes());
            let free = (0..SIZE).map(|step| (place(hash) + step) % SIZE).find(|at| [0, hash].contains(&table[*at].0));
            // The first group that has a word keeps it.
            if let Some(entry) = free.map(|at| &mut table[at])
                && entry.0 == 0
            {
                *entry = (hash, group as u8);
            }
        }
    }
    table
});

const SIZE: usize = 1024;

fn place(hash: u64) -> usize {
    (hash >> 20) as usize % SIZE
}

/// The group of a word by its hash.
pub(super) fn group(hash: u64) -> Option<usize> {
    let table = &*TABLE;
    let mut at = place(hash);
    // A third of the table is free, so that the search ends.
    while table[at].0 != 0 {
        if table[at].0 == hash {
            return Some(usize::from(table[at].1));
        }
        at = (at + 1) % SIZE;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_their_group() {
        let of = |word: &str| group(hash(word.as_bytes())).map(|at| GROUPS[at].0);
        assert_eq!(of("plaintiff"), Some("law"));
        assert_eq!(of("twice"), Some("compare"));
        assert_eq!(of("giraffe"), None);
        let words: usize = GROUPS.iter().map(|(_, words)| words.split(' ').count()).sum();
        assert!(words < SIZE * 2 / 3, "{words} words leave too few free places");
    }
}
