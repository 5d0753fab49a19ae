//! How many tokens are guessed, and for whom.

use super::*;
use proptest::prelude::*;

#[test]
fn wrong_guesses_become_rare_and_right_ones_long() {
    let mut streak = Streak::default();
    streak.learn(4, 4);
    streak.learn(6, 6);
    assert_eq!(streak.wanted(), 8);
    streak.learn(8, 2);
    assert_eq!(streak.wanted(), 3);
    streak.learn(3, 0);
    streak.learn(1, 0);
    for _ in 0..PAUSE {
        assert_eq!(streak.wanted(), 0);
    }
    assert_eq!(streak.wanted(), 2);
    for pause in [2 * PAUSE, 4 * PAUSE] {
        streak.learn(2, 0);
        streak.learn(1, 0);
        assert_eq!((0..=pause).find(|_| streak.wanted() > 0), Some(pause));
    }
    streak.learn(2, 1);
    streak.learn(2, 0);
    streak.learn(1, 0);
    assert_eq!((0..=PAUSE).find(|_| streak.wanted() > 0), Some(PAUSE));
}

proptest! {
    #[test]
    fn the_room_is_shared_and_used(wanted in prop::collection::vec(1usize..20, 1..12), room in 0usize..40) {
        let wanted: Vec<(usize, usize)> = wanted.into_iter().enumerate().collect();
        let shared = shares(&wanted, room);
        let given = |at: usize| shared.iter().find(|(slot, _)| *slot == at).map_or(0, |(_, given)| *given);
        let all: usize = wanted.iter().map(|(_, most)| *most).sum();
        prop_assert_eq!(shared.iter().map(|(_, given)| *given).sum::<usize>(), all.min(room));
        for (at, most) in &wanted {
            prop_assert!(given(*at) <= *most);
            for (other, _) in &wanted {
                prop_assert!(given(*at) == *most || given(*at) + 1 >= given(*other), "{shared:?}");
            }
        }
    }
}
