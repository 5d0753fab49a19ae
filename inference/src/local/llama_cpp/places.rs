//! Where pictures stand in a sequence of models that give a picture fewer positions than tokens (M-RoPE: as many as its longer side has).
//!
//! Everybody else counts a sequence in tokens; llama.cpp numbers it in positions.

/// The pictures of a sequence that spare positions, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places(Vec<Place>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// Tokens of the sequence up to the end of the picture.
    end: u32,
    /// Positions spared up to there.
    spared: u32,
}

impl Places {
    /// The position of the token before which so many stand. It is not inside of a picture.
    pub(super) fn position(&self, tokens: u32) -> u32 {
        let before = self.0.iter().rev().find(|place| place.end <= tokens);
        tokens - before.map_or(0, |place| place.spared)
    }

    /// A picture of so many tokens and positions stands behind so many tokens.
    pub(super) fn add(&mut self, begin: u32, tokens: u32, positions: u32) {
        if positions < tokens {
            let before = self.0.last().map_or(0, |place| place.spared);
            self.0.push(Place { end: begin + tokens, spared: before + tokens - positions });
        }
    }

    /// Only so many tokens are left.
    pub(super) fn truncate(&mut self, tokens: u32) {
        self.0.retain(|place| place.end <= tokens);
    }

    /// Puts them behind the state of their sequence.
    pub(super) fn write(&self, state: &mut Vec<u8>) {
        for Place { end, spared } in &self.0 {
            state.extend(end.to_le_bytes());
            state.extend(spared.to_le_bytes());
        }
        state.extend((self.0.len() as u32).to_le_bytes());
    }

    /// The state, and what [`Places::write`] put behind it.
    pub(super) fn read(state: &[u8]) -> Option<(&[u8], Self)> {
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_le_bytes);
        let (rest, count) = state.split_at_checked(state.len().checked_sub(4)?)?;
        let length = usize::try_from(number(count)?).ok()?.checked_mul(8)?;
        let (state, places) = rest.split_at_checked(rest.len().checked_sub(length)?)?;
        let place = |bytes: &[u8]| Some(Place { end: number(&bytes[..4])?, spared: number(&bytes[4..])? });
        Some((state, Self(places.chunks_exact(8).map(place).collect::<Option<_>>()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_behind_a_picture_has_the_positions_that_the_picture_left_over() {
        let mut places = Places::default();
        places.add(3, 12, 4);
        places.add(20, 6, 6);
        places.add(30, 10, 5);
        let table = [(0, 0), (3, 3), (15, 7), (20, 12), (26, 18), (30, 22), (40, 27), (41, 28)];
        for (tokens, position) in table {
            assert_eq!(places.position(tokens), position, "behind {tokens} tokens");
        }
        places.truncate(30);
        assert_eq!((places.position(30), places.position(40)), (22, 32));
        places.truncate(3);
        assert_eq!(places, Places::default());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            state in prop::collection::vec(any::<u8>(), 0..20),
            pictures in prop::collection::vec((0u32..9, 2u32..50), 0..5),
        ) {
            let (mut places, mut end) = (Places::default(), 0);
            for (gap, tokens) in pictures {
                places.add(end + gap, tokens, tokens / 2);
                end += gap + tokens;
            }
            let mut written = state.clone();
            places.write(&mut written);
            prop_assert_eq!(Places::read(&written), Some((&state[..], places)));
        }

        #[test]
        fn no_bytes_are_too_broken_to_be_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            Places::read(&bytes);
        }
    }
}
