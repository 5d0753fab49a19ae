//! candle beside llama.cpp: the same tokens of the same texts, the same logits of the same tokens, the same answers.

use crate::ask::model;
use crate::model::{Architecture, Folder, TRAINED, token, write_as, write_model};
use std::path::Path;
use std::sync::Arc;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::engine::{self, Engine, LoadPlan, Row, Token, Tokenizer};
use tollkeeper_models::gguf::Value;

const BOTH: [EngineKind; 2] = [EngineKind::LlamaCpp, EngineKind::Candle];
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/toll-tiny.gguf");
/// The engines add up in different orders, and llama.cpp keeps its KV in 16 bits: logits are as close as this.
const CLOSE: f32 = 0.02;

/// What both engines make of a file, llama.cpp first.
fn both<T>(path: &Path, mut look: impl FnMut(&dyn Tokenizer, &mut dyn Engine) -> T) -> [T; 2] {
    BOTH.map(|kind| {
        let model = LocalModel { context: TRAINED, threads: Some(1), ..model("m", kind, path) };
        let plan = LoadPlan::new(Arc::new(model));
        let mut seen = None;
        engine::run(&plan, &mut |tokenizer, engine| seen = Some(look(&*tokenizer, engine))).unwrap();
        seen.unwrap()
    })
}

const TRICKY: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    " \n \t\r\n ",
    "a",
    " a",
    "a ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\tmore\t\tof\tthem",
    "line\nbreaks\r\nof\rboth kinds\n\n",
    "don't we'LL THEY'RE I'm it's 'S'",
    "12345678901234567890",
    "3.14159 -17 1,000,000 ½ ² Ⅷ ٣٤",
    "fn main() {\n    println!(\"{:>8}\", x << 2);\n}\n",
    "if (a&&b)||!c{return\tx[i++]->y;}",
    "{\"a\": [1, 2.5e-3, null], \"b\": \"\\u00e9\"}",
    "https://example.com/a/b?c=d&e=f#g",
    "Zażółć gęślą jaźń",
    "naïve café e\u{301}",
    "日本語のテキスト、漢字とカナ。",
    "한국어 텍스트",
    "Привет, мир!",
    "مرحبا بالعالم",
    "हिन्दी में",
    "ไทย",
    "🦊🚀 👩‍👩‍👧‍👦 🇵🇱",
    "\u{feff}bom",
    "zero\u{200b}width\u{200d}joiner",
    "nbsp\u{a0}\u{2003}\u{3000}spaces",
    "\u{85}\u{2028}\u{2029}lines",
    "control \u{1}\u{7f}\u{0} chars",
    "<|im_end|> <|im_start|>system",
    "<|endoftext|>",
    "</s><s><unk>",
    "<tool_call>{}</tool_call>",
    "<0x0A>",
    "_under_score__ --dashes—–…",
    "ſtrange 'ſ ß ẞ ǅ İı",
    "What is the capital of France?",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u{10ffff}\u{fdd0}",
];

/// All that a tokenizer shows: the tokens of every text, the bytes of every token, and the rest as text.
type Shown = (Vec<(String, Vec<Token>)>, Vec<Vec<u8>>, String);

fn shown(tokenizer: &dyn Tokenizer) -> Shown {
    let texts = TRICKY
        .iter()
        .flat_map(|text| [true, false].map(|whole| (format!("{text:?} whole {whole}"), tokenizer.encode(text, whole))));
    let texts = texts.collect();
    let size = tokenizer.vocabulary();
    let pieces = (0..size).map(|token| tokenizer.piece(token)).collect();
    let ends: Vec<Token> = (0..size).filter(|token| tokenizer.is_end(*token)).collect();
    let rest = (size, ends, tokenizer.control_tokens(), tokenizer.required_first(), tokenizer.edge_names());
    (texts, pieces, format!("{rest:#?} {:?}", tokenizer.chat_template()))
}

fn assert_same_tokens(path: &Path) {
    let [theirs, ours] = both(path, |tokenizer, _| shown(tokenizer));
    for (theirs, ours) in theirs.0.iter().zip(&ours.0) {
        assert_eq!(theirs, ours, "{}", path.display());
    }
    for (token, (theirs, ours)) in theirs.1.iter().zip(&ours.1).enumerate() {
        assert_eq!(theirs, ours, "the piece of token {token}, {}", path.display());
    }
    assert_eq!(theirs.2, ours.2, "{}", path.display());
}

#[test]
fn the_shipped_model_reads_the_same_tokens() {
    assert_same_tokens(Path::new(SHIPPED));
}

fn set(entries: &mut Vec<(String, Value)>, key: &str, value: Value) {
    entries.retain(|(name, _)| name != key);
    entries.push((key.into(), value));
}

