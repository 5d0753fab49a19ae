//! What must hold of any bytes; run by the fuzz targets and by the property tests.
#![allow(dead_code, unreachable_pub, reason = "each fuzz target uses one of these")]

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tollkeeper_protocol::openai::{
    AnswerMeta, Extension, StreamDecoder, StreamEncoder, decode_answer, decode_error, decode_request, encode_chat,
    encode_completion, extend_usage,
};
use tollkeeper_protocol::passthrough::{peek_body, peek_chunk, splice};
use tollkeeper_protocol::sse::{SseDecoder, SseFrame};
use tollkeeper_protocol::{Operation, Request};

/// However a stream is cut, it gives the same frames, and their bytes are the stream's. The first byte chooses the cuts.
pub fn sse(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = frames([stream].into_iter());
    let size = usize::from(seed % 16) + 1;
    assert_eq!(whole, frames(stream.chunks(size)), "cut into pieces of {size}");
    let joined: Vec<u8> = whole.iter().flat_map(|frame| frame.raw.to_vec()).collect();
    assert_eq!(joined, stream, "the frames' bytes are the stream's");
}

fn frames<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Vec<SseFrame> {
    let mut decoder = SseDecoder::new(1 << 20);
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(&Bytes::copy_from_slice(chunk)).expect("fuzz inputs are below the limit");
        frames.extend(std::iter::from_fn(|| decoder.next_frame()));
    }
    frames.extend(std::iter::from_fn(|| decoder.finish()));
    frames
}

/// Any body is a request within its limits or an error with a text.
pub fn request(body: &[u8]) {
    for op in [Operation::Chat, Operation::TextCompletion, Operation::Embeddings, Operation::Rerank] {
        match decode_request(op, body) {
            Err(error) => assert!(!error.message.is_empty()),
            Ok(request) => {
                assert_eq!(request.operation(), op);
                assert!(!request.model().is_empty());
                match request {
                    Request::Chat(request) => {
                        assert!(!request.messages.is_empty() && (1..=16).contains(&request.n));
                        assert!(request.stop.len() <= 16 && request.stop.iter().all(|stop| !stop.is_empty()));
                        assert!(request.sampling.temperature.is_none_or(|it| (0.0..=2.0).contains(&it)));
                    }
                    Request::Completion(request) => assert!(!request.prompts.is_empty()),
                    Request::Embedding(request) => assert!((1..=2048).contains(&request.inputs.len())),
                    Request::Rerank(request) => {
                        assert!((1..=2048).contains(&request.documents.len()) && !request.query.is_empty());
                    }
                }
            }
        }
    }
}

/// Any bytes can be peeked, spliced, extended and decoded; where they are JSON, only the spliced field changes, and what is
/// decoded can be encoded.
pub fn passthrough(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    let value: Option<Value> = serde_json::from_slice(&body).ok();
    let _ = (peek_chunk(&body), peek_body(&body));
    assert!(!decode_error(500, None, &body).message.is_empty());
    match (splice(&body, &[("model", "\"spliced\"".into()), ("new", "[1]".into())]), &value) {
        (Ok(spliced), Some(Value::Object(fields))) => {
            let mut expected = fields.clone();
            expected.insert("model".into(), "spliced".into());
            expected.insert("new".into(), vec![1].into());
            let spliced: Value = serde_json::from_slice(&spliced).expect("a spliced object is JSON");
            assert_eq!(spliced, Value::Object(expected));
        }
        (Err(error), _) => assert!(!error.message.is_empty()),
        // Nothing looks into what is passed through: numbers beyond f64 and lone surrogates stay as they are.
        (Ok(_), None) => {}
        (Ok(_), Some(other)) => panic!("spliced {other}"),
    }
    let extension = Extension { backend: "b".into(), cost_usd: "0.1".into(), stopped: None };
    let extended = extend_usage(&body, &extension);
    assert!(extended == body || serde_json::from_slice::<Value>(&extended).is_ok());
    stream(&body);
}

fn stream(data: &[u8]) {
    let meta = AnswerMeta { id: "id".into(), created: 1, model: "m".into() };
    let mut events = Vec::new();
    if StreamDecoder::default().decode(data, &mut events).is_err() {
        return;
    }
    for op in [Operation::Chat, Operation::TextCompletion] {
        let mut encoder = StreamEncoder::new(op, meta.clone(), true);
        let mut out = BytesMut::new();
        events.iter().for_each(|event| encoder.encode(event, &mut out));
        encoder.finish(None, &mut out);
        for frame in frames([&out[..]].into_iter()).iter().filter(|frame| frame.data != "[DONE]") {
            peek_chunk(&frame.data).expect("an encoded chunk can be peeked");
        }
    }
    let answer = decode_answer(data).expect("what decodes as a chunk decodes as an answer");
    for body in [encode_chat(&meta, &answer, None), encode_completion(&meta, &answer, None)] {
        peek_body(&body).expect("an encoded body can be peeked");
    }
}
