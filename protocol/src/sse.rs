//! Server-sent events: a bounded decoder that keeps every byte, and the writer of data frames.

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memchr2;
use std::collections::VecDeque;

/// A frame grew beyond the decoder's limit; nothing can be read after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than the limit of {limit} bytes")]
pub struct SseTooLong {
    /// The limit in bytes.
    pub limit: usize,
}

/// One event with its exact bytes. The `raw` of all frames of a stream, in order, is the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SseFrame {
    /// The exact bytes, the blank line at the end included.
    pub raw: Bytes,
    /// The value of the (last) `event` field.
    pub event: Option<Bytes>,
    /// The `data` lines, joined by line feeds; empty for a frame of comments.
    pub data: Bytes,
}

/// Cuts a byte stream into frames. Lines may end in CRLF, LF or CR; where the bytes are cut into chunks changes nothing.
///
/// A frame that lies within one chunk is a slice of that chunk; only frames cut by a chunk border are copied.
#[derive(Debug)]
pub struct SseDecoder {
    limit: usize,
    /// The beginning of the frame that has not ended yet; at most `limit` bytes.
    partial: BytesMut,
    /// Frames that ended but were not taken yet: no more bytes than the last pushes brought in.
    ready: VecDeque<Bytes>,
    line: Line,
    /// No frame was handed out yet: a byte order mark may come.
    first: bool,
    too_long: bool,
}

/// Where in a line the scanner stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Before the first byte.
    Start,
    /// After at least one byte.
    Inside,
    /// After a CR that ended a line: a line feed still belongs to it.
    AfterCr,
    /// After a CR that ended a blank line, and with it the frame, unless a line feed still belongs to it.
    AfterBlankCr,
}

impl SseDecoder {
    /// A decoder that refuses frames of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            partial: BytesMut::new(),
            ready: VecDeque::new(),
            line: Line::Start,
            first: true,
            too_long: false,
        }
    }

    /// Takes the next bytes in; then [`Self::next_frame`] gives the frames they completed.
    ///
    /// # Errors
    /// A frame is longer than the limit. The frames before it can still be taken; everything after it is refused.
    pub fn push(&mut self, chunk: &Bytes) -> Result<(), SseTooLong> {
        let mut start = 0;
        let mut at = 0;
        while at < chunk.len() && !self.too_long {
            let (next, ended) = self.line.step(chunk, at);
            at = next;
            if ended {
                self.end_frame(chunk.slice(start..at));
                start = at;
            }
        }
        if !self.too_long {
            self.too_long = self.partial.len() + (at - start) > self.limit;
        }
        if self.too_long {
            self.partial.clear();
            return Err(SseTooLong { limit: self.limit });
        }
        self.partial.extend_from_slice(&chunk[start..at]);
        Ok(())
    }

    /// The next whole frame, if there is one.
    pub fn next_frame(&mut self) -> Option<SseFrame> {
        let raw = self.ready.pop_front()?;
        let first = std::mem::replace(&mut self.first, false);
        Some(parse(raw, first))
    }

    /// At the end of the stream: like [`Self::next_frame`], but the last frame is given even if its blank line is missing.
    /// (The standard drops such a frame; some servers end with it, and its bytes must not be lost.)
    pub fn finish(&mut self) -> Option<SseFrame> {
        if !self.partial.is_empty() {
            self.ready.push_back(self.partial.split().freeze());
            self.line = Line::Start;
        }
        self.next_frame()
    }

    fn end_frame(&mut self, tail: Bytes) {
        self.too_long = self.partial.len() + tail.len() > self.limit;
        if self.too_long {
            return;
        }
        let raw = if self.partial.is_empty() {
            tail
        } else {
            self.partial.extend_from_slice(&tail);
            self.partial.split().freeze()
        };
        self.ready.push_back(raw);
    }
}

