//! What one answer says to the client: tokens become bytes, whole characters, text up to a stop text, reasoning, and tool calls.

use super::formats::{Piece, Reader};
use super::prepare::{Layout, Tools};
use super::sampler::{SplitMix, random_seed};
use super::stop::Stop;
use super::text::Utf8;
use tollkeeper_protocol::chat::FinishReason;
use tollkeeper_protocol::event::{ChatEvent, TokenLogprob};

/// Takes the events of an answer.
pub(crate) type Say<'a> = &'a mut dyn FnMut(ChatEvent);

/// The text side of one answer. Every generated token is counted in exactly one event, also when its text is held back.
pub(crate) struct Output {
    choice: u32,
    utf8: Utf8,
    stop: Stop,
    reader: Reader,
    one_call: bool,
    calls: u32,
    /// A stop text was reached, or the only call is made: what is held back is not shown.
    closed: bool,
    ids: SplitMix,
}

impl Output {
    /// Without a layout all is text.
    pub(crate) fn new(choice: u32, stop: &[String], layout: Option<Layout>) -> Self {
        let one_call = layout.as_ref().is_some_and(|layout| layout.tools == Tools::One);
        Self {
            choice,
            utf8: Utf8::default(),
            stop: Stop::new(stop),
            reader: layout.map_or_else(Reader::plain, |layout| {
                let calls = (layout.tools != Tools::Off).then_some(layout.signatures);
                Reader::new(&layout.format, layout.thinking, calls)
            }),
            one_call,
            calls: 0,
            closed: false,
            ids: SplitMix(random_seed()),
        }
    }

    /// Text that is not generated: the echoed prompt.
    pub(crate) fn echo(&self, text: String, say: Say<'_>) {
        if !text.is_empty() {
            say(ChatEvent::Text { choice: self.choice, text, tokens: 0, logprobs: Vec::new() });
        }
    }

    /// The next token of a prompt that is repeated with log-probabilities. It is not generated, and no stop text is looked for in it.
    pub(crate) fn scored(&mut self, piece: &[u8], logprob: TokenLogprob, say: Say<'_>) {
        let text = self.utf8.push(piece);
        say(ChatEvent::Text { choice: self.choice, text, tokens: 0, logprobs: vec![logprob] });
    }

    /// The next generated token. Returns whether the answer ends with it.
    pub(crate) fn token(&mut self, piece: &[u8], logprobs: Vec<TokenLogprob>, say: Say<'_>) -> bool {
        let text = self.utf8.push(piece);
        let (text, stopped) = self.stop.push(&text);
        let mut pieces = self.reader.push(&text);
        self.closed = stopped;
        if let (true, Some(call)) = (self.one_call, pieces.iter().position(|piece| *piece == Piece::CallEnd)) {
            pieces.truncate(call + 1);
            self.closed = true;
        }
        self.say_all(pieces, 1, logprobs, say);
        self.closed
    }

    /// The end: says what was held back, and why the answer ends. `tokens` counts an end token, which has no text.
    pub(crate) fn finish(&mut self, reason: FinishReason, tokens: u32, say: Say<'_>) {
        let pieces = self.rest();
        if tokens > 0 || !pieces.is_empty() {
            self.say_all(pieces, tokens, Vec::new(), say);
        }
        let reason = if self.calls > 0 && reason == FinishReason::Stop { FinishReason::ToolCalls } else { reason };
        say(ChatEvent::Finish { choice: self.choice, reason });
    }

    fn rest(&mut self) -> Vec<Piece> {
        let mut text = String::new();
        if !self.closed {
            let (before, stopped) = self.stop.push(&self.utf8.finish());
            text = before;
            if !stopped {
                text.push_str(&self.stop.finish());
            }
        }
        if self.one_call && self.closed && self.calls > 0 {
            return Vec::new();
        }
        let mut pieces = self.reader.push(&text);
        pieces.extend(self.reader.finish());
        pieces
    }

