//! Bytes of tokens to whole UTF-8 characters.

/// Holds back the bytes of a character until it is complete.
#[derive(Debug, Default)]
pub(crate) struct Utf8 {
    pending: Vec<u8>,
}

impl Utf8 {
    /// Takes the next bytes and gives back all complete characters. Bytes that can never become one turn into U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let complete = complete_prefix(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// What is left at the end: nothing, or U+FFFD for a character that was cut.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// How many bytes can be decided now: all but an incomplete character at the end.
fn complete_prefix(bytes: &[u8]) -> usize {
    let mut decided = 0;
    while decided < bytes.len() {
        match std::str::from_utf8(&bytes[decided..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                Some(invalid) => decided += error.valid_up_to() + invalid,
                None => return decided + error.valid_up_to(),
            },
        }
    }
    decided
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(bytes: &[u8], cuts: &[usize]) -> Vec<String> {
        let mut utf8 = Utf8::default();
        let mut rest = bytes;
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(utf8.push(piece));
            rest = tail;
        }
        pieces.push(utf8.push(rest));
        pieces.push(utf8.finish());
        pieces
    }

    proptest! {
        #[test]
        fn any_cuts_of_text_give_the_text(text in "\\PC{0,40}", cuts in prop::collection::vec(0usize..5, 0..60)) {
            let pieces = cut(text.as_bytes(), &cuts);
            prop_assert_eq!(pieces.concat(), text.clone());
            let cut_inside = !text.contains(char::REPLACEMENT_CHARACTER) && pieces.concat().contains(char::REPLACEMENT_CHARACTER);
            prop_assert!(!cut_inside);
        }

        #[test]
        fn any_cuts_of_any_bytes_give_the_lossy_text(bytes in prop::collection::vec(any::<u8>(), 0..40), cuts in prop::collection::vec(0usize..4, 0..50)) {
            prop_assert_eq!(cut(&bytes, &cuts).concat(), String::from_utf8_lossy(&bytes).into_owned());
        }

        #[test]
        fn no_more_than_three_bytes_are_held_back(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut utf8 = Utf8::default();
            for byte in bytes {
                utf8.push(&[byte]);
                prop_assert!(utf8.pending.len() <= 3);
            }
        }
    }
}