impl Line {
    /// Moves over at least one byte, or over none where a frame turns out to have ended before `at`.
    /// Gives the next position and whether a frame ends there.
    fn step(&mut self, chunk: &[u8], at: usize) -> (usize, bool) {
        let (line, next, ended) = match (*self, chunk[at]) {
            (Self::AfterBlankCr, b'\n') => (Self::Start, at + 1, true),
            (Self::AfterBlankCr, _) => (Self::Start, at, true),
            (Self::AfterCr, b'\n') => (Self::Start, at + 1, false),
            // Lines here end in lone CRs, so the frame need not wait for a line feed; should one come, it opens the next frame.
            (Self::AfterCr, b'\r') => (Self::AfterCr, at + 1, true),
            (Self::Start, b'\n') => (Self::Start, at + 1, true),
            (Self::Start, b'\r') => (Self::AfterBlankCr, at + 1, false),
            _ => match memchr2(b'\n', b'\r', &chunk[at..]) {
                None => (Self::Inside, chunk.len(), false),
                Some(length) if chunk[at + length] == b'\n' => (Self::Start, at + length + 1, false),
                Some(length) => (Self::AfterCr, at + length + 1, false),
            },
        };
        *self = line;
        (next, ended)
    }
}

fn parse(raw: Bytes, first: bool) -> SseFrame {
    let mut event = None;
    let mut data: Option<Bytes> = None;
    let mut joined: Option<BytesMut> = None;
    let mut at = if first && raw.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    while at < raw.len() {
        let end = memchr2(b'\n', b'\r', &raw[at..]).map_or(raw.len(), |length| at + length);
        if let Some((name, value)) = field(&raw[at..end]) {
            let value = raw.slice_ref(value);
            match (name, &mut joined) {
                (b"event", _) => event = Some(value),
                (b"data", Some(lines)) => {
                    lines.put_u8(b'\n');
                    lines.extend_from_slice(&value);
                }
                (b"data", None) => match data.take() {
                    None => data = Some(value),
                    Some(before) => {
                        let mut lines = BytesMut::from(&before[..]);
                        lines.put_u8(b'\n');
                        lines.extend_from_slice(&value);
                        joined = Some(lines);
                    }
                },
                _ => {}
            }
        }
        at = end + 1;
    }
    let data = joined.map(BytesMut::freeze).or(data).unwrap_or_default();
    SseFrame { raw, event, data }
}

/// A line's field name and value; `None` for blank lines and comments.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    match memchr::memchr(b':', line) {
        Some(0) => None,
        Some(colon) => {
            let value = &line[colon + 1..];
            Some((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)))
        }
        None if line.is_empty() => None,
        None => Some((line, &[])),
    }
}

