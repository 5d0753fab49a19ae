//! The other ends of the measurement: an upstream with canned answers, and a proxy that does nothing but pass bytes on.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::io::Write as _;
use tokio::net::TcpListener;

/// Content chunks of every stream.
pub const CHUNKS: u32 = 64;

const ANSWER: &str = r#"{
  "id": "chatcmpl-CG8XqQ2vUS3kvSLf7nqJxq3xGZ2yE",
  "object": "chat.completion",
  "created": 1760000000,
  "model": "bench-2025-08-07",
  "choices": [
    {
      "index": 0,
      "message": {
        "role": "assistant",
        "content": "A toll keeper collects the toll at a gate and lets those pass who have paid. The office is as old as roads and bridges are, and the keeper lived beside the gate in a small house, because travellers came by day and by night.",
        "refusal": null,
        "annotations": []
      },
      "logprobs": null,
      "finish_reason": "stop"
    }
  ],
  "usage": {
    "prompt_tokens": 212,
    "completion_tokens": 52,
    "total_tokens": 264,
    "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
  },
  "service_tier": "default",
  "system_fingerprint": "fp_560af6e559"
}
"#;

const CHUNK: &str = r#"data: {"id":"chatcmpl-CG8XqQ2vUS3kvSLf7nqJxq3xGZ2yE","object":"chat.completion.chunk","created":1760000000,"model":"bench-2025-08-07","service_tier":"default","system_fingerprint":"fp_560af6e559","choices":[{"index":0,"delta":{"content":" gate"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"QX0s"}

"#;

const LAST: &str = r#"data: {"id":"chatcmpl-CG8XqQ2vUS3kvSLf7nqJxq3xGZ2yE","object":"chat.completion.chunk","created":1760000000,"model":"bench-2025-08-07","service_tier":"default","system_fingerprint":"fp_560af6e559","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null,"obfuscation":"9d"}

data: {"id":"chatcmpl-CG8XqQ2vUS3kvSLf7nqJxq3xGZ2yE","object":"chat.completion.chunk","created":1760000000,"model":"bench-2025-08-07","service_tier":"default","system_fingerprint":"fp_560af6e559","choices":[],"usage":{"prompt_tokens":212,"completion_tokens":64,"total_tokens":276,"prompt_tokens_details":{"cached_tokens":128,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"obfuscation":""}

data: [DONE]

"#;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves canned answers for ever. `"stream":true` in the body asks for a stream of [`CHUNKS`] chunks, each a write of its own;
/// the model `hold` never ends its stream.
pub async fn upstream() {
    let listener = announce().await;
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let has = |text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    if !has("\"stream\":true") {
        let body = Full::new(Bytes::from_static(ANSWER.as_bytes())).boxed_unsync();
        return Ok(Response::builder().header("content-type", "application/json").body(body).unwrap());
    }
    let hold = has("\"hold\"");
    let chunks = stream::unfold(0, move |sent| async move {
        // Providers send tokens as they come: a turn in between keeps chunks from being joined into one write.
        tokio::task::yield_now().await;
        match sent {
            _ if sent < CHUNKS => Some((Ok(Frame::data(Bytes::from_static(CHUNK.as_bytes()))), sent + 1)),
            _ if hold => std::future::pending().await,
            CHUNKS => Some((Ok(Frame::data(Bytes::from_static(LAST.as_bytes()))), sent + 1)),
            _ => None,
        }
    });
    let response = Response::builder().header("content-type", "text/event-stream; charset=utf-8");
    Ok(response.body(StreamBody::new(chunks).boxed_unsync()).unwrap())
}

/// Passes requests and answers on for ever, unread: what any proxy must at least do.
pub async fn passthrough(to: String) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let listener = announce().await;
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (client, to) = (client.clone(), to.clone());
        let pass = service_fn(move |mut request: Request<Incoming>| {
            *request.uri_mut() = Uri::try_from(format!("http://{to}{}", request.uri().path())).unwrap();
            client.request(request)
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), pass));
    }
}

/// Listens on a free port and prints its address.
async fn announce() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on {}", listener.local_addr().unwrap()).unwrap();
    out.flush().unwrap();
    listener
}
