//! Text completions by llama.cpp that need more of a model than its next token: scores of the prompt, and gaps to fill.

use crate::ask::{ask, completion, engines};
use crate::model::{Folder, token, write_model};
use tollkeeper_models::gguf::Value;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::event::TokenLogprob;

const NAME: &str = "random.gguf";
const PROMPT: &str = "a prompt that is longer than thirty-two tokens, and then some";

fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(token).collect()
}

#[tokio::test]
async fn a_prompts_scores_are_those_of_writing_it() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let written = CompletionRequest { logprobs: Some(3), ..completion(PROMPT, 40) };
    let written = ask(&engines, NAME, Request::Completion(written)).await.unwrap();
    let answer: Vec<u32> = written.logprobs.iter().map(|said| token(said.bytes[0])).collect();
    assert!(!answer.is_empty());
    let whole = [tokens(PROMPT), answer].concat();
    // Asked twice: what is in the KV cache must not be left out of the scores.
    for _ in 0..2 {
        let prompts = vec![Prompt::Tokens(whole.clone())];
        let read = CompletionRequest { prompts, echo: true, logprobs: Some(3), ..completion("", 0) };
        let read = ask(&engines, NAME, Request::Completion(read)).await.unwrap();
        assert_eq!((read.logprobs.len(), read.usage.output), (whole.len(), 0));
        let bytes: Vec<u8> = read.logprobs.iter().flat_map(|said| said.bytes.clone()).collect();
        assert_eq!(read.text(), String::from_utf8_lossy(&bytes));
        let near = |a: &TokenLogprob, b: &TokenLogprob| (a.logprob.unwrap() - b.logprob.unwrap()).abs() < 1e-2;
        let scores = &read.logprobs[PROMPT.len()..];
        for (read, written) in scores.iter().zip(&written.logprobs) {
            assert!(read.bytes == written.bytes && near(read, written), "{read:?} {written:?}");
            assert_eq!(read.top.len(), 3);
        }
    }
}

#[tokio::test]
async fn a_suffix_is_put_behind_the_models_own_tokens() {
    let folder = Folder::new();
    let marks = [("pre", b'<'), ("suf", b'>'), ("mid", b'^')];
    write_model(&folder.path("code.gguf"), 1, |meta| {
        meta.extend(marks.map(|(name, mark)| (format!("tokenizer.ggml.fim_{name}_token_id"), Value::U32(token(mark)))));
    });
    let engines = engines([folder.named("code.gguf"), folder.model()]).await;
    let gap = |prompt: Prompt| {
        let suffix = Some("c)".to_owned());
        Request::Completion(CompletionRequest { prompts: vec![prompt], suffix, ..completion("", 12) })
    };
    let by_hand = Request::Completion(completion("<f(a>c)^", 12));
    let expected = ask(&engines, "code.gguf", by_hand).await.unwrap();
    for prompt in [Prompt::Text("f(a".into()), Prompt::Tokens(tokens("f(a"))] {
        let request = gap(prompt);
        assert_eq!(engines.input_tokens("code.gguf", &request), Some(8));
        let filled = ask(&engines, "code.gguf", request).await.unwrap();
        assert_eq!((filled.text(), filled.usage.input), (expected.text(), 8));
    }
    assert_eq!(ask(&engines, "code.gguf", gap(Prompt::Text(String::new()))).await.unwrap().usage.input, 5);
    let fault = ask(&engines, NAME, gap(Prompt::Text("f(a".into()))).await.unwrap_err();
    assert!(fault.message.contains("no tokens for filling a gap"), "{fault}");
    let CompletionRequest { prompts, suffix, .. } = match gap(Prompt::Text("f(a".into())) {
        Request::Completion(request) => request,
        other => panic!("{other:?}"),
    };
    let echo = CompletionRequest { prompts, suffix, echo: true, ..completion("", 1) };
    let fault = ask(&engines, "code.gguf", Request::Completion(echo)).await.unwrap_err();
    assert!(fault.message.contains("`echo`"), "{fault}");
}