#[test]
fn every_way_to_cut_text_gives_the_same_tokens() {
    let folder = Folder::new();
    // With tokens of several letters, so that the cuts show: words, digits, spaces and line ends.
    let parts = [
        "h e",
        "l l",
        "he ll",
        "hell o",
        "1 2",
        "12 3",
        "123 4",
        "Ġ Ġ",
        "ĠĠ ĠĠ",
        "Ċ Ċ",
        "ĊĊ Ċ",
        "' s",
        "' S",
        "' L",
        "'L L",
        "a a",
        "aa aa",
        "Ġ a",
        "Ġ t",
        ". .",
        "- -",
        "ĉ ĉ",
        "i m",
        "< |",
        "Ġ 1",
        "č Ċ",
        "; Ċ",
        "Ã ©",
        "t e",
        "te x",
        "tex t",
        "Ġ text",
    ];
    for pre in ["qwen2", "llama-bpe", "gpt-2", "gpt-4o", "smollm", "tekken", "dbrx"] {
        let path = folder.path(&format!("{pre}.gguf"));
        write_model(&path, 1, |entries| {
            for (key, value) in entries.iter_mut() {
                match value {
                    Value::Texts(tokens) if key == "tokenizer.ggml.tokens" => {
                        tokens.extend(parts.iter().map(|part| part.replacen(' ', "", 1)));
                        tokens.extend(["[fixed text]", "Ġworld", "<tool_call>", "[PAD7]"].map(str::to_owned));
                    }
                    Value::I32s(kinds) if key == "tokenizer.ggml.token_type" => {
                        kinds.extend([1].repeat(parts.len()));
                        kinds.extend([4, 1, 3, 5]);
                    }
                    _ => {}
                }
            }
            set(entries, "tokenizer.ggml.merges", Value::Texts(parts.map(str::to_owned).to_vec()));
            set(entries, "tokenizer.ggml.pre", Value::Text(pre.into()));
            // Whether prompts are opened is then the rule's own decision.
            entries.retain(|(key, _)| key != "tokenizer.ggml.add_bos_token");
        });
        assert_same_tokens(&path);
    }
}

#[test]
fn sentence_piece_gives_the_same_tokens() {
    let folder = Folder::new();
    let words = [
        "\u{2581}",
        "\u{2581}\u{2581}",
        "\u{2581}\u{2581}\u{2581}\u{2581}",
        "e",
        "t",
        "a",
        "o",
        "h",
        "l",
        "w",
        "r",
        "d",
        "n",
        "i",
        "s",
        "he",
        "ll",
        "hell",
        "hello",
        "\u{2581}w",
        "or",
        "ld",
        "\u{2581}wor",
        "\u{2581}world",
        "in",
        "on",
        "an",
        "\u{2581}a",
        "th",
        "the",
        "\u{2581}the",
        "\u{2581}t",
        "is",
        "\u{2581}is",
        "aa",
        "aaaa",
        "1",
        "2",
        "3",
        "12",
        "23",
        "é",
        "日",
        "本",
        "日本",
        "語",
        ".",
        "..",
        "(",
        ")",
        "();",
    ];
    for prefix in [true, false] {
        let path = folder.path("spm.gguf");
        write_model(&path, 1, |entries| {
            let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
            let special = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
            let all: Vec<String> =
                special.chain(bytes).chain(words.map(str::to_owned)).chain(["[INST]".into()]).collect();
            let kind = |at: usize| match at {
                0 => 2,
                1 | 2 => 3,
                3..259 => 6,
                _ if at + 1 == all.len() => 4,
                _ => 1,
            };
            let count = all.len();
            let kinds = (0..count).map(kind).collect();
            // The later in the list, the less likely; longer words a little more.
            let score = |(at, name): (usize, &String)| 40 * name.chars().count() as i32 - at as i32;
            let scores = all.iter().enumerate().map(score).collect();
            set(entries, "tokenizer.ggml.tokens", Value::Texts(all));
            set(entries, "tokenizer.ggml.token_type", Value::I32s(kinds));
            set(entries, "tokenizer.ggml.scores", Value::I32s(scores));
            set(entries, "tokenizer.ggml.model", Value::Text("llama".into()));
            set(entries, "tokenizer.ggml.bos_token_id", Value::U32(1));
            set(entries, "tokenizer.ggml.add_space_prefix", Value::Bool(prefix));
            entries.retain(|(key, _)| key != "tokenizer.ggml.add_bos_token" && key != "tokenizer.ggml.pre");
        });
        assert_same_tokens(&path);
    }
}

