//! How byte-level vocabularies cut text into words before they look for tokens: the rules by the names that GGUF files give them.
//!
//! The rules are those of the models' own tokenizers in the form in which llama.cpp applies them, so that both engines see the same
//! tokens. Each expression cuts further what the ones before it left.

/// A way to cut text, and what else goes with it.
pub(super) struct Split {
    names: &'static [&'static str],
    pub(super) rules: &'static [&'static str],
    /// Whether a word that is a token as a whole is not put together from parts.
    pub(super) whole_words: bool,
    /// Whether prompts open with the beginning-of-text token if the file does not say.
    pub(super) opens: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";

const SPLITS: &[Split] = &[
    Split { names: &["qwen2", "deepseek-r1-qwen", "megrez"], rules: &[QWEN2], whole_words: false, opens: false },
    Split { names: &["llama-bpe", "llama3", "llama-v3", "falcon3"], rules: &[LLAMA3], whole_words: true, opens: true },
    Split { names: &["dbrx", "smaug-bpe"], rules: &[LLAMA3], whole_words: false, opens: false },
    Split { names: &["gpt-2"], rules: &[GPT2], whole_words: false, opens: false },
    Split { names: &["gpt-4o"], rules: &[GPT4O], whole_words: false, opens: false },
    Split { names: &["smollm", "starcoder"], rules: &[DIGIT, GPT2], whole_words: false, opens: false },
    Split { names: &["tekken"], rules: &[TEKKEN], whole_words: true, opens: true },
];

/// The rules of this name.
pub(super) fn find(name: &str) -> Option<&'static Split> {
    SPLITS.iter().find(|split| split.names.contains(&name))
}
