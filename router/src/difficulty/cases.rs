//! Cases to learn from and to measure by: prompts, and whether a weak and a strong model answered them right.

use super::text::{Kind, mix, tokens};
use thiserror::Error;

/// One case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Where it is from; what stands before a `/` names its group.
    pub source: String,
    /// The prompt as it was sent.
    pub prompt: String,
    /// Whether the weak model was right.
    pub weak: bool,
    /// Whether the strong model was right.
    pub strong: bool,
}

/// What is wrong with a file of cases.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CasesError {
    /// A column is missing.
    #[error(
        "line 1: there is no column `{0}`; wanted are `prompt`, `weak_correct`, `strong_correct` and, if there are groups, `source`"
    )]
    Column(&'static str),
    /// A row cannot be read.
    #[error("line {line}: {what}")]
    Row {
        /// The line on which the row begins, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing in it.
    #[error("there are no cases in it")]
    Empty,
}

impl Case {
    /// Its group: its source up to the first `/`.
    pub fn group(&self) -> &str {
        self.source.split('/').next().unwrap_or_default()
    }

    /// The same for prompts that differ in nothing but case, spaces and marks.
    pub(super) fn words(&self) -> u64 {
        let tokens = tokens(&self.prompt).into_iter().filter(|token| token.kind != Kind::Mark);
        tokens.fold(0, |hash, token| {
            let raw = &self.prompt.as_bytes()[token.at..token.at + token.length];
            let figures = if token.kind == Kind::Number { super::text::hash(raw) } else { token.hash };
            mix(hash, figures)
        })
    }

    /// Reads cases from CSV with the columns `prompt`, `weak_correct`, `strong_correct` (0 or 1) and, if there are groups, `source`;
    /// others are left alone.
    pub fn read_csv(bytes: &[u8]) -> Result<Vec<Self>, CasesError> {
        let mut reader = csv::ReaderBuilder::new().from_reader(bytes);
        let row_error = |error: csv::Error, at: u64| CasesError::Row {
            line: error.position().map_or(at, csv::Position::line),
            what: match error.kind() {
                csv::ErrorKind::Utf8 { .. } => "this is not UTF-8".to_owned(),
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("there are {len} fields where the first line has {expected_len}")
                }
                _ => error.to_string(),
            },
        };
        let header = reader.headers().map_err(|error| row_error(error, 1))?.clone();
        let column = |name| header.iter().position(|title| title.trim() == name);
        let wanted = |name| column(name).ok_or(CasesError::Column(name));
        let (prompt, weak, strong) = (wanted("prompt")?, wanted("weak_correct")?, wanted("strong_correct")?);
        let source = column("source");
        let mut cases = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| row_error(error, 0))?;
            let line = record.position().map_or(0, csv::Position::line);
            let field = |place: usize| record.get(place).unwrap_or_default();
            let flag = |place: usize, name: &str| match field(place).trim() {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                other => Err(CasesError::Row { line, what: format!("`{name}` is 0 or 1, not `{other}`") }),
            };
            let case = Self {
                source: source.map_or("all", field).to_owned(),
                prompt: field(prompt).to_owned(),
                weak: flag(weak, "weak_correct")?,
                strong: flag(strong, "strong_correct")?,
            };
            if case.prompt.trim().is_empty() {
                return Err(CasesError::Row { line, what: "the prompt is empty".to_owned() });
            }
            cases.push(case);
        }
        if cases.is_empty() { Err(CasesError::Empty) } else { Ok(cases) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = |text: &str| Case::read_csv(text.as_bytes()).unwrap_err().to_string();
        assert!(error("prompt,weak_correct\n").starts_with("line 1: there is no column `strong_correct`"));
        let head = "prompt,weak_correct,strong_correct\n";
        assert_eq!(error(head), "there are no cases in it");
        assert_eq!(error(&format!("{head}\"a\nb\",1,0\nc,2,0\n")), "line 4: `weak_correct` is 0 or 1, not `2`");
        assert_eq!(error(&format!("{head}a,1\n")), "line 2: there are 2 fields where the first line has 3");
        assert_eq!(error(&format!("{head} ,1,1\n")), "line 2: the prompt is empty");
        let bad = [head.as_bytes(), b"\xff,1,1\n"].concat();
        assert_eq!(Case::read_csv(&bad).unwrap_err().to_string(), "line 2: this is not UTF-8");
    }

    #[test]
    fn cases_without_a_source_are_one_group() {
        let cases = Case::read_csv(b"strong_correct,prompt,weak_correct,note\n1,hello,0,x\n").unwrap();
        assert_eq!(cases[0], Case { source: "all".into(), prompt: "hello".into(), weak: false, strong: true });
        assert_eq!(cases[0].group(), "all");
    }
}
