//! Texts that end an answer, found also when they come in several pieces.

/// Looks for stop texts and holds back what may become one.
#[derive(Debug)]
pub(crate) struct Stop {
    texts: Vec<String>,
    held: String,
}

impl Stop {
    /// Empty texts are ignored.
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { texts: texts.iter().filter(|text| !text.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Takes the next piece. Gives back what the client may see, and whether a stop text was reached (it and all behind it
    /// are dropped).
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        if self.texts.is_empty() {
            return (piece.to_owned(), false);
        }
        self.held.push_str(piece);
        if let Some(at) = self.texts.iter().filter_map(|text| self.held.find(text)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.texts.iter().map(|text| open_tail(&self.held, text)).max().unwrap_or(0);
        let seen = self.held.len() - keep;
        let kept = self.held.split_off(seen);
        (std::mem::replace(&mut self.held, kept), false)
    }

    /// What was held back, when the answer ends without a stop text.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that `wanted` begins with (and that is shorter than `wanted`).
pub(crate) fn open_tail(text: &str, wanted: &str) -> usize {
    let longest = text.len().min(wanted.len().saturating_sub(1));
    (1..=longest).rev().find(|length| text.as_bytes().ends_with(&wanted.as_bytes()[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer a client would get if the whole text were known at once.
    fn whole(text: &str, stops: &[String]) -> (String, bool) {
        match stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop)).min() {
            Some(at) => (text[..at].to_owned(), true),
            None => (text.to_owned(), false),
        }
    }

    fn in_pieces(pieces: &[String], stops: &[String]) -> (String, bool) {
        let mut stop = Stop::new(stops);
        let mut seen = String::new();
        for piece in pieces {
            let (text, stopped) = stop.push(piece);
            seen.push_str(&text);
            if stopped {
                return (seen, true);
            }
        }
        seen.push_str(&stop.finish());
        (seen, false)
    }

    /// Whether some stop text occurs in the text as far as it has come; a longer one may still begin earlier.
    fn earliest_complete(pieces: &[String], stops: &[String]) -> (String, bool) {
        let mut text = String::new();
        for piece in pieces {
            text.push_str(piece);
            let (seen, stopped) = whole(&text, stops);
            if stopped {
                return (seen, true);
            }
        }
        (text, false)
    }

    proptest! {
        #[test]
        fn a_stop_text_is_found_whatever_the_cuts(
            pieces in prop::collection::vec("[abé]{0,4}", 0..20),
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
        ) {
            prop_assert_eq!(in_pieces(&pieces, &stops), earliest_complete(&pieces, &stops));
        }
    }

    #[test]
    fn nothing_of_a_stop_text_is_ever_shown() {
        let mut stop = Stop::new(&["\n\nUser:".to_owned()]);
        assert_eq!(stop.push("Hello\n"), ("Hello".to_owned(), false));
        assert_eq!(stop.push("\nUs"), (String::new(), false));
        assert_eq!(stop.push("er: hi"), (String::new(), true));
    }

    #[test]
    fn a_false_start_is_shown_later() {
        let mut stop = Stop::new(&["END".to_owned()]);
        assert_eq!(stop.push("E"), (String::new(), false));
        assert_eq!(stop.push("EN"), ("E".to_owned(), false));
        assert_eq!(stop.push("!"), ("EN!".to_owned(), false));
        assert_eq!(stop.push("E").0, "");
        assert_eq!(stop.finish(), "E");
    }
}
