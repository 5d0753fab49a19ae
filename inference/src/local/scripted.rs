//! An engine without a model, for fast and exact tests: every byte is a token, and a script says what the answers are.
//!
//! The model's path names the script, a JSON file; the path `echo` needs no file. It answers the last user message with its own
//! text, or with what the script says for it. A plain prompt is continued with the alphabet. The engine is as strict as
//! llama.cpp: a gap in the positions, a row too many or a wrong sequence breaks it.

use super::engine::{Compute, ControlToken, Engine, EngineError, Limits, LoadError, LoadPlan, Row, Token, Tokenizer};
use super::picture::Picture;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// `<|im_start|>`
pub const IM_START: Token = 256;
/// `<|im_end|>`, which ends an answer.
pub const IM_END: Token = 257;
const VOCABULARY: u32 = 258;
const EMBEDDING_WIDTH: usize = 8;
/// Pictures of this width are refused.
pub(crate) const OFFENSIVE: u32 = 13;

/// What the engine does.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Script {
    /// Answers by the last user message; `null` is the alphabet without end.
    pub answers: BTreeMap<String, Option<String>>,
    /// The answer to every other message; without it the message is repeated.
    pub otherwise: Option<String>,
    /// Of answers to these messages it is not sure: each token is ten times as likely as any other, and no more.
    pub unsure: Vec<String>,
    /// Loading fails with this reason.
    pub load_error: Option<String>,
    /// The engine breaks at its n-th batch, counted from 1; after a restart it counts again.
    pub break_at: Option<u64>,
    /// The engine panics at its n-th batch.
    pub panic_at: Option<u64>,
    /// Every batch takes so long, in milliseconds.
    pub step_millis: u64,
    /// Most rows of a batch (default 64).
    pub batch: Option<u32>,
    /// Tokens that all sequences together can hold (default: as many as they need).
    pub cells: Option<usize>,
    /// After so many rows of others, idle KV costs more than moving it out (default: never).
    pub idle_rows: Option<u32>,
    /// It only ranks: by the share of a document's letters that are in the query too.
    pub ranks: bool,
}

/// It needs no file.
pub(crate) fn tokenizer(_: &LoadPlan) -> Result<Arc<dyn Tokenizer>, LoadError> {
    Ok(Arc::new(ScriptedTokenizer))
}

/// Loads the script and serves.
pub(crate) fn compute(plan: &LoadPlan, compute: Compute<'_>) -> Result<(), LoadError> {
    let path = &plan.model.path;
    let script: Script = if path.as_os_str() == "echo" {
        Script::default()
    } else {
        let text =
            std::fs::read_to_string(path).map_err(|error| LoadError(format!("the script cannot be read: {error}")))?;
        serde_json::from_str(&text).map_err(|error| LoadError(format!("the script is not valid: {error}")))?
    };
    if let Some(reason) = &script.load_error {
        return Err(LoadError(reason.clone()));
    }
    let mut engine = ScriptedEngine::new(script, plan.model.context, plan.model.slots);
    engine.limits.sees = plan.model.mmproj.is_some();
    compute(&mut engine);
    Ok(())
}

/// Bytes and two control tokens.
pub struct ScriptedTokenizer;

impl Tokenizer for ScriptedTokenizer {
    fn encode(&self, text: &str, _whole: bool) -> Vec<Token> {
        text.bytes().map(Token::from).collect()
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        u8::try_from(token).into_iter().collect()
    }

    fn is_end(&self, token: Token) -> bool {
        token == IM_END
    }

    fn vocabulary(&self) -> u32 {
        VOCABULARY
    }

    fn control_tokens(&self) -> Vec<ControlToken> {
        let control =
            |token, name: &str| ControlToken { token, name: name.into(), strips_left: false, strips_right: false };
        vec![control(IM_START, "<|im_start|>"), control(IM_END, "<|im_end|>")]
    }

    fn required_first(&self) -> Option<Token> {
        None
    }

    fn chat_template(&self) -> Option<String> {
        None
    }

