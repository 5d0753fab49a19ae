//! A provider against a scripted server over real TCP, on a paused clock that jumps over every wait.

mod upstream;

mod breaking;
mod faults;
mod http2;
mod pool;
mod probing;
mod sending;
mod streams;
mod waiting;

use super::Remote;
use crate::reply::{Call, Frame, FrameStream, Reply, ReplyBody};
use bytes::Bytes;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{Priority, Provider, Secret};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::{Operation, openai};

/// A provider of kind `custom` with default timeouts.
fn provider(base_url: &str) -> Provider {
    Provider {
        name: "p".to_owned(),
        kind: "custom".to_owned(),
        base_url: Some(base_url.to_owned()),
        api_key: Some(Secret::new("provider-key")),
        headers: Vec::new(),
        api_version: None,
        connect_timeout: Duration::from_secs(5),
        first_byte_timeout: Duration::from_secs(120),
        idle_timeout: Duration::from_secs(60),
        max_attempts: 1,
        probe: None,
        disabled: None,
    }
}

fn remote(provider: Provider) -> Remote {
    Remote::new(Arc::new(provider), &super::tls(), &tokio::runtime::Handle::current())
}

fn call_for(operation: Operation, body: &str) -> Call {
    Call {
        request: Arc::new(openai::decode_request(operation, body.as_bytes()).unwrap()),
        original: Bytes::copy_from_slice(body.as_bytes()),
        operation,
        output_limit: None,
        measured: 0,
        priority: Priority::Interactive,
        request_id: "r".into(),
        deadline: Instant::now() + Duration::from_secs(1800),
        abandoned: Arc::default(),
    }
}

fn call(body: &str) -> Call {
    call_for(Operation::Chat, body)
}

const UNARY: &str = r#"{"model":"a/b","messages":[{"role":"user","content":"hi"}]}"#;
const STREAM: &str = r#"{"model":"a/b","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
const ANSWER: &str = r#"{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ho"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;

async fn send(remote: &Remote, call: Call) -> Result<Reply, ProviderFault> {
    remote.send(&"m".into(), &call).await
}

async fn fault_of(remote: &Remote, body: &str) -> ProviderFault {
    send(remote, call(body)).await.expect_err("this must fail")
}

fn frames(reply: Reply) -> FrameStream {
    match reply.body {
        ReplyBody::Frames(frames) => frames,
        other => panic!("not a stream: {other:?}"),
    }
}

/// The raw bytes of a stream and how it ended.
async fn read_out(mut stream: FrameStream) -> (String, Option<FaultKind>, Vec<Frame>) {
    let (mut raw, mut fault, mut all) = (Vec::new(), None, Vec::new());
    while let Some(item) = stream.next().await {
        match item {
            Ok(frame) => {
                raw.extend_from_slice(&frame.raw);
                all.push(frame);
            }
            Err(error) => {
                assert!(fault.replace(error.kind).is_none(), "a stream ends with its first error");
            }
        }
    }
    (String::from_utf8(raw).unwrap(), fault, all)
}
