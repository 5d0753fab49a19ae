//! Server-sent events: where a stream is cut does not matter, and a frame that is too long is refused wherever it is cut.
#![no_main]

use bytes::Bytes;
use tollkeeper_protocol::sse::{SseDecoder, SseFrame};

const LIMIT: usize = 512;

fn frames(chunks: &[&[u8]]) -> (Vec<SseFrame>, bool) {
    let mut decoder = SseDecoder::new(LIMIT);
    let mut frames = Vec::new();
    for chunk in chunks {
        let pushed = decoder.push(&Bytes::copy_from_slice(chunk));
        while let Some(frame) = decoder.next_frame() {
            frames.push(frame);
        }
        if pushed.is_err() {
            return (frames, true);
        }
    }
    frames.extend(decoder.finish());
    (frames, false)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((step, stream)) = data.split_first() else { return };
    let cuts: Vec<&[u8]> = stream.chunks(usize::from(*step) % 61 + 1).collect();
    let whole = frames(&[stream]);
    assert_eq!(frames(&cuts), whole);
    assert!(whole.0.iter().all(|frame| frame.raw.len() <= LIMIT));
});