    fn edge_names(&self) -> (String, String) {
        (String::new(), "<|im_end|>".into())
    }

    fn pair(&self, query: &str, document: &str) -> Vec<Token> {
        [self.encode(query, true), vec![IM_END], self.encode(document, false)].concat()
    }
}

/// The engine.
pub struct ScriptedEngine {
    script: Script,
    limits: Limits,
    sequences: Vec<Vec<Token>>,
    logits: BTreeMap<usize, Vec<f32>>,
    batches: u64,
    /// Pictures so far.
    pub(crate) shown: u64,
    /// Every batch so far, for tests.
    #[cfg(test)]
    pub(crate) log: Vec<Vec<Row>>,
}

impl ScriptedEngine {
    /// An engine with so many sequences of so many tokens.
    pub fn new(script: Script, context: u32, sequences: u32) -> Self {
        let limits = Limits {
            context,
            sequences,
            batch: script.batch.unwrap_or(64).max(sequences),
            vocabulary: VOCABULARY,
            rewinds: true,
            idle_rows: script.idle_rows,
            generates: !script.ranks,
            embedding_context: context,
            ranks: script.ranks,
            embedding_width: EMBEDDING_WIDTH as u32,
            sees: false,
        };
        Self {
            script,
            limits,
            sequences: vec![Vec::new(); sequences as usize],
            logits: BTreeMap::new(),
            batches: 0,
            shown: 0,
            #[cfg(test)]
            log: Vec::new(),
        }
    }

    /// What follows these tokens, and how far above all others its logit is.
    fn next(&self, tokens: &[Token]) -> (Token, f32) {
        const SURE: f32 = 30.0;
        const UNSURE: f32 = 2.3;
        let Some(turn) = tokens.iter().rposition(|token| *token == IM_START) else {
            return (alphabet(tokens.len()), SURE);
        };
        let written = tokens.len() - (turn + 1 + "assistant\n".len()).min(tokens.len());
        let question = last_user_text(&tokens[..turn]);
        let token = match self.script.answers.get(&question) {
            Some(None) => alphabet(written),
            Some(Some(answer)) => byte_or_end(answer, written),
            None => byte_or_end(self.script.otherwise.as_ref().unwrap_or(&question), written),
        };
        (token, if self.script.unsure.contains(&question) { UNSURE } else { SURE })
    }

    fn check(&self, rows: &[Row]) -> Result<(), EngineError> {
        let broken = |reason: String| Err(EngineError::Broken(reason));
        if rows.is_empty() || rows.len() > self.limits.batch as usize {
            return broken(format!("a batch of {} rows", rows.len()));
        }
        let mut ends: Vec<usize> = self.sequences.iter().map(Vec::len).collect();
        for row in rows {
            let Some(end) = ends.get_mut(row.sequence as usize) else {
                return broken(format!("no sequence {}", row.sequence));
            };
            if row.position as usize != *end || row.position >= self.limits.context || row.token >= VOCABULARY {
                return broken(format!("row {row:?} after {end} tokens"));
            }
            *end += 1;
        }
        if self.script.cells.is_some_and(|cells| ends.iter().sum::<usize>() > cells) {
            Err(EngineError::NoRoom)
        } else {
            Ok(())
        }
    }
}

fn alphabet(position: usize) -> Token {
    Token::from(b'a') + (position % 26) as Token
}

fn byte_or_end(answer: &str, at: usize) -> Token {
    answer.as_bytes().get(at).map_or(IM_END, |byte| Token::from(*byte))
}

