//! Bodies of requests in OpenAI's format, and what is read of answers that are passed on.
#![no_main]

use bytes::Bytes;
use tollkeeper_protocol::openai::decode_request;
use tollkeeper_protocol::{Operation, passthrough};

const OPERATIONS: [Operation; 4] =
    [Operation::Chat, Operation::TextCompletion, Operation::Embeddings, Operation::Rerank];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((which, body)) = data.split_first() else { return };
    let read = decode_request(OPERATIONS[usize::from(*which) % OPERATIONS.len()], body);
    let body = Bytes::copy_from_slice(body);
    let _ = (passthrough::peek_body(&body), passthrough::peek_chunk(&body));
    if let Ok(request) = read {
        // A body that can be read can be passed on under another name of its model, and says the same then.
        let spliced = passthrough::splice(&body, &[("model", "\"other\"".to_owned())]).expect("a body that was read");
        let again =
            decode_request(OPERATIONS[usize::from(*which) % OPERATIONS.len()], &spliced).expect("the same body");
        assert_eq!((again.model(), again.max_tokens()), ("other", request.max_tokens()));
    }
});