    /// The first event carries the token count and the log-probabilities; there is one even if there is nothing to say.
    fn say_all(&mut self, mut pieces: Vec<Piece>, mut tokens: u32, mut logprobs: Vec<TokenLogprob>, say: Say<'_>) {
        if !matches!(pieces.first(), Some(Piece::Text(_))) {
            pieces.insert(0, Piece::Text(String::new()));
        }
        for piece in pieces {
            let (choice, tokens, logprobs) = (self.choice, std::mem::take(&mut tokens), std::mem::take(&mut logprobs));
            say(match piece {
                Piece::Text(text) => ChatEvent::Text { choice, text, tokens, logprobs },
                Piece::Reasoning(text) => ChatEvent::Reasoning { choice, text, tokens },
                Piece::Call(name) => {
                    self.calls += 1;
                    let id = Some(format!("call_{:016x}", self.ids.bits()));
                    let (index, arguments) = (self.calls - 1, String::new());
                    ChatEvent::ToolCall { choice, index, id, name: Some(name), arguments, tokens }
                }
                Piece::Arguments(arguments) => {
                    let index = self.calls.saturating_sub(1);
                    ChatEvent::ToolCall { choice, index, id: None, name: None, arguments, tokens }
                }
                Piece::CallEnd => continue,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::formats::Format;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn layout(tools: Tools) -> Option<Layout> {
        let format = Format::of("{{ tools }} <tool_call> arguments");
        (tools != Tools::Off).then_some(Layout { format, thinking: false, tools, signatures: Arc::new([]) })
    }

    /// All events of an answer of these pieces.
    fn events(pieces: &[&[u8]], stop: &[&str], tools: Tools) -> Vec<ChatEvent> {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut output = Output::new(3, &stop, layout(tools));
        let mut events = Vec::new();
        let mut say = |event| events.push(event);
        let ended = pieces.iter().any(|piece| output.token(piece, Vec::new(), &mut say));
        output.finish(FinishReason::Stop, u32::from(!ended), &mut say);
        events
    }

    fn text(events: &[ChatEvent]) -> String {
        events
            .iter()
            .filter_map(|event| if let ChatEvent::Text { text, .. } = event { Some(text.as_str()) } else { None })
            .collect()
    }

    fn tokens(events: &[ChatEvent]) -> u32 {
        events
            .iter()
            .map(|event| match event {
                ChatEvent::Text { tokens, .. }
                | ChatEvent::ToolCall { tokens, .. }
                | ChatEvent::Reasoning { tokens, .. } => *tokens,
                _ => 0,
            })
            .sum()
    }

    #[test]
    fn one_call_ends_the_answer_and_hides_the_rest() {
        let call = b"<tool_call>{\"name\":\"f\"}</tool_call> and more".as_slice();
        let events = events(&[b"ok ", call, b"never"], &[], Tools::One);
        assert_eq!(text(&events), "ok");
        assert!(matches!(
            &events[..],
            [
                ..,
                ChatEvent::ToolCall { index: 0, id: None, name: None, .. },
                ChatEvent::Finish { choice: 3, reason: FinishReason::ToolCalls }
            ]
        ));
        assert_eq!(tokens(&events), 2);
    }

    #[test]
    fn calls_have_different_ids_and_rising_indices() {
        let call = b"<tool_call>{\"name\":\"f\"}</tool_call>".as_slice();
        let events = events(&[call, b"\n", call], &[], Tools::Many);
        let calls: Vec<_> = events
            .iter()
            .filter_map(|event| {
                if let ChatEvent::ToolCall { index, id: Some(id), .. } = event {
                    Some((*index, id.clone()))
                } else {
                    None
                }
            })
            .collect();
        assert_eq!((calls[0].0, calls[1].0), (0, 1));
        assert_ne!(calls[0].1, calls[1].1);
        assert_eq!(text(&events), "");
    }

    #[test]
    fn a_stop_text_can_end_with_a_cut_character() {
        let events = events(&[b"a", &[0xC3]], &["\u{FFFD}"], Tools::Off);
        assert_eq!(text(&events), "a");
    }

    proptest! {
        #[test]
        fn every_token_is_counted_once(
            pieces in prop::collection::vec(prop::collection::vec(prop::sample::select(b"<tool_call>{\"name\":1}/ \xc3\xa9".to_vec()), 0..9), 0..30),
            stop in prop::collection::vec("[a-e ]{1,2}", 0..2),
            tools in prop::sample::select(vec![Tools::Off, Tools::Many, Tools::One]),
        ) {
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let slices: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let events = events(&slices, &stop, tools);
            let finishes = events.iter().filter(|event| matches!(event, ChatEvent::Finish { .. })).count();
            prop_assert_eq!(finishes, 1);
            let used = tokens(&events) as usize;
            prop_assert!(used >= 1 && used <= pieces.len() + 1);
            if stop.is_empty() && tools == Tools::Off {
                prop_assert_eq!(used, pieces.len() + 1);
                prop_assert_eq!(text(&events), String::from_utf8_lossy(&pieces.concat()).into_owned());
            }
        }
    }
}