fn last_user_text(tokens: &[Token]) -> String {
    let turns = tokens.split(|token| *token == IM_START).map(|turn| {
        let bytes: Vec<u8> =
            turn.iter().take_while(|token| **token != IM_END).filter_map(|token| u8::try_from(*token).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let texts: Vec<String> = turns.filter_map(|turn| turn.strip_prefix("user\n").map(str::to_owned)).collect();
    texts.last().cloned().unwrap_or_default()
}

/// The share of a document's letters that its query has too.
fn shared_letters(pair: &[Token]) -> f32 {
    let middle = pair.iter().position(|token| *token == IM_END).unwrap_or(0);
    let (query, document) = (&pair[..middle], &pair[pair.len().min(middle + 1)..]);
    let shared = document.iter().filter(|letter| query.contains(letter)).count();
    shared as f32 / document.len().max(1) as f32
}

impl Engine for ScriptedEngine {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.batches += 1;
        assert!(self.script.panic_at != Some(self.batches), "the script says so");
        if self.script.break_at == Some(self.batches) {
            return Err(EngineError::Broken("the script says so".into()));
        }
        self.check(rows)?;
        std::thread::sleep(Duration::from_millis(self.script.step_millis));
        #[cfg(test)]
        self.log.push(rows.to_vec());
        self.logits.clear();
        for (at, row) in rows.iter().enumerate() {
            self.sequences[row.sequence as usize].push(row.token);
            if row.output {
                let mut logits = vec![0.0; VOCABULARY as usize];
                let (token, above) = self.next(&self.sequences[row.sequence as usize]);
                logits[token as usize] = above;
                self.logits.insert(at, logits);
            }
        }
        Ok(())
    }

    fn logits(&self, row: usize) -> &[f32] {
        self.logits.get(&row).map_or(&[], Vec::as_slice)
    }

    fn truncate(&mut self, sequence: u32, keep: u32) -> bool {
        self.sequences[sequence as usize].truncate(keep as usize);
        true
    }

    fn share(&mut self, from: u32, to: u32, length: u32) {
        self.sequences[to as usize] = self.sequences[from as usize][..length as usize].to_vec();
    }

    fn measure(&mut self, picture: &Picture) -> Result<u32, EngineError> {
        match picture.width() {
            OFFENSIVE => Err(EngineError::Unfit(format!("the script does not like {picture:?}"))),
            _ => Ok(picture.height() + 1),
        }
    }

    /// It sees one token for each row of pixels, the first byte of the row, and then a full stop.
    fn show(&mut self, picture: &Picture, sequence: u32, position: u32) -> Result<(), EngineError> {
        let read = &self.sequences[sequence as usize];
        let length = picture.height() as usize + 1;
        if read.len() != position as usize || read.len() + length >= self.limits.context as usize {
            return Err(EngineError::Broken(format!("{picture:?} after {} tokens, not {position}", read.len())));
        }
        let held: usize = self.sequences.iter().map(Vec::len).sum();
        if self.script.cells.is_some_and(|cells| held + length > cells) {
            return Err(EngineError::NoRoom);
        }
        let rows = picture.rgb().chunks(3 * picture.width() as usize).map(|row| Token::from(row[0]));
        self.sequences[sequence as usize].extend(rows.chain([Token::from(b'.')]));
        self.shown += 1;
        Ok(())
    }

    fn save(&mut self, sequence: u32) -> Option<Vec<u8>> {
        Some(self.sequences[sequence as usize].iter().flat_map(|token| token.to_le_bytes()).collect())
    }

    fn restore(&mut self, sequence: u32, state: &[u8], length: u32) -> bool {
        let tokens = state.chunks_exact(4).map(|word| Token::from_le_bytes([word[0], word[1], word[2], word[3]]));
        let tokens: Vec<Token> = tokens.collect();
        let whole = tokens.len() == length as usize;
        if whole {
            self.sequences[sequence as usize] = tokens;
        }
        whole
    }

    fn embed(&mut self, inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.script.ranks {
            return Ok(inputs.iter().map(|input| vec![shared_letters(input)]).collect());
        }
        let embed = |input: &&[Token]| {
            let mut vector = vec![0.0; EMBEDDING_WIDTH];
            input.iter().for_each(|token| vector[*token as usize % EMBEDDING_WIDTH] += 1.0);
            vector
        };
        Ok(inputs.iter().map(embed).collect())
    }
}