/// Appends a frame with this data; each of its lines becomes a `data` line.
pub fn write_data(data: &[u8], out: &mut BytesMut) {
    for line in data.split(|byte| *byte == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.put_u8(b'\n');
    }
    out.put_u8(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All frames of a stream given in these chunks, or the frames before the error.
    fn frames(chunks: &[&[u8]], limit: usize) -> (Vec<SseFrame>, bool) {
        let mut decoder = SseDecoder::new(limit);
        let mut frames = Vec::new();
        for chunk in chunks {
            let result = decoder.push(&Bytes::copy_from_slice(chunk));
            frames.extend(std::iter::from_fn(|| decoder.next_frame()));
            if result.is_err() {
                assert!(decoder.push(&Bytes::from_static(b"data: more\n\n")).is_err(), "refused for good");
                assert_eq!(decoder.finish(), None);
                return (frames, true);
            }
        }
        frames.extend(std::iter::from_fn(|| decoder.finish()));
        (frames, false)
    }

    fn data(stream: &str) -> Vec<(Option<String>, String)> {
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let (frames, _) = frames(&[stream.as_bytes()], 1 << 20);
        frames.iter().map(|frame| (frame.event.as_ref().map(text), text(&frame.data))).collect()
    }

    #[test]
    fn reads_every_kind_of_line() {
        type Events = &'static [(Option<&'static str>, &'static str)];
        let cases: [(&str, Events); 17] = [
            ("", &[]),
            ("data: a\n\n", &[(None, "a")]),
            ("data:a\n\ndata:  b\n\n", &[(None, "a"), (None, " b")]),
            ("data: a\r\n\r\ndata: b\r\n\r\n", &[(None, "a"), (None, "b")]),
            ("data: a\r\rdata: b\r\r", &[(None, "a"), (None, "b")]),
            ("data: a\r\n\ndata: b\n\r\n", &[(None, "a"), (None, "b")]),
            ("data: a\r\r\ndata: b\r\r\n", &[(None, "a"), (None, "b"), (None, "")]),
            ("data: a\ndata: b\ndata\ndata: c\n\n", &[(None, "a\nb\n\nc")]),
            ("event: error\ndata: {}\n\n", &[(Some("error"), "{}")]),
            ("event: a\nevent: b\nid: 7\nretry: 10\nunknown: x\ndata: y\n\n", &[(Some("b"), "y")]),
            (": comment\n\n: OPENROUTER PROCESSING\n\ndata: a\n\n", &[(None, ""), (None, ""), (None, "a")]),
            (": comment\ndata: a\n\n", &[(None, "a")]),
            ("\u{FEFF}data: a\n\n\u{FEFF}data: b\n\n", &[(None, "a"), (None, "")]),
            ("data: a", &[(None, "a")]),
            ("data: a\n\ndata: [DONE]\n", &[(None, "a"), (None, "[DONE]")]),
            ("\n\ndata: a\n\n", &[(None, ""), (None, ""), (None, "a")]),
            ("data: {\"a\":\"b: c\"}\n\n", &[(None, "{\"a\":\"b: c\"}")]),
        ];
        for (stream, expected) in cases {
            let expected: Vec<_> =
                expected.iter().map(|(event, data)| (event.map(str::to_owned), (*data).to_owned())).collect();
            assert_eq!(data(stream), expected, "{stream:?}");
        }
    }

    #[test]
    fn a_frame_with_lone_carriage_returns_does_not_wait_for_the_next_byte() {
        let mut decoder = SseDecoder::new(100);
        decoder.push(&Bytes::from_static(b"data: a\r\r")).unwrap();
        assert_eq!(decoder.next_frame().unwrap().data, "a");
    }

    #[test]
    fn refuses_too_long_frames_and_gives_those_before() {
        let stream: &[u8] = b"data: a\n\ndata: 0123456789\n\ndata: b\n\n";
        let long = b"data: 0123456789\n\n".len();
        let (all, refused) = frames(&[stream], long);
        assert_eq!((all.len(), refused), (3, false));
        for cut in 0..stream.len() {
            let (before, refused) = frames(&[&stream[..cut], &stream[cut..]], long - 1);
            assert_eq!((before.len(), refused), (1, true), "cut at {cut}");
        }
        let mut decoder = SseDecoder::new(10);
        assert_eq!(decoder.push(&Bytes::from_static(b"data: no end")), Err(SseTooLong { limit: 10 }));
    }

    #[test]
    fn a_frame_within_one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"data: abc\n\n");
        let mut decoder = SseDecoder::new(100);
        decoder.push(&chunk).unwrap();
        let frame = decoder.next_frame().unwrap();
        assert_eq!(frame.raw.as_ptr(), chunk.as_ptr());
        assert_eq!(frame.data.as_ptr(), chunk[6..].as_ptr());
    }

    #[test]
    fn writes_what_it_reads() {
        let mut out = BytesMut::new();
        write_data(b"{\"a\":1}\nb", &mut out);
        assert_eq!(out, "data: {\"a\":1}\ndata: b\n\n");
        assert_eq!(frames(&[&out], 100).0[0].data, "{\"a\":1}\nb");
    }
}