/// Reads a text in parts of all sizes, beside another where there is room for two; then its first five tokens once more. The logits
/// after each part.
fn read_in_parts(engine: &mut dyn Engine) -> Vec<Vec<f32>> {
    let text = |sequence: u32, position: u32| token((position * 31 + sequence * 57 + position * position % 11) as u8);
    let sequences = engine.limits().sequences.min(2);
    let mut seen = Vec::new();
    let mut read = |engine: &mut dyn Engine, sequences: u32, from: u32, part: u32| {
        let row = |sequence, position| Row {
            token: text(sequence, position),
            position,
            sequence,
            output: position + 1 == from + part,
        };
        let rows: Vec<Row> = (from..from + part)
            .flat_map(|position| (0..sequences).map(move |sequence| row(sequence, position)))
            .collect();
        engine.decode(&rows).unwrap();
        let last = rows.iter().position(|row| row.output && row.sequence == 0).unwrap();
        seen.push(engine.logits(last).to_vec());
    };
    let mut at = 0;
    for part in [5, 1, 17, 1, 1, 40, 2, 64, 3, 1] {
        read(engine, sequences, at, part);
        at += part;
    }
    assert!(engine.truncate(0, 0), "everything can always be forgotten");
    read(engine, 1, 0, 3);
    read(engine, 1, 3, 2);
    seen
}

#[test]
fn every_architecture_gives_the_logits_of_llama_cpp() {
    let folder = Folder::new();
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3, Architecture::Phi3] {
        let path = folder.path("compared.gguf");
        write_as(architecture, &path, 7, |_| {});
        let [theirs, ours] = both(&path, |_, engine| read_in_parts(engine));
        assert_eq!(ours.len(), 12);
        for (part, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            assert_eq!(theirs.len(), ours.len());
            let apart = theirs.iter().zip(ours).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let spread =
                theirs.iter().copied().fold(f32::MIN, f32::max) - theirs.iter().copied().fold(f32::MAX, f32::min);
            assert!(spread > 5.0, "the logits say something: {spread}");
            assert!(apart < CLOSE, "{architecture:?}, part {part}: {apart} apart of {spread}");
        }
        let again = ours[0].iter().zip(&ours[11]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(again < CLOSE, "{architecture:?}: the same text read again is {again} apart");
    }
}

/// Greedy tokens after a prompt, each with the lead of its logit over the second best.
fn greedy(tokenizer: &dyn Tokenizer, engine: &mut dyn Engine, prompt: &[Token], count: usize) -> Vec<(Token, f32)> {
    engine.truncate(0, 0);
    let (mut written, mut unread, mut position) = (Vec::new(), prompt.to_vec(), 0);
    while written.len() < count {
        let last = unread.len() - 1;
        let rows = (0..).zip(&unread).map(|(at, token)| Row {
            token: *token,
            position: position + at,
            sequence: 0,
            output: at as usize == last,
        });
        engine.decode(&rows.collect::<Vec<_>>()).unwrap();
        position += unread.len() as u32;
        let mut ranked: Vec<(Token, f32)> = (0..).zip(engine.logits(last).iter().copied()).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        written.push((ranked[0].0, ranked[0].1 - ranked[1].1));
        if tokenizer.is_end(ranked[0].0) {
            break;
        }
        unread = vec![ranked[0].0];
    }
    written
}

#[test]
fn the_shipped_model_answers_the_same_token_for_token() {
    let questions = [
        "What is the capital of France?",
        "Who are you?",
        "What is 12 + 30?",
        "What is the opposite of hot?",
        "Say: purple elephants",
        "Tell me a story.",
    ];
    let [theirs, ours] = both(Path::new(SHIPPED), |tokenizer, engine| {
        let control =
            |name: &str| tokenizer.control_tokens().into_iter().find(|token| token.name == name).unwrap().token;
        let answers = questions.map(|question| {
            let mut prompt = vec![control("<|im_start|>")];
            prompt.extend(tokenizer.encode(&format!("user\n{question}"), false));
            prompt.push(control("<|im_end|>"));
            prompt.extend(tokenizer.encode("\n", false));
            prompt.push(control("<|im_start|>"));
            prompt.extend(tokenizer.encode("assistant\n", false));
            greedy(tokenizer, engine, &prompt, 60)
        });
        answers.map(|answer| {
            let text: Vec<u8> = answer.iter().flat_map(|(token, _)| tokenizer.piece(*token)).collect();
            (answer, String::from_utf8_lossy(&text).into_owned())
        })
    });
    let mut whole = 0;
    for (question, (theirs, ours)) in questions.iter().zip(theirs.iter().zip(&ours)) {
        println!("{question} -> {}", ours.1);
        let same = theirs.0.iter().zip(&ours.0).take_while(|(a, b)| a.0 == b.0).count();
        whole += usize::from(same == theirs.0.len() && same == ours.0.len());
        let tie = theirs.0.get(same).is_some_and(|(_, lead)| *lead < 0.1);
        assert!(tie || same == theirs.0.len(), "{question}: {:?} and {:?}", theirs.1, ours.1);
    }
    assert!(whole >= 5, "{whole} of 6 answers are the same to the end");
}
